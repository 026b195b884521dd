//! The engine: one node's databases.

use std::sync::Arc;

use object_store::ObjectStore;
use tailrace_wal::{Clock, Disk, HistoryId, Log, Lsn, NodeId, Seq};
use tokio::sync::watch;

use crate::{EngineConfig, HistoryInfo, Receipt, Result, TableDefinition, TaskInfo, Transaction, Version};

/// What the engine takes from outside.
#[derive(Debug, Clone)]
pub struct EngineSeams {
    /// Beneath log and manifest.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// One node's databases over one log, one manifest and one object store.
#[derive(Debug)]
pub struct Engine {
    _private: (),
}

/// What start-up found, for the log line and `system` tables.
#[derive(Debug, Clone, Default)]
pub struct StartReport {
    /// Torn tails that were cut, in words.
    pub torn: Vec<String>,
    /// Transactions replayed.
    pub replayed: u64,
    /// Databases that did not start, with the reason.
    pub stopped: Vec<(String, String)>,
}

/// Settings and switches of this cluster's replication, from the system history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationSwitches {
    /// `start_cluster_replication` / `stop_cluster_replication` as a primary. Default on.
    pub primary: bool,
    /// The same as a replica. Default on.
    pub replica: bool,
}

/// Bytes in memory and at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryStatus {
    /// Unflushed rows, owning buffers counted once.
    pub memtable_bytes: u64,
    /// Flushes since start.
    pub flushes: u64,
    /// Last LSN that is flushed.
    pub flushed: Lsn,
}

impl Engine {
    /// Opens or creates a node's folder and recovers it. Must run within a tokio runtime.
    pub async fn open(_config: EngineConfig, _seams: EngineSeams) -> Result<(Arc<Self>, StartReport)> {
        todo!()
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        todo!()
    }

    /// Its settings.
    pub fn config(&self) -> &EngineConfig {
        todo!()
    }

    /// Its clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        todo!()
    }

    /// Its log, for feeds and figures. Only the engine appends.
    pub fn log(&self) -> &Log {
        todo!()
    }

    /// The store of the datafiles, for readers.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        todo!()
    }

    /// The newest version.
    pub fn version(&self) -> Version {
        todo!()
    }

    /// Changes whenever a database is created, dropped, switched or stopped, or a switch of the cluster changes.
    pub fn watch_databases(&self) -> watch::Receiver<u64> {
        todo!()
    }

    /// Changes whenever a database's applied position moves.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        todo!()
    }

    /// Histories here, ended ones included, except `system`.
    pub fn histories(&self) -> Vec<HistoryInfo> {
        todo!()
    }

    /// One history.
    pub fn history(&self, _id: HistoryId) -> Option<HistoryInfo> {
        todo!()
    }

    /// The latest transactions of a history after `after`, oldest first, at most [`crate::TASKS_KEPT`].
    pub fn tasks(&self, _history: HistoryId, _after: Seq) -> Vec<TaskInfo> {
        todo!()
    }

    /// CREATE DATABASE: a new history with its first record.
    pub async fn create_database(self: &Arc<Self>, _name: &str) -> Result<Receipt> {
        todo!()
    }

    /// DROP DATABASE: the history's last record.
    pub async fn drop_database(self: &Arc<Self>, _name: &str) -> Result<Receipt> {
        todo!()
    }

    /// CREATE TABLE.
    pub async fn create_table(self: &Arc<Self>, _database: &str, _definition: TableDefinition) -> Result<Receipt> {
        todo!()
    }

    /// DROP TABLE.
    pub async fn drop_table(self: &Arc<Self>, _database: &str, _table: &str) -> Result<Receipt> {
        todo!()
    }

    /// Begins a transaction of one database.
    pub fn begin(self: &Arc<Self>, _database: &str) -> Result<Transaction> {
        todo!()
    }

    /// Switches replication of a database, in the system history; durable on return.
    pub async fn set_database_replication(self: &Arc<Self>, _database: &str, _on: bool) -> Result<()> {
        todo!()
    }

    /// The cluster's switches.
    pub fn replication_switches(&self) -> ReplicationSwitches {
        todo!()
    }

    /// Sets the cluster's switches, in the system history; durable on return.
    pub async fn set_replication_switches(self: &Arc<Self>, _switches: ReplicationSwitches) -> Result<()> {
        todo!()
    }

    /// Flushes the whole memtable at one LSN, installs the datafiles, truncates the log. Returns that LSN.
    pub async fn flush(self: &Arc<Self>) -> Result<Lsn> {
        todo!()
    }

    /// Figures.
    pub fn memory(&self) -> MemoryStatus {
        todo!()
    }

    /// Ends background work and closes log and manifest: everything written is durable on return.
    pub async fn shutdown(&self) -> Result<()> {
        todo!()
    }
}
