//! The side that serves a repair.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt};
use tailrace_wal::HistoryId;

use super::{RepairManifest, RepairTable};
use crate::{Datafile, Engine, EngineError, Result};

/// Most bytes of one [`RepairSource::read`].
const PIECE_BYTES_MAX: u64 = 64 << 20;

/// A database held at one position for a repair: its datafiles stay until this is dropped.
#[derive(Debug)]
pub struct RepairSource {
    /// What to send.
    pub manifest: RepairManifest,
    store: Arc<dyn ObjectStore>,
    /// In the manifest's order. Held, they are not removed.
    files: Vec<Arc<Datafile>>,
}

impl RepairSource {
    /// Part of a datafile, by its index in the manifest's order (tables, then datafiles). Exactly `length` bytes; a
    /// range beyond the file, or of more than 64 MiB, is an error.
    pub async fn read(&self, datafile: usize, offset: u64, length: u64) -> Result<Bytes> {
        let file = self.files.get(datafile).ok_or_else(|| {
            EngineError::Invalid(format!("datafile {datafile} of a repair with {} datafiles", self.files.len()))
        })?;
        let end = offset.checked_add(length).filter(|end| *end <= file.meta.bytes && length <= PIECE_BYTES_MAX);
        let end = end.ok_or_else(|| {
            EngineError::Invalid(format!(
                "{length} bytes at {offset} of a datafile of {} bytes, at most {PIECE_BYTES_MAX} at a time",
                file.meta.bytes
            ))
        })?;
        let read = self.store.get_range(&file.path().object_path()?, offset..end).await;
        read.map_err(|error| EngineError::Storage {
            operation: "read datafile",
            object: file.path().0.clone(),
            reason: error.to_string(),
        })
    }
}

impl Engine {
    /// Flushes and holds a database for a repair; its position is durable. Only a healthy database with
    /// all of its tables serves one.
    pub async fn repair_source(self: &Arc<Self>, history: HistoryId) -> Result<RepairSource> {
        let unknown = || EngineError::NotFound { kind: "history", name: history.to_string() };
        let database = self.database(history).ok_or_else(unknown)?;
        if let Some(reason) = database.version().stopped.clone() {
            return Err(EngineError::DatabaseStopped { database: database.name.clone(), reason });
        }
        self.flush().await?;
        // No flush from here on: what the manifest names is in the version, or retired and waiting for the next one.
        let flushing = self.flushing.lock().await;
        let state = self.manifest.history(history).await.ok_or_else(unknown)?;
        if !state.skipped.is_empty() || !database.version().differences.is_empty() {
            let why = database.version().divergence().map(|divergence| divergence.reason).unwrap_or_default();
            return Err(EngineError::Invalid(format!(
                "database {:?} is DIVERGED here and serves no repair: {why}; CALL repair_database('{}') here first",
                database.name, database.name
            )));
        }
        database.version().check_whole()?;
        let mut held: HashMap<String, Arc<Datafile>> = HashMap::new();
        {
            let applying = database.applying.lock();
            let partitions = applying.version.tables().flat_map(|table| table.partitions());
            let live = partitions.flat_map(|(_, partition)| &partition.datafiles);
            for file in live.chain(&applying.changes.retired) {
                held.insert(file.path().0.clone(), Arc::clone(file));
            }
        }
        let mut files = Vec::new();
        let mut tables = Vec::new();
        for (_, table) in state.tables {
            let mut datafiles = Vec::new();
            for (key, metas) in table.partitions {
                for meta in metas {
                    let gone = || EngineError::Conflict(format!("database {:?} was dropped meanwhile", database.name));
                    files.push(held.remove(&meta.path.0).ok_or_else(gone)?);
                    datafiles.push((key.clone(), meta));
                }
            }
            tables.push(RepairTable { table: table.table, datafiles });
        }
        drop(flushing);
        // Reading a file that has no digest is cheaper than sending it where it is not needed.
        let version = database.version();
        let mut held_files = files.iter();
        for table in &mut tables {
            for (_, meta) in &mut table.datafiles {
                let Some(file) = held_files.next() else { break };
                if meta.digest.is_none()
                    && let Some(here) = version.table_by_id(table.table.id)
                {
                    // One that cannot be read is asked for, and what is wrong with it is said then.
                    meta.digest = self.file_digest(here, file).await.ok();
                }
            }
        }
        let manifest = RepairManifest {
            name: state.name,
            position: state.position,
            restart_seq: state.restart_seq,
            commit_time: state.commit_time,
            epochs: state.epochs,
            next_table: state.next_table,
            tables,
        };
        Ok(RepairSource { manifest, store: Arc::clone(&self.store), files })
    }
}
