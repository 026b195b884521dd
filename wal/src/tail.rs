//! Readers that follow the log and never pass the durable mark.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::{
    FileOffset, Frame, HistoryId, LogError, Lsn, RecordKind, Seq,
    codec::slice,
    config::planted,
    frame::{self, Decoded, HEADER_LEN, Salt},
    index::{Floor, RecordIndex},
    payload::PART_ALIGNMENT,
    segment::{OpenSegment, read_full},
    shared::Shared,
};

/// Most bytes read ahead with one call: checked while they are still in the processor's cache.
const READ_AHEAD_BYTES: u64 = 1 << 20;

/// Reads below this are done in place: a follower reads what was just written, which is in memory.
const INLINE_READ_BYTES: u64 = 256 << 10;

/// Bytes of other histories that are read over rather than jumped.
const GAP_BYTES: u64 = 128 << 10;

/// A reader of one history, or of all. Frames that it returns share one read buffer of up to a few MiB with their
/// neighbours: copy what is kept for long.
#[derive(Debug)]
pub struct Tail {
    shared: Arc<Shared>,
    /// `None`: all.
    history: Option<Follows>,
    passed: Lsn,
    read_ahead_bytes: u64,
    durable: watch::Receiver<Lsn>,
    segment: Option<Arc<OpenSegment>>,
    /// What was read ahead.
    run: Option<Run>,
    /// Memory of an earlier run that nobody holds any more: fresh memory costs more than reading into it.
    spare: BytesMut,
}

/// The one history that a reader follows.
#[derive(Debug)]
struct Follows {
    id: HistoryId,
    /// The last commit returned, or where the reader started.
    seq: Seq,
    /// The history's floor when the reader was made: if it moves, a repair has replaced what was being read.
    floor: Option<Floor>,
    /// Truncated records are an error even where no commit was among them: somebody else has them.
    is_strict: bool,
}

/// Frames that lie close together, to be read with one call.
#[derive(Debug)]
struct Plan {
    segment: Arc<OpenSegment>,
    frames: Vec<Place>,
    offset: u64,
    len: u64,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    lsn: Lsn,
    offset: u64,
    len: u32,
}

/// A plan that was read.
#[derive(Debug)]
struct Run {
    plan: Plan,
    /// The plan's bytes, from `start` on.
    buffer: Bytes,
    start: usize,
    next: usize,
}

impl Tail {
    /// Reads all records after `passed`.
    pub(crate) fn of_all(shared: Arc<Shared>, passed: Lsn) -> Self {
        let durable = shared.marks.watch();
        let read_ahead_bytes = READ_AHEAD_BYTES;
        Self {
            shared,
            history: None,
            passed,
            read_ahead_bytes,
            durable,
            segment: None,
            run: None,
            spare: BytesMut::new(),
        }
    }

    /// Reads the record after `passed` and nothing ahead.
    pub(crate) fn of_one(shared: Arc<Shared>, passed: Lsn) -> Self {
        Self { read_ahead_bytes: 0, ..Self::of_all(shared, passed) }
    }

    /// Reads the records of a history after the commit of `after`.
    pub(crate) fn of_history(shared: Arc<Shared>, id: HistoryId, after: Seq) -> Result<Self, LogError> {
        let floor = shared.floor(id);
        let passed = shared.reader_start(id, after)?;
        let follows = Follows { id, seq: after, floor, is_strict: false };
        Ok(Self { history: Some(follows), ..Self::of_all(shared, passed) })
    }

    /// Goes on reading a history behind `passed`, `seq` being its last commit read and `floor` its floor when that
    /// began. [`LogError::ReplayTruncated`] as soon as truncation is ahead of it.
    pub(crate) fn resume(shared: Arc<Shared>, id: HistoryId, seq: Seq, floor: Option<Floor>, passed: Lsn) -> Self {
        let follows = Follows { id, seq, floor, is_strict: true };
        Self { history: Some(follows), ..Self::of_all(shared, passed) }
    }

    /// The next durable record, read now; `None` when there is none yet. Blocks on disk reads.
    /// [`LogError::Corrupt`] names the file and the offset of a record that does not check.
    pub fn try_next(&mut self) -> Result<Option<Frame>, LogError> {
        if let Some(frame) = self.next_of_run()? {
            return Ok(Some(frame));
        }
        let Some(plan) = self.plan()? else { return Ok(None) };
        self.run = Some(plan.read(std::mem::take(&mut self.spare))?);
        self.next_of_run()
    }

