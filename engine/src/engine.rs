//! The engine: one node's databases.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
};

use arc_swap::ArcSwap;
use object_store::ObjectStore;
use parking_lot::{Mutex, RwLock};
use tailrace_wal::{Archive, ArchiveStatus, Archiver, Clock, Disk, HistoryId, Log, LogError, Lsn, NodeId, Seq};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    EngineConfig, EngineError, HistoryInfo, Receipt, Result, SystemFact, TableDefinition, TaskInfo, Transaction,
    Version,
    backup::BackupBoard,
    cache::DatafileCache,
    database::Database,
    dead_letter::Letters,
    garbage::Garbage,
    manifest::{Manifest, PinRecord},
    memtable::Memtable,
    open_transactions::OpenTransactions,
    repair::PausedRepairs,
    space::Space,
    subscriptions::Subscriptions,
    system::System,
    version::{Databases, Datafile},
};

/// What the engine takes from outside.
#[derive(Debug, Clone)]
pub struct EngineSeams {
    /// Beneath log, manifest and datafiles.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// One node's databases over one log, one manifest and one object store.
///
/// Lock order: `flushing`, `names`, a database's locks ([`Database`]), `gate`, `Database::applying`, `publishing`.
pub struct Engine {
    pub(crate) config: EngineConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) node: NodeId,
    pub(crate) log: Log,
    pub(crate) archiver: Option<Arc<Archiver>>,
    pub(crate) manifest: Manifest,
    pub(crate) space: Arc<Space>,
    /// Transactions that are over, whose abort records found no space.
    pub(crate) unaborted: Mutex<Vec<(HistoryId, tailrace_wal::TransactionNumber)>>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) letters: Letters,
    pub(crate) backups: BackupBoard,
    /// The newest version of everything.
    pub(crate) versions: ArcSwap<Databases>,
    publishing: Mutex<()>,
    /// Databases that have not ended, by history.
    pub(crate) databases: RwLock<HashMap<HistoryId, Arc<Database>>>,
    pub(crate) system: Mutex<System>,
    pub(crate) system_writing: tokio::sync::Mutex<()>,
    /// Held by whoever changes which database has which name.
    pub(crate) names: tokio::sync::Mutex<()>,
    /// Shared from append to apply. A flush takes it for a moment: then nothing is written and not applied.
    pub(crate) gate: Arc<tokio::sync::RwLock<()>>,
    pub(crate) flushing: Arc<tokio::sync::Mutex<()>>,
    pub(crate) memtable: Memtable,
    pub(crate) cache: DatafileCache,
    pub(crate) open: Arc<OpenTransactions>,
    pub(crate) garbage: Garbage,
    pub(crate) subscriptions: Subscriptions,
    /// The pins as the manifest has them.
    pub(crate) pins_written: tokio::sync::Mutex<Vec<PinRecord>>,
    /// They could not be written the last time.
    pub(crate) pins_failing: AtomicBool,
    /// Databases that ended since the last flush, with the datafiles that the manifest still names for them.
    pub(crate) retired: Mutex<Vec<(HistoryId, Vec<Arc<Datafile>>)>>,
    /// What interrupted repairs had fetched.
    pub(crate) paused_repairs: PausedRepairs,
    /// Ends whose facts are not in the system history yet.
    pub(crate) unrecorded_ends: Mutex<Vec<SystemFact>>,
    pub(crate) flushes: AtomicU64,
    pub(crate) flushed: AtomicU64,
    pub(crate) databases_changed: watch::Sender<u64>,
    pub(crate) applied_changed: watch::Sender<u64>,
    pub(crate) closed: AtomicBool,
    pub(crate) stopping: CancellationToken,
    pub(crate) background: TaskTracker,
    /// Where background work is done by hand: what is to be removed.
    #[cfg(feature = "simulation")]
    pub(crate) left: tokio::sync::Mutex<Option<crate::garbage::GarbageReceiver>>,
    pub(crate) runtime: tokio::runtime::Handle,
}

