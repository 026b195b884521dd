//! The replica's side: pulls, prepares, applies, acknowledges.

mod backoff;
mod board;
mod connection;
mod database;
mod failing;
mod lag;
mod link;
mod outcome;
mod pipeline;
mod repair;
mod skip;
mod status;
mod verify;
mod workers;

pub use verify::VerifiedDatabase;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tailrace_engine::{Engine, Role, TASKS_KEPT};
use tailrace_wal::{CommitTime, HistoryId, Seq};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    backoff::Backoff,
    board::Whose,
    database::Database,
    link::{Command, Link, VerifyAnswer},
    status::{Face, RETRY},
    workers::Workers,
};
use crate::{
    FollowerConfig, FollowerStatus, ReplicaTask, ReplicationError, ReplicationMetrics, ReplicationState, Result, tls,
    watchdog, wire::FeedNumber,
};

/// Repairs fetched at the same time: their pieces stay far below the connection's window.
const REPAIRS_MAX: usize = 2;
/// How long what is in progress may take at shutdown.
const SHUTDOWN_MAX: Duration = Duration::from_secs(10);
/// Why nothing is followed when the cluster's switch is off.
const SWITCHED_OFF: &str = "replication is stopped on this cluster";

/// Follows a primary's databases into this cluster's engine.
#[derive(Debug)]
pub struct Follower {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What the session and the databases share.
#[derive(Debug)]
pub(crate) struct Shared {
    engine: Arc<Engine>,
    config: FollowerConfig,
    workers: Arc<Workers>,
    repairs: Arc<Semaphore>,
    databases: Mutex<BTreeMap<HistoryId, Known>>,
    connection: Mutex<ConnectionStatus>,
    /// The session that is up.
    session: Mutex<Option<Link>>,
    /// Who waits for answers about a verification of that session.
    verifying: Mutex<BTreeMap<FeedNumber, mpsc::UnboundedSender<VerifyAnswer>>>,
    wire_bytes: AtomicU64,
    raw_bytes: AtomicU64,
    retry: Notify,
    seed: u64,
    tasks: TaskTracker,
    /// For tasks of databases, which need the whole.
    this: std::sync::Weak<Shared>,
}

#[derive(Debug)]
struct ConnectionStatus {
    connected: Option<String>,
    last_error: Option<String>,
    /// Replication is on since this monotonic time; `None` while it is off.
    enabled_since: Option<Duration>,
    began: Duration,
    disabled_since: CommitTime,
}

/// A database that was heard of.
#[derive(Debug, Clone)]
struct Known {
    face: Arc<Face>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Known {
    fn send(&self, command: Command) {
        // One that has ended does not hear it.
        let _ = self.commands.send(command);
    }
}

impl Follower {
    /// Begins to follow, unless the cluster's replica switch is off. A primary that is not there is tried again for ever.
    pub async fn start(engine: Arc<Engine>, config: FollowerConfig) -> Result<Arc<Self>> {
        tls::client_config(&config.tls)?;
        let named = tls::own_name(&config.tls)?;
        if named != config.name {
            return Err(ReplicationError::Configuration(format!(
                "this replica is named {:?}, but its certificate {} is for {named:?}; set name in section [replication.replica] or make another certificate",
                config.name,
                config.tls.certificate.display()
            )));
        }
        if config.primary_addresses.is_empty() {
            return Err(ReplicationError::Configuration(
                "Asynchronous replication is not properly configured for the cluster: set primary_addresses in section [replication.replica]".into(),
            ));
        }
        let tasks = TaskTracker::new();
        let now = engine.clock().monotonic();
        let shared = Arc::new_cyclic(|this| Shared {
            workers: Workers::new(config.apply_workers),
            repairs: Arc::new(Semaphore::new(REPAIRS_MAX)),
            databases: Mutex::default(),
            connection: Mutex::new(ConnectionStatus {
                connected: None,
                last_error: None,
                enabled_since: None,
                began: now,
                disabled_since: engine.clock().now(),
            }),
            session: Mutex::default(),
            verifying: Mutex::default(),
            engine,
            config,
            wire_bytes: AtomicU64::new(0),
            raw_bytes: AtomicU64::new(0),
            retry: Notify::new(),
            seed: rand::random(),
            tasks: tasks.clone(),
            this: this.clone(),
        });
        // Those that are here already are shown before a primary answers.
        for info in shared.engine.histories() {
            if let Role::Replica { primary } = &info.role
                && !info.ended
                && shared.is_selected(&info.name)
            {
                // What is not chosen any more goes at once, and nothing of it is read before.
                if let Err(error) = shared.choose(info.id, &info.name).await {
                    tracing::warn!(database = info.name, %error, "its tables are chosen when it is followed");
                }
                shared.database(info.id, &info.name, primary);
            }
        }
        let stop = CancellationToken::new();
        tasks.spawn(supervise(shared.clone(), stop.clone()));
        let watched = shared.clone();
        tasks.spawn(watchdog::watch(stop.clone(), move || watched.stuck()));
        Ok(Arc::new(Self { shared, stop, tasks }))
    }

