//! Repair: a whole database at one position, as datafiles.

mod check;
mod install;
mod keep;
mod pause;
mod source;

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, Position, Seq};

use crate::{DatafileMeta, EpochEntry, PartitionKey, Table, TableId};

pub(crate) use check::check as check_manifest;
pub use install::RepairInstall;
pub(crate) use pause::PausedRepairs;
pub use source::RepairSource;

/// Everything of a database at a position, except the datafiles' bytes. Travels as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairManifest {
    /// Database name.
    pub name: String,
    /// Where the database stands in it.
    pub position: Position,
    /// Where the feed goes on.
    pub restart_seq: Seq,
    /// Commit time at `position`.
    pub commit_time: CommitTime,
    /// All epochs.
    pub epochs: Vec<EpochEntry>,
    /// The id that the next table takes: ids are never used again, also not by a copy that is promoted.
    pub next_table: TableId,
    /// Tables with their datafiles by partition.
    pub tables: Vec<RepairTable>,
}

/// A table in a repair.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepairTable {
    /// The table.
    pub table: Table,
    /// Its datafiles.
    pub datafiles: Vec<(PartitionKey, DatafileMeta)>,
}

impl RepairManifest {
    /// All datafiles with their tables, in the order in which they are numbered.
    fn datafiles(&self) -> impl Iterator<Item = (&Table, &PartitionKey, &DatafileMeta)> {
        self.tables
            .iter()
            .flat_map(|held| held.datafiles.iter().map(|(partition, meta)| (&held.table, partition, meta)))
    }
}
