//! Header of a data stream.

use tailrace_wal::{Chain, Epoch, HistoryId, Position, Seq};
use xxhash_rust::xxh3::xxh3_64;

use super::{CHUNK_RAW_MAX, ENCODED_SLACK, FeedNumber, MANIFEST_ENCODED_MAX, MANIFEST_RAW_MAX, PIECE_MAX};

const MAGIC: [u8; 4] = *b"TRD1";

/// What a data stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataKind {
    /// Records of a feed.
    Chunk,
    /// Manifest of a repair.
    Manifest,
    /// Part of a datafile.
    Piece,
    /// Digests of a database.
    Digests,
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    Raw,
    Zstd,
}

/// Header of a data stream, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataHeader {
    pub(crate) kind: DataKind,
    pub(crate) compression: Compression,
    pub(crate) feed: FeedNumber,
    pub(crate) records: u32,
    pub(crate) number: u64,
    pub(crate) raw_len: u32,
    pub(crate) encoded_len: u32,
    /// Position stated by the first record; carries the history for all kinds.
    pub(crate) first: Position,
    /// Position stated by the last record.
    pub(crate) last: Position,
    pub(crate) offset: u64,
    pub(crate) body_hash: u64,
}

impl DataHeader {
    /// Encoded length, bytes.
    pub(crate) const LEN: usize = 128;

    /// Which history it belongs to.
    pub(crate) fn history(&self) -> HistoryId {
        self.first.history
    }

    pub(crate) fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&[kind_code(self.kind), compression_code(self.compression), 0, 0]);
        put(&self.feed.0.to_le_bytes());
        put(&self.records.to_le_bytes());
        put(&self.number.to_le_bytes());
        put(&self.first.history.0);
        put(&self.raw_len.to_le_bytes());
        put(&self.encoded_len.to_le_bytes());
        for position in [&self.first, &self.last] {
            put(&position.epoch.counter.to_le_bytes());
            put(&position.epoch.nonce.to_le_bytes());
            put(&position.seq.0.to_le_bytes());
            put(&position.chain.0.to_le_bytes());
        }
        put(&self.offset.to_le_bytes());
        put(&self.body_hash.to_le_bytes());
        let hash = xxh3_64(&out[..120]);
        out[120..].copy_from_slice(&hash.to_le_bytes());
        out
    }

    /// Decodes and checks everything that can be checked without the body: no length beyond its limit leaves here.
    pub(crate) fn decode(bytes: &[u8; Self::LEN]) -> Result<Self, String> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or_default());
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        if bytes[..4] != MAGIC {
            return Err(format!("a data stream begins with {:02x?}", &bytes[..4]));
        }
        if u64_at(120) != xxh3_64(&bytes[..120]) {
            return Err("the header of a data stream does not match its hash".into());
        }
        let kind = match bytes[4] {
            1 => DataKind::Chunk,
            2 => DataKind::Manifest,
            3 => DataKind::Piece,
            4 => DataKind::Digests,
            code => return Err(format!("a data stream of kind {code} is not known to this version")),
        };
        let compression = match bytes[5] {
            0 => Compression::Raw,
            1 => Compression::Zstd,
            code => return Err(format!("compression {code} is not known to this version")),
        };
        let mut history = HistoryId::default();
        history.0.copy_from_slice(&bytes[24..40]);
        let position = |at: usize| Position {
            history,
            epoch: Epoch { counter: u32_at(at), nonce: u32_at(at + 4) },
            seq: Seq(u64_at(at + 8)),
            chain: Chain(u64_at(at + 16)),
        };
        let header = Self {
            kind,
            compression,
            feed: FeedNumber(u32_at(8)),
            records: u32_at(12),
            number: u64_at(16),
            raw_len: u32_at(40),
            encoded_len: u32_at(44),
            first: position(48),
            last: position(72),
            offset: u64_at(96),
            body_hash: u64_at(104),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), String> {
        let (raw_max, encoded_max) = match self.kind {
            DataKind::Chunk => (CHUNK_RAW_MAX, CHUNK_RAW_MAX + ENCODED_SLACK),
            DataKind::Manifest | DataKind::Digests => (MANIFEST_RAW_MAX, MANIFEST_ENCODED_MAX),
            DataKind::Piece => (PIECE_MAX, PIECE_MAX),
        };
        if self.raw_len > raw_max || self.encoded_len > encoded_max {
            return Err(format!(
                "a data stream of {} bytes ({} encoded), at most {raw_max} ({encoded_max}) are allowed",
                self.raw_len, self.encoded_len
            ));
        }
        if self.compression == Compression::Raw && self.raw_len != self.encoded_len {
            return Err(format!("a raw body of {} bytes, encoded {}", self.raw_len, self.encoded_len));
        }
        if self.kind == DataKind::Chunk {
            let least = tailrace_wal::HistoryHeader::ENCODED_LEN as u64;
            if self.records == 0 || u64::from(self.records) * least > u64::from(self.raw_len) {
                return Err(format!("a chunk of {} bytes cannot hold {} records", self.raw_len, self.records));
            }
            if self.last.seq < self.first.seq {
                return Err(format!("a chunk from seq {} to {}", self.first.seq, self.last.seq));
            }
        }
        Ok(())
    }
}

fn kind_code(kind: DataKind) -> u8 {
    match kind {
        DataKind::Chunk => 1,
        DataKind::Manifest => 2,
        DataKind::Piece => 3,
        DataKind::Digests => 4,
    }
}

fn compression_code(compression: Compression) -> u8 {
    match compression {
        Compression::Raw => 0,
        Compression::Zstd => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> DataHeader {
        let at = |seq| Position {
            history: HistoryId([9; 16]),
            epoch: Epoch { counter: 2, nonce: 77 },
            seq: Seq(seq),
            chain: Chain(seq * 31),
        };
        DataHeader {
            kind: DataKind::Chunk,
            compression: Compression::Zstd,
            feed: FeedNumber(4),
            records: 3,
            number: 12,
            raw_len: 4096,
            encoded_len: 1000,
            first: at(10),
            last: at(12),
            offset: 0,
            body_hash: 5,
        }
    }

    #[test]
    fn round_trip() {
        assert_eq!(DataHeader::decode(&sample().encode()).unwrap(), sample());
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        for bit in 0..DataHeader::LEN * 8 {
            let mut bytes = sample().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(DataHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn limits_hold_even_when_the_hash_is_right() {
        let refused = |change: fn(&mut DataHeader)| {
            let mut header = sample();
            change(&mut header);
            DataHeader::decode(&header.encode()).unwrap_err()
        };
        assert!(refused(|header| header.raw_len = CHUNK_RAW_MAX + 1).contains("at most"));
        assert!(refused(|header| header.encoded_len = u32::MAX).contains("at most"));
        assert!(refused(|header| header.records = 0).contains("cannot hold"));
        assert!(refused(|header| header.records = 33).contains("cannot hold"));
        assert!(refused(|header| header.last.seq = Seq(9)).contains("from seq"));
        assert!(refused(|header| header.compression = Compression::Raw).contains("raw body"));
        assert!(refused(|header| (header.kind, header.raw_len) = (DataKind::Piece, PIECE_MAX + 1)).contains("at most"));
    }
}
