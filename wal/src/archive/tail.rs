//! A reader that begins in the archive and goes on in the live log, without a seam.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;

use super::{
    Archive,
    entry::{ArchiveEntry, ArchiveGap, ArchivedHistory, ArchivedSegment},
    open::ArchivedFile,
};
use crate::{
    FileOffset, Frame, HistoryId, Log, LogError, Lsn, Position, RecordKind, Seq, Tail,
    codec::slice,
    frame::Salt,
    index::{Floor, RecordIndex},
    shared::Shared,
    tail::decode_frame,
};

/// Most raw bytes of frames fetched with one call.
const READ_AHEAD_BYTES: u64 = 4 << 20;

/// Bytes of other histories that are fetched over rather than jumped: a request costs more than a block.
const GAP_BYTES: u64 = 1 << 20;

/// Reads records in LSN order: from the archive what the log no longer holds, from the log the rest. Every frame is
/// checked as [`Tail`] does, each commit against the chain of its history, and each archived segment against the one
/// before it. What neither holds is an error that names it ([`LogError::ArchiveGap`]), never passed over.
#[derive(Debug)]
pub struct ArchiveTail {
    archive: Archive,
    log: Option<Arc<Shared>>,
    follows: Option<Follows>,
    /// Everything up to here was returned, or belongs to other histories.
    passed: Lsn,
    place: Place,
    /// The last commit read of each history.
    positions: BTreeMap<HistoryId, Position>,
}

#[derive(Debug, Clone, Copy)]
struct Follows {
    id: HistoryId,
    /// The last commit returned, or where the reader started.
    seq: Seq,
    /// The history's floor in the log when the reader was made.
    floor: Option<Floor>,
}

#[derive(Debug)]
enum Place {
    /// To be found by `passed`.
    Unknown,
    Archived(Box<Reading>),
    Live(Box<Tail>),
}

/// One archived segment being read.
#[derive(Debug)]
struct Reading {
    file: ArchivedFile,
    records: RecordIndex,
    /// Histories that begin anew somewhere in it.
    broken: Vec<HistoryId>,
    /// Places in `records` that are still to be read, and how far that is done.
    places: Vec<u32>,
    next: usize,
    run: Option<Run>,
}

/// Raw bytes that were fetched.
#[derive(Debug)]
struct Run {
    offset: u64,
    bytes: Bytes,
    /// Places up to here are in it.
    until: usize,
}

impl ArchiveTail {
    pub(super) fn of_all(archive: Archive, log: Option<&Log>, after: Lsn) -> Self {
        let log = log.map(|log| log.shared().clone());
        Self { archive, log, follows: None, passed: after, place: Place::Unknown, positions: BTreeMap::new() }
    }

    pub(super) async fn of_history(
        archive: Archive,
        log: Option<&Log>,
        id: HistoryId,
        after: Seq,
    ) -> Result<Self, LogError> {
        let log = log.map(|log| log.shared().clone());
        let floor = log.as_ref().and_then(|log| log.floor(id));
        let live = log.as_ref().map(|log| log.reader_start(id, after));
        let passed = match live {
            Some(Ok(lsn)) => lsn,
            None | Some(Err(LogError::Truncated { .. } | LogError::UnknownHistory(_))) => {
                archive.reader_start(id, after, floor, log.as_deref()).await?
            }
            Some(Err(error)) => return Err(error),
        };
        let follows = Some(Follows { id, seq: after, floor });
        Ok(Self { archive, log, follows, passed, place: Place::Unknown, positions: BTreeMap::new() })
    }

    /// Everything up to here has been returned or belongs to other histories.
    pub fn passed(&self) -> Lsn {
        self.passed
    }

