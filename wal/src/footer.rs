//! The footer of a sealed segment. See `FORMAT.md`.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    Chain, CommitTime, DiskFile, FileOffset, HistoryEnd, HistoryId, LogError, Lsn, Position, RecordKind, Seq,
    TransactionNumber,
    codec::{Decoder, Encoder},
    error::io_error,
    frame::{FrameChecksum, Salt},
    index::{Floor, HistorySummary, LargeCommit, OpenTransaction, RecordEntry, RecordIndex},
    segment::{FORMAT_VERSION, Predecessor, SEGMENT_HEADER_LEN, SegmentState, check_version, read_full},
};

const MAGIC: &[u8; 8] = b"TAILRIDX";
const TRAILER_LEN: usize = 128;
const CHECKED_LEN: usize = TRAILER_LEN - 8;
/// Length of a record entry, bytes.
pub(crate) const ENTRY_LEN: usize = 24;
const SUMMARY_LEN: usize = 112;
const UNIT: u64 = 64;
const FLAG_END: u32 = 1;
const FLAG_BROKEN: u32 = 2;

/// A footer whose trailer and summaries checked.
#[derive(Debug)]
pub(crate) struct Footer {
    /// End of the frames.
    pub(crate) frames_end: u64,
    /// Length of the file.
    pub(crate) file_len: u64,
    pub(crate) first: Lsn,
    pub(crate) last: Predecessor,
    pub(crate) durable: Lsn,
    pub(crate) histories: Vec<(HistoryId, HistorySummary)>,
    /// End of the record entries.
    pub(crate) summaries_offset: u64,
    pub(crate) records_hash: u64,
}

/// Bytes of the footer that follows `frames_end`.
pub(crate) fn encode(
    frames_end: u64,
    first: Lsn,
    last: Predecessor,
    durable: Lsn,
    records: &RecordIndex,
    state: &SegmentState,
    salt: Salt,
) -> Vec<u8> {
    let mut out = Encoder::with_capacity(records.entries.len() * ENTRY_LEN + 4096);
    for entry in &records.entries {
        out.u32((entry.offset / UNIT) as u32);
        out.u32((u64::from(entry.len) / UNIT) as u32);
        out.u64(entry.seq.0);
        out.u32(entry.history);
        out.u16(entry.kind.code());
        out.zeros(2);
    }
    let summaries_at = out.len();
    let records_hash = xxh3_64_with_seed(out.as_slice(), salt.0);
    let summaries = records.histories.iter().filter_map(|id| state.histories.get(id).map(|summary| (id, summary)));
    let mut count = 0;
    for (id, summary) in summaries {
        encode_summary(&mut out, *id, summary);
        count += 1;
    }
    let summaries_hash = xxh3_64_with_seed(&out.as_slice()[summaries_at..], salt.0);
    let mut trailer = Encoder::with_capacity(TRAILER_LEN);
    trailer.bytes(MAGIC);
    trailer.u32(FORMAT_VERSION);
    trailer.u32(count);
    trailer.u64(frames_end);
    trailer.u64(frames_end + summaries_at as u64);
    trailer.u64(first.0);
    trailer.u64(last.last.0);
    trailer.u64(last.checksum.0);
    trailer.u64(durable.0);
    trailer.u64(records_hash);
    trailer.u64(summaries_hash);
    // Flags: none yet.
    trailer.u32(0);
    trailer.zeros(CHECKED_LEN - trailer.len());
    let checksum = xxh3_64_with_seed(trailer.as_slice(), salt.0);
    trailer.u64(checksum);
    out.bytes(trailer.as_slice());
    out.finish()
}

