//! What a part does: operation codes and the bodies of those that carry no rows.

use std::{borrow::Cow, collections::BTreeSet};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tailrace_wal::{HistoryId, Position, Seq};

use crate::{EngineError, EpochEntry, Job, JobRun, PointId, RemoteCluster, Result, Right, Table};

/// Longest body, bytes: a table of 4096 columns with the longest names takes less.
const BODY_BYTES_MAX: usize = 4 << 20;

/// Encodes a body.
pub(crate) fn encode_body<T: Serialize>(body: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(body).map_err(|error| EngineError::Invalid(format!("a record cannot be encoded: {error}")))
}

/// Decodes the body of an operation. Fields that this version does not know are refused by name: what they ask for
/// would otherwise be left undone in silence.
pub(crate) fn decode_body<T: DeserializeOwned>(operation: Operation, bytes: &[u8]) -> Result<T> {
    let wrong = |reason: String| {
        let name = operation.name();
        EngineError::Invalid(format!(
            "the body of {name} cannot be read: {reason}; if a newer node wrote it, upgrade this one"
        ))
    };
    if bytes.len() > BODY_BYTES_MAX {
        return Err(wrong(format!("it has {} bytes, {BODY_BYTES_MAX} are allowed", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))
}

/// What a transaction does, for task lists and apply; the code stands in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Rows appended; the part is an Arrow batch.
    Append,
    /// All rows of a partition with an earlier identity go; no body, no rows, the entry names table and partition.
    DropPartition,
    /// First record of a history; body [`CreateDatabase`].
    CreateDatabase,
    /// Last record of a history; no body.
    DropDatabase,
    /// Body [`Table`].
    CreateTable,
    /// No body; the entry names the table.
    DropTable,
    /// Changes nothing: whoever applies it can say what the database was there. Body [`DigestPoint`].
    DigestPoint,
    /// In the system history only; body [`SystemFact`].
    System,
}

/// Body of [`Operation::CreateDatabase`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateDatabase {
    /// Name now.
    pub name: String,
}

/// Body of [`Operation::DigestPoint`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DigestPoint {
    /// Its name in all that is said of it.
    pub id: PointId,
}

/// Body of [`Operation::CreateTable`].
pub type CreateTable = Table;

/// A fact of this cluster, in its system history; never fed to another cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case", deny_unknown_fields)]
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
    /// Which tables of a followed history have rows here.
    ChosenTables {
        /// Which history.
        history: HistoryId,
        /// Their names; null: all.
        tables: Option<BTreeSet<String>>,
    },
    /// Which tasks of a followed history are to be skipped when they come, in place of what was asked before.
    AskedSkips {
        /// Which history.
        history: HistoryId,
        /// The tasks, and why each is skipped; none: nothing is asked any more.
        tasks: Vec<(Seq, String)>,
    },
    /// A user was given a right in a database, or it was taken away.
    Right {
        /// Who.
        user: String,
        /// Database name.
        database: String,
        /// Which.
        right: Right,
        /// Given or taken.
        granted: bool,
    },
    /// A cluster elsewhere was declared under a name, or is not any more.
    RemoteCluster {
        /// Its name here.
        name: String,
        /// How to reach it; null: dropped.
        cluster: Option<RemoteCluster>,
    },
    /// A job as it is from now on.
    Job {
        /// All of it.
        job: Box<Job>,
    },
    /// A job is no more, nor are its runs.
    JobDeleted {
        /// Its name.
        name: String,
    },
    /// A run of a job as it is from now on: when it begins, and when it has ended.
    JobRun {
        /// All of it.
        run: Box<JobRun>,
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

/// The code of an operation as it stands in a directory, known to this version or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationCode(pub u16);

impl OperationCode {
    /// As task lists show it: the operation's name, `OPERATION <code>` for one that this version does not know.
    pub fn name(self) -> Cow<'static, str> {
        match Operation::from_code(self.0) {
            Some(operation) => operation.name().into(),
            None => format!("OPERATION {}", self.0).into(),
        }
    }
}

impl OperationCode {
    /// [`Operation::is_of_rows`]; `false` for one that this version does not know.
    pub fn is_of_rows(self) -> bool {
        Operation::from_code(self.0).is_some_and(Operation::is_of_rows)
    }
}

impl From<Operation> for OperationCode {
    fn from(operation: Operation) -> Self {
        Self(operation.code())
    }
}

impl Operation {
    /// The code in directories.
    pub fn code(self) -> u16 {
        match self {
            Self::Append => 1,
            Self::DropPartition => 2,
            Self::CreateDatabase => 16,
            Self::DropDatabase => 17,
            Self::CreateTable => 18,
            Self::DropTable => 19,
            Self::DigestPoint => 20,
            Self::System => 64,
        }
    }

    /// The operation of a code; `None` for one that this version does not know.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Append,
            2 => Self::DropPartition,
            16 => Self::CreateDatabase,
            17 => Self::DropDatabase,
            18 => Self::CreateTable,
            19 => Self::DropTable,
            20 => Self::DigestPoint,
            64 => Self::System,
            _ => return None,
        })
    }

    /// Whether it concerns the rows of partitions alone: what tables there are stays as it is.
    pub fn is_of_rows(self) -> bool {
        matches!(self, Self::Append | Self::DropPartition)
    }

    /// As task lists show it: `APPEND`, `CREATE_DATABASE` …
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "APPEND",
            Self::DropPartition => "DROP_PARTITION",
            Self::CreateDatabase => "CREATE_DATABASE",
            Self::DropDatabase => "DROP_DATABASE",
            Self::CreateTable => "CREATE_TABLE",
            Self::DropTable => "DROP_TABLE",
            Self::DigestPoint => "DIGEST_POINT",
            Self::System => "SYSTEM",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_come_back() {
        for code in 0..=u16::MAX {
            assert!(Operation::from_code(code).is_none_or(|operation| operation.code() == code));
        }
    }

    #[test]
    fn a_code_that_is_not_known_is_not_shown_as_one_that_is() {
        assert_eq!(OperationCode::from(Operation::DropTable).name(), "DROP_TABLE");
        assert_eq!(OperationCode(999).name(), "OPERATION 999");
    }

    #[test]
    fn bodies_come_back_and_unknown_fields_are_named() {
        let body = CreateDatabase { name: "market".into() };
        let bytes = encode_body(&body).unwrap();
        assert_eq!(decode_body::<CreateDatabase>(Operation::CreateDatabase, &bytes).unwrap(), body);
        let newer = br#"{"name":"market","retention":3}"#;
        let error = decode_body::<CreateDatabase>(Operation::CreateDatabase, newer).unwrap_err().to_string();
        assert!(error.contains("CREATE_DATABASE") && error.contains("retention"), "{error}");

        let fact = SystemFact::DatabaseReplication { history: HistoryId([7; 16]), on: true };
        let bytes = encode_body(&fact).unwrap();
        assert_eq!(decode_body::<SystemFact>(Operation::System, &bytes).unwrap(), fact);
        let newer = br#"{"fact":"primary_replication","on":true,"more":1}"#;
        decode_body::<SystemFact>(Operation::System, newer).unwrap_err();
        let long = vec![b' '; BODY_BYTES_MAX + 1];
        decode_body::<CreateDatabase>(Operation::CreateDatabase, &long).unwrap_err();
    }
}
