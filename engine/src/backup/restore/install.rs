//! A whole database, put in place as files.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tailrace_wal::{Chain, HistoryEnd, HistoryId, Lsn, Position, Seq};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{Restore, replay::Replayed};
use crate::{
    DatabaseVersion, DatafileMeta, Engine, EngineError, EpochEntry, PartitionKey, PartitionScheme, RepairManifest,
    RepairTable, Result, Table,
    backup::{
        cancel::unless_cancelled,
        copy::read_file,
        manifest::{BackupDatabase, BackupFile, BackupPartition},
    },
    database::Database,
    datafile::{Sink, verify_datafile},
    ids::unique,
    manifest::{Edit, HistoryState, TableState, surely_not_written},
    partition::{DatafilePath, datafile_path},
    recovery::restore_version,
    repair::check_manifest,
};

/// Files that nothing names yet; dropping this removes them.
pub(super) struct Staged {
    engine: Arc<Engine>,
    paths: parking_lot::Mutex<Vec<DatafilePath>>,
}

impl Staged {
    fn new(engine: &Arc<Engine>) -> Self {
        Self { engine: engine.clone(), paths: parking_lot::Mutex::default() }
    }

    pub(super) fn add(&self, path: DatafilePath) {
        self.paths.lock().push(path);
    }

    /// All but these are removed.
    fn keep(&self, named: &std::collections::BTreeSet<&str>) {
        let mut paths = self.paths.lock();
        for path in paths.extract_if(.., |path| !named.contains(path.0.as_str())) {
            self.engine.garbage.remove(path);
        }
    }

    /// The manifest names them, or may.
    fn hand_over(&self) {
        self.paths.lock().clear();
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.paths.get_mut().drain(..).for_each(|path| self.engine.garbage.remove(path));
    }
}

/// A file to fetch.
struct Fetch<'a> {
    table: &'a Table,
    key: &'a PartitionKey,
    file: &'a BackupFile,
    meta: DatafileMeta,
}

