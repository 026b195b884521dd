//! What callers, readers and the writer share. Locks are taken in this order: claims, archive, histories, segments, one
//! segment's state, one segment's records.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};

use crate::{
    Clock, Disk, HistoryHeader, HistoryId, LogConfig, LogError, Lsn, NodeId, Position, RecordKind, Seq,
    archive::ArchiveClaim,
    error::io_error,
    frame::{self, Decoded, HEADER_LEN},
    history::Histories,
    index::{Floor, LargeCommit},
    marks::Marks,
    poison::Poison,
    queue::Queue,
    retention::Claims,
    segment::{OpenSegment, Segment, read_full},
};

/// The state of one open log.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: LogConfig,
    pub(crate) node: NodeId,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) queue: Queue,
    pub(crate) marks: Marks,
    pub(crate) poison: Poison,
    /// Commits and fragments are refused for want of space.
    pub(crate) refuses: AtomicBool,
    pub(crate) histories: Mutex<Histories>,
    pub(crate) claims: Mutex<Claims>,
    pub(crate) archive: Mutex<Option<ArchiveClaim>>,
    /// Told when a segment has been sealed and the next one begun.
    pub(crate) rolled: tokio::sync::Notify,
    /// By first LSN. Never empty: the last one is written.
    pub(crate) segments: RwLock<BTreeMap<Lsn, Arc<Segment>>>,
    /// A segment was removed and the folder is not synced.
    pub(crate) unsynced_removal: Mutex<bool>,
}

impl Shared {
    /// First LSN retained, or the next one when there is none.
    pub(crate) fn first(&self) -> Lsn {
        self.segments.read().keys().next().copied().unwrap_or(self.marks.appended().next())
    }

