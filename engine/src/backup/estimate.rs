//! What a backup would write: nothing is put into its location, and no folder is made.

use std::sync::Arc;

use tailrace_wal::Position;

use super::{
    BackupLocation, BackupRequest,
    cancel::unless_cancelled,
    earlier::{Earlier, preferred},
    hold::{Held, HeldPartition, HeldTable},
};
use crate::{Engine, Result};

/// What a backup would be made of now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupEstimate {
    /// Where each database stands.
    pub databases: Vec<(String, Position)>,
    /// Its tables.
    pub tables: Vec<EstimatedTable>,
}

/// A table in a [`BackupEstimate`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EstimatedTable {
    /// Its database.
    pub database: String,
    /// Its name.
    pub table: String,
    /// Partitions in the backup.
    pub partitions: u64,
    /// Those of which a file would be written.
    pub written_partitions: u64,
    /// Files in the backup. An unchanged partition may lie in others there, and counts with those here.
    pub files: u64,
    /// Files that it would write.
    pub written_files: u64,
    /// Files that an interrupted backup has left and that would be taken over, should their hashes be right.
    pub resumed_files: u64,
    /// Rows in the backup.
    pub rows: u64,
    /// Bytes of its datafiles here.
    pub bytes: u64,
    /// Those that it would write. Encrypted, they are a few more.
    pub written_bytes: u64,
}

impl Engine {
    /// What [`Engine::backup`] would write. The memtable is flushed, as for a backup; nothing else is changed.
    ///
    /// # Errors
    /// Those of a backup, as far as they can be known.
    pub async fn estimate_backup(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: &BackupRequest,
    ) -> Result<BackupEstimate> {
        self.check_open()?;
        unless_cancelled(&request.cancel, "the estimate of a backup", async {
            let held = self.hold(request).await?;
            let earlier = Earlier::find(location, request, &held).await?;
            let mut estimate = BackupEstimate::default();
            for held in &held {
                let facts = &held.source.manifest;
                estimate.databases.push((facts.name.clone(), facts.position));
                estimate.tables.extend(held.tables.iter().map(|table| of_table(request, &earlier, held, table)));
            }
            Ok(estimate)
        })
        .await
    }
}

fn of_table(request: &BackupRequest, earlier: &Earlier, held: &Held, table: &HeldTable) -> EstimatedTable {
    let facts = &held.source.manifest;
    let described = &facts.tables[table.table].table;
    let mut estimated =
        EstimatedTable { database: facts.name.clone(), table: described.name.clone(), ..EstimatedTable::default() };
    for partition in &table.partitions {
        estimated.partitions += 1;
        estimated.files += partition.metas.len() as u64;
        estimated.rows += partition.metas.iter().map(|meta| meta.rows).sum::<u64>();
        estimated.bytes += partition.metas.iter().map(|meta| meta.bytes).sum::<u64>();
        let key = (facts.position.history, described.id, partition.key.clone());
        if earlier.unchanged(&key, described.schema_version, &partition.digest).is_none() {
            of_files(request, earlier, partition, &mut estimated);
        }
    }
    estimated
}

/// The files of a partition that is not in an earlier backup as it is now.
fn of_files(request: &BackupRequest, earlier: &Earlier, partition: &HeldPartition, estimated: &mut EstimatedTable) {
    let mut is_written = false;
    for meta in &partition.metas {
        let name = preferred(request, meta);
        if !request.force && earlier.known(&name, meta).is_some() {
            continue;
        }
        let is_left =
            earlier.present.get(&name).is_some_and(|bytes| request.recipients.is_some() || *bytes == meta.bytes);
        if is_left && !request.force {
            estimated.resumed_files += 1;
            continue;
        }
        is_written = true;
        estimated.written_files += 1;
        estimated.written_bytes += meta.bytes;
    }
    estimated.written_partitions += u64::from(is_written);
}
