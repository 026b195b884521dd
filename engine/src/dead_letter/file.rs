//! Files of dead letters, as drawn in `FORMAT.md`: one per skipped task, beside the log, through the disk seam.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tailrace_wal::{Disk, HistoryHeader, HistoryId, PART_ALIGNMENT, Payload, Seq};
use xxhash_rust::xxh3::xxh3_64;

use super::DeadLetter;
use crate::{EngineError, Result, space::is_no_space};

const MAGIC: &[u8; 8] = b"TRLETTER";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
/// Longest description, bytes: a reason and the names of all tables of a transaction.
const DESCRIPTION_BYTES_MAX: usize = 16 << 20;
/// Slices that are written with one call.
const SLICES: usize = 256;
const SUFFIX: &str = ".letter";
const PARTIAL: &str = ".part";

/// The folder of the dead letters. It is made with the first of them. All calls block.
#[derive(Debug, Clone)]
pub(crate) struct Letters {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
}

impl Letters {
    pub(crate) fn new(disk: Arc<dyn Disk>, data_dir: &Path) -> Self {
        Self { disk, dir: data_dir.join("dead_letters") }
    }

    /// Where the letter of a task lies.
    pub(crate) fn path(&self, history: HistoryId, seq: Seq) -> PathBuf {
        self.dir.join(format!("{history}-{seq}{SUFFIX}"))
    }

    /// Writes a letter; it is durable on return. One that is there already, of an attempt that was not completed, is
    /// replaced.
    pub(crate) fn write(
        &self,
        history: HistoryId,
        letter: &DeadLetter,
        records: &[(HistoryHeader, Payload)],
    ) -> Result<()> {
        let path = self.path(history, letter.seq);
        let pieces = encode(history, letter, records)?;
        self.write_pieces(&path, &pieces).map_err(|error| failed("write", &path, &error))
    }

    fn write_pieces(&self, path: &Path, pieces: &[Bytes]) -> io::Result<()> {
        self.disk.create_dir_all(&self.dir)?;
        let partial = path.with_extension(&PARTIAL[1..]);
        match self.disk.remove(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.create(&partial)?;
        let written = (|| {
            let mut offset = 0;
            for pieces in pieces.chunks(SLICES) {
                let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
                let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
                file.write_all_vectored_at(&mut slices, offset)?;
                offset += length;
            }
            file.sync_all()?;
            self.disk.rename(&partial, path)?;
            self.disk.sync_dir(&self.dir)
        })();
        if written.is_err() {
            // What it takes is wanted back on a full disk.
            let _ = self.disk.remove(&partial);
        }
        written
    }

    /// Reads a letter whole and checks it: its fragments in order, then the commit.
    pub(crate) fn read(&self, history: HistoryId, seq: Seq) -> Result<Vec<(HistoryHeader, Payload)>> {
        let path = self.path(history, seq);
        let bytes = self.bytes(&path, None).map_err(|error| failed("read", &path, &error))?;
        let (_, records, rest) = decode_head(&path, history, seq, &bytes)?;
        if rest > bytes.len() {
            return Err(damaged(&path, "it ends behind its description"));
        }
        decode_records(&path, history, seq, records, &bytes.slice(rest..))
    }

    /// Reads what a letter says of itself.
    pub(crate) fn describe(&self, history: HistoryId, seq: Seq) -> Result<DeadLetter> {
        let path = self.path(history, seq);
        let read = |most| self.bytes(&path, Some(most)).map_err(|error| failed("read", &path, &error));
        let head = read(HEADER_LEN)?;
        let length = Header::decode(&path, history, &head)?.description_len;
        Ok(decode_head(&path, history, seq, &read(HEADER_LEN + length)?)?.0)
    }

    fn bytes(&self, path: &Path, most: Option<usize>) -> io::Result<Bytes> {
        let file = self.disk.open(path, false)?;
        let length = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; most.map_or(length, |most| most.min(length))];
        let mut at = 0;
        while at < bytes.len() {
            match file.read_at(&mut bytes[at..], at as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => at += count,
            }
        }
        Ok(bytes.into())
    }

    /// Removes a letter; best effort, as a start removes what nothing names.
    pub(crate) fn remove(&self, history: HistoryId, seq: Seq) {
        let path = self.path(history, seq);
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "a dead letter that is settled stays until the next start");
            }
            _ => {}
        }
    }

    /// Removes the files of letters that are not to be kept.
    pub(crate) fn clean(&self, keep: impl Fn(HistoryId, Seq) -> bool) {
        let files = match self.disk.list(&self.dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(folder = %self.dir.display(), %error, "dead letters could not be listed");
                return;
            }
        };
        for path in files {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_partial = name.ends_with(PARTIAL);
            let named = name.strip_suffix(SUFFIX).and_then(parse_name);
            if (is_partial || named.is_some_and(|(history, seq)| !keep(history, seq)))
                && let Err(error) = self.disk.remove(&path)
            {
                tracing::warn!(path = %path.display(), %error, "a dead letter that nothing names was not removed");
            }
        }
    }
}