    /// All segments, oldest first.
    pub(crate) fn all_segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().values().cloned().collect()
    }

    /// The segment that holds `lsn`, or would; `None` when it is truncated.
    pub(crate) fn segment_of(&self, lsn: Lsn) -> Option<Arc<Segment>> {
        self.segments.read().range(..=lsn).next_back().map(|(_, segment)| segment.clone())
    }

    /// First fragments of all transactions that are open, or are open again when a crash takes their end.
    pub(crate) fn first_fragments(&self) -> Vec<Lsn> {
        let durable = self.marks.durable();
        self.histories.lock().values_mut().flat_map(|history| history.first_fragments(durable)).collect()
    }

    /// Removes the oldest segments, one after the other, each durably gone before the next: a crash or a failure in
    /// between leaves a log without a gap. The last segment stays, sealed or not: it alone says where LSNs go on.
    pub(crate) fn remove_oldest(&self, count: usize) -> Result<(), LogError> {
        let mut is_unsynced = self.unsynced_removal.lock();
        self.sync_removal(&mut is_unsynced)?;
        let segments = self.all_segments();
        for segment in segments.iter().take(count.min(segments.len().saturating_sub(1))) {
            // Out of the list first: readers take a missing file for a truncated one.
            self.segments.write().remove(&segment.header.first);
            match self.disk.remove(&segment.path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    // It is still the oldest: without it in the list, the next would go before it.
                    self.segments.write().insert(segment.header.first, segment.clone());
                    return Err(io_error("remove", &segment.path, error));
                }
                _ => *is_unsynced = true,
            }
            self.sync_removal(&mut is_unsynced)?;
        }
        Ok(())
    }

    fn sync_removal(&self, is_unsynced: &mut bool) -> Result<(), LogError> {
        if *is_unsynced {
            let dir = &self.config.dir;
            self.disk.sync_dir(dir).map_err(|error| io_error("sync", dir, error))?;
            *is_unsynced = false;
        }
        Ok(())
    }

    /// Whether anything is accepted.
    pub(crate) fn check_running(&self) -> Result<(), LogError> {
        self.queue.closed().map_or(Ok(()), Err)
    }

    /// Whether a record of this kind is taken.
    pub(crate) fn check_space(&self, kind: RecordKind) -> Result<(), LogError> {
        let refused = kind != RecordKind::Abort && self.refuses.load(Ordering::Acquire);
        if refused { Err(LogError::Full { path: self.config.dir.clone(), refused: true }) } else { Ok(()) }
    }

    /// See [`crate::Log::retained_after`].
    pub(crate) fn retained_after(&self, history: HistoryId) -> Option<Seq> {
        self.start(history).map(|(_, seq)| seq)
    }

    /// Where readers of a history can start: records after this LSN, from this seq on.
    fn start(&self, history: HistoryId) -> Option<(Lsn, Seq)> {
        let (end, floor) = {
            let histories = self.histories.lock();
            let known = histories.get(&history)?;
            (known.fold.end?.position.seq, known.floor)
        };
        let retained = Lsn(self.first().0.saturating_sub(1));
        let start = floor.map_or(retained, |floor| floor.lsn.max(retained));
        let mut boundary = floor.filter(|floor| floor.lsn >= retained).map(|floor| floor.seq);
        let mut after_large = Seq::ZERO;
        for segment in self.all_segments() {
            let state = segment.state();
            let Some(summary) = state.histories.get(&history).filter(|summary| summary.last > start) else { continue };
            boundary.get_or_insert(summary.boundary);
            let large = summary.large.iter().filter(|large| large.lsn > start && large.first_fragment <= start);
            after_large = large.map(|large| large.seq).max().unwrap_or_default().max(after_large);
        }
        Some((start, boundary.unwrap_or(end).max(after_large)))
    }

    /// First record retained, and for each history the last seq committed before its first retained record (its end
    /// where none is), as truncation leaves them at one moment.
    pub(crate) fn retained_boundaries(&self) -> (Lsn, BTreeMap<HistoryId, Seq>) {
        let _truncation = self.claims.lock();
        let ends: Vec<(HistoryId, Seq)> = {
            let histories = self.histories.lock();
            let ends = histories.iter().filter_map(|(id, history)| Some((*id, history.fold.end?.position.seq)));
            ends.collect()
        };
        let mut boundaries: BTreeMap<HistoryId, Seq> = BTreeMap::new();
        for segment in self.all_segments() {
            for (id, summary) in &segment.state().histories {
                boundaries.entry(*id).or_insert(summary.boundary);
            }
        }
        for (id, end) in ends {
            boundaries.entry(id).or_insert(end);
        }
        (self.first(), boundaries)
    }

    /// Where readers of a history cannot start before, if a repair replaced it.
    pub(crate) fn floor(&self, history: HistoryId) -> Option<Floor> {
        self.histories.lock().get(&history)?.floor
    }

    /// The last LSN of the sealed segment that holds `lsn`, if it has no record of `history`.
    pub(crate) fn passes_over(&self, history: HistoryId, lsn: Lsn) -> Option<Lsn> {
        let segment = self.segment_of(lsn)?;
        let state = segment.state();
        (state.sealed && !state.histories.contains_key(&history)).then_some(state.last)
    }

    /// The LSN after which a reader that holds everything up to `after` starts. Blocks on the disk where the commit
    /// lies in a segment that nobody reads.
    pub(crate) fn reader_start(&self, history: HistoryId, after: Seq) -> Result<Lsn, LogError> {
        let (start, retained_after) = self.start(history).ok_or(LogError::UnknownHistory(history))?;
        if after < retained_after {
            return Err(LogError::Truncated { history, retained_after, wanted: after });
        }
        let end = self.end(history).ok_or(LogError::UnknownHistory(history))?;
        if after > end {
            return Err(LogError::Invalid {
                reason: format!("history {history} ends at seq {end}, seq {after} was asked for"),
            });
        }
        Ok(self.find_commit(history, after)?.map_or(start, |(lsn, ..)| lsn.max(start)))
    }

    /// First record of a history after `lsn`.
    pub(crate) fn next_record(&self, history: HistoryId, lsn: Lsn) -> Result<Option<Lsn>, LogError> {
        for segment in self.all_segments() {
            let holds = segment.state().histories.get(&history).is_some_and(|summary| summary.last > lsn);
            if !holds {
                continue;
            }
            let open = segment.open(&*self.disk)?;
            let records = open.records.read();
            let places = records.places(history);
            let at = places.partition_point(|place| open.first.0 + u64::from(*place) <= lsn.0);
            if let Some(place) = places.get(at) {
                return Ok(Some(Lsn(open.first.0 + u64::from(*place))));
            }
        }
        Ok(None)
    }

    /// See [`crate::Log::position_at`].
    pub(crate) fn position_at(&self, history: HistoryId, seq: Seq) -> Option<Position> {
        let end = self.histories.lock().get(&history)?.fold.end?.position;
        if seq == end.seq {
            return Some(end);
        }
        if seq == Seq::ZERO {
            return Some(Position::start(history));
        }
        self.header_at(history, seq).map(|header| header.position())
    }

    /// See [`crate::Log::restart_at`].
    pub(crate) fn restart_at(&self, history: HistoryId, seq: Seq) -> Option<Seq> {
        self.header_at(history, seq).map(|header| header.restart_seq)
    }

    fn header_at(&self, history: HistoryId, seq: Seq) -> Option<HistoryHeader> {
        let found = self.find_commit(history, seq).and_then(|found| {
            let Some((_, open, offset)) = found else { return Ok(None) };
            let mut bytes = [0; HEADER_LEN];
            read_full(&open.path, &*open.file, &mut bytes, offset)?;
            match frame::decode(&bytes, open.salt)? {
                Decoded::Valid(header) => Ok(header.record),
                Decoded::Foreign => Ok(None),
            }
        });
        found.unwrap_or_else(|error| {
            tracing::warn!("header of history {history} at seq {seq}: {error}");
            None
        })
    }

    /// The LSN of a history's retained commit of `seq`.
    pub(crate) fn commit_lsn(&self, history: HistoryId, seq: Seq) -> Result<Option<Lsn>, LogError> {
        Ok(self.find_commit(history, seq)?.map(|(lsn, ..)| lsn))
    }

    /// A history's retained commits that end a transaction in fragments.
    pub(crate) fn large_commits(&self, history: HistoryId) -> Vec<LargeCommit> {
        let segments = self.all_segments().into_iter();
        let large = segments.flat_map(|segment| {
            segment.state().histories.get(&history).map(|summary| summary.large.clone()).unwrap_or_default()
        });
        large.collect()
    }

    fn end(&self, history: HistoryId) -> Option<Seq> {
        Some(self.histories.lock().get(&history)?.fold.end?.position.seq)
    }

    /// The retained commit of `seq` above the history's floor: LSN, segment, offset.
    fn find_commit(&self, history: HistoryId, seq: Seq) -> Result<Option<(Lsn, Arc<OpenSegment>, u64)>, LogError> {
        let floor = self.floor(history).map_or(Lsn::ZERO, |floor| floor.lsn);
        for segment in self.all_segments().into_iter().rev() {
            let may_hold =
                segment.state().histories.get(&history).is_some_and(|summary| {
                    summary.last > floor && summary.end.is_some_and(|end| end.position.seq >= seq)
                });
            if !may_hold {
                continue;
            }
            let open = segment.open(&*self.disk)?;
            let found = {
                let records = open.records.read();
                let place = records.commit(history, seq);
                debug_assert!(place.is_none_or(|place| {
                    records.entries.get(place as usize).is_some_and(|entry| entry.kind == RecordKind::Commit)
                }));
                place.and_then(|place| Some((place, records.entries.get(place as usize)?.offset)))
            };
            if let Some((place, offset)) = found {
                let lsn = Lsn(open.first.0 + u64::from(place));
                return Ok((lsn > floor).then_some((lsn, open, offset)));
            }
        }
        Ok(None)
    }
}
