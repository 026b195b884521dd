//! Records: what is appended, and what is read back.

use crate::{
    Chain, CommitTime, Epoch, FRAME_BYTES_MAX, FragmentNumber, HistoryId, LogError, Lsn, PART_ALIGNMENT, Payload,
    PayloadHash, Position, Seq, TransactionNumber,
    codec::{Decoder, Encoder},
    frame::HEADER_LEN,
    payload::padded,
};

/// What a record is to its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A committed transaction: takes a seq and continues the chain.
    Commit,
    /// A piece of a large transaction that is still open: no seq, no chain.
    Fragment,
    /// The end of an open transaction that will not commit: no seq, no chain.
    Abort,
}

impl RecordKind {
    /// The code in frames.
    pub fn code(self) -> u16 {
        match self {
            Self::Commit => 1,
            Self::Fragment => 2,
            Self::Abort => 3,
        }
    }

    /// The kind of a code. Unknown codes are an error that names them: replicas are upgraded first.
    pub fn from_code(code: u16) -> Result<Self, LogError> {
        match code {
            1 => Ok(Self::Commit),
            2 => Ok(Self::Fragment),
            3 => Ok(Self::Abort),
            _ => Err(LogError::UnknownRecordKind { code }),
        }
    }
}

/// History half of a frame's header: verbatim on every node and on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryHeader {
    /// What the record is.
    pub kind: RecordKind,
    /// Which history.
    pub history: HistoryId,
    /// Epoch under which it was written.
    pub epoch: Epoch,
    /// Its transaction within the epoch.
    pub transaction: TransactionNumber,
    /// On a fragment: its number. On a commit: how many fragments went before. Else 0.
    pub fragment: FragmentNumber,
    /// On a commit: its seq. On a fragment or abort: the last seq committed before it.
    pub seq: Seq,
    /// The last seq committed before the oldest transaction still open after this record began; `seq` when none is.
    pub restart_seq: Seq,
    /// On a commit: the chain after it. On a fragment or abort: the chain at `seq`.
    pub chain: Chain,
    /// When the primary's writer took it.
    pub commit_time: CommitTime,
    /// XXH3-64 of the directory.
    pub payload_hash: PayloadHash,
    /// Length of the encoded directory, bytes.
    pub directory_len: u32,
    /// Length of the padded parts, bytes.
    pub parts_len: u32,
}

impl HistoryHeader {
    /// Encoded length, bytes.
    pub const ENCODED_LEN: usize = 128;

    /// Encodes, little-endian, as drawn in `FORMAT.md`.
    pub fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let mut out = Encoder::with_capacity(Self::ENCODED_LEN);
        out.u16(self.kind.code());
        out.zeros(2);
        out.u32(self.fragment.0);
        out.bytes(&self.history.0);
        out.epoch(self.epoch);
        out.u64(self.transaction.0);
        out.u64(self.seq.0);
        out.u64(self.restart_seq.0);
        out.u64(self.chain.0);
        out.i64(self.commit_time.0);
        out.u64(self.payload_hash.0);
        out.u32(self.directory_len);
        out.u32(self.parts_len);
        out.array()
    }

    /// Decodes and checks limits; does not check the payload.
    pub fn decode(bytes: &[u8; Self::ENCODED_LEN]) -> Result<Self, LogError> {
        let mut from = Decoder::new(bytes, "record header");
        let kind = RecordKind::from_code(from.u16()?)?;
        from.reserved(2)?;
        let fragment = FragmentNumber(from.u32()?);
        let header = Self {
            kind,
            fragment,
            history: HistoryId(from.array()?),
            epoch: from.epoch()?,
            transaction: TransactionNumber(from.u64()?),
            seq: Seq(from.u64()?),
            restart_seq: Seq(from.u64()?),
            chain: Chain(from.u64()?),
            commit_time: CommitTime(from.i64()?),
            payload_hash: PayloadHash(from.u64()?),
            directory_len: from.u32()?,
            parts_len: from.u32()?,
        };
        from.reserved(40)?;
        header.check()?;
        Ok(header)
    }

    /// What must hold whatever the payload is.
    fn check(&self) -> Result<(), LogError> {
        let wrong = |reason: String| Err(LogError::Invalid { reason });
        if self.frame_len() > FRAME_BYTES_MAX as u64 {
            return wrong(format!("a frame of {} bytes, at most {FRAME_BYTES_MAX} are allowed", self.frame_len()));
        }
        if !(self.parts_len as usize).is_multiple_of(PART_ALIGNMENT) {
            return wrong(format!("{} bytes of parts are not a multiple of {PART_ALIGNMENT}", self.parts_len));
        }
        if self.restart_seq > self.seq {
            return wrong(format!("restart seq {} is above seq {}", self.restart_seq, self.seq));
        }
        if self.kind == RecordKind::Commit && self.seq == Seq::ZERO {
            return wrong("a commit with seq 0".into());
        }
        Ok(())
    }

    /// Length of the frame that holds this record, bytes.
    pub(crate) fn frame_len(&self) -> u64 {
        (HEADER_LEN as u64) + padded(self.directory_len as usize) as u64 + u64::from(self.parts_len)
    }

    /// The position after this record (of a fragment or abort: the position it was written at).
    pub fn position(&self) -> Position {
        Position { history: self.history, epoch: self.epoch, seq: self.seq, chain: self.chain }
    }
}

/// A record read from the log, checked: header checksum, payload hash and part hashes all matched.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Its number in this node's log.
    pub lsn: Lsn,
    /// Set on a record that this node's operator skipped: its position counts, its payload is not applied.
    pub skipped: bool,
    /// The half that every node holds verbatim.
    pub header: HistoryHeader,
    /// Directory and parts.
    pub payload: Payload,
}

/// A record to be appended by the primary of its history. The writer adds LSN, epoch, seq, restart seq, chain
/// and commit time.
#[derive(Debug, Clone)]
pub struct Record {
    /// Which history; it must be open for writing ([`crate::Log::open_history`]).
    pub history: HistoryId,
    /// Commit, fragment or abort.
    pub kind: RecordKind,
    /// The transaction, from [`crate::Log::begin_transaction`]; `None` for a transaction that is this one record.
    pub transaction: Option<TransactionNumber>,
    /// On a fragment: its number. On a commit: how many fragments went before.
    pub fragment: FragmentNumber,
    /// Directory and parts.
    pub payload: Payload,
}

/// A record to be appended as it was received from its primary.
#[derive(Debug, Clone)]
pub struct VerbatimRecord {
    /// History half, verbatim. A commit must continue the chain of the history here.
    pub header: HistoryHeader,
    /// Directory and parts, verbatim.
    pub payload: Payload,
    /// Marks the record as skipped on this node.
    pub skipped: bool,
}

impl VerbatimRecord {
    /// Whether header and payload belong together.
    pub(crate) fn check(&self) -> Result<(), LogError> {
        self.payload.check()?;
        self.header.check()?;
        let Self { header, payload, .. } = self;
        let is_same = header.payload_hash == payload.hash
            && header.directory_len as usize == payload.directory_bytes.len()
            && header.parts_len as usize == payload.parts_len();
        if is_same {
            Ok(())
        } else {
            Err(LogError::Invalid { reason: format!("the payload of seq {} is not the header's", header.seq) })
        }
    }
}