impl Footer {
    /// Reads trailer and summaries; `None` when the file does not end with a valid footer.
    pub(crate) fn read(path: &Path, file: &dyn DiskFile, salt: Salt) -> Result<Option<Self>, LogError> {
        let file_len = file.len().map_err(|error| io_error("stat", path, error))?;
        let Some(trailer_at) = file_len.checked_sub(TRAILER_LEN as u64) else { return Ok(None) };
        let mut bytes = [0; TRAILER_LEN];
        if read_full(path, file, &mut bytes, trailer_at)? < TRAILER_LEN {
            return Ok(None);
        }
        let mut from = Decoder::new(&bytes, "footer");
        if from.bytes(8)? != MAGIC
            || xxh3_64_with_seed(&bytes[..CHECKED_LEN], salt.0).to_le_bytes() != bytes[CHECKED_LEN..]
        {
            return Ok(None);
        }
        check_version(path, from.u32()?)?;
        let count = from.u32()? as usize;
        let (frames_end, summaries_offset) = (from.u64()?, from.u64()?);
        let (first, last) = (Lsn(from.u64()?), Lsn(from.u64()?));
        let last = Predecessor { last, checksum: FrameChecksum(from.u64()?) };
        let (durable, records_hash, summaries_hash) = (Lsn(from.u64()?), from.u64()?, from.u64()?);
        if from.bytes(CHECKED_LEN - from.taken())?.iter().any(|byte| *byte != 0) {
            let reason = "flags or reserved bytes of the footer are set".into();
            return Err(LogError::UnknownContent { path: path.into(), offset: FileOffset(trailer_at), reason });
        }
        let in_order = SEGMENT_HEADER_LEN as u64 <= frames_end
            && frames_end <= summaries_offset
            && summaries_offset <= trailer_at
            && first <= last.last
            && (last.last.0 - first.0).checked_add(1).and_then(|records| records.checked_mul(ENTRY_LEN as u64))
                == Some(summaries_offset - frames_end);
        let summaries_len = trailer_at.saturating_sub(summaries_offset) as usize;
        if !in_order || count > summaries_len / SUMMARY_LEN {
            return Ok(None);
        }
        let mut bytes = vec![0; summaries_len];
        if read_full(path, file, &mut bytes, summaries_offset)? < summaries_len
            || xxh3_64_with_seed(&bytes, salt.0) != summaries_hash
        {
            return Ok(None);
        }
        let mut from = Decoder::new(&bytes, "footer");
        let histories = (0..count).map(|_| decode_summary(&mut from)).collect::<Result<_, _>>()?;
        if from.remaining() != 0 {
            return Err(LogError::Invalid {
                reason: format!("{} bytes follow the footer's summaries", from.remaining()),
            });
        }
        Ok(Some(Self { frames_end, file_len, first, last, durable, histories, summaries_offset, records_hash }))
    }

    /// Reads the record entries.
    pub(crate) fn records(&self, path: &Path, file: &dyn DiskFile, salt: Salt) -> Result<RecordIndex, LogError> {
        let corrupt = |reason: &str| LogError::Corrupt {
            path: path.into(),
            offset: FileOffset(self.frames_end),
            reason: reason.into(),
        };
        let len = (self.summaries_offset - self.frames_end) as usize;
        let mut bytes = vec![0; len];
        if read_full(path, file, &mut bytes, self.frames_end)? < len
            || xxh3_64_with_seed(&bytes, salt.0) != self.records_hash
        {
            return Err(corrupt("the record index in the footer is damaged"));
        }
        let mut index = RecordIndex::default();
        self.histories.iter().for_each(|(id, _)| {
            index.number_or_new(*id);
        });
        index.entries.reserve(len / ENTRY_LEN);
        let mut end = SEGMENT_HEADER_LEN as u64;
        for bytes in bytes.chunks_exact(ENTRY_LEN) {
            let entry = decode_entry(bytes)?;
            // Readers count on the order: they plan one read over several records.
            if entry.offset < end {
                return Err(corrupt("the record index in the footer goes backwards"));
            }
            end = entry.offset + u64::from(entry.len);
            if end > self.frames_end || entry.history as usize >= self.histories.len() {
                return Err(corrupt("the record index in the footer points outside of the frames"));
            }
            index.push_entry(entry);
        }
        Ok(index)
    }

    /// Where the entry of the record with this place in the segment stands.
    pub(crate) fn entry_offset(&self, place: u64) -> u64 {
        self.frames_end.saturating_add(place.saturating_mul(ENTRY_LEN as u64))
    }

    /// What the segment's state is, as far as its footer tells.
    pub(crate) fn state(&self) -> SegmentState {
        SegmentState {
            last: self.last.last,
            bytes: self.file_len,
            sealed: true,
            histories: self.histories.iter().cloned().collect(),
        }
    }
}

