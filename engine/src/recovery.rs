//! Recovery: manifest, then the log after it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use tailrace_wal::{HistoryEnd, HistoryId, Log, LogError, Lsn, Recovery};

use crate::{
    DatabaseVersion, Datafile, Engine, EngineConfig, EngineError, EngineSeams, PartitionVersion, Receipt, Result, Role,
    StartReport, TableVersion,
    apply::Changes,
    background,
    choice::choose,
    config::planted,
    database::Database,
    dead_letter::Letters,
    engine::Parts,
    garbage::{self, Garbage},
    manifest::{HistoryState, Manifest, ManifestState},
    open_store,
    replay::Replay,
    space::Space,
    system::System,
};

/// Opens a node: everything that was acknowledged is there when this returns.
pub(crate) async fn open(config: EngineConfig, seams: EngineSeams) -> Result<(Arc<Engine>, StartReport)> {
    let EngineSeams { disk, clock } = seams;
    #[cfg(feature = "simulation")]
    let store_disk = config.simulation.forgetful(disk.clone());
    #[cfg(not(feature = "simulation"))]
    let store_disk = disk.clone();
    let store = open_store(config.storage_url.as_ref(), &config.data_dir, store_disk)?;
    // Its name may be in the page cache alone: whoever made it may have ended before that was durable.
    disk.create_dir_all(&config.data_dir).map_err(|error| EngineError::Storage {
        operation: "create folder",
        object: config.data_dir.display().to_string(),
        reason: error.to_string(),
    })?;
    let space = {
        let (config, disk, clock) = (config.clone(), disk.clone(), clock.clone());
        Arc::new(blocking(move || Ok(Space::open(&config, disk, clock))).await?)
    };
    // Both begin a segment: a start on a full disk takes that from the reserve.
    let open_manifest = || Manifest::open(&config, disk.clone(), clock.clone(), space.clone());
    let (manifest, state) = space.needed("opening the manifest", open_manifest).await?;
    let open_log = || {
        let (wal, node, flushed) = (config.wal.clone(), state.node, state.flushed);
        let (disk, clock) = (disk.clone(), clock.clone());
        blocking(move || Ok(Log::open(wal, node, flushed, disk, clock)?))
    };
    let (log, recovery) = space.needed("opening the log", open_log).await?;
    space.attach(log.clone());
    if recovery.last < state.flushed {
        return Err(LogError::EndsBefore { end: recovery.last, wanted: state.flushed }.into());
    }
    // Before anything is truncated.
    let archiver = match config.archive.clone() {
        Some(archive) => {
            let (log, node) = (log.clone(), state.node);
            Some(Arc::new(blocking(move || crate::archive::claim(&archive, &log, node)).await?))
        }
        None => None,
    };
    let letters = Letters::new(disk.clone(), &config.data_dir);
    let (garbage, garbage_receiver) = Garbage::new();
    let system = restore_system(&state);
    let engine = Arc::new(Engine::assemble(Parts {
        config,
        clock,
        node: state.node,
        log,
        archiver,
        manifest,
        space,
        store,
        letters,
        system,
        garbage,
        flushed: state.flushed,
    }));
    let named = restore_databases(&engine, &state)?;
    let mut report = StartReport { torn: recovery.torn.iter().cloned().collect(), ..StartReport::default() };
    let replaying = engine.clone();
    let from = if planted!(engine.config, ReplaysFlushed) { recovery.first } else { state.replay_from };
    let from = Lsn(from.0.saturating_sub(1));
    report.replayed = blocking(move || Replay::new(&replaying).run(from)).await?;
    show_namesakes(&engine);
    open_histories(&engine, &recovery)?;
    abort_open_transactions(&engine, &recovery).await;
    // A crash between DROP DATABASE and its fact leaves the fact to be written now.
    engine.record_ends().await?;
    engine.restore_pins(&state).await;
    engine.free_flushed(&state).await;
    remove_strangers(&engine, &named).await;
    engine.clean_letters().await;
    let version = engine.version();
    let stopped = version.databases().filter_map(|database| Some((database.name.clone(), database.stopped.clone()?)));
    report.stopped = stopped.collect();
    #[cfg(feature = "simulation")]
    let garbage_receiver = match engine.take_over(garbage_receiver) {
        Some(receiver) => receiver,
        None => return Ok((engine, report)),
    };
    background::start(&engine, garbage_receiver);
    Ok((engine, report))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(EngineError::Closed),
    }
}

