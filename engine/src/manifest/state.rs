//! The fold of all edits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, HistoryId, Lsn, NodeId, Position, Seq};

use super::{Edit, FlushEdit, FlushedHistory, KeyRecord, PinRecord, SettleEdit};
use crate::{
    DatafileMeta, DeadLetter, Difference, EpochEntry, PartitionKey, SystemFact, Table, TableId, keys::KEYS_KEPT,
};

/// A node's physical facts.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ManifestState {
    /// This node.
    pub(crate) node: NodeId,
    /// Its system history.
    pub(crate) system: HistoryId,
    /// Everything in the log up to here is in the histories below.
    pub(crate) flushed: Lsn,
    /// Replay reads from here on.
    pub(crate) replay_from: Lsn,
    /// Histories that have not ended, the system history among them.
    pub(crate) histories: BTreeMap<HistoryId, HistoryState>,
    pub(crate) pins: Vec<PinRecord>,
}

/// A history at its last flush.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryState {
    pub(crate) id: HistoryId,
    /// Name of its database.
    pub(crate) name: String,
    pub(crate) position: Position,
    pub(crate) restart_seq: Seq,
    pub(crate) commit_time: CommitTime,
    pub(crate) epochs: Vec<EpochEntry>,
    /// The id that the next CREATE TABLE takes.
    pub(crate) next_table: TableId,
    /// Records at or below this LSN belong to a copy that was replaced: they are not replayed.
    pub(crate) replay_after: Lsn,
    /// Every fragment written after this seq is in this node's log, or its transaction is over.
    pub(crate) complete_from: Seq,
    pub(crate) tables: BTreeMap<TableId, TableState>,
    /// Those of them that are left out here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left_out: Vec<TableId>,
    /// Of the system history: its fold.
    pub(crate) system_facts: Vec<SystemFact>,
    /// Its latest idempotency keys, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) keys: Vec<KeyRecord>,
    /// What was skipped in it and is not settled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) skipped: Vec<DeadLetter>,
    /// Where it was found to differ from its primary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) differences: Vec<Difference>,
}

/// A table with its datafiles.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TableState {
    pub(crate) table: Table,
    pub(crate) partitions: BTreeMap<PartitionKey, Vec<DatafileMeta>>,
}

impl ManifestState {
    /// Takes one edit.
    pub(crate) fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Flush(FlushEdit { flushed, replay_from, histories, ended }) => {
                self.flushed = flushed;
                self.replay_from = replay_from;
                for id in ended {
                    self.histories.remove(&id);
                }
                for history in histories {
                    let known = self.histories.remove(&history.id);
                    let history = HistoryState::moved(known, history);
                    self.histories.insert(history.id, history);
                }
            }
            Edit::Install(history) => {
                self.histories.insert(history.id, *history);
            }
            Edit::Pins(pins) => self.pins = pins,
            Edit::Settle(edit) => {
                let SettleEdit { history, skipped, added } = *edit;
                if let Some(history) = self.histories.get_mut(&history) {
                    history.skipped = skipped;
                    add_files(&mut history.tables, added);
                }
            }
        }
    }
}

impl HistoryState {
    fn moved(known: Option<Self>, moved: FlushedHistory) -> Self {
        let (mut held, mut keys) = known.map(|known| (known.tables, known.keys)).unwrap_or_default();
        keys.extend(moved.keys);
        keys.drain(..keys.len().saturating_sub(KEYS_KEPT));
        let mut tables: BTreeMap<TableId, TableState> = BTreeMap::new();
        for table in moved.tables {
            let held = held.remove(&table.id).filter(|_| !moved.left_out.contains(&table.id));
            let partitions = held.map(|held| held.partitions).unwrap_or_default();
            tables.insert(table.id, TableState { table, partitions });
        }
        for (table, key) in moved.dropped {
            if let Some(table) = tables.get_mut(&table) {
                table.partitions.remove(&key);
            }
        }
        add_files(&mut tables, moved.added);
        Self {
            id: moved.id,
            name: moved.name,
            position: moved.position,
            restart_seq: moved.restart_seq,
            commit_time: moved.commit_time,
            epochs: moved.epochs,
            next_table: moved.next_table,
            replay_after: moved.replay_after,
            complete_from: moved.complete_from,
            tables,
            left_out: moved.left_out,
            system_facts: moved.system_facts,
            keys,
            skipped: moved.skipped,
            differences: moved.differences,
        }
    }
}

fn add_files(tables: &mut BTreeMap<TableId, TableState>, added: Vec<(TableId, PartitionKey, DatafileMeta)>) {
    for (table, key, meta) in added {
        if let Some(table) = tables.get_mut(&table) {
            table.partitions.entry(key).or_default().push(meta);
        }
    }
}