    /// Waits for the next durable record. Cancel-safe. After the last durable record of a log that is poisoned or
    /// closed, the error says which.
    pub async fn next(&mut self) -> Result<Frame, LogError> {
        loop {
            // Seen before the look at the log, so that nothing synced in between is missed.
            self.durable.borrow_and_update();
            if let Some(frame) = self.next_of_run()? {
                return Ok(frame);
            }
            if let Some(plan) = self.plan()? {
                let runtime = tokio::runtime::Handle::try_current();
                let spare = std::mem::take(&mut self.spare);
                let run = match runtime {
                    Ok(runtime) if plan.len > INLINE_READ_BYTES => {
                        let read = runtime.spawn_blocking(move || plan.read(spare)).await;
                        read.map_err(|_| LogError::Closed)??
                    }
                    _ => plan.read(spare)?,
                };
                self.run = Some(run);
                continue;
            }
            if self.durable.changed().await.is_err() {
                // What was synced last is still to be returned.
                if self.shared.marks.durable() > self.passed
                    && let Some(frame) = self.try_next()?
                {
                    return Ok(frame);
                }
                return Err(self.shared.poison.get().unwrap_or(LogError::Closed));
            }
        }
    }

    /// Whether a durable record is there that was not returned: then [`Tail::next`] waits for the disk at most.
    pub fn is_behind(&mut self) -> Result<bool, LogError> {
        let in_run = self.run.as_ref().is_some_and(|run| run.next < run.plan.frames.len());
        Ok(in_run || self.plan()?.is_some())
    }

    /// The next durable record where it was read ahead already; `None` says nothing of what is in the log. Does not
    /// touch the disk.
    pub fn next_ready(&mut self) -> Result<Option<Frame>, LogError> {
        self.next_of_run()
    }

    /// Everything up to here has been returned or belongs to other histories.
    pub fn passed(&self) -> Lsn {
        self.passed
    }

    /// The next frame of what was read ahead. On an error the reader stays where it is.
    fn next_of_run(&mut self) -> Result<Option<Frame>, LogError> {
        let Some(run) = &mut self.run else { return Ok(None) };
        let Some(place) = run.plan.frames.get(run.next).copied() else {
            let done = self.run.take().map(|run| run.buffer);
            self.spare = done.and_then(|buffer| buffer.try_into_mut().ok()).unwrap_or_default();
            return Ok(None);
        };
        match run.frame(place) {
            Ok(frame) => {
                run.next += 1;
                self.passed = place.lsn;
                if let Some(follows) = &mut self.history
                    && frame.header.kind == RecordKind::Commit
                {
                    follows.seq = frame.header.seq;
                }
                Ok(Some(frame))
            }
            Err(error) => {
                self.run = None;
                Err(error)
            }
        }
    }

    /// What to read next; `None` when there is nothing durable. Moves `passed` over segments without such records.
    fn plan(&mut self) -> Result<Option<Plan>, LogError> {
        loop {
            let marks = &self.shared.marks;
            let durable =
                if planted!(self.shared.config, ReadsPastDurable) { marks.appended() } else { marks.durable() };
            if self.passed >= durable {
                return Ok(None);
            }
            if let Some(follows) = &self.history {
                let floor = self.shared.floor(follows.id);
                if floor != follows.floor {
                    let retained_after = floor.map_or(Seq::ZERO, |floor| floor.seq);
                    return Err(LogError::Truncated { history: follows.id, retained_after, wanted: follows.seq });
                }
                if let Some(last) = self.shared.passes_over(follows.id, self.passed.next()) {
                    self.passed = last.min(durable);
                    continue;
                }
            }
            let segment = self.segment_after_passed()?;
            let (plan, last) = {
                let records = segment.records.read();
                let last = Lsn((segment.first.0 + records.entries.len() as u64).saturating_sub(1));
                let until = last.min(durable);
                let misses_last = planted!(self.shared.config, MissesLastOfSegment) && last < durable;
                let shown = if misses_last { Lsn(until.0.saturating_sub(1)) } else { until };
                (self.plan_within(&segment, &records, shown), until)
            };
            match plan {
                Some(plan) => return Ok(Some(plan)),
                None => self.passed = self.passed.max(last),
            }
        }
    }