impl Restore<'_> {
    /// Returns the new position, and rows and bytes that were fetched.
    pub(super) async fn install(&self, database: &BackupDatabase, name: &str) -> Result<(Position, u64, u64)> {
        let staged = Staged::new(self.engine);
        let prepared = self.prepare(database, name, &staged);
        let (version, rows, bytes) = unless_cancelled(&self.request.cancel, "the restore", prepared).await?;
        let engine = self.engine.clone();
        let position = self.engine.to_the_end(async move { engine.install_restored(version, staged).await }).await?;
        Ok((position, rows, bytes))
    }

    /// Fetches all files, and goes on to the point that is wanted.
    async fn prepare(
        &self,
        database: &BackupDatabase,
        name: &str,
        staged: &Staged,
    ) -> Result<(DatabaseVersion, u64, u64)> {
        let (tables, bytes) = self.fetch(database, name, staged).await?;
        let rows = tables.iter().flat_map(|table| &table.datafiles).map(|(_, meta)| meta.rows).sum();
        let manifest = RepairManifest {
            name: name.to_owned(),
            position: database.position,
            restart_seq: database.restart_seq,
            commit_time: database.commit_time,
            epochs: database.epochs.clone(),
            next_table: database.next_table,
            tables,
        };
        check_manifest(&manifest)?;
        let state = held_state(&manifest);
        let (mut version, _) = restore_version(self.engine, &state)?;
        if let Some(until) = &self.request.until {
            let replayed = Replayed { restore: self, database, staged };
            version = replayed.run(version, until).await?;
        }
        Ok((version, rows, bytes))
    }

    /// Copies all files into the store.
    async fn fetch(&self, database: &BackupDatabase, name: &str, staged: &Staged) -> Result<(Vec<RepairTable>, u64)> {
        let mut bytes = 0;
        let mut tables = Vec::with_capacity(database.tables.len());
        for table in &database.tables {
            let mut wanted = Vec::new();
            for partition in &table.partitions {
                let metas = self.metas(partition)?;
                let files = partition.files.iter().zip(metas);
                wanted.extend(files.map(|(file, meta)| Fetch { table: &table.table, key: &partition.key, file, meta }));
            }
            bytes += wanted.iter().map(|fetch| fetch.file.bytes).sum::<u64>();
            let fetched: Vec<_> = wanted.into_iter().map(|fetch| self.fetch_one(fetch, name, staged)).collect();
            let datafiles = stream::iter(fetched).buffered(self.parallel()).try_collect().await?;
            tables.push(RepairTable { table: table.table.clone(), datafiles });
        }
        Ok((tables, bytes))
    }

    /// What the engine has to know of the files of a partition.
    fn metas(&self, partition: &BackupPartition) -> Result<Vec<DatafileMeta>> {
        let wrong = |reason: &str| {
            EngineError::Invalid(format!("partition {} of backup {} {reason}", partition.name, self.manifest.id))
        };
        let metas: Vec<DatafileMeta> = match (&partition.sealed, &self.request.identities) {
            (Some(sealed), Some(identities)) => {
                let sealed = unhex(sealed).ok_or_else(|| wrong("has no description of its files"))?;
                serde_json::from_slice(&identities.open(&sealed)?)
                    .map_err(|error| wrong(&format!("has no description of its files: {error}")))?
            }
            _ => partition.files.iter().filter_map(|file| file.meta.clone()).collect(),
        };
        let fits = metas.len() == partition.files.len()
            && metas.iter().zip(&partition.files).all(|(meta, file)| meta.rows == file.rows);
        match fits {
            true => Ok(metas),
            false => Err(wrong("does not describe its files as datafiles")),
        }
    }

    async fn fetch_one(&self, fetch: Fetch<'_>, name: &str, staged: &Staged) -> Result<(PartitionKey, DatafileMeta)> {
        let Fetch { table, key, file, meta } = fetch;
        let engine = self.engine;
        let scheme = PartitionScheme::new(table)?;
        let path = datafile_path(name, &table.name, &scheme, key, unique(&*engine.clock))?;
        let failed = |error: object_store::Error| match crate::space::is_no_space(&error) {
            true => EngineError::Full { object: format!("datafile {}", path.0), reason: error.to_string() },
            false => EngineError::Storage { operation: "write", object: path.0.clone(), reason: error.to_string() },
        };
        let mut pieces = read_file(self.location, file, self.request.identities.as_ref())?;
        let mut sink = Sink::new(Arc::clone(&engine.store), path.object_path()?);
        let (mut hash, mut bytes) = (Xxh3::new(), 0);
        // A plain file was hashed on its way.
        let is_sealed = self.manifest.encryption.is_some();
        while let Some(piece) = pieces.recv().await {
            let piece = piece?;
            if is_sealed {
                hash.update(&piece);
            }
            bytes += piece.len() as u64;
            self.running.task.passed(piece.len() as u64);
            sink.write(piece).await.map_err(failed)?;
        }
        if bytes != meta.bytes || (is_sealed && format!("{:032x}", hash.digest128()) != meta.hash) {
            let reason = format!("it holds another datafile than is described: {bytes} bytes, not {}", meta.bytes);
            return Err(self.location.wrong(&file.name, reason));
        }
        // From here on it may have a name in the store.
        staged.add(path.clone());
        sink.finish().await.map_err(failed)?;
        let meta = DatafileMeta { path, ..meta };
        verify_datafile(&engine.store, table, &meta).await?;
        self.running.task.done(meta.rows);
        Ok((key.clone(), meta))
    }
}