/// What start-up found, for the log line and `system` tables.
#[derive(Debug, Clone, Default)]
pub struct StartReport {
    /// Torn tails that were cut, in words.
    pub torn: Vec<String>,
    /// Transactions replayed.
    pub replayed: u64,
    /// Databases that did not start, with the reason.
    pub stopped: Vec<(String, String)>,
}

/// Settings and switches of this cluster's replication, from the system history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationSwitches {
    /// `start_cluster_replication` / `stop_cluster_replication` as a primary. Default on.
    pub primary: bool,
    /// The same as a replica. Default on.
    pub replica: bool,
}

/// Bytes in memory and at rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryStatus {
    /// Unflushed rows, owning buffers counted once.
    pub memtable_bytes: u64,
    /// Flushes since start.
    pub flushes: u64,
    /// Last LSN that is flushed.
    pub flushed: Lsn,
    /// Why the last flush failed: rows stay in memory and in the log, which grows, until one succeeds.
    pub flush_failure: Option<String>,
}

impl Engine {
    /// Opens or creates a node's folder and recovers it. Must run within a tokio runtime.
    pub async fn open(config: EngineConfig, seams: EngineSeams) -> Result<(Arc<Self>, StartReport)> {
        crate::recovery::open(config, seams).await
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Its clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Its log, for feeds and figures. Only the engine appends.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The archive of the log, for readers, if there is one. What it knows is up to date once it has been read for the
    /// first time.
    pub fn archive(&self) -> Option<&Archive> {
        self.archiver.as_ref().map(|archiver| archiver.archive())
    }

    /// How archiving goes, if the log is archived. Blocks on the log's disk for a moment.
    pub fn archive_status(&self) -> Option<ArchiveStatus> {
        self.archiver.as_ref().map(|archiver| archiver.status())
    }

    /// The store of the datafiles, for readers.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The newest version.
    pub fn version(&self) -> Version {
        Version { databases: self.versions.load_full() }
    }

    /// Changes whenever a database is created, dropped, switched or stopped, or a switch of the cluster changes.
    pub fn watch_databases(&self) -> watch::Receiver<u64> {
        self.databases_changed.subscribe()
    }

    /// Changes whenever a database's applied position moves.
    pub fn watch_applied(&self) -> watch::Receiver<u64> {
        self.applied_changed.subscribe()
    }

    /// Waits until everything of a history up to `seq` is applied here, that is readable.
    ///
    /// # Errors
    /// [`EngineError::DatabaseStopped`] when it never will be, [`EngineError::NotFound`] for a history that is not here
    /// or ended before.
    pub async fn applied(&self, history: HistoryId, seq: Seq) -> Result<()> {
        if let Some(database) = self.database(history) {
            return database.applied(seq).await;
        }
        match self.history(history) {
            Some(ended) if ended.position.seq >= seq => Ok(()),
            _ => Err(EngineError::NotFound { kind: "history", name: history.to_string() }),
        }
    }

    /// Histories here, ended ones included, except `system`.
    pub fn histories(&self) -> Vec<HistoryInfo> {
        let ids: Vec<HistoryId> = {
            let live = self.databases.read();
            let system = self.system.lock();
            live.keys().chain(system.ended.keys().filter(|id| !live.contains_key(id))).copied().collect()
        };
        ids.into_iter().filter_map(|id| self.history(id)).collect()
    }

    /// One history.
    pub fn history(&self, id: HistoryId) -> Option<HistoryInfo> {
        if let Some(database) = self.database(id) {
            let version = database.version();
            return Some(HistoryInfo {
                id,
                name: version.name.clone(),
                role: version.role.clone(),
                replicated: version.replicated,
                position: version.position,
                restart_seq: version.restart_seq,
                epochs: version.epochs.clone(),
                retained_after: self.log.retained_after(id).unwrap_or(version.position.seq),
                ended: false,
            });
        }
        let system = self.system.lock();
        let ended = system.ended.get(&id)?;
        Some(HistoryInfo {
            id,
            name: ended.name.clone(),
            role: system.role(id),
            replicated: false,
            position: ended.end,
            restart_seq: ended.end.seq,
            epochs: ended.epochs.clone(),
            retained_after: self.log.retained_after(id).unwrap_or(ended.end.seq),
            ended: true,
        })
    }

    /// The latest transactions of a history after `after`, oldest first, at most [`crate::TASKS_KEPT`].
    pub fn tasks(&self, history: HistoryId, after: Seq) -> Vec<TaskInfo> {
        self.database(history).map(|database| database.tasks(after)).unwrap_or_default()
    }

    /// CREATE DATABASE: a new history with its first record.
    pub async fn create_database(self: &Arc<Self>, name: &str) -> Result<Receipt> {
        let (engine, name) = (self.clone(), name.to_owned());
        self.to_the_end(async move { engine.create_database_here(name).await }).await
    }

    /// DROP DATABASE: the history's last record.
    pub async fn drop_database(self: &Arc<Self>, name: &str) -> Result<Receipt> {
        let (engine, name) = (self.clone(), name.to_owned());
        self.to_the_end(async move { engine.drop_database_here(name).await }).await
    }

    /// CREATE TABLE.
    pub async fn create_table(self: &Arc<Self>, database: &str, definition: TableDefinition) -> Result<Receipt> {
        let (engine, database) = (self.clone(), database.to_owned());
        self.to_the_end(async move { engine.create_table_here(database, definition).await }).await
    }

    /// DROP TABLE.
    pub async fn drop_table(self: &Arc<Self>, database: &str, table: &str) -> Result<Receipt> {
        let (engine, database, table) = (self.clone(), database.to_owned(), table.to_owned());
        self.to_the_end(async move { engine.drop_table_here(database, table).await }).await
    }

    /// Begins a transaction of one database.
    pub fn begin(self: &Arc<Self>, database: &str) -> Result<Transaction> {
        Transaction::begin(self, database)
    }

    /// Switches replication of a database, in the system history; durable on return.
    pub async fn set_database_replication(self: &Arc<Self>, database: &str, on: bool) -> Result<()> {
        let (engine, name) = (self.clone(), database.to_owned());
        self.to_the_end(async move { engine.switch_database(name, on).await }).await
    }

    /// The cluster's switches.
    pub fn replication_switches(&self) -> ReplicationSwitches {
        self.system.lock().switches
    }

    /// Sets the cluster's switches, in the system history; durable on return.
    pub async fn set_replication_switches(self: &Arc<Self>, switches: ReplicationSwitches) -> Result<()> {
        let engine = self.clone();
        self.to_the_end(async move { engine.switch_cluster(switches).await }).await
    }

    /// Flushes the whole memtable at one LSN, installs the datafiles, truncates the log. Returns that LSN.
    pub async fn flush(self: &Arc<Self>) -> Result<Lsn> {
        let engine = self.clone();
        self.to_the_end(async move { engine.flush_all().await }).await
    }

    /// Figures.
    pub fn memory(&self) -> MemoryStatus {
        MemoryStatus {
            memtable_bytes: self.memtable.bytes(),
            flushes: self.flushes.load(Ordering::Relaxed),
            flushed: Lsn(self.flushed.load(Ordering::Acquire)),
            flush_failure: self.memtable.failure(),
        }
    }

    /// Waits until the log or the manifest stops by itself, after a write or sync that failed, and says why. From then on
    /// nothing is acknowledged, or nothing flushed, before the node has been started again.
    pub async fn stopped(&self) -> LogError {
        tokio::select! {
            error = stopped(&self.log) => error,
            error = self.manifest.stopped() => error,
        }
    }

    /// Ends background work and closes log and manifest: everything written is durable on return.
    pub async fn shutdown(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.stopping.cancel();
        self.background.close();
        self.background.wait().await;
        let _flushing = self.flushing.lock().await;
        // Whoever was past admission is applied when the gate is ours.
        let _gate = self.gate.write().await;
        self.write_pins().await;
        self.log.close().await?;
        self.manifest.close().await
    }
}

/// What the modules behind the public face share.
impl Engine {
    /// A database that has not ended.
    pub(crate) fn database(&self, id: HistoryId) -> Option<Arc<Database>> {
        self.databases.read().get(&id).cloned()
    }

