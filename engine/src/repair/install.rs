//! The side that receives a repair.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use tailrace_wal::{HistoryEnd, Lsn, Position};
use xxhash_rust::xxh3::Xxh3;

use super::{
    RepairManifest,
    check::{check, wrong},
    keep::keep,
    pause::PausedFile,
};
use crate::{
    DatabaseVersion, DatafileMeta, Engine, EngineError, PartitionKey, PartitionScheme, PartitionVersion, Result, Role,
    Table, TableChoice, TableId,
    database::Database,
    datafile::{Sink, verify_datafile},
    digest::read::check_bytes,
    ids::unique,
    manifest::{Edit, HistoryState, TableState, surely_not_written},
    partition::{DatafilePath, datafile_path},
    recovery::restore_version,
};

/// A repair being received. Dropping it removes what was staged; [`RepairInstall::pause`] keeps it for the next one.
pub struct RepairInstall {
    engine: Arc<Engine>,
    database: Arc<Database>,
    manifest: RepairManifest,
    /// Tables whose datafiles are wanted.
    choice: TableChoice,
    /// Table and datafile within it, by number.
    places: Vec<(usize, usize)>,
    datafiles: Vec<Received>,
    /// Partitions that are here already as they are there.
    kept: Vec<Kept>,
    /// The manifest of this node may name the files from here on: they are not removed by this any more.
    handed_over: bool,
}

/// A partition whose own datafiles stay. They are held, and go into the new version as they are.
pub(super) struct Kept {
    pub(super) table: TableId,
    pub(super) key: PartitionKey,
    pub(super) partition: Arc<PartitionVersion>,
}

enum Received {
    Nothing,
    /// Its partition is here already.
    Kept,
    /// It is of a table that is left out here.
    Unwanted,
    Some(Box<Partial>),
    /// Durable, under this name, and not looked into yet.
    Unchecked(DatafilePath),
    /// Durable, under this name, and what the manifest says.
    All(DatafilePath),
    /// A piece could not be taken; the repair cannot be completed.
    Failed,
}

struct Partial {
    path: DatafilePath,
    sink: Sink,
    hash: Xxh3,
    bytes: u64,
}

impl RepairInstall {
    /// Datafiles that are to be fetched, by index in the manifest's order, with their lengths: those of the tables that
    /// have rows here, without partitions whose rows are here already, and without files that are.
    pub fn wanted(&self) -> impl Iterator<Item = (usize, u64)> {
        let datafiles = self.manifest.datafiles().zip(&self.datafiles).enumerate();
        datafiles
            .filter(|(_, (_, received))| !matches!(received, Received::Unwanted | Received::Kept | Received::All(_)))
            .map(|(index, ((.., meta), _))| (index, meta.bytes))
    }

    /// Adds bytes of a wanted datafile (index in the manifest's order), in order of offset; the last piece completes it: length
    /// and hash are checked, the file is made durable under a name of this node's own.
    pub async fn write(&mut self, datafile: usize, bytes: Bytes) -> Result<()> {
        let (.., meta) = self.described(datafile)?;
        let meta = meta.clone();
        let failed = |path: &DatafilePath, reason: String| EngineError::Storage {
            operation: "receive datafile",
            object: path.0.clone(),
            reason,
        };
        let mut partial = match std::mem::replace(&mut self.datafiles[datafile], Received::Failed) {
            Received::Nothing => Box::new(self.begin(datafile)?),
            Received::Some(partial) => partial,
            done => {
                self.datafiles[datafile] = done;
                return Err(wrong(format!("more bytes came for datafile {datafile} than are wanted")));
            }
        };
        partial.bytes += bytes.len() as u64;
        if partial.bytes > meta.bytes {
            return Err(wrong(format!("more bytes came for datafile {datafile} than it has")));
        }
        partial.hash.update(&bytes);
        partial.sink.write(bytes).await.map_err(|error| failed(&partial.path, error.to_string()))?;
        if partial.bytes < meta.bytes {
            self.datafiles[datafile] = Received::Some(partial);
            return Ok(());
        }
        let Partial { path, sink, hash, .. } = *partial;
        if format!("{:032x}", hash.digest128()) != meta.hash {
            return Err(failed(&path, "what came has another hash than the primary's file; repair again".to_owned()));
        }
        sink.finish().await.map_err(|error| failed(&path, error.to_string()))?;
        // From here on it has a name in the store, which dropping this removes.
        self.datafiles[datafile] = Received::Unchecked(path.clone());
        let (table, _, stated) = self.described(datafile)?;
        let verified = verify(&self.engine, table, stated, path.clone()).await;
        match verified {
            Ok(()) => self.datafiles[datafile] = Received::All(path),
            Err(_) => self.forget(datafile),
        }
        verified
    }

