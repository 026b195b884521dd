//! Reads a segment frame by frame, and what lies behind the last good one.

use std::{collections::BTreeMap, path::Path};

use bytes::{Bytes, BytesMut};

use crate::{
    DiskFile, FileOffset, HistoryId, LogConfig, LogError, Lsn, Payload,
    codec::slice,
    config::planted,
    error::io_error,
    frame::{self, Decoded, FrameHeader, HEADER_LEN},
    history::HistoryFold,
    index::{HistorySummary, RecordIndex},
    payload::is_zero,
    segment::{Predecessor, SEGMENT_HEADER_LEN, SegmentHeader, read_full},
};

/// How much is read at once: what was read is checked while it is still in the processor's cache.
const WINDOW_BYTES: usize = 1 << 20;

/// What a scan found.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) records: RecordIndex,
    pub(crate) histories: BTreeMap<HistoryId, HistorySummary>,
    /// The last record that checked, or the predecessor.
    pub(crate) last: Predecessor,
    /// Behind the last frame that checked.
    pub(crate) end: u64,
    /// Highest durable LSN stated by frames that checked.
    pub(crate) stated: Lsn,
    /// Why the scan stopped, unless only zeros follow.
    pub(crate) damage: Option<Damage>,
}

/// Bytes that are not what they should be, and what is behind them.
#[derive(Debug)]
pub(crate) struct Damage {
    pub(crate) offset: FileOffset,
    pub(crate) reason: String,
    /// Up to the end of the file.
    pub(crate) bytes: u64,
    /// Highest durable LSN stated by a later header that checks.
    pub(crate) stated_later: Lsn,
}

/// A frame whose header and payload checked.
#[derive(Debug)]
pub(crate) struct ScannedFrame {
    pub(crate) header: FrameHeader,
    /// Of a mark: empty.
    pub(crate) payload: Payload,
}

/// Reads frames from the first on, up to the record `until` or the first that does not check. `folds` go along.
pub(crate) fn scan(
    path: &Path,
    file: &dyn DiskFile,
    header: &SegmentHeader,
    config: &LogConfig,
    until: Lsn,
    folds: &mut BTreeMap<HistoryId, HistoryFold>,
) -> Result<Scan, LogError> {
    let mut window = Window::new(config, path, file);
    let mut found = Scan {
        records: RecordIndex::default(),
        histories: BTreeMap::new(),
        last: header.predecessor,
        end: SEGMENT_HEADER_LEN as u64,
        stated: header.predecessor.last,
        damage: None,
    };
    while found.last.last < until {
        let frame = match read_frame(&mut window, header, found.end, found.last.last)? {
            Ok(frame) => frame,
            Err(reason) => {
                found.damage = look_behind(&mut window, header, found.end, reason)?;
                break;
            }
        };
        let FrameHeader { lsn, durable, frame_len, checksum, record, .. } = frame.header;
        found.stated = found.stated.max(durable);
        if let Some(record) = record {
            let fold = folds.entry(record.history).or_default();
            let folded = fold.take(&record, lsn);
            HistorySummary::take(found.histories.entry(record.history), &folded, &record, lsn);
            found.records.push(record.history, record.kind, record.seq, found.end, frame_len);
            found.last = Predecessor { last: lsn, checksum };
        }
        found.end += u64::from(frame_len);
    }
    for (id, summary) in &mut found.histories {
        if let Some(fold) = folds.get(id) {
            summary.set_open(fold);
        }
    }
    Ok(found)
}

/// Reads and checks the frame at `offset`; the inner error says why it is none.
pub(crate) fn read_frame(
    window: &mut Window<'_>,
    segment: &SegmentHeader,
    offset: u64,
    last: Lsn,
) -> Result<Result<ScannedFrame, String>, LogError> {
    let Some(bytes) = window.header(offset)? else { return Ok(Err("the file ends".into())) };
    let header = match frame::decode(&bytes, segment.salt) {
        Ok(Decoded::Valid(header)) => *header,
        Ok(Decoded::Foreign) => return Ok(Err("no frame header checks here".into())),
        Err(error) => return Err(unknown(window.path, offset, &error)),
    };
    let Some(record) = header.record else {
        return Ok(if header.lsn == last {
            Ok(ScannedFrame { header, payload: Payload::empty() })
        } else {
            Err(format!("a durable mark of LSN {} after LSN {last}", header.lsn))
        });
    };
    if header.lsn != last.next() {
        return Ok(Err(format!("LSN {} follows LSN {last}", header.lsn)));
    }
    let Some(bytes) = window.get(offset, header.frame_len as usize)? else {
        return Ok(Err(format!("the file ends within a frame of {} bytes", header.frame_len)));
    };
    match frame::payload(&bytes, &record) {
        Ok(payload) => Ok(Ok(ScannedFrame { header, payload })),
        Err(error) => match frame::unknown_directory(&bytes, &record) {
            Some(error) => Err(unknown(window.path, offset, &error)),
            None if planted!(window.config, AcceptsTornRecords) => {
                Ok(Ok(ScannedFrame { header, payload: Payload::empty() }))
            }
            None => Ok(Err(error.to_string())),
        },
    }
}