/// Decodes one record entry.
pub(crate) fn decode_entry(bytes: &[u8]) -> Result<RecordEntry, LogError> {
    let mut from = Decoder::new(bytes, "footer");
    let offset = u64::from(from.u32()?) * UNIT;
    let units = from.u32()?;
    let len = units.checked_mul(UNIT as u32).ok_or_else(|| LogError::Invalid {
        reason: format!("a footer entry with a frame of {units} times {UNIT} bytes"),
    })?;
    let (seq, history, kind) = (Seq(from.u64()?), from.u32()?, RecordKind::from_code(from.u16()?)?);
    from.reserved(2)?;
    Ok(RecordEntry { offset, len, seq, history, kind })
}

fn encode_summary(out: &mut Encoder, id: HistoryId, summary: &HistorySummary) {
    let flag = |flag, is_set: bool| if is_set { flag } else { 0 };
    out.bytes(&id.0);
    out.u64(summary.boundary.0);
    out.u64(summary.first.0);
    out.u64(summary.last.0);
    out.u32(flag(FLAG_END, summary.end.is_some()) | flag(FLAG_BROKEN, summary.broken.is_some()));
    out.u32(summary.large.len() as u32);
    out.u32(summary.open.len() as u32);
    out.zeros(4);
    let end = summary.end.unwrap_or(HistoryEnd { position: Position::start(id), commit_time: CommitTime(0) });
    out.epoch(end.position.epoch);
    out.u64(end.position.seq.0);
    out.u64(end.position.chain.0);
    out.i64(end.commit_time.0);
    let broken = summary.broken.unwrap_or(Floor { lsn: Lsn::ZERO, seq: Seq::ZERO });
    out.u64(broken.lsn.0);
    out.u64(broken.seq.0);
    out.zeros(8);
    for large in &summary.large {
        out.u64(large.seq.0);
        out.u64(large.lsn.0);
        out.u64(large.first_fragment.0);
    }
    for open in &summary.open {
        out.epoch(open.epoch);
        out.u64(open.number.0);
        out.u64(open.first_fragment.0);
        out.u64(open.after.0);
        out.u32(open.fragments);
        out.zeros(4);
    }
}

fn decode_summary(from: &mut Decoder<'_>) -> Result<(HistoryId, HistorySummary), LogError> {
    let id = HistoryId(from.array()?);
    let (boundary, first, last) = (Seq(from.u64()?), Lsn(from.u64()?), Lsn(from.u64()?));
    let (flags, large_count, open_count) = (from.u32()?, from.u32()? as usize, from.u32()? as usize);
    if flags & !(FLAG_END | FLAG_BROKEN) != 0 {
        return Err(LogError::Invalid { reason: format!("footer flags {flags:#x} are not known to this version") });
    }
    from.reserved(4)?;
    let (epoch, seq, chain) = (from.epoch()?, Seq(from.u64()?), Chain(from.u64()?));
    let end =
        HistoryEnd { position: Position { history: id, epoch, seq, chain }, commit_time: CommitTime(from.i64()?) };
    let broken = Floor { lsn: Lsn(from.u64()?), seq: Seq(from.u64()?) };
    from.reserved(8)?;
    if large_count > from.remaining() / 24 || open_count > from.remaining() / 40 {
        return Err(LogError::Invalid { reason: "a footer summary lists more than it holds".into() });
    }
    let mut large = Vec::with_capacity(large_count);
    for _ in 0..large_count {
        large.push(LargeCommit { seq: Seq(from.u64()?), lsn: Lsn(from.u64()?), first_fragment: Lsn(from.u64()?) });
    }
    let mut open = Vec::with_capacity(open_count);
    for _ in 0..open_count {
        let (epoch, number) = (from.epoch()?, TransactionNumber(from.u64()?));
        let (first_fragment, after, fragments) = (Lsn(from.u64()?), Seq(from.u64()?), from.u32()?);
        from.reserved(4)?;
        open.push(OpenTransaction { epoch, number, first_fragment, after, fragments });
    }
    let summary = HistorySummary {
        boundary,
        first,
        last,
        end: (flags & FLAG_END != 0).then_some(end),
        broken: (flags & FLAG_BROKEN != 0).then_some(broken),
        large,
        open,
    };
    Ok((id, summary))
}
