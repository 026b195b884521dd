//! Versions: immutable snapshots for readers. Cloning one is an `Arc`; what it names stays readable while it lives.

use std::{collections::BTreeMap, sync::Arc};

use arrow_schema::SchemaRef;
use tailrace_wal::{CommitTime, HistoryId, Position, Seq};

use crate::{Chunk, DatafileMeta, EpochEntry, PartitionKey, PartitionScheme, Table, partition::DatafilePath};

/// All databases at one moment; each database at one position.
#[derive(Debug, Clone, Default)]
pub struct Version {
    pub(crate) databases: Arc<BTreeMap<String, Arc<DatabaseVersion>>>,
}

/// What this cluster is to a database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// It is written here.
    Primary,
    /// It is followed from another cluster and read-only.
    Replica {
        /// The primary cluster's name.
        primary: String,
    },
}

/// A database at one position.
#[derive(Debug, Clone)]
pub struct DatabaseVersion {
    /// Its history.
    pub id: HistoryId,
    /// Name.
    pub name: String,
    /// What this cluster is to it.
    pub role: Role,
    /// Whether its replication is switched on here as a primary.
    pub replicated: bool,
    /// Why it stopped here, with the remedy, if it did; reads go on at `position`.
    pub stopped: Option<String>,
    /// Everything up to here is applied, nothing after.
    pub position: Position,
    /// Where a reader of the log at this position has to start.
    pub restart_seq: Seq,
    /// Commit time of the transaction at `position`.
    pub commit_time: CommitTime,
    /// All epochs, oldest first.
    pub epochs: Vec<EpochEntry>,
    pub(crate) tables: rpds::HashTrieMapSync<String, Arc<TableVersion>>,
}

/// A table at its database's position.
#[derive(Debug, Clone)]
pub struct TableVersion {
    /// What it is.
    pub table: Arc<Table>,
    /// Its Arrow schema.
    pub schema: SchemaRef,
    /// Its partitioning.
    pub scheme: Arc<PartitionScheme>,
    pub(crate) partitions: rpds::RedBlackTreeMapSync<PartitionKey, Arc<PartitionVersion>>,
}

/// A partition at its database's position.
#[derive(Debug, Clone, Default)]
pub struct PartitionVersion {
    /// Cold rows.
    pub datafiles: Vec<Arc<Datafile>>,
    /// Hot rows, in identity order. None of them is in a datafile of this version.
    pub chunks: Vec<Arc<Chunk>>,
}

/// A datafile that some version refers to. The file is removed after the last version that names it is gone and
/// nothing else holds it.
#[derive(Debug)]
pub struct Datafile {
    /// What the manifest says of it.
    pub meta: DatafileMeta,
}

impl Version {
    /// A database by name.
    pub fn database(&self, name: &str) -> Option<&Arc<DatabaseVersion>> {
        self.databases.get(name)
    }

    /// All databases by name.
    pub fn databases(&self) -> impl Iterator<Item = &Arc<DatabaseVersion>> {
        self.databases.values()
    }
}

impl DatabaseVersion {
    /// A table by name.
    pub fn table(&self, name: &str) -> Option<&Arc<TableVersion>> {
        self.tables.get(name)
    }

    /// All tables, in no order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableVersion>> {
        self.tables.values()
    }
}

impl TableVersion {
    /// All partitions in key order.
    pub fn partitions(&self) -> impl Iterator<Item = (&PartitionKey, &Arc<PartitionVersion>)> {
        self.partitions.iter()
    }

    /// Rows: exact.
    pub fn rows(&self) -> u64 {
        self.partitions.values().map(|partition| partition.rows()).sum()
    }
}

impl PartitionVersion {
    /// Rows: exact.
    pub fn rows(&self) -> u64 {
        let cold: u64 = self.datafiles.iter().map(|datafile| datafile.meta.rows).sum();
        cold + self.chunks.iter().map(|chunk| chunk.batch.num_rows() as u64).sum::<u64>()
    }
}

impl Datafile {
    /// Where it lies.
    pub fn path(&self) -> &DatafilePath {
        &self.meta.path
    }
}
