//! What a record carries: a directory and the parts that it lists. Part bytes are opaque to the log.

use bytes::{Bytes, BytesMut};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::{LogError, PartHash, PayloadHash, frame::HEADER_LEN};

/// Parts start at multiples of this many bytes within a frame, so that a mapped file reads as Arrow without copying.
pub const PART_ALIGNMENT: usize = 64;

/// Largest frame, header included, bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Longest partition key, bytes.
pub const PARTITION_BYTES_MAX: usize = 64 << 10;

/// Longest idempotency key, bytes.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;

/// What the directory says of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartEntry {
    /// Table within the history; 0 when the part concerns the database itself.
    pub table: u32,
    /// Version of the table's schema that the part was encoded with.
    pub schema_version: u32,
    /// What the part does; the codes belong to the producer.
    pub operation: u16,
    /// Ordinal, within the transaction, of the part's first row.
    pub first_ordinal: u64,
    /// Rows in the part.
    pub rows: u32,
    /// Length of the part's bytes, without padding.
    pub length: u32,
    /// XXH3-64 of the part's bytes.
    pub hash: PartHash,
    /// Partition key, encoded by the producer; at most 64 KiB.
    pub partition: Bytes,
}

/// One part: its entry and its bytes, as a list of buffers that are written one after another and never copied.
#[derive(Debug, Clone)]
pub struct Part {
    /// What the directory will say; `length` and `hash` are filled in by [`Part::new`].
    pub entry: PartEntry,
    /// The bytes, in pieces.
    pub pieces: Vec<Bytes>,
}

/// Everything a directory holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// The record's own parts, in ordinal order.
    pub parts: Vec<PartEntry>,
    /// On a commit record: payload hashes of its transaction's fragments, in order.
    pub fragments: Vec<PayloadHash>,
    /// The client's key for this transaction, if it gave one; at most 256 bytes.
    pub idempotency_key: Option<Bytes>,
}

/// A record's payload, ready to be appended: directory encoded, hashes computed.
#[derive(Debug, Clone)]
pub struct Payload {
    /// Decoded form of `directory_bytes`.
    pub directory: Directory,
    /// The directory as logged.
    pub directory_bytes: Bytes,
    /// XXH3-64 of `directory_bytes`.
    pub hash: PayloadHash,
    /// Bytes of each part, in directory order. A part that was read is one piece.
    pub parts: Vec<Vec<Bytes>>,
}

impl Part {
    /// Computes length and hash of a part. Call it where the part is produced, so that hashing runs in parallel.
    /// [`LogError::Invalid`] if the part cannot fit a frame or its partition key is too long.
    pub fn new(mut entry: PartEntry, pieces: Vec<Bytes>) -> Result<Self, LogError> {
        let length = pieces.iter().map(Bytes::len).sum::<usize>();
        if length > FRAME_BYTES_MAX - HEADER_LEN {
            return Err(LogError::Invalid {
                reason: format!("a part of {length} bytes does not fit a frame of {FRAME_BYTES_MAX} bytes"),
            });
        }
        if entry.partition.len() > PARTITION_BYTES_MAX {
            return Err(LogError::Invalid {
                reason: format!(
                    "a partition key of {} bytes, at most {PARTITION_BYTES_MAX} are allowed",
                    entry.partition.len()
                ),
            });
        }
        entry.length = length as u32;
        entry.hash = hash_pieces(&pieces);
        Ok(Self { entry, pieces })
    }
}

impl Payload {
    /// Encodes the directory. `fragments` and `idempotency_key` belong to commit records.
    /// [`LogError::Invalid`] if the record would not fit a frame.
    pub fn new(
        parts: Vec<Part>,
        fragments: Vec<PayloadHash>,
        idempotency_key: Option<Bytes>,
    ) -> Result<Self, LogError> {
        let mut entries = Vec::with_capacity(parts.len());
        let mut pieces = Vec::with_capacity(parts.len());
        for part in parts {
            entries.push(part.entry);
            pieces.push(part.pieces);
        }
        let directory = Directory { parts: entries, fragments, idempotency_key };
        let directory_bytes = directory.encode()?;
        let hash = PayloadHash(xxh3_64(&directory_bytes));
        let payload = Self { directory, directory_bytes, hash, parts: pieces };
        payload.check_len()?;
        Ok(payload)
    }

