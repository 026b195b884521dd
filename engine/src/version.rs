//! Versions: immutable snapshots for readers. Cloning one is an `Arc`; what it names stays readable while it lives.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use tailrace_wal::{CommitTime, HistoryId, Position, Seq};

use crate::{
    Chunk, DatafileMeta, Difference, Digest, EpochEntry, PartitionKey, PartitionScheme, Result, SchemaVersion, Table,
    TableChoice, TableId, dead_letter::Skipped, garbage::Garbage, partition::DatafilePath,
};

/// All databases by name. Persistent, so that publishing one database copies only the path to it.
pub(crate) type Databases = rpds::RedBlackTreeMapSync<String, Arc<DatabaseVersion>>;

/// All databases at one moment; each database at one position.
#[derive(Debug, Clone, Default)]
pub struct Version {
    pub(crate) databases: Arc<Databases>,
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
    /// What was skipped here and is not settled.
    pub(crate) skipped: Arc<Skipped>,
    /// Where it was found to differ from its primary.
    pub(crate) differences: Arc<Vec<Difference>>,
    /// Which tables have rows here.
    pub(crate) choice: TableChoice,
    pub(crate) tables: rpds::HashTrieMapSync<TableId, Arc<TableVersion>>,
    pub(crate) names: rpds::HashTrieMapSync<String, TableId>,
    /// The id that the next CREATE TABLE takes: above all ids ever used.
    pub(crate) next_table: TableId,
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
    /// Its rows were not applied here, or not all of them: it holds none.
    pub(crate) left_out: bool,
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

/// A datafile that some version refers to. Once the manifest has let go of it, the file is removed when the last
/// version that names it is gone and nothing else holds it.
pub struct Datafile {
    /// What the manifest says of it.
    pub meta: DatafileMeta,
    cached: Mutex<Option<Arc<[Arc<Chunk>]>>>,
    /// Computed since, where the manifest has none for the schema.
    digest: Mutex<Option<(SchemaVersion, Digest)>>,
    obsolete: AtomicBool,
    garbage: Garbage,
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
        self.table_by_id(*self.names.get(name)?)
    }

    /// A table by its id.
    pub fn table_by_id(&self, id: TableId) -> Option<&Arc<TableVersion>> {
        self.tables.get(&id)
    }

    /// All tables, in no order.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableVersion>> {
        self.tables.values()
    }
}

impl TableVersion {
    /// A table without rows.
    pub(crate) fn empty(table: Table) -> Result<Self> {
        let scheme = Arc::new(PartitionScheme::new(&table)?);
        let schema = table.schema();
        let partitions = rpds::RedBlackTreeMapSync::new_sync();
        Ok(Self { table: Arc::new(table), schema, scheme, left_out: false, partitions })
    }

    /// A partition by its key.
    pub fn partition(&self, key: &PartitionKey) -> Option<&Arc<PartitionVersion>> {
        self.partitions.get(key)
    }

    /// All partitions in key order.
    pub fn partitions(&self) -> impl Iterator<Item = (&PartitionKey, &Arc<PartitionVersion>)> {
        self.partitions.iter()
    }

    /// The table with no other partition than this.
    pub fn only(&self, key: &PartitionKey) -> Self {
        let mut partitions = rpds::RedBlackTreeMapSync::new_sync();
        if let Some(partition) = self.partitions.get(key) {
            partitions.insert_mut(key.clone(), partition.clone());
        }
        Self { partitions, ..self.clone() }
    }

    /// Rows: exact.
    pub fn rows(&self) -> u64 {
        self.partitions.values().map(|partition| partition.rows()).sum()
    }
}

impl PartitionVersion {
    /// The latest transaction that its rows are from.
    pub(crate) fn last(&self) -> Option<Seq> {
        let cold = self.datafiles.iter().map(|datafile| datafile.meta.seqs.1);
        let hot = self.chunks.iter().filter_map(|chunk| chunk.identities.last()).map(|run| run.seq);
        cold.chain(hot).max()
    }

    /// Rows: exact.
    pub fn rows(&self) -> u64 {
        let cold: u64 = self.datafiles.iter().map(|datafile| datafile.meta.rows).sum();
        cold + self.chunks.iter().map(|chunk| chunk.batch.num_rows() as u64).sum::<u64>()
    }
}

impl Datafile {
    /// A file that the manifest names.
    pub(crate) fn new(meta: DatafileMeta, garbage: Garbage) -> Arc<Self> {
        Arc::new(Self {
            meta,
            cached: Mutex::new(None),
            digest: Mutex::new(None),
            obsolete: AtomicBool::new(false),
            garbage,
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &DatafilePath {
        &self.meta.path
    }

    /// The file's rows in Arrow, where they are still in memory: all of them, in identity order, not in the order of
    /// the file.
    pub fn cached(&self) -> Option<Arc<[Arc<Chunk>]>> {
        self.cached.lock().clone()
    }

    pub(crate) fn set_cached(&self, chunks: Option<Arc<[Arc<Chunk>]>>) {
        *self.cached.lock() = chunks;
    }

    /// The digest of its rows as rows of that schema, if it is known: from when it was written with it, or computed since.
    pub fn digest(&self, schema: SchemaVersion) -> Option<Digest> {
        if let Some(written) = self.meta.digest.filter(|_| self.meta.schema_version == schema) {
            return Some(written);
        }
        self.digest.lock().filter(|(of, _)| *of == schema).map(|(_, digest)| digest)
    }

    pub(crate) fn remember_digest(&self, schema: SchemaVersion, digest: Digest) {
        *self.digest.lock() = Some((schema, digest));
    }

    /// The manifest names it no longer: it goes with its last holder.
    pub(crate) fn mark_obsolete(&self) {
        self.obsolete.store(true, Ordering::Release);
    }
}

impl Drop for Datafile {
    fn drop(&mut self) {
        if *self.obsolete.get_mut() {
            self.garbage.remove(self.meta.path.clone());
        }
    }
}

impl fmt::Debug for Datafile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datafile").field("meta", &self.meta).field("obsolete", &self.obsolete).finish_non_exhaustive()
    }
}
