//! Makes a backup.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{ObjectStore as _, PutMode, PutOptions};
use tailrace_wal::Position;
use tokio_util::sync::CancellationToken;

use super::{
    BackupLocation, PartitionCondition,
    cancel::unless_cancelled,
    copy::{Incoming, copy_out, measure},
    earlier::{Earlier, preferred},
    encryption::Recipients,
    hold::{Held, HeldPartition, HeldTable},
    location::manifest_name,
    manifest::{BackupDatabase, BackupFile, BackupId, BackupManifest, BackupPartition, BackupScope, BackupTable},
    mark::{Mark, RELEASE_MAX, Work, living, occupied},
    parallel,
    progress::{BackupKind, BackupTask, Running},
};
use crate::{DatafileMeta, Engine, EngineError, Result, SchemaVersion, ids::unique, partition::hexadecimal};

/// What to back up, and how.
#[derive(Debug, Clone)]
pub struct BackupRequest {
    /// What; not [`BackupScope::Query`], whose rows come from elsewhere.
    pub scope: BackupScope,
    /// Evaluates the condition that the scope names.
    pub condition: Option<Arc<dyn PartitionCondition>>,
    /// Files under way at once; `None`: 4.
    pub parallel: Option<usize>,
    /// Writes all files anew, under new names.
    pub force: bool,
    /// For whom files are encrypted.
    pub recipients: Option<Recipients>,
    /// Ends it early: then there is none, and what was finished serves the next one.
    pub cancel: CancellationToken,
}

impl BackupRequest {
    /// A plain backup.
    pub fn new(scope: BackupScope) -> Self {
        Self {
            scope,
            condition: None,
            parallel: None,
            force: false,
            recipients: None,
            cancel: CancellationToken::new(),
        }
    }
}

/// What a backup did.
#[derive(Debug, Clone)]
pub struct BackupReport {
    /// Its name.
    pub id: BackupId,
    /// Where each database stood.
    pub databases: Vec<(String, Position)>,
    /// Partitions in it.
    pub partitions: u64,
    /// Those of them of which a file was written.
    pub written_partitions: u64,
    /// Files in it.
    pub files: u64,
    /// Files that it wrote itself.
    pub written_files: u64,
    /// Files that an interrupted backup had left, taken over after a check.
    pub resumed_files: u64,
    /// Rows in it.
    pub rows: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of the files that it wrote.
    pub written_bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// A file that is to be in the backup.
struct Wanted<'a> {
    partition: usize,
    meta: &'a DatafileMeta,
    /// It is in an earlier backup.
    known: Option<BackupFile>,
}

/// How a file came into the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Known,
    Resumed,
    Written,
}

impl Engine {
    /// Makes a backup. It can be given up at any moment by `request.cancel`, or by dropping the future: then there is none,
    /// and what was finished serves the next one.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] when `request.cancel` fired before the manifest was put.
    /// [`EngineError::Conflict`] while the location is being pruned.
    pub async fn backup(self: &Arc<Self>, location: &BackupLocation, request: BackupRequest) -> Result<BackupReport> {
        let id = BackupId::new(self.clock.now(), self.clock.random());
        let running = self.backups.begin(BackupKind::Backup, id.as_str(), &location.to_string(), &self.clock);
        running.end(self.backup_here(location, request, id, &running).await)
    }

    /// Backups, restores and checks of this node since its start, oldest first, as far as they are remembered.
    pub fn backup_tasks(&self) -> Vec<super::BackupStatus> {
        self.backups.statuses(&*self.clock)
    }

    async fn backup_here(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: BackupRequest,
        id: BackupId,
        running: &Running,
    ) -> Result<BackupReport> {
        self.check_open()?;
        let mark = self.mark_backup(location, &id, &request.cancel).await?;
        let made = self.backup_marked(location, &request, id, running, &mark).await;
        mark.release().await;
        made
    }

    async fn backup_marked(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: &BackupRequest,
        id: BackupId,
        running: &Running,
        mark: &Mark,
    ) -> Result<BackupReport> {
        let (started, begun) = (self.clock.now(), self.clock.monotonic());
        let mut manifest = BackupManifest {
            format: BackupManifest::FORMAT,
            id,
            started,
            finished: started,
            node: self.node,
            scope: request.scope.clone(),
            encryption: request.recipients.as_ref().map(|recipients| recipients.hash().to_owned()),
            written_bytes: 0,
            databases: Vec::new(),
        };
        let mut report = unless_cancelled(&request.cancel, "the backup", async {
            self.check_not_pruned(location).await?;
            let held = self.hold(request).await?;
            let writer = Writer { engine: self, location, request, mark, task: &running.task };
            writer.write(&held, &mut manifest).await
        })
        .await?;
        self.publish_backup(location, &mut manifest).await?;
        report.elapsed = self.clock.monotonic().saturating_sub(begun);
        tracing::info!(
            backup = %report.id, %location, files = report.files, written = report.written_files,
            bytes = report.written_bytes, "made a backup"
        );
        Ok(report)
    }

