//! Histories as other layers see them.

use serde::{Deserialize, Serialize};
use tailrace_wal::{Chain, Epoch, HistoryId, Position, Seq};

use crate::version::Role;

/// One epoch of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochEntry {
    /// Which.
    pub epoch: Epoch,
    /// Its first transaction.
    pub first_seq: Seq,
    /// Chain before that transaction.
    pub chain_before: Chain,
}

/// A history that this cluster holds or held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryInfo {
    /// Identity.
    pub id: HistoryId,
    /// Database name (the last one, for an ended history).
    pub name: String,
    /// What this cluster is to it.
    pub role: Role,
    /// Whether its replication is switched on here as a primary.
    pub replicated: bool,
    /// Its last applied position here; of an ended history, its end.
    pub position: Position,
    /// Where a reader at `position` has to start.
    pub restart_seq: Seq,
    /// All epochs, oldest first.
    pub epochs: Vec<EpochEntry>,
    /// Log readers can start after this seq or later ones.
    pub retained_after: Seq,
    /// Dropped: DROP DATABASE is its last record.
    pub ended: bool,
}