fn restore_system(state: &ManifestState) -> System {
    let mut system = System::new(state.system);
    if let Some(history) = state.histories.get(&state.system) {
        history.system_facts.iter().for_each(|fact| system.fold(fact.clone()));
        system.position = history.position;
        system.restart_seq = history.restart_seq;
        system.commit_time = history.commit_time;
        system.epochs = history.epochs.clone();
        system.applied = state.flushed;
    }
    system
}

/// Databases as the last flush left them. Returns the paths that the manifest names.
fn restore_databases(engine: &Arc<Engine>, state: &ManifestState) -> Result<HashSet<String>> {
    let mut named = HashSet::new();
    for history in state.histories.values().filter(|history| history.id != state.system) {
        if engine.system.lock().ended.contains_key(&history.id) {
            // Dropped, and the edit that takes its files out of the manifest did not come to be.
            let (version, _) = restore_version(engine, history)?;
            let mut changes = Changes::default();
            let mut version = version;
            crate::apply::retire_all(&mut version, &mut changes);
            named.extend(changes.retired.iter().map(|file| file.path().0.clone()));
            engine.retired.lock().push((history.id, changes.retired));
            continue;
        }
        let (version, files) = restore_version(engine, history)?;
        named.extend(files);
        let (mut version, mut changes) = (version, Changes::default());
        if history.replay_after <= state.flushed {
            // What was chosen may have been flushed without what follows from it. A later repair knew better.
            let choice = version.choice.clone();
            choose(&mut version, &mut changes, choice);
        }
        let version = Arc::new(version);
        // A database that was stopped may have records to be applied from there on.
        let applied = state.flushed.min(Lsn(state.replay_from.0.saturating_sub(1)));
        let database = Arc::new(Database::new(version.clone(), applied));
        {
            let mut applying = database.applying.lock();
            applying.replay_after = history.replay_after;
            applying.complete_from = history.complete_from;
            applying.changes = changes;
        }
        for known in &history.keys {
            let receipt =
                Receipt { position: known.position, lsn: known.lsn, commit_time: known.commit_time, rows: known.rows };
            database.keys.remember(known.key.clone().into(), receipt);
        }
        engine.databases.write().insert(history.id, database);
        engine.publish(&version, false);
    }
    // Followed, and no record has come.
    let followed: Vec<(HistoryId, String)> =
        engine.system.lock().followed().map(|(id, name)| (id, name.to_owned())).collect();
    for (id, name) in followed {
        if engine.database(id).is_none() {
            let Role::Replica { primary } = engine.system.lock().role(id) else { continue };
            engine.install_followed(id, name, primary);
        }
    }
    Ok(named)
}

/// Gives a name to whom it belongs now: a database that was restored has an edit of the manifest, its dropped namesake was in
/// there as well until the log's DROP DATABASE was replayed, and had the name meanwhile.
fn show_namesakes(engine: &Arc<Engine>) {
    let databases: Vec<Arc<Database>> = engine.databases.read().values().cloned().collect();
    for database in databases {
        let version = database.version();
        if !engine.versions.load().contains_key(&version.name) {
            engine.publish(&version, false);
        }
    }
}