    /// A database by name.
    pub(crate) fn database_named(&self, name: &str) -> Result<Arc<Database>> {
        let found = self.versions.load().get(name).and_then(|version| self.database(version.id));
        found.ok_or_else(|| EngineError::NotFound { kind: "database", name: name.to_owned() })
    }

    /// Publishes one database's newest version. Called with its `applying` locked, so that versions of one database
    /// are published in order.
    pub(crate) fn publish(&self, version: &Arc<crate::DatabaseVersion>, ended: bool) {
        let _one_at_a_time = self.publishing.lock();
        let databases = self.versions.load();
        let next = if ended {
            // The name may have gone to another history since.
            if databases.get(&version.name).is_none_or(|named| named.id != version.id) {
                return;
            }
            databases.remove(&version.name)
        } else {
            databases.insert(version.name.clone(), version.clone())
        };
        self.versions.store(Arc::new(next));
    }

    /// Runs a change to its end even when the caller goes away: between append and apply nothing may be dropped.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut change = Box::pin(change);
        // What need not wait for anything is done here: waking another thread for it would take longer.
        if let Poll::Ready(result) = futures::poll!(&mut change) {
            return result;
        }
        match self.runtime.spawn(change).await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Err(EngineError::Closed),
        }
    }

    /// New work is refused once shutdown has begun.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(EngineError::Closed) } else { Ok(()) }
    }

    pub(crate) fn databases_changed(&self) {
        self.databases_changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn applied_changed(&self) {
        self.applied_changed.send_modify(|count| *count += 1);
    }
}

