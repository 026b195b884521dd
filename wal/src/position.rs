//! Positions of a history: what crosses nodes.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Chain, CommitTime, Epoch, HistoryId, PayloadHash, RecordKind, Seq};

/// A point in a history. Two nodes whose positions are equal hold equal histories up to there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Which history.
    pub history: HistoryId,
    /// Epoch of the transaction at `seq`; the default epoch at seq 0.
    pub epoch: Epoch,
    /// The last transaction included.
    pub seq: Seq,
    /// The chain after it.
    pub chain: Chain,
}

impl Position {
    /// Before the first transaction of `history`.
    pub fn start(history: HistoryId) -> Self {
        Self { history, epoch: Epoch::default(), seq: Seq::ZERO, chain: Chain::default() }
    }

    /// The position after one more committed record. The chain covers history id, epoch, seq, kind, commit time
    /// and payload hash, unsalted; its bytes are drawn in `FORMAT.md`.
    #[must_use]
    pub fn follow(self, epoch: Epoch, kind: RecordKind, time: CommitTime, payload: PayloadHash) -> Self {
        let seq = self.seq.next();
        let mut bytes = [0u8; 64];
        bytes[0..8].copy_from_slice(&self.chain.0.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.history.0);
        bytes[24..28].copy_from_slice(&epoch.counter.to_le_bytes());
        bytes[28..32].copy_from_slice(&epoch.nonce.to_le_bytes());
        bytes[32..40].copy_from_slice(&seq.0.to_le_bytes());
        bytes[40..48].copy_from_slice(&time.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&payload.0.to_le_bytes());
        bytes[56..58].copy_from_slice(&kind.code().to_le_bytes());
        Self { history: self.history, epoch, seq, chain: Chain(xxhash_rust::xxh3::xxh3_64(&bytes)) }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{} (epoch {}, chain {:016x})", self.history, self.seq, self.epoch, self.chain.0)
    }
}