/// A database's version from the manifest, and the paths of its files.
pub(crate) fn restore_version(engine: &Engine, history: &HistoryState) -> Result<(DatabaseVersion, Vec<String>)> {
    let mut paths = Vec::new();
    let mut tables = rpds::HashTrieMapSync::new_sync();
    let mut names = rpds::HashTrieMapSync::new_sync();
    for table in history.tables.values() {
        let mut version = TableVersion::empty(table.table.clone())?;
        for (key, metas) in &table.partitions {
            let datafiles = metas.iter().map(|meta| {
                paths.push(meta.path.0.clone());
                Datafile::new(meta.clone(), engine.garbage.clone())
            });
            let partition = PartitionVersion { datafiles: datafiles.collect(), chunks: Vec::new() };
            version.partitions.insert_mut(key.clone(), Arc::new(partition));
        }
        version.left_out = history.left_out.contains(&table.table.id);
        names.insert_mut(table.table.name.clone(), table.table.id);
        tables.insert_mut(table.table.id, Arc::new(version));
    }
    let system = engine.system.lock();
    let version = DatabaseVersion {
        id: history.id,
        name: history.name.clone(),
        role: system.role(history.id),
        replicated: system.replicated(history.id),
        stopped: None,
        position: history.position,
        restart_seq: history.restart_seq,
        commit_time: history.commit_time,
        epochs: history.epochs.clone(),
        skipped: Arc::new(history.skipped.iter().map(|letter| (letter.seq, letter.clone())).collect()),
        differences: Arc::new(history.differences.clone()),
        choice: system.choice(history.id),
        tables,
        names,
        next_table: history.next_table,
    };
    Ok((version, paths))
}

/// Tells the writer where every history stands: the later of what was replayed and what the log holds.
fn open_histories(engine: &Arc<Engine>, recovery: &Recovery) -> Result<()> {
    let mut ends: BTreeMap<HistoryId, HistoryEnd> = BTreeMap::new();
    {
        let system = engine.system.lock();
        ends.insert(system.position.history, HistoryEnd { position: system.position, commit_time: system.commit_time });
        for (id, ended) in &system.ended {
            ends.insert(*id, HistoryEnd { position: ended.end, commit_time: tailrace_wal::CommitTime::default() });
        }
    }
    for (id, database) in engine.databases.read().iter() {
        let version = database.version();
        ends.insert(*id, HistoryEnd { position: version.position, commit_time: version.commit_time });
    }
    for recovered in &recovery.histories {
        let id = recovered.end.position.history;
        // A stopped database is behind its log: what follows would have to go after the log's end.
        let stopped = engine.database(id).is_some_and(|database| database.version().stopped.is_some());
        if let Some(end) = ends.get_mut(&id)
            && stopped
            && recovered.end.position.seq > end.position.seq
        {
            *end = recovered.end;
        }
    }
    for end in ends.into_values() {
        engine.log.open_history(end)?;
    }
    Ok(())
}

/// Transactions that this node's clients had open are over, and so are those of histories that have ended. Those of
/// followed histories go on when their feed does.
async fn abort_open_transactions(engine: &Arc<Engine>, recovery: &Recovery) {
    for recovered in &recovery.histories {
        let id = recovered.end.position.history;
        match engine.database(id) {
            Some(database) if database.version().role != Role::Primary => continue,
            Some(database) => database.held.lock().clear(),
            None if engine.system.lock().ended.contains_key(&id) => {}
            None => continue,
        }
        for number in &recovered.open {
            engine.abort_transaction(id, *number).await;
        }
    }
}

impl Engine {
    /// The log before the manifest's state goes at once, not with the next flush: a start may be short of space.
    async fn free_flushed(&self, state: &ManifestState) {
        let upto = state.flushed.min(Lsn(state.replay_from.0.saturating_sub(1)));
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || log.truncate(upto)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not truncated; the next flush tries again"),
            Err(error) => tracing::error!(%error, "the log was not truncated"),
        }
    }
}

/// Removes files that nothing names: leftovers of a crash between writing a file and naming it.
async fn remove_strangers(engine: &Arc<Engine>, named: &HashSet<String>) {
    use futures::StreamExt as _;
    let mut files = engine.store.list(None);
    let mut strangers = Vec::new();
    while let Some(file) = files.next().await {
        match file {
            Ok(file) => {
                let path = file.location.to_string();
                if !named.contains(&path) && garbage::is_own_name(&path) {
                    strangers.push(crate::partition::DatafilePath(path));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the store could not be listed; unused files stay until the next start");
                return;
            }
        }
    }
    for path in strangers {
        garbage::remove(&engine.store, &path).await;
    }
}
