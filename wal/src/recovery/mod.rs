//! Opens a folder of segments: checks their chain, tells a torn tail from damage, and makes certain what is kept.
//! The rules stand in `FORMAT.md`.

pub(crate) mod scan;

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Clock, Disk, DiskFile, FileOffset, HistoryEnd, HistoryHeader, HistoryId, LogConfig, LogError, Lsn, NodeId,
    RecoveredHistory, Recovery,
    config::planted,
    error::io_error,
    footer::{self, Footer},
    frame::{self, Decoded, HEADER_LEN},
    history::{Histories, History, HistoryFold},
    index::Floor,
    reserve::is_no_space,
    segment::{
        Predecessor, SEGMENT_HEADER_LEN, Segment, SegmentHeader, SegmentState, first_of_name, is_temporary, read_full,
    },
    writer::{Active, WriteError, make_segment, push_payload},
};
use scan::{Scan, Window, read_frame, scan};

/// How much is made certain at once where it is.
const AGAIN_BYTES: usize = 1 << 20;

/// What a log starts with.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: BTreeMap<Lsn, Arc<Segment>>,
    pub(crate) histories: Histories,
    pub(crate) active: Active,
    pub(crate) last: Predecessor,
    pub(crate) report: Recovery,
}

/// A segment file whose header checked.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: SegmentHeader,
}

/// Recovers the log in `config.dir`, which is locked and exists.
pub(crate) fn recover(
    config: &LogConfig,
    node: NodeId,
    durable_floor: Lsn,
    disk: &dyn Disk,
    clock: &dyn Clock,
) -> Result<Recovered, LogError> {
    let mut found = list(disk, &config.dir, node)?;
    let mut recovery = Recovering { config, node, disk, clock, folds: BTreeMap::new(), segments: BTreeMap::new() };
    let Some(last_found) = found.pop() else {
        if durable_floor > Lsn::ZERO {
            return Err(LogError::EndsBefore { end: Lsn::ZERO, wanted: durable_floor });
        }
        return recovery.finish(Predecessor::default(), None, None);
    };
    for (index, segment) in found.iter().enumerate() {
        let successor = found.get(index + 1).unwrap_or(&last_found).header.predecessor;
        // It may have been about to be sealed. Earlier ones were, before anything was written behind their successor.
        let may_be_torn = index + 1 == found.len();
        recovery.take_followed(segment, successor, may_be_torn)?;
    }
    recovery.take_last(last_found, durable_floor)
}

/// Finds the segments, oldest first, and checks that each follows the one before.
fn list(disk: &dyn Disk, dir: &Path, node: NodeId) -> Result<Vec<Found>, LogError> {
    let mut paths = BTreeMap::new();
    for path in disk.list(dir).map_err(|error| io_error("list", dir, error))? {
        if is_temporary(&path) {
            disk.remove(&path).map_err(|error| io_error("remove", &path, error))?;
        } else if let Some(first) = first_of_name(&path) {
            paths.insert(first, path);
        }
    }
    let mut found = Vec::with_capacity(paths.len());
    for (first, path) in paths {
        let file = disk.open(&path, false).map_err(|error| io_error("open", &path, error))?;
        let header = SegmentHeader::read(&path, &*file)?;
        if header.node != node {
            return Err(LogError::ForeignNode { path, found: header.node, expected: node });
        }
        if header.first != first {
            let reason = format!("its header says that it starts with LSN {}, its name says {first}", header.first);
            return Err(LogError::Corrupt { path, offset: FileOffset(0), reason });
        }
        found.push(Found { path, file, header });
    }
    Ok(found)
}