    /// Marks that a backup is under way. Whoever has it releases it at the end, whatever that is.
    pub(super) async fn mark_backup(
        &self,
        location: &BackupLocation,
        id: &BackupId,
        cancel: &CancellationToken,
    ) -> Result<Mark> {
        // A put that is dropped halfway may be done all the same, behind the back of whoever takes the mark away.
        let (place, id, node, clock) = (location.clone(), id.clone(), self.node, self.clock.clone());
        let mut setting =
            tokio::spawn(async move { Mark::set(&place, Work::Backup, id.as_str(), node, &*clock).await });
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                if let Ok(Ok(Ok(mark))) = tokio::time::timeout(RELEASE_MAX, setting).await {
                    mark.release().await;
                }
                Err(EngineError::Cancelled("the backup was cancelled".to_owned()))
            }
            set = &mut setting => set.map_err(|error| location.failed("write", "a mark", &object_store::Error::from(error)))?,
        }
    }

    /// Refuses a location that is being pruned. A mark of one's own comes first.
    pub(super) async fn check_not_pruned(&self, location: &BackupLocation) -> Result<()> {
        let is_alive = |id: &str| self.backups.is_running(id);
        let others = living(location, self.node, is_alive, self.clock.now()).await?;
        match others.iter().find(|other| other.work == Work::Prune) {
            None => Ok(()),
            Some(prune) => Err(occupied(location, prune)),
        }
    }

    /// Writes the manifest: from here on the backup is there.
    pub(super) async fn publish_backup(&self, location: &BackupLocation, manifest: &mut BackupManifest) -> Result<()> {
        manifest.finished = self.clock.now();
        let bytes = manifest.encode()?;
        let name = manifest_name(&manifest.id);
        let create = PutOptions { mode: PutMode::Create, ..Default::default() };
        let put = location.store().put_opts(&location.object(&name)?, bytes.into(), create).await;
        put.map_err(|error| location.failed("write", &name, &error)).map(drop)
    }
}

/// Writes the files of a backup.
struct Writer<'a> {
    engine: &'a Arc<Engine>,
    location: &'a BackupLocation,
    request: &'a BackupRequest,
    mark: &'a Mark,
    task: &'a BackupTask,
}

