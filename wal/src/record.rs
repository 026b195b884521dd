//! Records: what is appended, and what is read back.

use crate::{
    Chain, CommitTime, Epoch, FragmentNumber, HistoryId, LogError, Lsn, Payload, PayloadHash, Position, Seq,
    TransactionNumber,
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
        todo!()
    }

    /// Decodes and checks limits; does not check the payload.
    pub fn decode(_bytes: &[u8; Self::ENCODED_LEN]) -> Result<Self, LogError> {
        todo!()
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