    /// What is followed, and how it stands.
    pub fn status(&self) -> FollowerStatus {
        let enabled = self.shared.engine.replication_switches().replica;
        let (connected, last_error, disabled_since) = {
            let connection = self.shared.connection.lock();
            (connection.connected.clone(), connection.last_error.clone(), connection.disabled_since)
        };
        let disabled = (!enabled).then(|| (SWITCHED_OFF.to_owned(), RETRY.to_owned(), disabled_since));
        let (version, now) = (self.shared.engine.version(), self.shared.engine.clock().monotonic());
        let shown = |face: &Arc<Face>| {
            let here = version.database(&face.name).filter(|database| database.id == face.history);
            let open = self.shared.engine.open_fragments(face.history);
            face.show(disabled.as_ref(), here.map(|database| &**database), open, now)
        };
        let databases: Vec<_> = self.shared.faces().iter().filter_map(shown).collect();
        let all_stopped =
            !databases.is_empty() && databases.iter().all(|database| database.state == ReplicationState::Stopped);
        FollowerStatus {
            state: match (enabled, all_stopped) {
                (false, _) => ReplicationState::Disabled,
                (true, true) => ReplicationState::Stopped,
                (true, false) => ReplicationState::Enabled,
            },
            connected,
            last_error,
            databases,
            wire_bytes: self.shared.wire_bytes.load(Ordering::Relaxed),
            raw_bytes: self.shared.raw_bytes.load(Ordering::Relaxed),
        }
    }

    /// Finished tasks first (the latest 10,000, oldest first), then unfinished, oldest first.
    pub fn tasks(&self) -> Vec<ReplicaTask> {
        let (mut finished, mut unfinished) = (Vec::new(), Vec::new());
        let version = self.shared.engine.version();
        for face in self.shared.faces() {
            let here = version.database(&face.name).filter(|database| database.id == face.history);
            let skipped = here.into_iter().flat_map(|database| database.skipped_tasks());
            let board = face.board.lock();
            finished.extend(board.earlier(self.shared.engine.tasks(face.history, Seq::ZERO), skipped));
            finished.extend(board.finished().cloned());
            unfinished.extend(board.unfinished().cloned());
        }
        let order = |task: &ReplicaTask| (task.finished.unwrap_or(task.task.commit_time), task.task.seq);
        finished.sort_by_key(|task| order(task));
        unfinished.sort_by_key(|task: &ReplicaTask| (task.received, task.task.seq));
        let mut tasks = finished.split_off(finished.len().saturating_sub(TASKS_KEPT));
        tasks.append(&mut unfinished);
        tasks
    }

    /// Figures over the last `window`, or since replication was enabled.
    pub fn metrics(&self, window: Option<Duration>) -> ReplicationMetrics {
        let now = self.shared.engine.clock().monotonic();
        let (enabled_since, began) = {
            let connection = self.shared.connection.lock();
            (connection.enabled_since.unwrap_or(now), connection.began)
        };
        let since = window.map_or(enabled_since, |window| now.saturating_sub(window));
        let (mut finished, mut groups, mut unfinished) = (0, 0, 0);
        let (mut cost, mut max_cost) = (Duration::ZERO, Duration::ZERO);
        for face in self.shared.faces() {
            let board = face.board.lock();
            // Totals know everything since start; samples only so many.
            let totals = board.totals((since > began).then_some(since));
            finished += totals.finished;
            groups += totals.groups;
            cost += totals.cost;
            max_cost = max_cost.max(totals.max_cost);
            unfinished += face.behind().max(board.unfinished().count() as u64);
        }
        let seconds = now.saturating_sub(since).as_secs_f64();
        ReplicationMetrics {
            state: self.status().state,
            finished,
            unfinished,
            per_second: if seconds > 0.0 { finished as f64 / seconds } else { 0.0 },
            max_cost,
            mean_cost: if finished > 0 { cost.div_f64(finished as f64) } else { Duration::ZERO },
            mean_group_size: if groups > 0 { finished as f64 / groups as f64 } else { 0.0 },
        }
    }

    /// Forgets failure counts and tries everything that failed again, at once. `start_cluster_replication` calls it
    /// after the engine's switch.
    pub fn retry(&self) {
        self.shared.tell_all(|| Command::Retry);
        self.shared.retry.notify_one();
    }

