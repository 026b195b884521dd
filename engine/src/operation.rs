//! What a part does: operation codes and the bodies of those that carry no rows.

use serde::{Deserialize, Serialize};
use tailrace_wal::{HistoryId, Position};

use crate::{EpochEntry, Table, TableId};

/// What a transaction does, for task lists and apply; the code stands in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Rows appended; the part is an Arrow batch.
    Append,
    /// First record of a history; body [`CreateDatabase`].
    CreateDatabase,
    /// Last record of a history; no body.
    DropDatabase,
    /// Body [`Table`].
    CreateTable,
    /// No body; the entry names the table.
    DropTable,
    /// In the system history only; body [`SystemFact`].
    System,
}

/// Body of [`Operation::CreateDatabase`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateDatabase {
    /// Name now.
    pub name: String,
}

/// Body of [`Operation::CreateTable`].
pub type CreateTable = Table;

/// A fact of this cluster, in its system history; never fed to another cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum SystemFact {
    /// A database's replication was switched.
    DatabaseReplication {
        /// Which.
        history: HistoryId,
        /// On or off.
        on: bool,
    },
    /// The cluster's replication was started or stopped, as a primary.
    PrimaryReplication {
        /// On or off.
        on: bool,
    },
    /// The cluster's replication was started or stopped, as a replica.
    ReplicaReplication {
        /// On or off.
        on: bool,
    },
    /// A history is followed here: its database is read-only. Logged before the history's first record.
    Follows {
        /// Which.
        history: HistoryId,
        /// Database name at the time.
        name: String,
        /// Name of the primary cluster.
        primary: String,
    },
    /// A history ended with DROP DATABASE.
    Ended {
        /// Which.
        history: HistoryId,
        /// Last name.
        name: String,
        /// Its last record.
        end: Position,
        /// Its epochs.
        epochs: Vec<EpochEntry>,
    },
}

impl Operation {
    /// The code in directories.
    pub fn code(self) -> u16 {
        match self {
            Self::Append => 1,
            Self::CreateDatabase => 16,
            Self::DropDatabase => 17,
            Self::CreateTable => 18,
            Self::DropTable => 19,
            Self::System => 64,
        }
    }

    /// The operation of a code; `None` for one that this version does not know.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Append,
            16 => Self::CreateDatabase,
            17 => Self::DropDatabase,
            18 => Self::CreateTable,
            19 => Self::DropTable,
            64 => Self::System,
            _ => return None,
        })
    }

    /// As task lists show it: `APPEND`, `CREATE_DATABASE` …
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "APPEND",
            Self::CreateDatabase => "CREATE_DATABASE",
            Self::DropDatabase => "DROP_DATABASE",
            Self::CreateTable => "CREATE_TABLE",
            Self::DropTable => "DROP_TABLE",
            Self::System => "SYSTEM",
        }
    }
}

/// The table that an operation concerns, if any.
pub(crate) fn concerns(table: TableId) -> Option<TableId> {
    (table.0 != 0).then_some(table)
}