/// `<history>-<seq>`.
fn parse_name(name: &str) -> Option<(HistoryId, Seq)> {
    let (history, seq) = name.split_once('-')?;
    Some((history.parse().ok()?, Seq(seq.parse().ok()?)))
}

struct Header {
    records: u32,
    description_len: usize,
    description_hash: u64,
}

impl Header {
    fn encode(&self, history: HistoryId) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.records.to_le_bytes());
        bytes.extend_from_slice(&(self.description_len as u64).to_le_bytes());
        bytes.extend_from_slice(&self.description_hash.to_le_bytes());
        bytes.extend_from_slice(&history.0);
        bytes.resize(HEADER_LEN - 8, 0);
        let hash = xxh3_64(&bytes);
        bytes.extend_from_slice(&hash.to_le_bytes());
        bytes.into()
    }

    fn decode(path: &Path, history: HistoryId, bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or_else(|| damaged(path, "it ends within its header"))?;
        let u32_at = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let u64_at = |at: usize| bytes[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if bytes[..8] != *MAGIC || u64_at(HEADER_LEN - 8) != xxh3_64(&bytes[..HEADER_LEN - 8]) {
            return Err(damaged(path, "its header does not match its checksum"));
        }
        if u32_at(8) != VERSION {
            let found = u32_at(8);
            return Err(damaged(path, &format!("it has format {found}, this version reads {VERSION}")));
        }
        if bytes[32..48] != history.0 {
            return Err(damaged(path, "it is of another history"));
        }
        let length = usize::try_from(u64_at(16)).unwrap_or(usize::MAX);
        if length > DESCRIPTION_BYTES_MAX {
            return Err(damaged(path, &format!("its description has {length} bytes")));
        }
        Ok(Self { records: u32_at(12), description_len: length, description_hash: u64_at(24) })
    }
}