impl Writer<'_> {
    async fn write(&self, held: &[Held], manifest: &mut BackupManifest) -> Result<BackupReport> {
        let mut report = BackupReport {
            id: manifest.id.clone(),
            databases: Vec::new(),
            partitions: 0,
            written_partitions: 0,
            files: 0,
            written_files: 0,
            resumed_files: 0,
            rows: 0,
            bytes: 0,
            written_bytes: 0,
            elapsed: Duration::ZERO,
        };
        for held in held {
            let metas = held.tables.iter().flat_map(|table| &table.partitions).flat_map(|partition| &partition.metas);
            for meta in metas {
                self.task.expect(1, meta.bytes, meta.rows);
            }
        }
        let earlier = Earlier::find(self.location, self.request, held).await?;
        for held in held {
            let facts = &held.source.manifest;
            let mut tables = Vec::with_capacity(held.tables.len());
            for table in &held.tables {
                tables.push(self.table(held, table, &earlier, &mut report).await?);
            }
            report.databases.push((facts.name.clone(), facts.position));
            manifest.databases.push(BackupDatabase {
                name: facts.name.clone(),
                position: facts.position,
                restart_seq: facts.restart_seq,
                commit_time: facts.commit_time,
                epochs: facts.epochs.clone(),
                next_table: facts.next_table,
                is_whole: held.is_whole,
                tables,
            });
        }
        manifest.written_bytes = report.written_bytes;
        Ok(report)
    }

    async fn table(
        &self,
        held: &Held,
        table: &HeldTable,
        earlier: &Earlier,
        report: &mut BackupReport,
    ) -> Result<BackupTable> {
        let described = &held.source.manifest.tables[table.table].table;
        let history = held.source.manifest.position.history;
        let unchanged: Vec<Option<BackupPartition>> = table
            .partitions
            .iter()
            .map(|partition| {
                let key = (history, described.id, partition.key.clone());
                earlier.unchanged(&key, described.schema_version, &partition.digest).cloned()
            })
            .collect();
        let changed = table.partitions.iter().enumerate().filter(|(index, _)| unchanged[*index].is_none());
        let wanted = changed.flat_map(|(index, partition)| {
            let metas = partition.metas.iter();
            metas.map(move |meta| Wanted {
                partition: index,
                meta,
                known: earlier.known(&preferred(self.request, meta), meta),
            })
        });
        let files: Vec<_> = wanted.map(|wanted| self.file(wanted, earlier)).collect();
        let done = stream::iter(files).buffered(parallel(self.request.parallel)).try_collect::<Vec<_>>().await?;
        let mut partitions: Vec<BackupPartition> = Vec::with_capacity(table.partitions.len());
        let mut files: Vec<Vec<(BackupFile, Way)>> = table.partitions.iter().map(|_| Vec::new()).collect();
        for (partition, file, way) in done {
            files[partition].push((file, way));
        }
        for ((partition, files), unchanged) in table.partitions.iter().zip(files).zip(unchanged) {
            report.partitions += 1;
            if let Some(unchanged) = unchanged {
                report.files += unchanged.files.len() as u64;
                report.rows += unchanged.rows;
                report.bytes += unchanged.files.iter().map(|file| file.bytes).sum::<u64>();
                for meta in &partition.metas {
                    self.task.passed(meta.bytes);
                    self.task.done(meta.rows);
                }
                partitions.push(unchanged);
                continue;
            }
            report.written_partitions += u64::from(files.iter().any(|(_, way)| *way == Way::Written));
            for (file, way) in &files {
                report.files += 1;
                report.rows += file.rows;
                report.bytes += file.bytes;
                match way {
                    Way::Known => {}
                    Way::Resumed => report.resumed_files += 1,
                    Way::Written => {
                        report.written_files += 1;
                        report.written_bytes += file.bytes;
                    }
                }
            }
            let key = (history, described.id, partition.key.clone());
            partitions.push(BackupPartition {
                key: partition.key.clone(),
                name: partition.name.clone(),
                rows: files.iter().map(|(file, _)| file.rows).sum(),
                digest: partition.digest,
                sealed: self.sealed(partition, earlier.partitions.get(&key), &files)?,
                files: files.into_iter().map(|(file, _)| file).collect(),
            });
        }
        Ok(BackupTable { table: described.clone(), is_whole: table.is_whole, selected: None, partitions })
    }

    /// Brings one file into the backup.
    async fn file(&self, wanted: Wanted<'_>, earlier: &Earlier) -> Result<(usize, BackupFile, Way)> {
        let Wanted { partition, meta, known } = wanted;
        self.mark.keep(&*self.engine.clock).await?;
        if let Some(file) = known.filter(|_| !self.request.force) {
            self.task.passed(meta.bytes);
            self.task.done(meta.rows);
            return Ok((partition, file, Way::Known));
        }
        let preferred = preferred(self.request, meta);
        let mut name = preferred.clone();
        if let Some(bytes) = earlier.present.get(&preferred) {
            let stored = match self.request.force || (self.request.recipients.is_none() && *bytes != meta.bytes) {
                true => None,
                // Left by a backup that did not come to its end.
                false => measure(self.location, &preferred, self.task).await?,
            };
            let is_right = |stored: &super::copy::Stored| {
                self.request.recipients.is_some() || (stored.bytes == meta.bytes && stored.hash == meta.hash)
            };
            if let Some(stored) = stored.filter(is_right) {
                self.task.done(meta.rows);
                return Ok((partition, self.described(preferred, meta, stored), Way::Resumed));
            }
            // What lies there is wrong, or wanted anew: another name is free.
            name = self.renamed(&preferred);
        }
        let from = Incoming::new(
            &self.engine.store,
            meta.path.object_path()?,
            format!("datafile {}", meta.path.0),
            meta.bytes,
            &meta.hash,
        );
        let recipients = self.request.recipients.as_ref();
        let stored = copy_out(from, self.location, &name, recipients, self.task).await?;
        self.task.done(meta.rows);
        Ok((partition, self.described(name, meta, stored), Way::Written))
    }

    fn described(&self, name: String, meta: &DatafileMeta, stored: super::copy::Stored) -> BackupFile {
        let meta_kept = self.request.recipients.is_none().then(|| meta.clone());
        BackupFile { name, bytes: stored.bytes, hash: stored.hash, rows: meta.rows, meta: meta_kept }
    }

    /// A name that nothing has.
    fn renamed(&self, name: &str) -> String {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let (_, extension) = file.split_once('.').unwrap_or((file, "parquet"));
        format!("{folder}/{}.{extension}", hexadecimal(&unique(&*self.engine.clock)))
    }

    /// Descriptions of encrypted files, encrypted; those of an earlier backup where it has the same files.
    fn sealed(
        &self,
        partition: &HeldPartition,
        earlier: Option<&(SchemaVersion, BackupPartition)>,
        files: &[(BackupFile, Way)],
    ) -> Result<Option<String>> {
        let Some(recipients) = &self.request.recipients else { return Ok(None) };
        // In their order: descriptions are those of the files one by one.
        if let Some((_, known)) = earlier
            && known.files.iter().map(|file| &file.name).eq(files.iter().map(|(file, _)| &file.name))
        {
            return Ok(known.sealed.clone());
        }
        let plain = serde_json::to_vec(&partition.metas)
            .map_err(|error| EngineError::Invalid(format!("datafiles cannot be described: {error}")))?;
        Ok(Some(hexadecimal(&recipients.seal(&plain)?)))
    }
}
