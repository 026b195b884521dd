//! The backups of a location.

use std::collections::HashMap;

use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _, path::Path as ObjectPath};
use tailrace_wal::{CommitTime, Position};

use super::{
    location::{BackupLocation, backup_of, manifest_name},
    manifest::{BackupId, BackupManifest, BackupScope, MANIFEST_BYTES_MAX},
};
use crate::{EngineError, Result};

/// One line of a list of backups.
#[derive(Debug, Clone)]
pub struct BackupSummary {
    /// Its name.
    pub id: BackupId,
    /// What it holds, or why that cannot be told.
    pub facts: std::result::Result<BackupFacts, String>,
}

/// A backup in figures.
#[derive(Debug, Clone)]
pub struct BackupFacts {
    /// When it was begun.
    pub started: CommitTime,
    /// When it was complete.
    pub finished: CommitTime,
    /// What was asked for.
    pub scope: BackupScope,
    /// Whether its files are encrypted.
    pub is_encrypted: bool,
    /// Its databases, each at one position.
    pub databases: Vec<(String, Position)>,
    /// Tables.
    pub tables: u64,
    /// Partitions.
    pub partitions: u64,
    /// Files.
    pub files: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Bytes that it wrote itself; the others were there.
    pub written_bytes: u64,
}

impl From<&BackupManifest> for BackupFacts {
    fn from(manifest: &BackupManifest) -> Self {
        Self {
            started: manifest.started,
            finished: manifest.finished,
            scope: manifest.scope.clone(),
            is_encrypted: manifest.encryption.is_some(),
            databases: manifest.databases.iter().map(|database| (database.name.clone(), database.position)).collect(),
            tables: manifest.databases.iter().map(|database| database.tables.len() as u64).sum(),
            partitions: manifest.partitions().count() as u64,
            files: manifest.files().count() as u64,
            rows: manifest.rows(),
            bytes: manifest.bytes(),
            written_bytes: manifest.written_bytes,
        }
    }
}

impl BackupLocation {
    /// Names of all backups, oldest first.
    pub async fn backups(&self) -> Result<Vec<BackupId>> {
        let found = self.listed(&self.manifests()?, "list of manifests").await?;
        let mut ids: Vec<BackupId> = found.keys().filter_map(|name| backup_of(name)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Reads and checks a backup's manifest.
    pub async fn manifest(&self, id: &BackupId) -> Result<BackupManifest> {
        let name = manifest_name(id);
        let object = self.object(&name)?;
        let got = match self.store().get(&object).await {
            Ok(got) if got.meta.size <= MANIFEST_BYTES_MAX => got,
            Ok(got) => {
                let size = got.meta.size;
                return Err(self.wrong(&name, format!("it has {size} bytes, more than {MANIFEST_BYTES_MAX}")));
            }
            Err(object_store::Error::NotFound { .. }) => {
                return Err(EngineError::NotFound { kind: "backup", name: format!("{id} at {self}") });
            }
            Err(error) => return Err(self.failed("read", &name, &error)),
        };
        let bytes = got.bytes().await.map_err(|error| self.failed("read", &name, &error))?;
        BackupManifest::decode(id, &bytes).map_err(|reason| self.wrong(&name, reason))
    }

    /// All backups, oldest first. One whose manifest is damaged is listed with what is wrong.
    pub async fn list(&self) -> Result<Vec<BackupSummary>> {
        let mut summaries = Vec::new();
        for id in self.backups().await? {
            let facts = match self.manifest(&id).await {
                Ok(manifest) => Ok(BackupFacts::from(&manifest)),
                // Pruned meanwhile.
                Err(EngineError::NotFound { .. }) => continue,
                Err(error) => Err(error.to_string()),
            };
            summaries.push(BackupSummary { id, facts });
        }
        Ok(summaries)
    }

    /// The backup that is named, or the newest.
    pub async fn chosen(&self, id: Option<&BackupId>) -> Result<BackupManifest> {
        match id {
            Some(id) => self.manifest(id).await,
            None => {
                let newest = self.backups().await?.pop();
                let none = || EngineError::NotFound { kind: "backup", name: format!("at {self}") };
                self.manifest(&newest.ok_or_else(none)?).await
            }
        }
    }

    /// Names and lengths of all objects below one.
    pub(super) async fn listed(&self, below: &ObjectPath, what: &str) -> Result<HashMap<String, u64>> {
        let listed = self.store().list(Some(below)).map_ok(|meta| (self.name(&meta.location), meta.size));
        let listed: Vec<_> = listed.try_collect().await.map_err(|error| self.failed("list", what, &error))?;
        Ok(listed.into_iter().filter_map(|(name, size)| Some((name?, size))).collect())
    }

    pub(super) fn wrong(&self, name: &str, reason: String) -> EngineError {
        EngineError::Storage { operation: "read", object: format!("{name} of backups at {self}"), reason }
    }
}
