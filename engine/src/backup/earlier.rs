//! What is at a location already: files, and partitions in earlier backups.

use std::collections::{HashMap, HashSet};

use tailrace_wal::HistoryId;

use super::{
    BackupLocation, BackupRequest,
    encryption::Recipients,
    hold::Held,
    location::data_name,
    manifest::{BackupFile, BackupManifest, BackupPartition},
};
use crate::{DatafileMeta, Digest, PartitionKey, Result, SchemaVersion, TableId};

/// Earlier backups whose files are looked for, newest first.
const EARLIER_MAX: usize = 32;

/// A partition of some history.
pub(super) type Place = (HistoryId, TableId, PartitionKey);

/// What is looked for in earlier backups.
#[derive(Default)]
struct Wants {
    partitions: HashSet<Place>,
    files: HashSet<String>,
}

/// What is at a location already.
#[derive(Default)]
pub(super) struct Earlier {
    /// Files and their lengths.
    pub(super) present: HashMap<String, u64>,
    /// Those that a backup describes.
    known: HashMap<String, BackupFile>,
    /// Partitions in the newest backup that has them with all files.
    pub(super) partitions: HashMap<Place, (SchemaVersion, BackupPartition)>,
}

impl Earlier {
    /// What earlier backups have, and what lies there.
    pub(super) async fn find(location: &BackupLocation, request: &BackupRequest, held: &[Held]) -> Result<Self> {
        let present = location.listed(&location.data()?, "files").await?;
        let mut earlier = Self { present, ..Self::default() };
        if earlier.present.is_empty() || request.force {
            return Ok(earlier);
        }
        let mut wanted = Wants::default();
        for held in held {
            let facts = &held.source.manifest;
            for table in &held.tables {
                let id = facts.tables[table.table].table.id;
                for partition in &table.partitions {
                    wanted.partitions.insert((facts.position.history, id, partition.key.clone()));
                    let names = partition.metas.iter().map(|meta| preferred(request, meta));
                    wanted.files.extend(names.filter(|name| earlier.present.contains_key(name)));
                }
            }
        }
        let encryption = request.recipients.as_ref().map(Recipients::hash);
        for id in location.backups().await?.into_iter().rev().take(EARLIER_MAX) {
            if wanted.partitions.is_empty() && wanted.files.is_empty() {
                break;
            }
            let manifest = match location.manifest(&id).await {
                Ok(manifest) => manifest,
                Err(error) => {
                    tracing::warn!(backup = %id, %error, "an earlier backup cannot be read; nothing of it is shared");
                    continue;
                }
            };
            if manifest.encryption.as_deref() == encryption {
                earlier.take(manifest, &mut wanted);
            }
        }
        Ok(earlier)
    }

    fn take(&mut self, manifest: BackupManifest, wanted: &mut Wants) {
        for database in manifest.databases {
            for table in database.tables.into_iter().filter(|table| table.selected.is_none()) {
                for partition in table.partitions {
                    let is_here = |file: &BackupFile| self.present.get(&file.name) == Some(&file.bytes);
                    for file in partition.files.iter().filter(|file| is_here(file)) {
                        if wanted.files.remove(&file.name) {
                            self.known.insert(file.name.clone(), file.clone());
                        }
                    }
                    let place = (database.position.history, table.table.id, partition.key.clone());
                    if partition.files.iter().all(is_here) && wanted.partitions.remove(&place) {
                        self.partitions.insert(place, (table.table.schema_version, partition));
                    }
                }
            }
        }
    }

    /// A partition that has the same rows under the same identities, in whatever files.
    pub(super) fn unchanged(&self, place: &Place, version: SchemaVersion, digest: &Digest) -> Option<&BackupPartition> {
        let (known, partition) = self.partitions.get(place)?;
        (*known == version && partition.digest == *digest).then_some(partition)
    }

    /// A file that a backup describes as this datafile.
    pub(super) fn known(&self, name: &str, meta: &DatafileMeta) -> Option<BackupFile> {
        let same = |file: &&BackupFile| {
            file.rows == meta.rows && file.meta.as_ref().is_none_or(|known| known.hash == meta.hash)
        };
        self.known.get(name).filter(same).cloned()
    }
}

/// The name of a datafile's copy: its own; of an encrypted one, with the recipients, to whom others are of no use.
pub(super) fn preferred(request: &BackupRequest, meta: &DatafileMeta) -> String {
    let name = data_name(&meta.path.0);
    match &request.recipients {
        None => name,
        Some(recipients) => {
            let stem = name.strip_suffix(".parquet").unwrap_or(&name);
            format!("{stem}-{}.parquet.age", recipients.hash())
        }
    }
}