    fn plan_within(&self, segment: &Arc<OpenSegment>, records: &RecordIndex, until: Lsn) -> Option<Plan> {
        let lsn_of = |place: u32| Lsn(segment.first.0 + u64::from(place));
        let mut frames: Vec<Place> = Vec::new();
        let (mut start, mut end) = (0, 0);
        let mut add = |place: u32| {
            let Some(entry) = records.entries.get(place as usize) else { return false };
            let entry_end = entry.offset + u64::from(entry.len);
            if frames.is_empty() {
                start = entry.offset;
            } else if entry.offset - end > GAP_BYTES || entry_end - start > self.read_ahead_bytes {
                return false;
            }
            end = entry_end;
            frames.push(Place { lsn: lsn_of(place), offset: entry.offset, len: entry.len });
            true
        };
        match &self.history {
            Some(follows) => {
                let places = records.places(follows.id);
                let from = places.partition_point(|place| lsn_of(*place) <= self.passed);
                for place in places.iter().skip(from).take_while(|place| lsn_of(**place) <= until) {
                    if !add(*place) {
                        break;
                    }
                }
            }
            None => {
                let from = (self.passed.next().0.saturating_sub(segment.first.0)) as u32;
                let to = (until.0 + 1).saturating_sub(segment.first.0) as u32;
                for place in from..to {
                    if !add(place) {
                        break;
                    }
                }
            }
        }
        (!frames.is_empty()).then(|| Plan { segment: segment.clone(), frames, offset: start, len: end - start })
    }

    /// The segment with the record after `passed`, open.
    fn segment_after_passed(&mut self) -> Result<Arc<OpenSegment>, LogError> {
        let wanted = self.passed.next();
        if let Some(segment) = &self.segment {
            let records = segment.records.read().entries.len() as u64;
            if segment.first <= wanted && wanted.0 < segment.first.0 + records {
                return Ok(segment.clone());
            }
        }
        loop {
            let Some(segment) = self.shared.segment_of(self.passed.next()) else {
                self.jump_truncated()?;
                continue;
            };
            match segment.open(&*self.shared.disk) {
                Ok(open) => {
                    self.segment = Some(open.clone());
                    return Ok(open);
                }
                Err(LogError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound && self.shared.first() > segment.header.first => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The record after `passed` is truncated. That is fine where it was another history's.
    fn jump_truncated(&mut self) -> Result<(), LogError> {
        let first = self.shared.first();
        let Some(follows) = self.history.as_ref().filter(|follows| !follows.is_strict) else {
            return Err(LogError::ReplayTruncated { first, wanted: self.passed.next() });
        };
        let retained_after = self.shared.retained_after(follows.id).ok_or(LogError::UnknownHistory(follows.id))?;
        if follows.seq < retained_after {
            return Err(LogError::Truncated { history: follows.id, retained_after, wanted: follows.seq });
        }
        self.passed = Lsn(first.0.saturating_sub(1)).max(self.passed);
        Ok(())
    }
}

impl Plan {
    /// Reads it, into `spare` where that is large enough. The bytes start at a multiple of 64 in memory, as frames do
    /// in the file, so that parts are aligned.
    fn read(self, mut spare: BytesMut) -> Result<Run, LogError> {
        let len = self.len as usize;
        if spare.len() < len + PART_ALIGNMENT {
            spare = BytesMut::zeroed(len + PART_ALIGNMENT);
        }
        let start = spare.as_ptr().align_offset(PART_ALIGNMENT).min(PART_ALIGNMENT);
        let count = read_full(&self.segment.path, &*self.segment.file, &mut spare[start..start + len], self.offset)?;
        if count < len {
            spare.truncate(start + count);
        }
        Ok(Run { plan: self, buffer: spare.freeze(), start, next: 0 })
    }
}

impl Run {
    /// Checks and decodes one frame.
    fn frame(&self, place: Place) -> Result<Frame, LogError> {
        let bytes = slice(&self.buffer, self.start + (place.offset - self.plan.offset) as usize, place.len as usize);
        decode_frame(&bytes, place.lsn, place.len, self.plan.segment.salt).map_err(|error| match error {
            LogError::Invalid { reason } => {
                LogError::Corrupt { path: self.plan.segment.path.clone(), offset: FileOffset(place.offset), reason }
            }
            error => error,
        })
    }
}

/// Checks and decodes the frame of a record. [`LogError::Invalid`] says what is wrong with its bytes.
pub(crate) fn decode_frame(bytes: &Bytes, lsn: Lsn, len: u32, salt: Salt) -> Result<Frame, LogError> {
    let wrong = |reason: String| LogError::Invalid { reason };
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(wrong("the file ends before this record".into()));
    };
    let header = match frame::decode(header, salt) {
        Ok(Decoded::Valid(header)) => header,
        Ok(Decoded::Foreign) => return Err(wrong("the frame header's checksum is wrong".into())),
        Err(error @ LogError::UnknownRecordKind { .. }) => return Err(error),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let Some(record) = header.record.filter(|_| header.lsn == lsn && header.frame_len == len) else {
        return Err(wrong(format!("another record than LSN {lsn} stands here")));
    };
    let payload = frame::payload(bytes, &record).map_err(|error| wrong(error.to_string()))?;
    Ok(Frame { lsn, skipped: header.skipped, header: record, payload })
}
