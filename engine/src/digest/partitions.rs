//! Digests of the partitions of a version: kept ones of datafiles, and those of the rows in memory.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Digest, RowHasher, read};
use crate::{
    Datafile, DatafileMeta, Engine, EngineError, PartitionKey, PartitionVersion, Result, SchemaVersion, Table,
    TableVersion,
};

/// A partition as its files are, read again.
#[derive(Debug, Clone, Default)]
pub struct ScrubbedPartition {
    /// Of all rows that could be read.
    pub digest: Digest,
    /// Datafiles that are not what was written.
    pub damage: Vec<DamagedDatafile>,
}

/// A datafile that is not what was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DamagedDatafile {
    /// Its path in the store.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Engine {
    /// The digest of every partition of a table in a version that the caller holds, in key order. Datafiles bring their own,
    /// computed when they were written; a file from before digests were kept is read, and remembered. Rows in memory
    /// are hashed on a blocking thread. Memory does not grow with the rows. Dropping the future ends the work between
    /// two batches.
    pub async fn partition_digests(&self, table: &Arc<TableVersion>) -> Result<Vec<(PartitionKey, Digest)>> {
        let hasher = RowHasher::of_table(&table.table)?;
        for (_, partition) in table.partitions() {
            self.learn_digests(table, &hasher, partition).await?;
        }
        let table = table.clone();
        cancellable(move |stop| {
            let version = table.table.schema_version;
            let partitions = table.partitions().map(|(key, partition)| {
                let digest = cold(partition, version)? + hot(&hasher, partition, stop)?;
                Ok((key.clone(), digest))
            });
            partitions.collect()
        })
        .await
    }

    /// The digest of one partition: as [`Engine::partition_digests`].
    pub async fn partition_digest(
        &self,
        table: &Arc<TableVersion>,
        partition: &Arc<PartitionVersion>,
    ) -> Result<Digest> {
        let hasher = RowHasher::of_table(&table.table)?;
        self.learn_digests(table, &hasher, partition).await?;
        let (partition, version) = (partition.clone(), table.table.schema_version);
        cancellable(move |stop| Ok(cold(&partition, version)? + hot(&hasher, &partition, stop)?)).await
    }

    /// Reads a partition's datafiles again: whether each has the bytes and the rows that were written, and the digest of
    /// what is there now. A file that cannot be read is damage, not an error.
    pub async fn scrub_partition(
        &self,
        table: &Arc<TableVersion>,
        partition: &Arc<PartitionVersion>,
    ) -> Result<ScrubbedPartition> {
        let hasher = RowHasher::of_table(&table.table)?;
        let mut scrubbed = ScrubbedPartition::default();
        for file in &partition.datafiles {
            let damaged = |reason: String| DamagedDatafile { path: file.path().0.clone(), reason };
            if let Err(reason) = read::check_bytes(&self.store, &file.meta).await {
                scrubbed.damage.push(damaged(reason));
                continue;
            }
            match self.read_digest(table, &hasher, file).await {
                Ok(digest) => {
                    scrubbed.digest += digest;
                    let kept = file.digest(table.table.schema_version);
                    if let Some(kept) = kept.filter(|kept| *kept != digest) {
                        scrubbed.damage.push(damaged(format!("it has rows {digest}, written were {kept}")));
                    }
                }
                Err(EngineError::Closed) => return Err(EngineError::Closed),
                Err(error) => scrubbed.damage.push(damaged(error.to_string())),
            }
        }
        let partition = partition.clone();
        scrubbed.digest += cancellable(move |stop| hot(&hasher, &partition, stop)).await?;
        Ok(scrubbed)
    }

    /// Computes what is not kept, and remembers it.
    async fn learn_digests(
        &self,
        table: &Arc<TableVersion>,
        hasher: &RowHasher,
        partition: &PartitionVersion,
    ) -> Result<()> {
        let version = table.table.schema_version;
        for file in partition.datafiles.iter().filter(|file| file.digest(version).is_none()) {
            let digest = self.read_digest(table, hasher, file).await?;
            file.remember_digest(version, digest);
        }
        Ok(())
    }

    /// The digest of a datafile: kept, remembered, or read.
    pub(crate) async fn file_digest(&self, table: &Arc<TableVersion>, file: &Arc<Datafile>) -> Result<Digest> {
        let version = table.table.schema_version;
        if let Some(known) = file.digest(version) {
            return Ok(known);
        }
        let digest = self.read_digest(table, &RowHasher::of_table(&table.table)?, file).await?;
        file.remember_digest(version, digest);
        Ok(digest)
    }

    /// The digest of a file that a peer says is a datafile of `table`: its footer was checked, its pages were not.
    pub(crate) async fn received_digest(&self, table: &Table, meta: &DatafileMeta) -> Result<Digest> {
        let hasher = RowHasher::of_table(table)?;
        let (store, table, meta) = (self.store.clone(), table.clone(), meta.clone());
        let (runtime, path) = (self.runtime.clone(), meta.path.0.clone());
        let stop = CancellationToken::new();
        let _told_when_dropped = stop.clone().drop_guard();
        let read =
            tokio::task::spawn_blocking(move || runtime.block_on(read::digest(&store, &table, &hasher, &meta, &stop)));
        match read.await {
            Ok(digest) => digest,
            // The reader's bug, met by bytes that somebody else made: theirs is refused, and we go on.
            Err(error) if error.is_panic() => Err(EngineError::Storage {
                operation: "verify datafile",
                object: path,
                reason: "its rows cannot be read".to_owned(),
            }),
            Err(_) => Err(EngineError::Closed),
        }
    }

    /// A datafile's rows, read now.
    pub(crate) async fn read_digest(
        &self,
        table: &Arc<TableVersion>,
        hasher: &RowHasher,
        file: &Arc<Datafile>,
    ) -> Result<Digest> {
        let (store, table, hasher, file) = (self.store.clone(), table.clone(), hasher.clone(), file.clone());
        let runtime = self.runtime.clone();
        cancellable(move |stop| runtime.block_on(read::digest(&store, &table.table, &hasher, &file.meta, stop))).await
    }
}

/// The kept digests of a partition's files, all of which are known.
fn cold(partition: &PartitionVersion, version: SchemaVersion) -> Result<Digest> {
    let digests = partition.datafiles.iter().map(|file| {
        let unknown = || EngineError::Invalid(format!("the digest of {} is not known", file.path().0));
        file.digest(version).ok_or_else(unknown)
    });
    digests.sum()
}

fn hot(hasher: &RowHasher, partition: &PartitionVersion, stop: &CancellationToken) -> Result<Digest> {
    let digests = partition.chunks.iter().map(|chunk| match stop.is_cancelled() {
        true => Err(EngineError::Closed),
        false => hasher.chunk(chunk),
    });
    digests.sum()
}

/// Runs `work` on a blocking thread; it is told to stop when nobody waits for it any more.
pub(super) async fn cancellable<T: Send + 'static>(
    work: impl FnOnce(&CancellationToken) -> Result<T> + Send + 'static,
) -> Result<T> {
    let stop = CancellationToken::new();
    let _told_when_dropped = stop.clone().drop_guard();
    match tokio::task::spawn_blocking(move || work(&stop)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(EngineError::Closed),
    }
}
