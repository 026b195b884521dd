//! Which segments there are, in order, while a node may make new ones and remove old ones.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::report::{Condition, Damage, SegmentReport};
use crate::{
    Disk, DiskFile, FileOffset, LogError, Lsn, NodeId,
    error::io_error,
    segment::{Predecessor, SegmentHeader, first_of_name},
};

/// What to do about bytes that are known to have been synced.
pub(super) const RESTORE: &str = "restore this file from a backup or rebuild the node from a replica";

/// The segments of a folder, opened one after another.
#[derive(Debug)]
pub(super) struct Folder<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    waiting: BTreeMap<Lsn, PathBuf>,
    node: Option<NodeId>,
    before: Option<Before>,
    opened: bool,
}

/// The segment read last.
#[derive(Debug)]
struct Before {
    path: PathBuf,
    /// Unless its end could not be read.
    last: Option<Predecessor>,
}

/// A segment to be read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) header: SegmentHeader,
    /// What the next segment says that it follows, where there is a next one.
    pub(super) successor: Option<Predecessor>,
    pub(super) follows: Option<bool>,
}

/// A segment that was read, with the end that the next one must follow.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) report: SegmentReport,
    pub(super) last: Predecessor,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Next {
    /// A segment whose header is right and follows the one before it.
    Segment(Opened),
    /// One that is not.
    Damaged(Box<SegmentReport>),
}

impl<'a> Folder<'a> {
    /// Lists the segments that may hold records in `lsns`.
    pub(super) fn list(disk: &'a dyn Disk, dir: &'a Path, lsns: &RangeInclusive<Lsn>) -> Result<Self, LogError> {
        let mut waiting = segments(disk, dir)?;
        if let Some((first, _)) = waiting.range(..=*lsns.start()).next_back() {
            waiting = waiting.split_off(&first.clone());
        }
        waiting.retain(|first, _| first <= lsns.end());
        Ok(Self { disk, dir, waiting, node: None, before: None, opened: false })
    }

    /// The next segment; `None` at the end. `floor`: what others state durable.
    pub(super) fn next(&mut self, floor: Lsn) -> Result<Option<Next>, LogError> {
        loop {
            let Some((first, path)) = self.waiting.pop_first() else {
                // Something must be here if anything was ever durable.
                return Ok((!self.opened && floor > Lsn::ZERO).then(|| {
                    self.opened = true;
                    let reason = format!("there is no segment, LSN {floor} is known to be durable");
                    Next::Damaged(Box::new(damaged(self.dir.into(), 0, Lsn(1), FileOffset(0), reason)))
                }));
            };
            let file = match self.disk.open(&path, false) {
                Ok(file) => file,
                // Truncated since it was listed; what comes next follows nothing that is still here.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.before = None;
                    continue;
                }
                Err(error) => return Err(io_error("open", &path, error)),
            };
            self.opened = true;
            match self.check(first, &path, file)? {
                Checked::Is(next) => return Ok(Some(next)),
                Checked::Again => {
                    self.waiting.insert(first, path);
                }
            }
        }
    }

    /// A segment was read.
    pub(super) fn read(&mut self, read: Read) -> SegmentReport {
        let is_whole = read.report.damage().is_none();
        self.before = Some(Before { path: read.report.path.clone(), last: is_whole.then_some(read.last) });
        read.report
    }

    fn check(&mut self, first: Lsn, path: &Path, file: Arc<dyn DiskFile>) -> Result<Checked, LogError> {
        let len = file.len().map_err(|error| io_error("stat", path, error))?;
        let wrong = |offset, reason| {
            Ok(Checked::Is(Next::Damaged(Box::new(damaged(path.into(), len, first, FileOffset(offset), reason)))))
        };
        let header = match SegmentHeader::read(path, &*file) {
            Ok(header) => header,
            Err(LogError::Corrupt { offset, reason, .. }) => {
                self.before = Some(Before { path: path.into(), last: None });
                return wrong(offset.0, reason);
            }
            Err(error) => return Err(error),
        };
        let before = self.before.replace(Before { path: path.into(), last: None });
        if header.first != first {
            return wrong(
                0,
                format!("its header says that it starts with LSN {}, its name says {first}", header.first),
            );
        }
        let node = *self.node.get_or_insert(header.node);
        if header.node != node {
            return wrong(0, format!("it was written by node {}, the segments before it by node {node}", header.node));
        }
        let mut follows = None;
        if let Some(before) = before {
            let known = before.last;
            let fits = known.is_none_or(|last| last == header.predecessor);
            if !fits && self.listed_anew(&before, first)? {
                return Ok(Checked::Again);
            }
            if !fits && self.is_there(&before.path)? {
                let last = known.unwrap_or_default();
                let reason = if last.last == header.predecessor.last {
                    format!("it follows another record of LSN {} than the segment before it ends with", last.last)
                } else {
                    format!(
                        "it follows LSN {}, the segment before it ends with LSN {}: a segment between them is missing",
                        header.predecessor.last, last.last
                    )
                };
                return wrong(0, reason);
            }
            follows = fits.then_some(known.is_some());
        }
        let successor = self.successor()?;
        Ok(Checked::Is(Next::Segment(Opened { path: path.into(), file, header, successor, follows })))
    }

    /// A listing that runs beside a node's work may miss a segment: looks again for what lies between. Keeps `before`
    /// where there is something.
    fn listed_anew(&mut self, before: &Before, first: Lsn) -> Result<bool, LogError> {
        let Some(last) = before.last else { return Ok(false) };
        let found = segments(self.disk, self.dir)?;
        let between: Vec<_> =
            found.range(last.last.next()..first).map(|(first, path)| (*first, path.clone())).collect();
        if between.is_empty() {
            return Ok(false);
        }
        self.waiting.extend(between);
        self.before = Some(Before { path: before.path.clone(), last: before.last });
        Ok(true)
    }

    fn is_there(&self, path: &Path) -> Result<bool, LogError> {
        match self.disk.open(path, false) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error("open", path, error)),
        }
    }

    /// What the next segment in line follows, where its header can be read.
    fn successor(&self) -> Result<Option<Predecessor>, LogError> {
        let Some((first, path)) = self.waiting.first_key_value() else { return Ok(None) };
        let file = match self.disk.open(path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("open", path, error)),
        };
        match SegmentHeader::read(path, &*file) {
            Ok(header) if header.first == *first => Ok(Some(header.predecessor)),
            Ok(_) | Err(LogError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

enum Checked {
    Is(Next),
    /// Segments before it turned up.
    Again,
}

fn segments(disk: &dyn Disk, dir: &Path) -> Result<BTreeMap<Lsn, PathBuf>, LogError> {
    let listed = disk.list(dir).map_err(|error| io_error("list", dir, error))?;
    Ok(listed.into_iter().filter_map(|path| first_of_name(&path).map(|first| (first, path))).collect())
}

fn damaged(path: PathBuf, bytes: u64, first: Lsn, offset: FileOffset, reason: String) -> SegmentReport {
    SegmentReport {
        bytes,
        version: None,
        node: None,
        salt: None,
        first,
        last: Lsn(first.0.saturating_sub(1)),
        records: 0,
        durable: Lsn::ZERO,
        follows: None,
        condition: Condition::Damaged(Damage { path: path.clone(), offset, reason, remedy: RESTORE }),
        path,
    }
}
