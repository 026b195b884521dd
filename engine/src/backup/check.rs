//! Checks backups against their files.

use std::{collections::HashMap, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    BackupLocation,
    copy::measure,
    manifest::{BackupFile, BackupId, BackupManifest},
    parallel,
    progress::{BackupKind, BackupTask},
    restore::read_rows,
};
use crate::{Digest, Engine, EngineError, Result, RowHasher, Table};

/// Something that is not as a backup says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFault {
    /// Which backup.
    pub backup: BackupId,
    /// `None`: its manifest.
    pub place: Option<FaultPlace>,
    /// `manifest`, `missing`, `length`, `hash`, `digest`.
    pub what: &'static str,
    /// What the manifest says.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// A file within a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultPlace {
    /// Its database.
    pub database: String,
    /// Its table.
    pub table: String,
    /// Its partition in words.
    pub partition: String,
    /// Its name within the location; `None`: it is about all files of the partition.
    pub file: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Backups looked at.
    pub backups: u64,
    /// Files read.
    pub files: u64,
    /// What is bad.
    pub faults: Vec<BackupFault>,
}

impl Engine {
    /// Reads all files of a backup, or of all of a location, and compares lengths and hashes with what the manifests
    /// say, then the digests of the rows in plain files. A partition that several backups share is read once.
    pub async fn check_backup(&self, location: &BackupLocation, id: Option<&BackupId>) -> Result<CheckReport> {
        let name = id.map_or("", BackupId::as_str);
        let running = self.backups.begin(BackupKind::Check, name, &location.to_string(), &self.clock);
        running.end(check(location, id, &running.task).await)
    }
}

/// What was found of files and partitions so far.
#[derive(Default)]
struct Known {
    files: HashMap<String, Found>,
    /// By the names of their files.
    partitions: HashMap<Vec<String>, Result<Digest, String>>,
}

async fn check(location: &BackupLocation, id: Option<&BackupId>, task: &BackupTask) -> Result<CheckReport> {
    let ids = match id {
        Some(id) => vec![id.clone()],
        None => location.backups().await?,
    };
    if ids.is_empty() {
        return Err(EngineError::NotFound { kind: "backup", name: format!("at {location}") });
    }
    let mut report = CheckReport::default();
    let mut known = Known::default();
    for id in ids {
        report.backups += 1;
        match location.manifest(&id).await {
            Ok(manifest) => {
                files(location, &manifest, &mut known.files, &mut report, task).await?;
                if manifest.encryption.is_none() {
                    rows(location, &manifest, &mut known, &mut report).await?;
                }
            }
            Err(error @ EngineError::NotFound { .. }) if report.backups == 1 => return Err(error),
            Err(error) => report.faults.push(BackupFault {
                backup: id,
                place: None,
                what: "manifest",
                expected: "a manifest that can be read".to_owned(),
                found: error.to_string(),
            }),
        }
    }
    Ok(report)
}

/// What lies under a name: length and hash.
#[derive(Debug, Clone)]
struct Found(Option<(u64, String)>);

async fn files(
    location: &BackupLocation,
    manifest: &BackupManifest,
    measured: &mut HashMap<String, Found>,
    report: &mut CheckReport,
    task: &BackupTask,
) -> Result<()> {
    let mut wanted: Vec<Arc<str>> = Vec::new();
    for (.., file) in manifest.files() {
        if !measured.contains_key(&file.name) {
            measured.insert(file.name.clone(), Found(None));
            wanted.push(file.name.as_str().into());
            task.expect(1, file.bytes, file.rows);
        }
    }
    let read = wanted.into_iter().map(|name| async move {
        let found = measure(location, &name, task).await?;
        Ok::<_, EngineError>((name, Found(found.map(|stored| (stored.bytes, stored.hash)))))
    });
    let read: Vec<_> = read.collect();
    let mut read = stream::iter(read).buffer_unordered(parallel(None));
    while let Some((name, found)) = read.try_next().await? {
        task.done(0);
        report.files += 1;
        measured.insert(name.to_string(), found);
    }
    for (database, table, partition, file) in manifest.files() {
        if let Some((what, expected, found)) = fault(file, measured) {
            let place = FaultPlace {
                database: database.name.clone(),
                table: table.table.name.clone(),
                partition: partition.name.clone(),
                file: Some(file.name.clone()),
            };
            report.faults.push(BackupFault { backup: manifest.id.clone(), place: Some(place), what, expected, found });
        }
    }
    Ok(())
}

/// What is wrong with a file: its kind, what is expected, what is there.
fn fault(file: &BackupFile, measured: &HashMap<String, Found>) -> Option<(&'static str, String, String)> {
    match measured.get(&file.name) {
        None | Some(Found(None)) => Some(("missing", file.hash.clone(), "no file".to_owned())),
        Some(Found(Some((bytes, _)))) if *bytes != file.bytes => {
            Some(("length", file.bytes.to_string(), bytes.to_string()))
        }
        Some(Found(Some((_, hash)))) if *hash != file.hash => Some(("hash", file.hash.clone(), hash.clone())),
        Some(_) => None,
    }
}

/// Reads the rows of partitions whose files are what the manifest says, and compares their digests.
async fn rows(
    location: &BackupLocation,
    manifest: &BackupManifest,
    known: &mut Known,
    report: &mut CheckReport,
) -> Result<()> {
    for (database, table, partition) in manifest.partitions() {
        if partition.files.iter().any(|file| fault(file, &known.files).is_some()) {
            continue;
        }
        let names: Vec<String> = partition.files.iter().map(|file| file.name.clone()).collect();
        if !known.partitions.contains_key(&names) {
            let digest = digest(location, &table.table, &partition.files).await.map_err(|error| error.to_string());
            known.partitions.insert(names.clone(), digest);
        }
        let found = match known.partitions.get(&names) {
            Some(Ok(digest)) if digest.same_values(&partition.digest) => continue,
            Some(Ok(digest)) => format!("{} rows, {}", digest.rows, digest.values_hex()),
            Some(Err(error)) => error.clone(),
            None => continue,
        };
        let place = FaultPlace {
            database: database.name.clone(),
            table: table.table.name.clone(),
            partition: partition.name.clone(),
            file: None,
        };
        report.faults.push(BackupFault {
            backup: manifest.id.clone(),
            place: Some(place),
            what: "digest",
            expected: format!("{} rows, {}", partition.digest.rows, partition.digest.values_hex()),
            found,
        });
    }
    Ok(())
}

/// The digest of the rows in some files, without their identities.
async fn digest(location: &BackupLocation, table: &Table, files: &[BackupFile]) -> Result<Digest> {
    let (hasher, schema) = (RowHasher::of_table(table)?, table.schema());
    let mut sum = Digest::default();
    for file in files {
        let (object, shown) = (location.object(&file.name)?, file.name.clone());
        let mut batches = read_rows(location.store(), object, file.bytes, shown, &schema).await?;
        while let Some(batch) = batches.try_next().await? {
            sum += hasher.values(&batch)?;
        }
    }
    Ok(sum)
}
