//! Admission: what must hold before a transaction is logged, and keeps holding until it is applied.

use std::{collections::BTreeMap, sync::Arc};

use tailrace_wal::{HistoryId, Seq};
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use crate::{
    DatabaseVersion, Engine, EngineError, PartitionKey, Result, SchemaVersion, TableId, TableVersion,
    database::Database,
};

/// The latches of an admitted transaction. While they are held its record can be applied to any state that its
/// history may reach before it.
#[derive(Debug)]
pub(crate) struct Admission {
    _latches: Latches,
    /// No flush takes the space that the record needs.
    _alone: Option<OwnedMutexGuard<()>>,
    /// Nothing is frozen by a flush between append and apply.
    _gate: OwnedRwLockReadGuard<()>,
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum Latches {
    /// A commit: shared with other commits, but for tables of which it has seen partitions.
    Commit(OwnedRwLockReadGuard<()>, Vec<TableLatch>),
    /// DDL of one table: no commit to it is under way.
    Table(OwnedRwLockReadGuard<()>, Option<OwnedRwLockWriteGuard<()>>),
    /// The end of the database: nothing else is under way.
    Database(OwnedRwLockWriteGuard<()>),
}

#[derive(Debug)]
#[expect(dead_code, reason = "held, not read")]
enum TableLatch {
    Shared(OwnedRwLockReadGuard<()>),
    Exclusive(OwnedRwLockWriteGuard<()>),
}

/// A table as a transaction saw it.
#[derive(Debug, Clone)]
pub(crate) struct SeenTable {
    pub(crate) name: String,
    pub(crate) schema_version: SchemaVersion,
    /// Partitions that must be as they were.
    pub(crate) partitions: Vec<SeenPartition>,
}

/// What a version says of a partition, there or not: [`crate::Transaction::replace_partition`] is refused where it has
/// changed since. Flushes and compactions change nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPartition {
    pub(crate) history: HistoryId,
    pub(crate) table: TableId,
    pub(crate) key: PartitionKey,
    /// The latest transaction that its rows are from; none: it was not there.
    pub(crate) last: Option<Seq>,
}

impl DatabaseVersion {
    /// What this version says of a partition of `table`.
    pub fn seen_partition(&self, table: &TableVersion, key: &PartitionKey) -> SeenPartition {
        let last = table.partition(key).and_then(|partition| partition.last());
        SeenPartition { history: self.id, table: table.table.id, key: key.clone(), last }
    }
}

impl SeenPartition {
    /// Which partition.
    pub fn key(&self) -> &PartitionKey {
        &self.key
    }
}

impl Engine {
    /// Admits a transaction of rows. Tables are latched in the order of their ids. `alone`: no flush runs beside it.
    pub(crate) async fn admit_commit(
        &self,
        database: &Arc<Database>,
        tables: &BTreeMap<TableId, SeenTable>,
        alone: bool,
    ) -> Result<Admission> {
        let latch = database.latch.clone().read_owned().await;
        let mut latches = Vec::with_capacity(tables.len());
        for (id, seen) in tables {
            let latch = database.table_latch(*id);
            latches.push(match seen.partitions.is_empty() {
                true => TableLatch::Shared(latch.read_owned().await),
                // What was appended to it is applied then.
                false => TableLatch::Exclusive(latch.write_owned().await),
            });
        }
        let alone = self.alone(alone).await;
        let gate = self.gate.clone().read_owned().await;
        let version = self.check_live(database)?;
        for (id, seen) in tables {
            let now = version.table_by_id(*id);
            let Some(now) = now.filter(|now| now.table.schema_version == seen.schema_version) else {
                let what = if now.is_none() { "dropped" } else { "changed" };
                return Err(EngineError::Conflict(format!("table {:?} was {what} meanwhile", seen.name)));
            };
            for partition in &seen.partitions {
                if *partition != version.seen_partition(now, &partition.key) {
                    return Err(EngineError::Conflict(format!(
                        "partition {} of table {:?} was changed meanwhile",
                        now.scheme.show(&partition.key)?,
                        seen.name
                    )));
                }
            }
        }
        Ok(Admission { _latches: Latches::Commit(latch, latches), _alone: alone, _gate: gate })
    }

    /// Admits DDL that concerns `table`, or a table that does not exist yet. The caller holds the database's `ddl` lock.
    /// `alone`: no flush runs beside it.
    pub(crate) async fn admit_ddl(
        &self,
        database: &Arc<Database>,
        table: Option<TableId>,
        alone: bool,
    ) -> Result<Admission> {
        let latch = database.latch.clone().read_owned().await;
        let exclusive = match table {
            Some(id) => Some(database.table_latch(id).write_owned().await),
            None => None,
        };
        let alone = self.alone(alone).await;
        let gate = self.gate.clone().read_owned().await;
        self.check_live(database)?;
        Ok(Admission { _latches: Latches::Table(latch, exclusive), _alone: alone, _gate: gate })
    }

    /// Admits the end of a database. `followed` histories end here without having been written here.
    /// `alone`: no flush runs beside it.
    pub(crate) async fn admit_end(&self, database: &Arc<Database>, followed: bool, alone: bool) -> Result<Admission> {
        let latch = database.latch.clone().write_owned().await;
        let alone = self.alone(alone).await;
        let gate = self.gate.clone().read_owned().await;
        if followed {
            self.check_open()?;
        } else {
            self.check_live(database)?;
        }
        Ok(Admission { _latches: Latches::Database(latch), _alone: alone, _gate: gate })
    }

    /// After the latches: who holds them may wait for a flush.
    async fn alone(&self, alone: bool) -> Option<OwnedMutexGuard<()>> {
        match alone {
            true => Some(self.flushing.clone().lock_owned().await),
            false => None,
        }
    }

    fn check_live(&self, database: &Arc<Database>) -> Result<Arc<DatabaseVersion>> {
        self.check_open()?;
        let applying = database.applying.lock();
        if applying.ended {
            return Err(EngineError::Conflict(format!("database {:?} was dropped meanwhile", database.name)));
        }
        Database::check_writable(&applying.version)?;
        Ok(applying.version.clone())
    }
}