    /// A commit payload without parts.
    pub fn empty() -> Self {
        let directory = Directory::default();
        let directory_bytes = directory.encode_within_limits();
        Self { hash: PayloadHash(xxh3_64(&directory_bytes)), directory, directory_bytes, parts: Vec::new() }
    }

    /// Checks and decodes a directory and its parts as they were sent or stored: `directory` is the encoded
    /// directory, `parts` the part bytes with their padding. Nothing is trusted: lengths, hashes and counts are
    /// checked before anything is allocated. Zero-copy: the pieces are slices of `parts`.
    pub fn decode(directory: Bytes, expected: PayloadHash, parts: Bytes) -> Result<Self, LogError> {
        let wrong = |reason: String| LogError::Invalid { reason };
        if directory.len() > FRAME_BYTES_MAX || parts.len() > FRAME_BYTES_MAX {
            return Err(wrong(format!(
                "a directory of {} and parts of {} bytes do not fit a frame of {FRAME_BYTES_MAX}",
                directory.len(),
                parts.len()
            )));
        }
        let hash = PayloadHash(xxh3_64(&directory));
        if hash != expected {
            return Err(wrong(format!("the directory has hash {:016x}, the header says {:016x}", hash.0, expected.0)));
        }
        let decoded = Directory::decode(&directory)?;
        let mut pieces = Vec::with_capacity(decoded.parts.len());
        let mut offset = 0;
        for (index, entry) in decoded.parts.iter().enumerate() {
            let length = entry.length as usize;
            let end = offset + padded(length);
            if end > parts.len() {
                return Err(wrong(format!("part {index} ends at byte {end}, the parts have {}", parts.len())));
            }
            let bytes = parts.slice(offset..offset + length);
            let hash = PartHash(xxh3_64(&bytes));
            if hash != entry.hash {
                return Err(wrong(format!(
                    "part {index} has hash {:016x}, the directory says {:016x}",
                    hash.0, entry.hash.0
                )));
            }
            if !is_zero(&parts[offset + length..end]) {
                return Err(wrong(format!("the padding of part {index} is not zero")));
            }
            pieces.push(vec![bytes]);
            offset = end;
        }
        if offset != parts.len() {
            return Err(wrong(format!("the directory lists {offset} bytes of parts, there are {}", parts.len())));
        }
        Ok(Self { directory: decoded, directory_bytes: directory, hash, parts: pieces })
    }

    /// Bytes of the encoded directory and the parts together, each with its padding: what the payload adds to a
    /// frame.
    pub fn encoded_len(&self) -> usize {
        padded(self.directory_bytes.len()) + self.parts_len()
    }

    /// Bytes of the parts with their padding.
    pub fn parts_len(&self) -> usize {
        self.directory.parts.iter().map(|entry| padded(entry.length as usize)).sum()
    }

    /// The one contiguous buffer of part `index`; concatenates where a part is in several pieces. Empty when there
    /// is no such part.
    pub fn part_bytes(&self, index: usize) -> Bytes {
        match self.parts.get(index).map(Vec::as_slice) {
            None | Some([]) => Bytes::new(),
            Some([piece]) => piece.clone(),
            Some(pieces) => {
                let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                whole.freeze()
            }
        }
    }

    fn check_len(&self) -> Result<(), LogError> {
        let length = HEADER_LEN + self.encoded_len();
        if length > FRAME_BYTES_MAX {
            return Err(LogError::Invalid {
                reason: format!("a record of {length} bytes, at most {FRAME_BYTES_MAX} fit a frame; use fragments"),
            });
        }
        Ok(())
    }

    /// What [`Payload::new`] and [`Payload::decode`] guarantee, checked again because the fields are public.
    pub(crate) fn check(&self) -> Result<(), LogError> {
        self.check_len()?;
        let fits = self.parts.len() == self.directory.parts.len()
            && self
                .directory
                .parts
                .iter()
                .zip(&self.parts)
                .all(|(entry, pieces)| pieces.iter().map(Bytes::len).sum::<usize>() == entry.length as usize);
        if fits {
            Ok(())
        } else {
            Err(LogError::Invalid { reason: "the parts are not those that the directory lists".into() })
        }
    }
}