/// The footer of a segment that may have been about to be sealed when the log ended. `None` when any of it is damaged:
/// a crash leaves parts of it in any order, and the frames tell the same; with the LSN that it states durable, if it
/// states any. One that is whole is written again, because it may be in the page cache alone.
fn settled_footer(disk: &dyn Disk, segment: &Found) -> Result<(Option<Footer>, Lsn), LogError> {
    let Found { path, file, header } = segment;
    let Some(footer) = Footer::read(path, &**file, header.salt)? else { return Ok((None, Lsn::ZERO)) };
    match footer.records(path, &**file, header.salt) {
        Ok(_) => {}
        Err(error @ LogError::Io { .. }) => return Err(error),
        Err(_) => return Ok((None, footer.durable)),
    }
    let mut bytes = vec![0; (footer.file_len - footer.frames_end) as usize];
    if read_full(path, &**file, &mut bytes, footer.frames_end)? < bytes.len() {
        return Ok((None, footer.durable));
    }
    let file = disk.open(path, true).map_err(|error| io_error("open", path, error))?;
    let written = file.write_all_vectored_at(&mut [IoSlice::new(&bytes)], footer.frames_end);
    written.map_err(|error| io_error("write", path, error))?;
    file.sync_all().map_err(|error| io_error("fsync", path, error))?;
    let durable = footer.durable;
    Ok((Some(footer), durable))
}

/// The header of one record of a segment with a footer.
fn header_of(segment: &Found, footer: &Footer, lsn: Lsn) -> Result<HistoryHeader, LogError> {
    let Found { path, file, header } = segment;
    let records = footer.records(path, &**file, header.salt)?;
    let entry = lsn.0.checked_sub(footer.first.0).and_then(|place| records.entries.get(place as usize));
    let offset = entry.map_or(0, |entry| entry.offset);
    let mut bytes = [0; HEADER_LEN];
    read_full(path, &**file, &mut bytes, offset)?;
    let found = match frame::decode(&bytes, header.salt)? {
        Decoded::Valid(found) if found.lsn == lsn => found.record,
        _ => None,
    };
    found.ok_or_else(|| LogError::Corrupt {
        path: path.clone(),
        offset: FileOffset(offset),
        reason: format!("no record of LSN {lsn} stands where the footer says"),
    })
}

/// Recovery under way.
struct Recovering<'a> {
    config: &'a LogConfig,
    node: NodeId,
    disk: &'a dyn Disk,
    clock: &'a dyn Clock,
    folds: BTreeMap<HistoryId, HistoryFold>,
    segments: BTreeMap<Lsn, Arc<Segment>>,
}

