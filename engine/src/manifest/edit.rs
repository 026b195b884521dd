//! Edits: what changes at once.

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, HistoryId, Lsn, PinKey, Position, Seq};

use super::HistoryState;
use crate::{DatafileMeta, DeadLetter, Difference, EpochEntry, PartitionKey, SystemFact, Table, TableId};

/// One change of the manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Edit {
    /// The memtable became datafiles.
    Flush(FlushEdit),
    /// One history as a whole, in the place of what was there: a repair.
    Install(Box<HistoryState>),
    /// Where the pins stand; they are restored at the next start.
    Pins(Vec<PinRecord>),
    /// A dead letter was applied or given up.
    Settle(Box<SettleEdit>),
}

/// What a history lacks from now on, and the rows of a task that was skipped and is applied now. The history is at its
/// last flush.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettleEdit {
    pub(crate) history: HistoryId,
    /// All that was skipped and is not settled.
    pub(crate) skipped: Vec<DeadLetter>,
    /// New datafiles.
    pub(crate) added: Vec<(TableId, PartitionKey, DatafileMeta)>,
}

/// A flush. Histories that did not move are not in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlushEdit {
    /// Everything up to here is in datafiles and in this manifest.
    pub(crate) flushed: Lsn,
    /// Replay reads from here on: before `flushed` where a transaction was open.
    pub(crate) replay_from: Lsn,
    pub(crate) histories: Vec<FlushedHistory>,
    /// Histories that have ended: their files are named no longer.
    pub(crate) ended: Vec<HistoryId>,
}

/// A history that moved.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FlushedHistory {
    pub(crate) id: HistoryId,
    pub(crate) name: String,
    pub(crate) position: Position,
    pub(crate) restart_seq: Seq,
    pub(crate) commit_time: CommitTime,
    pub(crate) epochs: Vec<EpochEntry>,
    pub(crate) next_table: TableId,
    pub(crate) replay_after: Lsn,
    pub(crate) complete_from: Seq,
    /// All of its tables. A table that is not among them is gone with its files.
    pub(crate) tables: Vec<Table>,
    /// Those of them that are left out here: they have no files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_out: Vec<TableId>,
    /// Partitions that were dropped: their files are named no longer. Those in `added` are of after that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) dropped: Vec<(TableId, PartitionKey)>,
    /// New datafiles.
    pub(crate) added: Vec<(TableId, PartitionKey, DatafileMeta)>,
    /// Of the system history: its fold.
    pub(crate) system_facts: Vec<SystemFact>,
    /// New idempotency keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) keys: Vec<KeyRecord>,
    /// All that was skipped and is not settled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) skipped: Vec<DeadLetter>,
    /// Where it was found to differ from its primary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) differences: Vec<Difference>,
}

/// A transaction that had an idempotency key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyRecord {
    pub(crate) key: Vec<u8>,
    pub(crate) position: Position,
    pub(crate) lsn: Lsn,
    pub(crate) commit_time: CommitTime,
    pub(crate) rows: u64,
}

/// A pin, as it is to be found again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PinRecord {
    pub(crate) key: PinKey,
    pub(crate) acknowledged: Seq,
    pub(crate) applied: Seq,
    pub(crate) restart: Seq,
    /// Why it is lost, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<String>,
    /// Since when it is in its state, wall-clock microseconds.
    #[serde(default)]
    pub(crate) since: CommitTime,
    /// For how long it had stood still, seconds.
    #[serde(default)]
    pub(crate) stalled: u64,
    /// Of a subscription: its table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) table: Option<TableId>,
}