/// A frame whose checksums are right is no accident: what is not known in it is refused, never taken for a torn tail.
fn unknown(path: &Path, offset: u64, error: &LogError) -> LogError {
    LogError::UnknownContent { path: path.into(), offset: FileOffset(offset), reason: error.to_string() }
}

/// Searches the rest of the file for headers that check. `None` when only zeros follow.
pub(crate) fn look_behind(
    window: &mut Window<'_>,
    segment: &SegmentHeader,
    offset: u64,
    reason: String,
) -> Result<Option<Damage>, LogError> {
    let mut stated_later = Lsn::ZERO;
    let mut at = offset;
    let mut only_zeros = true;
    let mut bytes = 0;
    loop {
        let block = window.up_to(at, WINDOW_BYTES)?;
        only_zeros &= is_zero(&block);
        bytes = bytes.max(at + block.len() as u64 - offset);
        // Headers may lie across blocks: the last ones are looked at again with the next block.
        let starts = block.len().saturating_sub(HEADER_LEN - 1).next_multiple_of(64);
        for start in (0..starts).step_by(64) {
            let Some(Ok(header)) = block.get(start..start + HEADER_LEN).map(<[u8; HEADER_LEN]>::try_from) else {
                continue;
            };
            match frame::decode(&header, segment.salt) {
                Ok(Decoded::Valid(header)) => stated_later = stated_later.max(header.durable),
                Ok(Decoded::Foreign) => {}
                Err(error) => return Err(unknown(window.path, at + start as u64, &error)),
            }
        }
        if starts == 0 {
            break;
        }
        at += starts as u64;
    }
    Ok((!only_zeros).then_some(Damage { offset: FileOffset(offset), reason, bytes, stated_later }))
}

/// A part of a file in memory.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    pub(crate) config: &'a LogConfig,
    pub(crate) path: &'a Path,
    file: &'a dyn DiskFile,
    /// The first `filled` bytes are the file's, from `start` on.
    buffer: Bytes,
    filled: usize,
    start: u64,
}

impl<'a> Window<'a> {
    /// Nothing of `file` is in memory yet.
    pub(crate) fn new(config: &'a LogConfig, path: &'a Path, file: &'a dyn DiskFile) -> Self {
        Self { config, path, file, buffer: Bytes::new(), filled: 0, start: 0 }
    }

    fn header(&mut self, offset: u64) -> Result<Option<[u8; HEADER_LEN]>, LogError> {
        Ok(self.get(offset, HEADER_LEN)?.and_then(|bytes| <[u8; HEADER_LEN]>::try_from(&*bytes).ok()))
    }

    /// `len` bytes at `offset`; `None` when the file ends before.
    fn get(&mut self, offset: u64, len: usize) -> Result<Option<Bytes>, LogError> {
        if !self.holds(offset, len) {
            self.refill(offset, len.max(WINDOW_BYTES))?;
        }
        Ok(self.holds(offset, len).then(|| slice(&self.buffer, (offset - self.start) as usize, len)))
    }

    fn holds(&self, offset: u64, len: usize) -> bool {
        offset >= self.start && offset + len as u64 <= self.start + self.filled as u64
    }

    /// Moves to `offset`. What is in memory of it already is kept, and so is the memory where nobody else holds it.
    fn refill(&mut self, offset: u64, len: usize) -> Result<(), LogError> {
        let len = len.min(self.left(offset)?);
        let from = usize::try_from(offset.wrapping_sub(self.start)).unwrap_or(usize::MAX).min(self.filled);
        let kept = (self.filled - from).min(len);
        let mut buffer = match std::mem::take(&mut self.buffer).try_into_mut() {
            Ok(mut buffer) => {
                buffer.copy_within(from..from + kept, 0);
                if buffer.len() < len {
                    buffer.resize(len, 0);
                }
                buffer
            }
            Err(shared) => {
                let mut buffer = BytesMut::zeroed(len);
                buffer[..kept].copy_from_slice(&shared[from..from + kept]);
                buffer
            }
        };
        let count = read_full(self.path, self.file, &mut buffer[kept..len], offset + kept as u64)?;
        (self.buffer, self.start, self.filled) = (buffer.freeze(), offset, kept + count);
        Ok(())
    }

    /// At most `len` bytes at `offset`, fewer at the end of the file.
    pub(crate) fn up_to(&self, offset: u64, len: usize) -> Result<Bytes, LogError> {
        let mut buffer = vec![0; len.min(self.left(offset)?)];
        let count = read_full(self.path, self.file, &mut buffer, offset)?;
        buffer.truncate(count);
        Ok(buffer.into())
    }

    /// Bytes of the file from `offset` on.
    fn left(&self, offset: u64) -> Result<usize, LogError> {
        let len = self.file.len().map_err(|error| io_error("stat", self.path, error))?;
        Ok(usize::try_from(len.saturating_sub(offset)).unwrap_or(usize::MAX))
    }
}