    /// Whether a record is there that was not returned, as far as can be told without looking into the archive.
    pub fn is_behind(&mut self) -> Result<bool, LogError> {
        match &mut self.place {
            Place::Live(tail) => match tail.is_behind() {
                // The archive has what truncation took.
                Err(LogError::ReplayTruncated { .. }) => Ok(true),
                is_behind => is_behind,
            },
            Place::Archived(_) => Ok(true),
            Place::Unknown => Ok(self.log.as_ref().is_some_and(|log| self.passed < log.marks.durable())),
        }
    }

    /// Waits for the next durable record. Cancel-safe. Without a log, the end of the archive is an error:
    /// [`LogError::Archive`], and may be tried again.
    pub async fn next(&mut self) -> Result<Frame, LogError> {
        loop {
            match &mut self.place {
                Place::Live(tail) => match tail.next().await {
                    Ok(frame) => return self.taken(frame),
                    Err(error) => self.overtaken(error)?,
                },
                _ => match self.next_archived().await? {
                    Some(frame) => return Ok(frame),
                    None if self.log.is_some() => {}
                    None => {
                        return Err(LogError::Archive {
                            operation: "read",
                            object: format!("LSN {}", self.passed.next()),
                            reason: format!("the archive ends at LSN {}", self.passed),
                        });
                    }
                },
            }
        }
    }

    /// The next record that is archived or durable now; `None` when there is none yet. Blocks on the log's disk.
    pub async fn try_next(&mut self) -> Result<Option<Frame>, LogError> {
        loop {
            match &mut self.place {
                Place::Live(tail) => match tail.try_next() {
                    Ok(Some(frame)) => return self.taken(frame).map(Some),
                    Ok(None) => {
                        self.passed = self.passed.max(tail.passed());
                        return Ok(None);
                    }
                    Err(error) => self.overtaken(error)?,
                },
                _ => match self.next_archived().await? {
                    Some(frame) => return Ok(Some(frame)),
                    None if self.log.is_some() => {}
                    None => return Ok(None),
                },
            }
        }
    }

    /// Truncation has overtaken the live reader: the archive has what it wanted.
    fn overtaken(&mut self, error: LogError) -> Result<(), LogError> {
        match (&self.place, error) {
            (Place::Live(tail), LogError::ReplayTruncated { .. }) => {
                self.passed = self.passed.max(tail.passed());
                self.place = Place::Unknown;
                Ok(())
            }
            (_, error) => Err(error),
        }
    }