    /// Ends it unfinished: datafiles that are complete wait for the next repair of the history, until this node ends.
    pub fn pause(mut self) {
        let mut paused = Vec::new();
        for index in 0..self.datafiles.len() {
            let Ok((table, key, stated)) = self.described(index) else { continue };
            let Received::All(path) = &self.datafiles[index] else { continue };
            let garbage = self.engine.garbage.clone();
            paused.push(PausedFile::new(table.id, key.clone(), stated.clone(), path.clone(), garbage));
            self.datafiles[index] = Received::Nothing;
        }
        let history = self.manifest.position.history;
        if self.engine.database(history).is_some() {
            self.engine.paused_repairs.put(history, paused);
        }
    }

    /// Takes over what an interrupted repair had fetched, where it is what the primary states now and has still the bytes
    /// that came. The rest is removed.
    async fn resume(&mut self) {
        let mut paused: HashMap<String, Vec<PausedFile>> = HashMap::new();
        for file in self.engine.paused_repairs.take(self.manifest.position.history) {
            paused.entry(file.hash().to_owned()).or_default().push(file);
        }
        let mut taken = 0_usize;
        for index in 0..self.datafiles.len() {
            if paused.is_empty() || !matches!(self.datafiles[index], Received::Nothing) {
                continue;
            }
            let Ok((table, key, stated)) = self.described(index) else { continue };
            let Some(same) = paused.get_mut(&stated.hash) else { continue };
            let Some(found) = same.iter().position(|file| file.is(table.id, key, stated)) else { continue };
            let file = same.swap_remove(found);
            if let Err(reason) = check_bytes(&self.engine.store, &file.here()).await {
                tracing::warn!(reason, "a datafile that an interrupted repair had fetched is fetched again");
            } else if let Some(path) = file.take() {
                self.datafiles[index] = Received::All(path);
                taken += 1;
            }
        }
        if taken > 0 {
            tracing::info!(database = self.manifest.name, datafiles = taken, "a repair goes on with what it had");
        }
    }

    /// Puts the database in place as one manifest edit, with its position and a replay floor, replacing this node's
    /// copy. Readers see the old database or the new one. An [`crate::Applier`] of the history goes on from there.
    pub async fn install(self) -> Result<Position> {
        let is_missing =
            |received: &&Received| !matches!(received, Received::All(_) | Received::Unwanted | Received::Kept);
        let missing = self.datafiles.iter().filter(is_missing).count();
        if missing > 0 {
            return Err(wrong(format!("{missing} of its {} datafiles are not here", self.datafiles.len())));
        }
        let engine = self.engine.clone();
        engine.clone().to_the_end(async move { engine.install_repair(self).await }).await
    }

    fn begin(&self, datafile: usize) -> Result<Partial> {
        let (table, key, _) = self.described(datafile)?;
        let path = datafile_path(
            &self.manifest.name,
            &table.name,
            &PartitionScheme::new(table)?,
            key,
            unique(&*self.engine.clock),
        )?;
        let sink = Sink::new(Arc::clone(&self.engine.store), path.object_path()?);
        Ok(Partial { path, sink, hash: Xxh3::new(), bytes: 0 })
    }

    fn described(&self, datafile: usize) -> Result<(&Table, &PartitionKey, &DatafileMeta)> {
        let found = self.places.get(datafile).and_then(|(table, index)| {
            let held = self.manifest.tables.get(*table)?;
            let (key, meta) = held.datafiles.get(*index)?;
            Some((&held.table, key, meta))
        });
        found.ok_or_else(|| wrong(format!("bytes came for datafile {datafile}, which it does not name")))
    }

