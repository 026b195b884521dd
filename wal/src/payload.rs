//! What a record carries: a directory and the parts that it lists. Part bytes are opaque to the log.

use bytes::Bytes;

use crate::{FragmentNumber, LogError, PartHash, PayloadHash};

/// Parts start at multiples of this many bytes within a frame, so that a mapped file reads as Arrow without copying.
pub const PART_ALIGNMENT: usize = 64;

/// Largest frame, header included, bytes.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

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
    pub fn new(_entry: PartEntry, _pieces: Vec<Bytes>) -> Result<Self, LogError> {
        todo!()
    }
}

impl Payload {
    /// Encodes the directory. `fragments` and `idempotency_key` belong to commit records.
    pub fn new(
        _parts: Vec<Part>,
        _fragments: Vec<PayloadHash>,
        _idempotency_key: Option<Bytes>,
    ) -> Result<Self, LogError> {
        todo!()
    }

    /// A commit payload without parts.
    pub fn empty() -> Self {
        todo!()
    }

    /// Checks and decodes a directory and its parts as they were sent or stored: `directory` is the encoded
    /// directory, `parts` the part bytes with their padding. Nothing is trusted: lengths, hashes and counts are
    /// checked before anything is allocated. Zero-copy: the pieces are slices of `parts`.
    pub fn decode(_directory: Bytes, _expected: PayloadHash, _parts: Bytes) -> Result<Self, LogError> {
        todo!()
    }

    /// Bytes of the encoded directory and the padded parts together: what the payload adds to a frame.
    pub fn encoded_len(&self) -> usize {
        todo!()
    }

    /// The one contiguous buffer of part `index`; concatenates where a part is in several pieces.
    pub fn part_bytes(&self, _index: usize) -> Bytes {
        todo!()
    }
}

/// Which fragment a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentCount(pub FragmentNumber);