    /// Ends it; what is in progress is completed.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.shared.tell_all(|| Command::Stop);
        self.tasks.close();
        if tokio::time::timeout(SHUTDOWN_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("replication did not end within {SHUTDOWN_MAX:?}; what was in progress is received again");
        }
    }
}

impl Shared {
    /// Whether settings select a database.
    fn is_selected(&self, name: &str) -> bool {
        self.config.databases.as_ref().is_none_or(|databases| databases.iter().any(|selected| selected == name))
    }

    /// Chooses a database's tables as the settings say.
    async fn choose(&self, history: HistoryId, name: &str) -> tailrace_engine::Result<()> {
        let choice = self.config.tables.get(name).cloned().unwrap_or_default();
        self.engine.choose_tables(history, choice).await
    }

    /// A database's task, begun when it is not there.
    fn database(&self, history: HistoryId, name: &str, primary: &str) -> Known {
        let mut databases = self.databases.lock();
        if let Some(known) = databases.get(&history) {
            return known.clone();
        }
        let (commands, receiver) = mpsc::unbounded_channel();
        let queue = databases.len() as u32;
        let whose = Whose { database: name.to_owned(), source: primary.to_owned(), queue };
        let here = self.engine.history(history).map(|info| info.position.seq).unwrap_or_default();
        let clock = self.engine.clock();
        let face = Arc::new(Face::new(whose, history, here, clock.now(), clock.monotonic()));
        let known = Known { face: face.clone(), commands };
        databases.insert(history, known.clone());
        if let Some(shared) = self.this.upgrade() {
            self.tasks.spawn(Database::new(shared, face, receiver).run());
        }
        known
    }

    fn tell(&self, history: HistoryId, command: Command) {
        if let Some(known) = self.databases.lock().get(&history) {
            known.send(command);
        }
    }

    /// To whoever waits for a verification.
    fn tell_verifying(&self, feed: FeedNumber, answer: VerifyAnswer) {
        if let Some(answers) = self.verifying.lock().get(&feed) {
            let _ = answers.send(answer);
        }
    }

    fn tell_all(&self, command: impl Fn() -> Command) {
        self.databases.lock().values().for_each(|known| known.send(command()));
    }

    fn faces(&self) -> Vec<Arc<Face>> {
        self.databases.lock().values().map(|known| known.face.clone()).collect()
    }

    /// Databases that stand still although their state says that they run.
    fn stuck(&self) -> Vec<(HistoryId, String, Duration)> {
        let now = self.engine.clock().monotonic();
        let stuck = self.faces().into_iter().filter_map(|face| {
            let (since, activity) = face.stuck(now).filter(|_| face.state() == ReplicationState::Enabled)?;
            Some((face.history, format!("database {:?} of the primary does not move: {activity}", face.name), since))
        });
        stuck.collect()
    }

    fn connected(&self, address: &str) {
        let mut connection = self.connection.lock();
        connection.connected = Some(address.to_owned());
    }

    fn detach_all(&self) {
        self.connection.lock().connected = None;
        *self.session.lock() = None;
        self.verifying.lock().clear();
        self.tell_all(|| Command::Detach);
    }

    /// Notes the cluster's switch.
    fn set_enabled(&self, enabled: bool) {
        let mut connection = self.connection.lock();
        if enabled && connection.enabled_since.is_none() {
            connection.enabled_since = Some(self.engine.clock().monotonic());
        }
        if !enabled && connection.enabled_since.take().is_some() {
            connection.disabled_since = self.engine.clock().now();
        }
    }
}

/// Keeps a connection to one of the primaries up while the cluster's switch is on.
async fn supervise(shared: Arc<Shared>, stop: CancellationToken) {
    let mut databases = shared.engine.watch_databases();
    let mut backoff = Backoff::new(shared.config.backoff_min, shared.config.backoff_max, shared.seed);
    let mut addresses = shared.config.primary_addresses.iter().cycle();
    while !stop.is_cancelled() {
        let enabled = shared.engine.replication_switches().replica;
        shared.set_enabled(enabled);
        if !enabled {
            tokio::select! {
                changed = databases.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            continue;
        }
        let Some(address) = addresses.next() else { return };
        let session_stop = stop.child_token();
        let ended = {
            let followed = connection::follow(&shared, address, &session_stop);
            tokio::pin!(followed);
            loop {
                tokio::select! {
                    ended = &mut followed => break ended,
                    changed = databases.changed(), if !session_stop.is_cancelled() => {
                        if changed.is_err() || !shared.engine.replication_switches().replica {
                            session_stop.cancel();
                        }
                    }
                }
            }
        };
        if session_stop.is_cancelled() {
            continue;
        }
        tracing::info!(address, reason = ended.reason, "not connected to the primary");
        shared.connection.lock().last_error = Some(format!("{address}: {}", ended.reason));
        if ended.welcomed {
            backoff.reset();
        }
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = shared.retry.notified() => backoff.reset(),
            () = stop.cancelled() => return,
        }
    }
}