    fn forget(&mut self, datafile: usize) {
        let before = std::mem::replace(&mut self.datafiles[datafile], Received::Failed);
        if let Received::All(path) | Received::Unchecked(path) = before {
            self.engine.garbage.remove(path);
        }
    }

    /// The history as this node's manifest will hold it.
    fn state(&self, replay_after: Lsn) -> HistoryState {
        let manifest = &self.manifest;
        let mut tables: BTreeMap<TableId, TableState> = manifest
            .tables
            .iter()
            .map(|held| (held.table.id, TableState { table: held.table.clone(), partitions: Default::default() }))
            .collect();
        for ((table, key, meta), received) in manifest.datafiles().zip(&self.datafiles) {
            if let (Some(table), Received::All(path)) = (tables.get_mut(&table.id), received) {
                let meta = DatafileMeta { path: path.clone(), ..meta.clone() };
                table.partitions.entry(key.clone()).or_default().push(meta);
            }
        }
        for Kept { table, key, partition } in &self.kept {
            if let Some(table) = tables.get_mut(table) {
                let metas = partition.datafiles.iter().map(|file| file.meta.clone());
                table.partitions.insert(key.clone(), metas.collect());
            }
        }
        HistoryState {
            id: manifest.position.history,
            name: manifest.name.clone(),
            position: manifest.position,
            restart_seq: manifest.restart_seq,
            commit_time: manifest.commit_time,
            epochs: manifest.epochs.clone(),
            next_table: manifest.next_table,
            replay_after,
            // Fragments from before the position are not in this node's log.
            complete_from: manifest.position.seq,
            left_out: tables
                .values()
                .map(|held| &held.table)
                .filter(|table| !self.choice.selects(&table.name))
                .map(|table| table.id)
                .collect(),
            tables,
            system_facts: Vec::new(),
            keys: Vec::new(),
            // Whatever was skipped is in the files.
            skipped: Vec::new(),
            differences: Vec::new(),
        }
    }
}

impl Drop for RepairInstall {
    fn drop(&mut self) {
        if !self.handed_over {
            (0..self.datafiles.len()).for_each(|datafile| self.forget(datafile));
        }
    }
}