    /// The next frame of the archive; `None` when the reader now is in the log, or at the archive's end if there is
    /// none.
    async fn next_archived(&mut self) -> Result<Option<Frame>, LogError> {
        loop {
            match &mut self.place {
                Place::Live(_) => return Ok(None),
                Place::Archived(reading) => {
                    if let Some(frame) = reading.next_frame().await? {
                        return self.taken(frame).map(Some);
                    }
                    self.passed = self.passed.max(reading.file.header.last);
                    self.place = Place::Unknown;
                }
                Place::Unknown => {
                    if !self.locate().await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Finds the record after `passed`. `false` at the end of an archive without a log.
    async fn locate(&mut self) -> Result<bool, LogError> {
        let wanted = self.passed.next();
        if let Some(log) = &self.log
            && wanted >= log.first()
        {
            self.check_seam(log, wanted)?;
            let tail = match &self.follows {
                Some(follows) => Tail::resume(log.clone(), follows.id, follows.seq, follows.floor, self.passed),
                None => Tail::of_all(log.clone(), self.passed),
            };
            self.place = Place::Live(Box::new(tail));
            return Ok(true);
        }
        let mut entry = self.archive.covering(wanted);
        if entry.is_none() {
            // Another process may have archived more.
            self.archive.look_again().await?;
            entry = self.archive.covering(wanted);
        }
        match entry.as_deref() {
            Some(ArchiveEntry::Segment(segment)) => {
                let is_concerned = self.follows.is_none_or(|follows| segment.history(follows.id).is_some());
                if is_concerned {
                    let reading = Reading::open(&self.archive, segment, self.follows, self.passed).await?;
                    self.place = Place::Archived(Box::new(reading));
                } else {
                    self.passed = segment.last;
                }
                Ok(true)
            }
            Some(ArchiveEntry::Gap(gap)) => Err(gap_error(gap, self.follows.map(|follows| follows.id))),
            None => match &self.log {
                None if wanted > self.archive.archived() => Ok(false),
                // Retained when looked at before, or neither retained nor archived.
                Some(log) if wanted >= log.first() => Ok(true),
                log => {
                    let to = log.as_ref().map_or(Lsn::ZERO, |log| log.first());
                    let to = self.archive.first().map_or(to, |first| if wanted < first { first } else { to });
                    let reason = "neither the archive nor the log holds them".into();
                    Err(LogError::ArchiveGap { from: wanted, to: Lsn(to.0.saturating_sub(1)), missing: None, reason })
                }
            },
        }
    }

    /// Where the archive ends and the log begins, the log's segment must follow the archive's.
    fn check_seam(&self, log: &Shared, wanted: Lsn) -> Result<(), LogError> {
        let Some(entry) = self.archive.covering(self.passed) else { return Ok(()) };
        let (ArchiveEntry::Segment(archived), Some(live)) = (&*entry, log.segment_of(wanted)) else { return Ok(()) };
        let continues = if live.header.first == archived.last.next() {
            live.header.predecessor.checksum == archived.last_checksum()
        } else if live.header.first == archived.first {
            live.header.salt == archived.salt()
        } else {
            true
        };
        if continues {
            Ok(())
        } else {
            Err(LogError::ArchiveConflict {
                object: format!("the segment from LSN {} on", archived.first),
                reason: "the log does not continue it: it belongs to another life of this node".into(),
            })
        }
    }

    /// Checks a frame against those before it.
    fn taken(&mut self, frame: Frame) -> Result<Frame, LogError> {
        let header = &frame.header;
        if self.follows.is_none() && frame.lsn != self.passed.next() {
            let reason = "the reader passed over them".into();
            let to = Lsn(frame.lsn.0.saturating_sub(1));
            return Err(LogError::ArchiveGap { from: self.passed.next(), to, missing: None, reason });
        }
        if header.kind == RecordKind::Commit {
            let id = header.history;
            let known = self.positions.get(&id).copied();
            let continues = known.is_none_or(|known| {
                known.follow(header.epoch, header.kind, header.commit_time, header.payload_hash) == header.position()
            });
            if !continues && !self.begins_anew(id, frame.lsn) {
                let here = known.unwrap_or_else(|| Position::start(id));
                return Err(LogError::Forked { here: Box::new(here), record: Box::new(header.position()) });
            }
            if let Some(follows) = &mut self.follows {
                if !continues {
                    let retained_after = Seq(header.seq.0.saturating_sub(1));
                    return Err(LogError::Truncated { history: id, retained_after, wanted: follows.seq });
                }
                follows.seq = header.seq;
            }
            self.positions.insert(id, header.position());
        }
        self.passed = frame.lsn;
        Ok(frame)
    }

    /// Whether a history is stated to begin anew in the segment that holds `lsn`.
    fn begins_anew(&self, history: HistoryId, lsn: Lsn) -> bool {
        match &self.place {
            Place::Archived(reading) => reading.broken.contains(&history),
            Place::Live(_) | Place::Unknown => self.log.as_ref().is_some_and(|log| {
                let segment = log.segment_of(lsn);
                segment.is_some_and(|segment| {
                    segment.state().histories.get(&history).is_some_and(|summary| summary.broken.is_some())
                })
            }),
        }
    }
}

impl Archive {
    /// The LSN after which a reader that holds everything up to `after` starts in the archive: in the newest run of
    /// segments without a gap that allows it. `floor`: where the live log says that the history was replaced.
    async fn reader_start(
        &self,
        id: HistoryId,
        after: Seq,
        floor: Option<Floor>,
        log: Option<&Shared>,
    ) -> Result<Lsn, LogError> {
        // The log goes on where the newest run of segments ends, if nothing is missing between them.
        let log = log.filter(|log| log.first() <= self.archived().next());
        let in_log = log.map(|log| log.large_commits(id)).unwrap_or_default();
        let regions = self.regions();
        let mut retained_after = None;
        for (number, Region { segments, gap_after }) in regions.iter().enumerate().rev() {
            let log = log.filter(|_| number + 1 == regions.len());
            let region_start = segments.first().map_or(Lsn::ZERO, |segment| Lsn(segment.first().0 - 1));
            let held = || segments.iter().filter_map(|entry| held_of(entry, id));
            let broken = held().filter_map(|held| held.broken).next_back();
            let floor = [broken, floor].into_iter().flatten().max_by_key(|floor| floor.lsn);
            let floor = floor.filter(|floor| floor.lsn >= region_start);
            let start = floor.map_or(region_start, |floor| floor.lsn);
            let after_start = || held().filter(move |held| held.last > start);
            let boundary = floor.map(|floor| floor.seq).or_else(|| after_start().next().map(|held| held.after));
            let Some(boundary) = boundary else { continue };
            let end = after_start().next_back().map_or(boundary, |held| held.upto);
            // Commits whose fragments lie before the start cannot be read as a whole.
            let in_log = log.map(|_| in_log.iter()).into_iter().flatten();
            let spanning = after_start().flat_map(|held| held.spanning.iter()).chain(in_log);
            let cut_off = spanning.filter(|large| large.lsn > start && large.first_fragment <= start);
            let boundary = cut_off.map(|large| large.seq).fold(boundary, Seq::max);
            if after > end {
                if let Some(log) = log
                    && after >= boundary
                    && let Some(lsn) = log.commit_lsn(id, after)?
                {
                    return Ok(lsn);
                }
                let missing = gap_after.as_ref().and_then(|gap| Some((gap, *gap.history(id)?)));
                return match missing {
                    Some((gap, missing)) if after < missing.upto => Err(gap_error(gap, Some(id))),
                    Some((gap, missing)) if after == missing.upto => Ok(gap.to),
                    _ => Err(LogError::Invalid {
                        reason: format!("the archive has history {id} up to seq {end}, seq {after} was asked for"),
                    }),
                };
            }
            if after >= boundary {
                return Ok(self.commit_in(segments, id, after).await?.map_or(start, |lsn| lsn.max(start)));
            }
            retained_after.get_or_insert(boundary);
            if floor.is_some() {
                break;
            }
        }
        if let Some(gap) = self.gap_with(id, after) {
            return Err(gap_error(&gap, Some(id)));
        }
        match retained_after {
            Some(retained_after) => Err(LogError::Truncated { history: id, retained_after, wanted: after }),
            None => Err(LogError::UnknownHistory(id)),
        }
    }

    /// Runs of segments without a gap, oldest first.
    fn regions(&self) -> Vec<Region> {
        let mut regions = vec![Region::default()];
        for entry in self.entries() {
            let Some(region) = regions.last_mut() else { break };
            if let ArchiveEntry::Gap(gap) = &*entry {
                region.gap_after = Some(gap.clone());
                regions.push(Region::default());
            } else {
                region.segments.push(entry);
            }
        }
        regions
    }

    /// The gap in which a history's transaction after `after` lies.
    fn gap_with(&self, id: HistoryId, after: Seq) -> Option<ArchiveGap> {
        self.gaps()
            .into_iter()
            .find(|gap| gap.history(id).is_some_and(|missing| missing.after <= after && after < missing.upto))
    }

    /// The LSN of a history's commit of `seq`.
    async fn commit_in(
        &self,
        segments: &[Arc<ArchiveEntry>],
        id: HistoryId,
        seq: Seq,
    ) -> Result<Option<Lsn>, LogError> {
        for entry in segments.iter().rev() {
            let ArchiveEntry::Segment(segment) = &**entry else { continue };
            // One that lies behind it altogether is not opened: it may be missing, and then only what it held is.
            let may_hold =
                segment.history(id).is_some_and(|held| held.upto >= seq && (held.after < seq || held.broken.is_some()));
            if !may_hold {
                continue;
            }
            let file = ArchivedFile::open(self.store(), segment).await?;
            let (_, records) = file.index().await?;
            if let Some(place) = records.commit(id, seq) {
                return Ok(Some(Lsn(segment.first.0 + u64::from(place))));
            }
        }
        Ok(None)
    }
}

/// A run of segments without a gap, and the gap that ends it.
#[derive(Debug, Default)]
struct Region {
    segments: Vec<Arc<ArchiveEntry>>,
    gap_after: Option<ArchiveGap>,
}

fn held_of(entry: &ArchiveEntry, history: HistoryId) -> Option<&ArchivedHistory> {
    match entry {
        ArchiveEntry::Segment(segment) => segment.history(history),
        ArchiveEntry::Gap(_) => None,
    }
}

/// The error of a reader that comes to a gap.
fn gap_error(gap: &ArchiveGap, history: Option<HistoryId>) -> LogError {
    let missing = history.and_then(|id| gap.history(id)).copied();
    LogError::ArchiveGap { from: gap.from, to: gap.to, missing, reason: gap.reason.clone() }
}

impl Reading {
    /// Opens a segment for the records after `passed`, of one history or of all.
    async fn open(
        archive: &Archive,
        segment: &ArchivedSegment,
        follows: Option<Follows>,
        passed: Lsn,
    ) -> Result<Self, LogError> {
        let file = ArchivedFile::open(archive.store(), segment).await?;
        let (footer, records) = file.index().await?;
        let from = passed.next().0.saturating_sub(segment.first.0) as u32;
        let places = match follows {
            Some(follows) => records.places(follows.id).iter().copied().filter(|place| *place >= from).collect(),
            None => (from..records.entries.len() as u32).collect(),
        };
        let broken = footer.histories.iter().filter(|(_, summary)| summary.broken.is_some()).map(|(id, _)| *id);
        let broken = broken.collect();
        Ok(Self { file, records, broken, places, next: 0, run: None })
    }

    async fn next_frame(&mut self) -> Result<Option<Frame>, LogError> {
        let Some(place) = self.places.get(self.next).copied() else { return Ok(None) };
        let Some(entry) = self.records.entries.get(place as usize).copied() else { return Ok(None) };
        let lsn = Lsn(self.file.header.first.0 + u64::from(place));
        let run = match self.run.take().filter(|run| self.next < run.until) {
            Some(run) => run,
            None => {
                let (offset, len, until) = self.plan();
                Run { offset, bytes: self.file.read(offset, len).await?, until }
            }
        };
        let bytes = slice(&run.bytes, entry.offset.saturating_sub(run.offset) as usize, entry.len as usize);
        let frame = decode_frame(&bytes, lsn, entry.len, self.salt()).map_err(|fault| match fault {
            LogError::Invalid { reason } => self.file.corrupt_record(FileOffset(entry.offset), &reason),
            error => error,
        })?;
        self.run = Some(run);
        self.next += 1;
        Ok(Some(frame))
    }

    fn salt(&self) -> Salt {
        self.file.header.salt
    }

    /// What to fetch next: offset, length, and the place after the last one in it.
    fn plan(&self) -> (u64, u64, usize) {
        let (mut start, mut end, mut until) = (0, 0, self.next);
        for place in &self.places[self.next..] {
            let Some(entry) = self.records.entries.get(*place as usize) else { break };
            let entry_end = entry.offset + u64::from(entry.len);
            if until == self.next {
                start = entry.offset;
            } else if entry.offset.saturating_sub(end) > GAP_BYTES || entry_end.saturating_sub(start) > READ_AHEAD_BYTES
            {
                break;
            }
            end = entry_end;
            until += 1;
        }
        (start, end.saturating_sub(start), until)
    }
}
