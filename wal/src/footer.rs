//! The footer of a sealed segment. See `FORMAT.md`.

use std::path::Path;

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use crate::{
    Chain, CommitTime, DiskFile, FRAME_BYTES_MAX, FileOffset, HistoryEnd, HistoryId, LogError, Lsn, Position,
    RecordKind, Seq, TransactionNumber,
    codec::{Decoder, Encoder},
    error::io_error,
    frame::{FrameChecksum, HEADER_LEN, Salt},
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

/// Largest summaries that a reader of an archive fetches and the archiver stores, bytes. The largest segment that the settings
/// allow comes near it only where millions of histories or of transactions in fragments are in it.
const SUMMARIES_BYTES_MAX: usize = 64 << 20;

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

/// What a trailer that checked says, before anything else of the footer is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FooterTrailer {
    /// Number of summaries.
    histories: usize,
    /// Length of the file.
    file_len: u64,
    pub(crate) frames_end: u64,
    pub(crate) summaries_offset: u64,
    pub(crate) first: Lsn,
    pub(crate) last: Predecessor,
    durable: Lsn,
    records_hash: u64,
    summaries_hash: u64,
}

impl FooterTrailer {
    /// `None` when the file does not end with a valid trailer.
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
        let histories = from.u32()? as usize;
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
        let found = Self {
            histories,
            file_len,
            frames_end,
            summaries_offset,
            first,
            last,
            durable,
            records_hash,
            summaries_hash,
        };
        Ok((in_order && histories <= found.summaries_len() / SUMMARY_LEN).then_some(found))
    }

    fn summaries_len(&self) -> usize {
        self.file_len.saturating_sub(TRAILER_LEN as u64 + self.summaries_offset) as usize
    }

    /// Whether a segment can be as the trailer says: every record has its place among the frames, and the summaries are not
    /// larger than what an archive keeps. For a file whose length is only stated.
    pub(crate) fn check_possible(&self) -> Result<(), String> {
        let records = (self.summaries_offset - self.frames_end) / ENTRY_LEN as u64;
        let frames = self.frames_end - SEGMENT_HEADER_LEN as u64;
        if records > frames / HEADER_LEN as u64 {
            return Err(format!("its footer lists {records} records in {frames} bytes of frames"));
        }
        if self.summaries_len() > SUMMARIES_BYTES_MAX {
            return Err(format!(
                "its footer has summaries of {} bytes, at most {SUMMARIES_BYTES_MAX} are read",
                self.summaries_len()
            ));
        }
        Ok(())
    }
}

impl Footer {
    /// Reads trailer and summaries; `None` when the file does not end with a valid footer.
    pub(crate) fn read(path: &Path, file: &dyn DiskFile, salt: Salt) -> Result<Option<Self>, LogError> {
        let Some(trailer) = FooterTrailer::read(path, file, salt)? else { return Ok(None) };
        let FooterTrailer { file_len, frames_end, summaries_offset, first, last, durable, records_hash, .. } = trailer;
        let summaries_len = trailer.summaries_len();
        let mut bytes = vec![0; summaries_len];
        if read_full(path, file, &mut bytes, summaries_offset)? < summaries_len
            || xxh3_64_with_seed(&bytes, salt.0) != trailer.summaries_hash
        {
            return Ok(None);
        }
        let mut from = Decoder::new(&bytes, "footer");
        let histories = (0..trailer.histories).map(|_| decode_summary(&mut from)).collect::<Result<_, _>>()?;
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
        let mut reader = RecordReader::new(self, salt);
        reader.take(&bytes).and_then(|()| reader.finish()).map_err(|reason| corrupt(&reason))
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

/// Takes in record entries as they come, piece by piece, and stops at the first that cannot be.
pub(crate) struct RecordReader {
    index: RecordIndex,
    /// The beginning of an entry whose end has not come.
    rest: Vec<u8>,
    /// End of the frame before.
    end: u64,
    frames_end: u64,
    hashed: Xxh3,
    hash: u64,
}

impl RecordReader {
    pub(crate) fn new(footer: &Footer, salt: Salt) -> Self {
        let mut index = RecordIndex::default();
        footer.histories.iter().for_each(|(id, _)| {
            index.number_or_new(*id);
        });
        let (end, frames_end) = (SEGMENT_HEADER_LEN as u64, footer.frames_end);
        Self { index, rest: Vec::new(), end, frames_end, hashed: Xxh3::with_seed(salt.0), hash: footer.records_hash }
    }

    /// The next bytes of the entries. The error says what is wrong with them.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.hashed.update(bytes);
        let missing = (ENTRY_LEN - self.rest.len()) % ENTRY_LEN;
        let (first, bytes) = bytes.split_at(missing.min(bytes.len()));
        self.rest.extend_from_slice(first);
        if self.rest.len() == ENTRY_LEN {
            let entry = std::mem::take(&mut self.rest);
            self.entry(&entry)?;
        }
        let entries = bytes.chunks_exact(ENTRY_LEN);
        self.rest.extend_from_slice(entries.remainder());
        self.index.entries.reserve(entries.len());
        entries.into_iter().try_for_each(|entry| self.entry(entry))
    }

    fn entry(&mut self, bytes: &[u8]) -> Result<(), String> {
        let entry = decode_entry(bytes).map_err(|error| error.to_string())?;
        // Readers count on the order: they plan one read over several records.
        if entry.offset < self.end {
            return Err("the record index in the footer goes backwards".into());
        }
        if !(HEADER_LEN..=FRAME_BYTES_MAX).contains(&(entry.len as usize)) {
            return Err(format!("the record index in the footer names a frame of {} bytes", entry.len));
        }
        self.end = entry.offset + u64::from(entry.len);
        if self.end > self.frames_end || entry.history as usize >= self.index.histories.len() {
            return Err("the record index in the footer points outside of the frames".into());
        }
        self.index.push_entry(entry);
        Ok(())
    }

    /// All of them came.
    pub(crate) fn finish(self) -> Result<RecordIndex, String> {
        if self.rest.is_empty() && self.hashed.digest() == self.hash {
            Ok(self.index)
        } else {
            Err("the record index in the footer is damaged".into())
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