impl fmt::Debug for RepairInstall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RepairInstall")
            .field("position", &self.manifest.position)
            .field("datafiles", &self.datafiles.len())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Begins to receive a repair of a followed history ([`Engine::follow`] comes first). The manifest comes from a
    /// peer: limits and names are checked. Partitions whose digests say that they hold here what they hold there, and
    /// whose files are what was written, are kept; the others are to be fetched.
    pub async fn repair_install(self: &Arc<Self>, primary: &str, manifest: RepairManifest) -> Result<RepairInstall> {
        self.check_open()?;
        check(&manifest)?;
        let history = manifest.position.history;
        let database = self
            .database(history)
            .ok_or_else(|| EngineError::NotFound { kind: "history", name: history.to_string() })?;
        let version = database.version();
        check_replaceable(&version)?;
        if !matches!(&version.role, Role::Replica { primary: followed } if followed == primary) {
            return Err(wrong(format!("database {:?} does not follow {primary:?}", version.name)));
        }
        if manifest.name != version.name {
            return Err(wrong(format!("it is of database {:?}, followed as {:?}", manifest.name, version.name)));
        }
        let tables = manifest.tables.iter().enumerate();
        let places = tables.flat_map(|(table, held)| (0..held.datafiles.len()).map(move |index| (table, index)));
        let places: Vec<_> = places.collect();
        let choice = version.choice.clone();
        let kept = self.partitions_kept(&database, &manifest, &choice).await?;
        let is_kept: HashSet<(TableId, &PartitionKey)> = kept.iter().map(|kept| (kept.table, &kept.key)).collect();
        let received = manifest.datafiles().map(|(table, key, _)| match choice.selects(&table.name) {
            true if is_kept.contains(&(table.id, key)) => Received::Kept,
            true => Received::Nothing,
            false => Received::Unwanted,
        });
        let datafiles = received.collect();
        let engine = self.clone();
        let mut install =
            RepairInstall { engine, database, manifest, choice, places, datafiles, kept, handed_over: false };
        install.resume().await;
        Ok(install)
    }

    async fn install_repair(self: Arc<Self>, mut repair: RepairInstall) -> Result<Position> {
        let installed = self.install_held(&mut repair).await;
        if installed.is_err() && !repair.handed_over {
            // What stood in the way may be gone the next time.
            repair.pause();
        }
        installed
    }

    async fn install_held(self: &Arc<Self>, repair: &mut RepairInstall) -> Result<Position> {
        let database = repair.database.clone();
        // Nothing of this history is appended or applied, and no flush writes an older state of it over the edit. A run
        // being committed may wait for a flush, so `flushing` comes after the database's own locks.
        let _following = database.following.lock().await;
        let _latch = database.latch.write().await;
        let _flushing = self.flushing.lock().await;
        let _gate = self.gate.read().await;
        self.check_open()?;
        if database.applying.lock().ended {
            return Err(wrong(format!("database {:?} was dropped here meanwhile", database.name)));
        }
        check_replaceable(&database.version())?;
        if database.version().choice != repair.choice {
            return Err(wrong("other tables were chosen while it was fetched".to_owned()));
        }
        let any_skipped = !database.version().skipped.is_empty();
        // The floor must not outlive the records below it: their numbers would be given again.
        let floor = self.log.status().appended;
        self.sync_upto(floor).await?;
        let state = repair.state(floor);
        let (mut version, _) = restore_version(self, &state)?;
        keep(&database.version(), &mut version, &repair.kept)?;
        let version = Arc::new(version);
        repair.handed_over = true;
        if let Err(error) = self.manifest.append(Edit::Install(Box::new(state))).await {
            // Where the edit may have been written all the same, the files stay, and the next start knows.
            repair.handed_over = !surely_not_written(&error);
            return Err(error);
        }
        self.log.open_history(HistoryEnd { position: version.position, commit_time: version.commit_time })?;
        database.held.lock().clear();
        let retired = database.replace(version.clone(), floor, |version, ended| self.publish(version, ended));
        let kept = repair.kept.iter().flat_map(|kept| &kept.partition.datafiles);
        let kept: HashSet<&str> = kept.map(|file| file.path().0.as_str()).collect();
        for file in retired.iter().filter(|file| !kept.contains(file.path().0.as_str())) {
            file.mark_obsolete();
        }
        if any_skipped {
            self.forget_letters(database.id).await;
        }
        self.applied_changed();
        self.databases_changed();
        tracing::info!(
            database = version.name, position = %version.position, datafiles = repair.datafiles.len(),
            partitions_kept = repair.kept.len(), "installed a repair"
        );
        Ok(version.position)
    }
}

/// Whether a file of ours whose bytes are those of a datafile of the manifest is what the manifest says it is: what its
/// footer says, and its rows, where the manifest has their digest.
async fn verify(engine: &Engine, table: &Table, stated: &DatafileMeta, path: DatafilePath) -> Result<()> {
    let here = DatafileMeta { path, ..stated.clone() };
    verify_datafile(&engine.store, table, &here).await?;
    let Some(digest) = stated.digest else { return Ok(()) };
    let found = engine.received_digest(table, &here).await?;
    if found == digest {
        return Ok(());
    }
    let reason = format!(
        "its rows have digest {found}, the primary states {digest} of its datafile {}; what is wrong is wrong there: restore \
         the primary's copy, or repair it where it is a replica itself",
        stated.path.0
    );
    Err(EngineError::Storage { operation: "verify datafile", object: here.path.0, reason })
}

/// Only a copy that another cluster is primary of is ever replaced.
fn check_replaceable(version: &DatabaseVersion) -> Result<()> {
    match version.role {
        Role::Replica { .. } => Ok(()),
        Role::Primary => {
            Err(EngineError::Invalid(format!("database {:?} is written here, not followed", version.name)))
        }
    }
}