impl Recovering<'_> {
    /// A segment that has a successor: whole up to `last`, or damaged.
    fn take_followed(&mut self, segment: &Found, last: Predecessor, may_be_torn: bool) -> Result<(), LogError> {
        let footer = match may_be_torn {
            true => settled_footer(self.disk, segment)?.0,
            false => Footer::read(&segment.path, &*segment.file, segment.header.salt)?,
        };
        if let Some(footer) = footer
            && footer.first == segment.header.first
            && footer.last == last
        {
            return self.take_footer(segment, &footer);
        }
        let scan = scan(&segment.path, &*segment.file, &segment.header, self.config, last.last, &mut self.folds)?;
        let corrupt =
            |reason: String| LogError::Corrupt { path: segment.path.clone(), offset: FileOffset(scan.end), reason };
        if scan.last.last < last.last {
            let reason = scan.damage.as_ref().map_or("the records end", |damage| &damage.reason);
            return Err(corrupt(format!("{reason}; the next segment starts after LSN {}", last.last)));
        }
        if scan.last != last {
            return Err(corrupt(format!(
                "the record of LSN {} is another than the one that the next segment follows",
                last.last
            )));
        }
        self.seal(segment, &scan)
    }

    fn take_footer(&mut self, segment: &Found, footer: &Footer) -> Result<(), LogError> {
        for (id, summary) in &footer.histories {
            let fold = self.folds.entry(*id).or_default();
            fold.take_summary(summary);
            if !fold.is_begun() {
                // Fragments and aborts alone are left of it: the first of them says where it stands.
                fold.begin(&header_of(segment, footer, summary.first)?);
            }
        }
        let sealed = Segment::sealed(segment.path.clone(), segment.header, footer.state());
        self.segments.insert(segment.header.first, Arc::new(sealed));
        Ok(())
    }

    /// Cuts a segment behind the frames of `scan` and gives it its footer.
    fn seal(&mut self, segment: &Found, scan: &Scan) -> Result<(), LogError> {
        let Found { path, header, .. } = segment;
        let histories = scan.histories.clone();
        let state = SegmentState { last: scan.last.last, bytes: scan.end, sealed: true, histories };
        let footer =
            footer::encode(scan.end, header.first, scan.last, scan.last.last, &scan.records, &state, header.salt);
        let file = self.disk.open(path, true).map_err(|error| io_error("open", path, error))?;
        file.set_len(scan.end).map_err(|error| io_error("truncate", path, error))?;
        if let Err(error) = file.write_all_vectored_at(&mut [IoSlice::new(&footer)], scan.end) {
            if is_no_space(&error) {
                // Half a footer is no end, and what lies in its space must not be seen.
                file.set_len(scan.end).map_err(|error| io_error("truncate", path, error))?;
                file.sync_all().map_err(|error| io_error("fsync", path, error))?;
            }
            return Err(io_error("write", path, error));
        }
        file.sync_all().map_err(|error| io_error("fsync", path, error))?;
        let state = SegmentState { bytes: scan.end + footer.len() as u64, ..state };
        self.segments.insert(header.first, Arc::new(Segment::sealed(path.clone(), *header, state)));
        Ok(())
    }

    /// The last segment: closed in good order, or to be decided.
    fn take_last(mut self, segment: Found, mut floor: Lsn) -> Result<Recovered, LogError> {
        let (footer, stated) = settled_footer(self.disk, &segment)?;
        let footer = footer.filter(|footer| footer.first == segment.header.first);
        // What a torn footer states was true already.
        floor = floor.max(stated);
        if let Some(footer) = &footer
            && footer.durable == footer.last.last
        {
            if footer.last.last < floor {
                return Err(LogError::EndsBefore { end: footer.last.last, wanted: floor });
            }
            self.take_footer(&segment, footer)?;
            return self.finish_sealed(&segment, footer.last, None);
        }
        let floor = if planted!(self.config, IgnoresFloor) { Lsn::ZERO } else { floor };
        let before = self.folds.clone();
        let mut whole =
            scan(&segment.path, &*segment.file, &segment.header, self.config, Lsn(u64::MAX), &mut self.folds)?;
        if let Some(footer) = &footer {
            whole.stated = whole.stated.max(footer.durable);
        }
        if footer.is_some_and(|footer| footer.frames_end == whole.end && footer.last == whole.last) {
            // Sealed, but its successor was never made.
            whole.damage = None;
        }
        if planted!(self.config, IgnoresLaterMarks) {
            whole.damage.iter_mut().for_each(|damage| damage.stated_later = Lsn::ZERO);
        }
        let expected = whole.last.last.next();
        let torn = match &whole.damage {
            Some(damage) if damage.stated_later.max(whole.stated).max(floor) >= expected => {
                let stated = damage.stated_later.max(whole.stated).max(floor);
                return Err(LogError::Corrupt {
                    path: segment.path,
                    offset: damage.offset,
                    reason: format!("{}, where LSN {expected} was; LSN {stated} is known to be durable", damage.reason),
                });
            }
            None if floor >= expected => {
                return Err(LogError::EndsBefore { end: whole.last.last, wanted: floor });
            }
            Some(damage) => Some(format!(
                "{}: cut {} bytes from byte {} on, after LSN {}: {}",
                segment.path.display(),
                damage.bytes,
                damage.offset,
                whole.last.last,
                damage.reason
            )),
            None => None,
        };
        let mut durable = whole.stated.max(floor);
        if planted!(self.config, ServesUndecided) {
            durable = durable.max(whole.last.last);
        }
        if durable >= whole.last.last && whole.last.last >= segment.header.first {
            return self.finish_whole(segment, whole, torn);
        }
        // Records above `durable` may be in the page cache alone.
        let after = std::mem::replace(&mut self.folds, before);
        let kept = scan(&segment.path, &*segment.file, &segment.header, self.config, durable, &mut self.folds)?;
        let (last, active) = match self.rewrite(&segment, &kept, whole.last.last) {
            Ok(rewritten) => rewritten,
            Err(error) if error.is_full() => {
                self.folds = after;
                self.write_again(&segment, kept.end, whole.end)?;
                return self.finish_unsealed(segment, whole, torn);
            }
            Err(error) => return Err(error),
        };
        if kept.last.last >= segment.header.first {
            self.seal(&segment, &kept)?;
        }
        self.finish(last, Some(active), torn)
    }

    /// There is no space for a segment: the records from `start` on are made certain where they are. What crashes
    /// meanwhile leaves the same bytes.
    fn write_again(&self, segment: &Found, start: u64, end: u64) -> Result<(), LogError> {
        let path = &segment.path;
        let file = self.disk.open(path, true).map_err(|error| io_error("open", path, error))?;
        let mut bytes = vec![0; AGAIN_BYTES.min((end - start) as usize)];
        let mut offset = start;
        while offset < end {
            let len = (end - offset).min(AGAIN_BYTES as u64) as usize;
            let read = read_full(path, &*file, &mut bytes[..len], offset)?;
            let written = file.write_all_vectored_at(&mut [IoSlice::new(&bytes[..read])], offset);
            written.map_err(|error| io_error("write", path, error))?;
            offset += len as u64;
        }
        file.sync_all().map_err(|error| io_error("fsync", path, error))
    }

    /// Goes on behind a segment that is sealed. Where there is no space for the next one, the log stands there: it can
    /// be read, and the first write that finds space begins the next.
    fn finish_sealed(self, segment: &Found, last: Predecessor, torn: Option<String>) -> Result<Recovered, LogError> {
        match Active::begin(self.disk, self.clock, self.config, last, self.node) {
            Ok(active) => self.finish(last, Some(active), torn),
            Err(WriteError::Full(error)) => {
                let Some(sealed) = self.segments.get(&segment.header.first).cloned() else { return Err(error) };
                let active = Active::standing(self.disk, self.config, sealed)?;
                self.sync_folder()?;
                self.finish(last, Some(active), torn)
            }
            Err(WriteError::Broken(error)) => Err(error),
        }
    }

    /// Goes on behind a segment that has no footer and whose records are certain. The next one is made first: a record
    /// may have been refused before the log ended, a crash while the footer is written may show what lay in its space
    /// before, and only the next segment says that it does not count.
    fn finish_whole(mut self, segment: Found, whole: Scan, torn: Option<String>) -> Result<Recovered, LogError> {
        // Its space may be what the next one needs.
        let path = &segment.path;
        let file = self.disk.open(path, true).map_err(|error| io_error("open", path, error))?;
        file.set_len(whole.end).map_err(|error| io_error("truncate", path, error))?;
        let active = match Active::begin(self.disk, self.clock, self.config, whole.last, self.node) {
            Ok(active) => active,
            Err(WriteError::Full(_)) => return self.finish_unsealed(segment, whole, torn),
            Err(WriteError::Broken(error)) => return Err(error),
        };
        match self.seal(&segment, &whole) {
            Ok(()) => self.finish(whole.last, Some(active), torn),
            Err(error) if error.is_full() => {
                active.discard(self.disk, self.config)?;
                self.finish_unsealed(segment, whole, torn)
            }
            Err(error) => Err(error),
        }
    }

    /// Stands on a segment whose records are certain, and for whose end there is no space. Nothing is written to it but
    /// that end.
    fn finish_unsealed(self, segment: Found, whole: Scan, torn: Option<String>) -> Result<Recovered, LogError> {
        let Found { path, header, .. } = segment;
        let file = self.disk.open(&path, true).map_err(|error| io_error("open", &path, error))?;
        let len = file.len().map_err(|error| io_error("look at", &path, error))?;
        let state = SegmentState { last: whole.last.last, bytes: whole.end, sealed: false, histories: whole.histories };
        let mut active = Active::continued(self.disk, self.config, path, header, state, whole.records, file)?;
        active.cut(len);
        self.sync_folder()?;
        self.finish(whole.last, Some(active), torn)
    }

    /// What an earlier process removed is gone for good, as making a segment would see to: the next removal must not
    /// become durable before it.
    fn sync_folder(&self) -> Result<(), LogError> {
        let dir = &self.config.dir;
        self.disk.sync_dir(dir).map_err(|error| io_error("sync", dir, error))
    }

    /// Copies the records behind `kept` up to `last` into a fresh segment and makes it durable.
    fn rewrite(&mut self, segment: &Found, kept: &Scan, last: Lsn) -> Result<(Predecessor, Active), LogError> {
        let header = SegmentHeader::after(kept.last, self.node, self.config, self.clock);
        let durable = kept.last.last;
        let mut window = Window::new(self.config, &segment.path, &*segment.file);
        let mut offset = kept.end;
        let mut end = SEGMENT_HEADER_LEN as u64;
        let mut at = kept.last;
        let mut failed = None;
        let made = make_segment(self.disk, self.config, &header, |file| {
            while at.last < last {
                let frame = match read_frame(&mut window, &segment.header, offset, at.last) {
                    Ok(Ok(frame)) => frame,
                    Ok(Err(reason)) => {
                        failed = Some(LogError::Corrupt {
                            path: segment.path.clone(),
                            offset: FileOffset(offset),
                            reason: format!("{reason}, on the second read"),
                        });
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                    Err(error) => {
                        failed = Some(error);
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                };
                offset += u64::from(frame.header.frame_len);
                let Some(record) = frame.header.record else { continue };
                let bytes: [u8; HEADER_LEN] =
                    frame::encode_record(&record, frame.header.lsn, durable, frame.header.skipped, header.salt);
                let mut slices = vec![IoSlice::new(&bytes)];
                push_payload(&mut slices, &frame.payload);
                file.write_all_vectored_at(&mut slices, end)?;
                end += u64::from(frame.header.frame_len);
                at = Predecessor { last: frame.header.lsn, checksum: frame::checksum_of(&bytes) };
            }
            Ok(())
        });
        let (path, file) = made.map_err(|error| failed.unwrap_or(error))?;
        // Read back as any segment is: what is served is what is now in this file.
        let copy = scan(&path, &*file, &header, self.config, Lsn(u64::MAX), &mut self.folds)?;
        if copy.last != at || copy.end != end {
            let reason = "the records just written cannot be read back".into();
            return Err(LogError::Corrupt { path, offset: FileOffset(copy.end), reason });
        }
        let state = SegmentState { last: at.last, bytes: end, sealed: false, histories: copy.histories };
        let active = Active::continued(self.disk, self.config, path, header, state, copy.records, file)?;
        Ok((at, active))
    }

    /// Everything up to `last` is durable now.
    fn finish(
        mut self,
        last: Predecessor,
        active: Option<Active>,
        torn: Option<String>,
    ) -> Result<Recovered, LogError> {
        let active = match active {
            Some(active) => active,
            None => {
                Active::begin(self.disk, self.clock, self.config, last, self.node).map_err(|error| match error {
                    WriteError::Full(error) | WriteError::Broken(error) => error,
                })?
            }
        };
        self.segments.insert(active.open.first, active.segment.clone());
        let mut histories = Histories::new();
        let mut recovered = Vec::with_capacity(self.folds.len());
        for (id, fold) in self.folds {
            if let Some(end) = fold.end {
                let open = fold.open.values().map(|open| open.number).collect();
                recovered.push(RecoveredHistory { end: HistoryEnd { ..end }, open });
            }
            let floor = last_break(&self.segments, id);
            histories.insert(id, History::recovered(fold, floor));
        }
        let first = self.segments.keys().next().copied().unwrap_or(last.last.next());
        let report = Recovery { first, last: last.last, torn, histories: recovered };
        Ok(Recovered { segments: self.segments, histories, active, last, report })
    }
}

/// Where a history was last begun anew.
fn last_break(segments: &BTreeMap<Lsn, Arc<Segment>>, history: HistoryId) -> Option<Floor> {
    segments.values().rev().find_map(|segment| segment.state().histories.get(&history)?.broken)
}