/// `len` rounded up to a multiple of [`PART_ALIGNMENT`].
pub(crate) fn padded(len: usize) -> usize {
    len.next_multiple_of(PART_ALIGNMENT)
}

/// Whether all of `bytes`, which no checksum covers, are as they were written.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn hash_pieces(pieces: &[Bytes]) -> PartHash {
    if let [piece] = pieces {
        return PartHash(xxh3_64(piece));
    }
    let mut hasher = Xxh3::new();
    pieces.iter().for_each(|piece| hasher.update(piece));
    PartHash(hasher.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(partition: &'static [u8]) -> PartEntry {
        PartEntry {
            table: 7,
            schema_version: 2,
            operation: 1,
            first_ordinal: 40,
            rows: 3,
            length: 0,
            hash: PartHash(0),
            partition: Bytes::from_static(partition),
        }
    }

    fn stored_parts(payload: &Payload) -> Bytes {
        let mut bytes = Vec::new();
        for index in 0..payload.parts.len() {
            bytes.extend_from_slice(&payload.part_bytes(index));
            bytes.resize(padded(bytes.len()), 0);
        }
        bytes.into()
    }

    fn sample() -> Payload {
        let pieces = vec![Bytes::from_static(b"one "), Bytes::from_static(b"part")];
        let parts = vec![
            Part::new(entry(b"2023-01-08"), pieces).unwrap(),
            Part::new(entry(b""), vec![Bytes::from(vec![5; 100])]).unwrap(),
            Part::new(entry(b"x"), vec![]).unwrap(),
        ];
        Payload::new(parts, vec![PayloadHash(1), PayloadHash(2)], Some(Bytes::from_static(b"key"))).unwrap()
    }

    #[test]
    fn round_trip() {
        let payload = sample();
        let parts = stored_parts(&payload);
        assert_eq!(payload.parts_len(), 64 + 128);
        assert_eq!(parts.len(), payload.parts_len());
        let back = Payload::decode(payload.directory_bytes.clone(), payload.hash, parts).unwrap();
        assert_eq!(back.directory, payload.directory);
        assert_eq!(back.part_bytes(0), Bytes::from_static(b"one part"));
        assert_eq!(back.part_bytes(1).len(), 100);
        assert!(back.part_bytes(2).is_empty());
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let payload = sample();
        let parts = stored_parts(&payload);
        for at in 0..payload.directory_bytes.len() * 8 {
            let mut bytes = payload.directory_bytes.to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(Payload::decode(bytes.into(), payload.hash, parts.clone()).is_err(), "directory bit {at}");
        }
        for at in 0..parts.len() * 8 {
            let mut bytes = parts.to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            let result = Payload::decode(payload.directory_bytes.clone(), payload.hash, bytes.into());
            assert!(result.is_err(), "parts bit {at}");
        }
    }

    #[test]
    fn parts_must_be_those_listed() {
        let payload = sample();
        let parts = stored_parts(&payload);
        let decode = |parts| Payload::decode(payload.directory_bytes.clone(), payload.hash, parts);
        assert!(decode(parts.slice(..parts.len() - 64)).is_err());
        let mut longer = parts.to_vec();
        longer.resize(longer.len() + 64, 0);
        assert!(decode(longer.into()).is_err());
    }

    #[test]
    fn a_record_must_fit_a_frame() {
        let whole = FRAME_BYTES_MAX - HEADER_LEN - 128;
        let part = |len| Part::new(entry(b""), vec![Bytes::from(vec![0; len])]);
        assert!(Payload::new(vec![part(whole).unwrap()], vec![], None).is_ok());
        assert!(Payload::new(vec![part(whole + 65).unwrap()], vec![], None).is_err());
        assert!(part(FRAME_BYTES_MAX).is_err());
    }

    #[test]
    fn empty_is_a_valid_commit() {
        let empty = Payload::empty();
        let back = Payload::decode(empty.directory_bytes.clone(), empty.hash, Bytes::new()).unwrap();
        assert_eq!(back.directory, Directory::default());
        assert_eq!(empty.encoded_len(), 64);
    }
}
