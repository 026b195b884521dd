//! What of a copy stays when it is repaired: partitions that hold the primary's rows already.

use std::{collections::BTreeMap, sync::Arc};

use super::{RepairManifest, check::wrong, install::Kept};
use crate::{
    DatabaseVersion, Digest, Engine, PartitionKey, PartitionVersion, Result, TableChoice, TableVersion,
    database::Database, digest::read::check_bytes,
};

impl Engine {
    /// Partitions of this copy whose rows, identities included, are those that the manifest describes, and whose files
    /// have the bytes that were written. What was found to differ before is not kept, whatever its digest.
    pub(super) async fn partitions_kept(
        self: &Arc<Self>,
        database: &Database,
        manifest: &RepairManifest,
        choice: &TableChoice,
    ) -> Result<Vec<Kept>> {
        if database.version().tables().all(|table| table.partitions().next().is_none()) {
            return Ok(Vec::new());
        }
        // Rows in memory become files that can be kept. Where that fails, their partitions are fetched.
        if let Err(error) = self.flush().await {
            tracing::info!(%error, "a repair begins without a flush");
        }
        let version = database.version();
        let mut kept = Vec::new();
        for held in manifest.tables.iter().filter(|held| choice.selects(&held.table.name)) {
            let here = version.table_by_id(held.table.id);
            let Some(here) = here.filter(|here| *here.table == held.table && !here.left_out) else { continue };
            let mut wanted: BTreeMap<&PartitionKey, Option<Digest>> = BTreeMap::new();
            for (key, meta) in &held.datafiles {
                let sum = wanted.entry(key).or_insert(Some(Digest::default()));
                // Without the digest of one file there is none of the partition.
                *sum = sum.zip(meta.digest).map(|(sum, digest)| sum + digest);
            }
            for (key, digest) in wanted {
                let (Some(digest), Some(partition)) = (digest, here.partition(key)) else { continue };
                let differed =
                    version.differences.iter().any(|known| (known.table, &known.partition) == (held.table.id, key));
                if !differed && self.is_kept(here, partition, digest).await {
                    kept.push(Kept { table: held.table.id, key: key.clone(), partition: partition.clone() });
                }
            }
        }
        Ok(kept)
    }

    async fn is_kept(&self, table: &Arc<TableVersion>, partition: &Arc<PartitionVersion>, wanted: Digest) -> bool {
        if !partition.chunks.is_empty() || partition.rows() != wanted.rows {
            return false;
        }
        if self.partition_digest(table, partition).await.ok() != Some(wanted) {
            return false;
        }
        for file in &partition.datafiles {
            if let Err(reason) = check_bytes(&self.store, &file.meta).await {
                tracing::warn!(datafile = file.path().0, reason, "a damaged datafile is replaced by a repair");
                return false;
            }
        }
        true
    }
}

/// Puts the kept partitions' files, as they are in `here`, into the version that a repair made. An error where they are
/// others by now.
pub(super) fn keep(here: &DatabaseVersion, repaired: &mut DatabaseVersion, kept: &[Kept]) -> Result<()> {
    let mut tables: BTreeMap<_, TableVersion> = BTreeMap::new();
    for Kept { table: id, key, partition } in kept {
        let now = here.table_by_id(*id).and_then(|table| table.partition(key));
        let same = now.is_some_and(|now| {
            now.chunks.is_empty()
                && now.datafiles.len() == partition.datafiles.len()
                && now.datafiles.iter().zip(&partition.datafiles).all(|(now, then)| Arc::ptr_eq(now, then))
        });
        if !same {
            return Err(wrong("a partition that was to be kept changed while others were fetched".to_owned()));
        }
        let Some(held) = repaired.tables.get(id) else { continue };
        let table = tables.entry(*id).or_insert_with(|| TableVersion::clone(held));
        table.partitions.insert_mut(key.clone(), partition.clone());
    }
    for (id, table) in tables {
        repaired.tables.insert_mut(id, Arc::new(table));
    }
    Ok(())
}