/// Waits until a log takes nothing any more.
pub(crate) async fn stopped(log: &Log) -> LogError {
    log.ended().await;
    log.sync().await.err().unwrap_or(LogError::Closed)
}

/// Everything that [`crate::recovery`] has put together.
pub(crate) struct Parts {
    pub(crate) config: EngineConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) node: NodeId,
    pub(crate) log: Log,
    pub(crate) archiver: Option<Arc<Archiver>>,
    pub(crate) manifest: Manifest,
    pub(crate) space: Arc<Space>,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) letters: Letters,
    pub(crate) system: System,
    pub(crate) garbage: Garbage,
    pub(crate) flushed: Lsn,
}

impl Engine {
    pub(crate) fn assemble(parts: Parts) -> Self {
        let Parts { config, clock, node, log, archiver, manifest, space, store, letters, system, garbage, flushed } =
            parts;
        Self {
            memtable: Memtable::new(config.memtable_bytes),
            cache: DatafileCache::new(config.cache_bytes),
            config,
            clock,
            node,
            log,
            archiver,
            manifest,
            space,
            unaborted: Mutex::default(),
            store,
            letters,
            backups: BackupBoard::default(),
            versions: ArcSwap::default(),
            publishing: Mutex::default(),
            databases: RwLock::default(),
            system: Mutex::new(system),
            system_writing: tokio::sync::Mutex::default(),
            names: tokio::sync::Mutex::default(),
            gate: Arc::default(),
            flushing: Arc::default(),
            open: Arc::default(),
            garbage,
            pins_written: tokio::sync::Mutex::default(),
            subscriptions: Subscriptions::default(),
            pins_failing: AtomicBool::new(false),
            retired: Mutex::default(),
            paused_repairs: PausedRepairs::default(),
            unrecorded_ends: Mutex::default(),
            flushes: AtomicU64::new(0),
            flushed: AtomicU64::new(flushed.0),
            databases_changed: watch::Sender::new(0),
            applied_changed: watch::Sender::new(0),
            closed: AtomicBool::new(false),
            stopping: CancellationToken::new(),
            background: TaskTracker::new(),
            #[cfg(feature = "simulation")]
            left: tokio::sync::Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("node", &self.node).field("config", &self.config).finish_non_exhaustive()
    }
}
