//! Repair: a whole database at one position, as datafiles.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, HistoryId, Position, Seq};

use crate::{DatafileMeta, Engine, EpochEntry, PartitionKey, Result, Table};

/// Everything of a database at a position, except the datafiles' bytes. Travels as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    /// Tables with their datafiles by partition.
    pub tables: Vec<RepairTable>,
}

/// A table in a repair.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepairTable {
    /// The table.
    pub table: Table,
    /// Its datafiles.
    pub datafiles: Vec<(PartitionKey, DatafileMeta)>,
}

/// A database held at one position for a repair: its datafiles stay until this is dropped.
#[derive(Debug)]
pub struct RepairSource {
    /// What to send.
    pub manifest: RepairManifest,
}

impl RepairSource {
    /// Part of a datafile, by its index in the manifest's order (tables, then datafiles).
    pub async fn read(&self, _datafile: usize, _offset: u64, _length: u64) -> Result<Bytes> {
        todo!()
    }
}

/// A repair being received. Dropping it removes what was staged.
#[derive(Debug)]
pub struct RepairInstall {
    _private: (),
}

impl RepairInstall {
    /// Adds bytes of a datafile (index in the manifest's order), in order of offset; the last piece completes it: length
    /// and hash are checked, the file is made durable under a name of this node's own.
    pub async fn write(&mut self, _datafile: usize, _bytes: Bytes) -> Result<()> {
        todo!()
    }

    /// Puts the database in place as one manifest edit, with its position and a replay floor, replacing this node's
    /// copy. Readers see the old database or the new one.
    pub async fn install(self) -> Result<Position> {
        todo!()
    }
}

impl Engine {
    /// Flushes and holds a database for a repair; its position is durable.
    pub async fn repair_source(self: &Arc<Self>, _history: HistoryId) -> Result<RepairSource> {
        todo!()
    }

    /// Begins to receive a repair of a followed history ([`Engine::follow`] comes first). The manifest comes from a
    /// peer: limits and names are checked.
    pub async fn repair_install(self: &Arc<Self>, _primary: &str, _manifest: RepairManifest) -> Result<RepairInstall> {
        todo!()
    }
}