impl Engine {
    /// Makes a database of files that are in the store: one edit of the manifest, a new history.
    async fn install_restored(self: Arc<Self>, version: DatabaseVersion, staged: Staged) -> Result<Position> {
        let name = version.name.clone();
        let _flushing = self.flushing.lock().await;
        let _names = self.names.lock().await;
        let _gate = self.gate.read().await;
        self.check_open()?;
        if self.versions.load().contains_key(&name) {
            return Err(EngineError::AlreadyExists { kind: "database", name });
        }
        // The floor must not outlive the records below it: their numbers would be given again.
        let floor = self.log.status().appended;
        self.sync_upto(floor).await?;
        let state = new_history(&version, HistoryId(unique(&*self.clock)), floor);
        let named = state.tables.values().flat_map(|table| table.partitions.values().flatten());
        staged.keep(&named.map(|meta| meta.path.0.as_str()).collect());
        let (version, _) = restore_version(&self, &state)?;
        let version = Arc::new(version);
        let (id, position) = (version.id, version.position);
        if let Err(error) = self.manifest.append(Edit::Install(Box::new(state))).await {
            // Where the edit may have been written all the same, the files stay, and the next start knows.
            if !surely_not_written(&error) {
                staged.hand_over();
            }
            return Err(error);
        }
        staged.hand_over();
        self.log.open_history(HistoryEnd { position, commit_time: version.commit_time })?;
        let database = Arc::new(Database::new(version.clone(), floor));
        {
            let mut applying = database.applying.lock();
            applying.replay_after = floor;
            applying.complete_from = position.seq;
            self.databases.write().insert(id, database.clone());
            self.publish(&version, false);
        }
        self.applied_changed();
        self.databases_changed();
        tracing::info!(database = name, %position, "installed a database from a backup");
        Ok(position)
    }
}

/// A history in the manifest's form, as it was where the backup was made.
fn held_state(manifest: &RepairManifest) -> HistoryState {
    let tables = manifest.tables.iter().map(|held| {
        let mut partitions: BTreeMap<PartitionKey, Vec<DatafileMeta>> = BTreeMap::new();
        for (key, meta) in &held.datafiles {
            partitions.entry(key.clone()).or_default().push(meta.clone());
        }
        (held.table.id, TableState { table: held.table.clone(), partitions })
    });
    HistoryState {
        id: manifest.position.history,
        name: manifest.name.clone(),
        position: manifest.position,
        restart_seq: manifest.restart_seq,
        commit_time: manifest.commit_time,
        epochs: manifest.epochs.clone(),
        next_table: manifest.next_table,
        replay_after: Lsn::ZERO,
        complete_from: manifest.position.seq,
        tables: tables.collect(),
        left_out: Vec::new(),
        system_facts: Vec::new(),
        keys: Vec::new(),
        skipped: Vec::new(),
        differences: Vec::new(),
    }
}

/// The same rows as a history of its own: it goes on from the same seq, so that rows keep their identities, and nobody
/// who follows the one that it came from can take it for that.
fn new_history(version: &DatabaseVersion, id: HistoryId, floor: Lsn) -> HistoryState {
    let old = version.position;
    let mut bytes = Vec::with_capacity(64);
    bytes.extend_from_slice(&old.history.0);
    bytes.extend_from_slice(&id.0);
    bytes.extend_from_slice(&old.chain.0.to_le_bytes());
    let position = Position { history: id, chain: Chain(xxh3_64(&bytes)), ..old };
    let tables = version.tables().map(|table| {
        let partitions = table.partitions().map(|(key, partition)| {
            (key.clone(), partition.datafiles.iter().map(|file| file.meta.clone()).collect::<Vec<_>>())
        });
        let partitions = partitions.filter(|(_, metas)| !metas.is_empty()).collect();
        (table.table.id, TableState { table: Table::clone(&table.table), partitions })
    });
    HistoryState {
        id,
        name: version.name.clone(),
        position,
        restart_seq: position.seq,
        commit_time: version.commit_time,
        // What came before is of no concern to this history: it begins here.
        epochs: vec![EpochEntry { epoch: position.epoch, first_seq: Seq(1), chain_before: Chain::default() }],
        next_table: version.next_table,
        replay_after: floor,
        complete_from: position.seq,
        tables: tables.collect(),
        left_out: Vec::new(),
        system_facts: Vec::new(),
        keys: Vec::new(),
        skipped: Vec::new(),
        differences: Vec::new(),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| {
        let [high, low] = pair else { return None };
        let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
        Some(digit(*high)? << 4 | digit(*low)?)
    });
    pairs.collect()
}