fn encode(history: HistoryId, letter: &DeadLetter, records: &[(HistoryHeader, Payload)]) -> Result<Vec<Bytes>> {
    let description = serde_json::to_vec(letter)
        .map_err(|error| EngineError::Invalid(format!("a dead letter cannot be described: {error}")))?;
    if description.len() > DESCRIPTION_BYTES_MAX {
        let length = description.len();
        return Err(EngineError::Invalid(format!("the description of a dead letter has {length} bytes")));
    }
    let header = Header {
        records: u32::try_from(records.len()).unwrap_or(u32::MAX),
        description_len: description.len(),
        description_hash: xxh3_64(&description),
    };
    let mut pieces = vec![header.encode(history), description.into()];
    pad(&mut pieces, header.description_len);
    for (header, payload) in records {
        pieces.push(Bytes::copy_from_slice(&header.encode()));
        pieces.push(payload.directory_bytes.clone());
        pad(&mut pieces, payload.directory_bytes.len());
        for part in &payload.parts {
            pieces.extend(part.iter().cloned());
            pad(&mut pieces, part.iter().map(Bytes::len).sum());
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    Ok(pieces)
}

fn pad(pieces: &mut Vec<Bytes>, length: usize) {
    static ZEROS: [u8; PART_ALIGNMENT] = [0; PART_ALIGNMENT];
    pieces.push(Bytes::from_static(&ZEROS[..length.next_multiple_of(PART_ALIGNMENT) - length]));
}

/// Description, number of records, and where they begin.
fn decode_head(path: &Path, history: HistoryId, seq: Seq, bytes: &Bytes) -> Result<(DeadLetter, u32, usize)> {
    let header = Header::decode(path, history, bytes)?;
    let end = HEADER_LEN + header.description_len;
    let description = bytes.get(HEADER_LEN..end).ok_or_else(|| damaged(path, "it ends within its description"))?;
    if xxh3_64(description) != header.description_hash {
        return Err(damaged(path, "its description does not match its checksum"));
    }
    let letter: DeadLetter = serde_json::from_slice(description)
        .map_err(|error| damaged(path, &format!("its description cannot be read: {error}")))?;
    if letter.seq != seq {
        return Err(damaged(path, &format!("it is of task {}", letter.seq)));
    }
    Ok((letter, header.records, end.next_multiple_of(PART_ALIGNMENT)))
}

/// The records, hashes checked: those of the parts by their directories, those of the directories by their headers.
fn decode_records(
    path: &Path,
    history: HistoryId,
    seq: Seq,
    count: u32,
    body: &Bytes,
) -> Result<Vec<(HistoryHeader, Payload)>> {
    let mut records = Vec::new();
    let mut at = 0;
    while at < body.len() {
        let bytes = body[at..].first_chunk::<{ HistoryHeader::ENCODED_LEN }>();
        let header = HistoryHeader::decode(bytes.ok_or_else(|| damaged(path, "it ends within a record"))?)?;
        let directory = at + HistoryHeader::ENCODED_LEN;
        let parts = directory + (header.directory_len as usize).next_multiple_of(PART_ALIGNMENT);
        let end = parts + header.parts_len as usize;
        if end > body.len() || header.history != history {
            return Err(damaged(path, "it ends within a record, or has one of another history"));
        }
        let directory = body.slice(directory..directory + header.directory_len as usize);
        let payload = Payload::decode(directory, header.payload_hash, body.slice(parts..end))?;
        records.push((header, payload));
        at = end;
    }
    if records.len() != count as usize || records.last().is_none_or(|(header, _)| header.seq != seq) {
        return Err(damaged(path, &format!("it has {} records of {count}, or another task's", records.len())));
    }
    Ok(records)
}

fn failed(operation: &'static str, path: &Path, error: &io::Error) -> EngineError {
    let (object, reason) = (format!("dead letter {}", path.display()), error.to_string());
    if is_no_space(error) {
        EngineError::Full { object, reason }
    } else {
        EngineError::Storage { operation, object, reason }
    }
}

fn damaged(path: &Path, reason: &str) -> EngineError {
    EngineError::Storage {
        operation: "read",
        object: format!("dead letter {}", path.display()),
        reason: format!("{reason}; discard it and repair the database"),
    }
}

#[cfg(test)]
mod tests {
    use tailrace_wal::{
        Chain, CommitTime, Epoch, FragmentNumber, Part, PartEntry, PartHash, RecordKind, SystemDisk, TransactionNumber,
    };

    use super::{super::tests::letter, *};

    const HISTORY: HistoryId = HistoryId([0xab; 16]);

    fn record(kind: RecordKind, seq: u64, bytes: usize) -> (HistoryHeader, Payload) {
        let entry = PartEntry {
            table: 1,
            schema_version: 1,
            operation: 1,
            first_ordinal: 0,
            rows: 1,
            length: 0,
            hash: PartHash(0),
            partition: Bytes::from_static(b"p"),
        };
        let pieces = vec![Bytes::from(vec![7; bytes / 2]), Bytes::from(vec![8; bytes - bytes / 2])];
        let payload = Payload::new(vec![Part::new(entry, pieces).unwrap()], Vec::new(), None).unwrap();
        let header = HistoryHeader {
            kind,
            history: HISTORY,
            epoch: Epoch::default(),
            transaction: TransactionNumber(1),
            fragment: FragmentNumber(0),
            seq: Seq(seq),
            restart_seq: Seq(seq),
            chain: Chain(1),
            commit_time: CommitTime(1),
            payload_hash: payload.hash,
            directory_len: payload.directory_bytes.len() as u32,
            parts_len: payload.parts_len() as u32,
        };
        (header, payload)
    }

    #[test]
    fn letters_come_back_and_every_flipped_bit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let letters = Letters::new(SystemDisk::shared(), dir.path());
        letters.clean(|_, _| false);
        let records = [record(RecordKind::Fragment, 6, 1000), record(RecordKind::Commit, 7, 77)];
        letters.write(HISTORY, &letter(7), &records).unwrap();
        // Once more, as after an attempt that was not completed.
        letters.write(HISTORY, &letter(7), &records).unwrap();
        assert_eq!(letters.describe(HISTORY, Seq(7)).unwrap(), letter(7));
        let back = letters.read(HISTORY, Seq(7)).unwrap();
        assert_eq!(back.len(), 2);
        for ((header, payload), (wrote, expected)) in back.iter().zip(&records) {
            assert_eq!((header, payload.part_bytes(0)), (wrote, expected.part_bytes(0)));
        }
        let path = letters.path(HISTORY, Seq(7));
        let bytes = std::fs::read(&path).unwrap();
        let mut missed = Vec::new();
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            if let Ok(back) = letters.read(HISTORY, Seq(7)) {
                // Padding, and fields of a header that retry does not look at.
                let same = back.iter().zip(&records).all(|((_, a), (_, b))| a.hash == b.hash);
                if !same || letters.describe(HISTORY, Seq(7)).unwrap() != letter(7) {
                    missed.push(at);
                }
            }
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(letters.read(HISTORY, Seq(7)).is_err(), "cut at {at}");
        }
        assert_eq!(missed, [0; 0]);
        std::fs::write(&path, &bytes).unwrap();
        letters.clean(|history, seq| (history, seq) == (HISTORY, Seq(7)));
        assert!(letters.read(HISTORY, Seq(7)).is_ok());
        assert!(letters.read(HistoryId([1; 16]), Seq(7)).is_err());
        letters.clean(|_, _| false);
        assert!(letters.read(HISTORY, Seq(7)).is_err());
    }
}
