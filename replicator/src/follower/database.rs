//! One followed database: opens its feed when it can, puts what arrives through the pipeline, says what it holds. Lives
//! from the first time that it is heard of until it ends or the follower does; sessions come and go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tailrace_engine::{Applier, EngineError, Operation, Right, Role, TableId};
use tailrace_wal::{CommitTime, LogError, Seq};
use tokio::sync::mpsc;

use super::{
    Shared,
    backoff::Backoff,
    board::special,
    link::{Command, Event, Link, Records},
    pipeline::{OnStart, Pipeline, Step},
    status::{Face, Failing, RETRY},
};
use crate::{ReplicationState, session::Outcome, wire::CloseCause};

/// What a feed is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// To be opened as soon as there is a session and nothing is under way.
    Closed,
    /// Asked for, or open.
    Open,
    /// Not to be opened until the primary offers it (again).
    Unoffered,
    /// Not to be opened until somebody retries.
    Blocked,
    /// The name is held by another database here.
    NameTaken,
    /// The history is over.
    Ended,
}

/// See the module.
pub(crate) struct Database {
    pub(super) shared: Arc<Shared>,
    pub(super) face: Arc<Face>,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) link: Option<Link>,
    pub(super) applier: Option<Arc<Applier>>,
    pub(super) pipeline: Pipeline,
    pub(super) phase: Phase,
    pub(super) failures: u32,
    /// The task that failed, if it was one.
    pub(super) failed_task: Option<Seq>,
    /// Tasks that are to be left out, with the reason.
    pub(super) skips: BTreeMap<Seq, String>,
    /// Those of them that a start remembers.
    pub(super) kept_skips: BTreeMap<Seq, String>,
    /// What was acknowledged last counts less as applied than as durable: a task was skipped.
    lacks_tasks: bool,
    /// The right that the apply user lacked.
    lacks: Option<Right>,
    /// Somebody asked for a repair.
    pub(super) repair_asked: bool,
    /// In this session the primary has offered it.
    pub(super) offered: bool,
    backoff: Backoff,
    pub(super) resume_at: Option<Duration>,
    /// The last record was DROP DATABASE: nothing follows it.
    pub(super) ended: bool,
    pub(super) stopping: bool,
    on_start: OnStart,
}

impl Database {
    pub(crate) fn new(shared: Arc<Shared>, face: Arc<Face>, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        let config = &shared.config;
        let board = face.clone();
        let skips = shared.engine.asked_skips(face.history);
        Self {
            pipeline: Pipeline::new(shared.workers.clone(), config.apply_user.as_deref().map(Arc::from)),
            backoff: Backoff::new(config.backoff_min, config.backoff_max, shared.seed ^ u64::from(face.history.0[0])),
            shared,
            face,
            commands,
            link: None,
            applier: None,
            phase: Phase::Closed,
            failures: 0,
            failed_task: None,
            kept_skips: skips.clone(),
            skips,
            lacks_tasks: false,
            lacks: None,
            repair_asked: false,
            offered: false,
            resume_at: None,
            ended: false,
            stopping: false,
            on_start: Arc::new(move |from, to, worker| board.board.lock().executing(from, to, worker)),
        }
    }

    /// Runs until the history ends or the follower stops.
    pub(crate) async fn run(mut self) {
        let mut databases = self.shared.engine.watch_databases();
        loop {
            if self.stopping && self.pipeline.is_settled() {
                return;
            }
            if self.ended && self.pipeline.is_settled() {
                self.finish();
                return;
            }
            if let Err(error) = self.keep_skips().await {
                // Those that are over are behind the position: nothing follows from them.
                tracing::warn!(database = self.face.name, %error, "tasks that were skipped are not forgotten");
                self.kept_skips = self.skips.clone();
            }
            if self.is_to_repair() {
                self.repair_as_asked().await;
                continue;
            }
            self.open().await;
            let paused = self.paused() || self.stopping;
            self.face.set_activity(self.activity(paused));
            let wake = self.resume_at.map(|at| at.saturating_sub(self.now()));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => self.stopping = true,
                },
                step = self.pipeline.next(self.applier.as_ref(), paused, &self.on_start, &self.skips) => self.step(step),
                () = tokio::time::sleep(wake.unwrap_or_default()), if wake.is_some() => self.resume_at = None,
                _ = databases.changed(), if self.waits_for_a_change() => self.look_again(),
            }
        }
    }

    /// What is being done, for those who ask what it is stuck in.
    fn activity(&self, paused: bool) -> &'static str {
        match self.phase {
            Phase::Open if paused => "pausing after a failure",
            Phase::Open => self.pipeline.activity(),
            Phase::Closed if self.link.is_none() => "waiting for a connection to the primary",
            Phase::Closed => "waiting until the feed is opened",
            Phase::Unoffered => "waiting until the primary offers the database",
            Phase::Blocked => "waiting until somebody retries",
            Phase::NameTaken => "waiting until the name is free",
            Phase::Ended => "ended",
        }
    }

    fn waits_for_a_change(&self) -> bool {
        self.phase == Phase::NameTaken || self.lacks.is_some() || self.lacks_tasks
    }

    /// What stood in the way may be gone: a database of the same name, a right that was lacking, a task that was skipped.
    fn look_again(&mut self) {
        if self.lacks_tasks
            && self.phase == Phase::Open
            && self.pipeline.is_settled()
            && let Some((position, restart_seq)) = self.applier.as_ref().map(|applier| applier.position())
        {
            self.acknowledge(position.seq, restart_seq);
        }
        if self.phase == Phase::NameTaken {
            self.phase = Phase::Closed;
        }
        if self.lacks.is_some_and(|right| self.permitted(&[right]).is_ok()) {
            self.retry();
        }
    }

    /// Whether records are applied here under a name that has these rights.
    fn permitted(&self, rights: &[Right]) -> Result<(), EngineError> {
        let Some(user) = &self.shared.config.apply_user else { return Ok(()) };
        self.shared.engine.check_rights(user, &self.face.name, rights)
    }

    fn paused(&self) -> bool {
        self.resume_at.is_some() || matches!(self.phase, Phase::Blocked)
    }

    /// Opens the feed, if it is to be opened.
    async fn open(&mut self) {
        let ready = self.phase == Phase::Closed && self.resume_at.is_none() && !self.ended && !self.stopping;
        let Some(link) = self.link.clone().filter(|_| ready && self.pipeline.is_idle()) else { return };
        if !self.has_applier(&link).await {
            return;
        }
        if let Some(applier) = &self.applier {
            let (position, restart_seq) = applier.position();
            self.phase = Phase::Open;
            link.say(Event::Open { position, restart_seq });
        }
    }

    /// Whether the database is here to be followed; it begins if it is new.
    pub(super) async fn has_applier(&mut self, link: &Link) -> bool {
        if self.applier.is_none() {
            let (history, name) = (self.face.history, &self.face.name);
            let followed = match self.shared.engine.follow(history, name, &link.primary).await {
                // Before the first record.
                Ok(applier) => self.shared.choose(history, name).await.map(|()| applier),
                Err(error) => Err(error),
            };
            match followed {
                Ok(applier) => {
                    let (position, _) = applier.position();
                    self.face.set_applied(position.seq, self.now());
                    self.face.set_acknowledged(position.seq);
                    self.applier = Some(applier);
                }
                Err(EngineError::AlreadyExists { .. }) => self.name_taken(link),
                Err(error) => self.fail(&error),
            }
        }
        self.applier.is_some()
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Attach(link) => {
                self.link = Some(link);
                self.offered = false;
                if matches!(self.phase, Phase::Open | Phase::Unoffered) {
                    self.phase = Phase::Closed;
                }
            }
            Command::Detach => self.detach(),
            Command::Offered(Some(seq)) => {
                self.face.raise_primary_seq(seq);
                if self.phase == Phase::Unoffered {
                    self.phase = Phase::Closed;
                }
                self.offered = true;
                self.bring_awaited();
            }
            // Its feed says why: it was switched off, or it has ended.
            Command::Offered(None) => self.offered = false,
            Command::Outcome(outcome) => self.outcome(outcome).await,
            Command::Chunk(records) => self.chunk(records),
            Command::Progress { seq, behind_bytes } => self.face.heard(seq, behind_bytes, self.now()),
            Command::Retry => self.retry(),
            Command::Skip { tasks, reply } => drop(reply.send(self.skip_durably(tasks).await)),
            Command::Repair { reply } => drop(reply.send(self.ask_for_repair())),
            Command::Stop => {
                self.pipeline.clear();
                self.stopping = true;
            }
            // Late answers to a repair that is over.
            Command::Manifest { feed, .. } => self.say(Event::EndRepair { feed }),
            Command::Piece { .. } | Command::RepairFailed { .. } => {}
        }
    }

    pub(super) fn detach(&mut self) {
        self.link = None;
        self.face.lost_sight();
        self.pipeline.clear();
        if self.phase == Phase::Open {
            self.phase = Phase::Closed;
        }
        let mut board = self.face.board.lock();
        if self.phase == Phase::Blocked { board.clear_waiting() } else { board.clear() }
    }

    pub(super) fn retry(&mut self) {
        self.failures = 0;
        self.failed_task = None;
        self.lacks = None;
        self.backoff.reset();
        self.resume_at = None;
        if matches!(self.phase, Phase::Blocked | Phase::NameTaken) {
            self.phase = Phase::Closed;
            self.pipeline.clear();
            self.face.board.lock().clear();
            self.enabled();
        } else {
            self.face.set_trying();
        }
    }

    fn chunk(&mut self, records: Records) {
        if self.phase != Phase::Open {
            return;
        }
        let version = self.shared.engine.version();
        let database = version.database(&self.face.name).filter(|database| database.id == self.face.history);
        let name = |id: TableId| {
            let tables = database.into_iter().flat_map(|database| database.tables());
            tables.map(|table| &table.table).find(|table| table.id == id).map(|table| table.name.clone())
        };
        let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
        let mut board = self.face.board.lock();
        for (header, payload) in &records {
            board.arrived(header, &payload.directory, now, monotonic, name);
            self.face.raise_primary_seq(header.seq);
        }
        drop(board);
        self.pipeline.push(records);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Prepared => {}
            Step::Applied { applied, chunks } => {
                self.failures = 0;
                (self.failed_task, self.lacks) = (None, None);
                self.backoff.reset();
                let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
                let position = match &applied {
                    Some(applied) => applied.position,
                    None => self.applier.as_ref().map_or_else(
                        || tailrace_wal::Position::start(self.face.history),
                        |applier| applier.position().0,
                    ),
                };
                self.face.set_applied(position.seq, self.now());
                let (tasks, ended) = applied.map_or_else(Default::default, |applied| (applied.tasks, applied.ended));
                let mut board = self.face.board.lock();
                board.applied(tasks, position.seq, now, monotonic);
                let later = self.skips.split_off(&position.seq.next());
                for (seq, reason) in std::mem::replace(&mut self.skips, later) {
                    board.skipped(seq, &reason);
                }
                drop(board);
                self.ended |= ended;
                let history = self.face.history;
                if chunks > 0 {
                    self.say(Event::Consumed { history, chunks });
                }
                if self.phase == Phase::Open && !self.face.is_well() {
                    self.enabled();
                }
            }
            Step::Durable { position, restart_seq } => {
                self.face.set_acknowledged(position.seq);
                self.acknowledge(position.seq, restart_seq);
            }
            Step::Failed(error) => {
                self.failed_task = self.task_of(&error);
                self.fail(&error);
            }
        }
    }

    async fn outcome(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Opened { position } => {
                self.face.set_primary_seq(position.seq);
                if self.failures == 0 {
                    self.enabled();
                }
                if let Some((position, restart_seq)) = self.applier.as_ref().map(|applier| applier.position()) {
                    // What was applied without a session is told now.
                    if self.pipeline.is_settled() {
                        self.acknowledge(position.seq, restart_seq);
                    }
                }
                self.bring_awaited();
            }
            Outcome::Forked(reason) => self.forked(&reason),
            Outcome::Lost(reason) => self.lost(reason).await,
            Outcome::Dropped { end } => self.dropped(end.seq).await,
            Outcome::Closed { cause: CloseCause::Off, reason } => {
                self.phase = Phase::Unoffered;
                let remedy = format!(
                    "on the primary: CALL set_database_for_cluster_replication('{}', true), CALL start_cluster_replication()",
                    self.face.name
                );
                self.set_state(ReplicationState::Disabled, Some(reason), Some(remedy));
            }
            Outcome::Closed { cause: CloseCause::NotGranted, reason } => {
                self.phase = Phase::Unoffered;
                let remedy = "grant it in section [replication.primary] of the primary".to_owned();
                self.set_state(ReplicationState::Disabled, Some(reason), Some(remedy));
            }
            Outcome::Closed { cause: CloseCause::Unknown, reason } => {
                let remedy = "start this replica with an empty data folder, or leave the database out of [replication.replica] databases".to_owned();
                self.block(ReplicationState::Stopped, reason, remedy);
            }
            Outcome::Closed { cause: CloseCause::Failed, reason } => {
                self.phase = Phase::Closed;
                self.pause();
                self.set_state(ReplicationState::Enabled, Some(format!("the primary cannot read on: {reason}")), None);
            }
        }
    }

    /// Says what is durable here and what of it is applied: a task that was skipped is not, nor is what follows it complete.
    fn acknowledge(&mut self, durable: Seq, restart_seq: Seq) {
        let version = self.shared.engine.version();
        let here = version.database(&self.face.name).filter(|here| here.id == self.face.history);
        let applied = here.map_or(durable, |here| here.whole_upto());
        self.lacks_tasks = here.is_some_and(|here| applied < here.position.seq);
        self.say(Event::Acknowledge { history: self.face.history, durable, applied, restart_seq });
    }

    fn forked(&mut self, reason: &str) {
        let remedy =
            format!("decide which side is right; to take the primary's: CALL repair_database('{}')", self.face.name);
        self.block(ReplicationState::Forked, reason.to_owned(), remedy);
    }

    async fn lost(&mut self, reason: String) {
        self.pipeline.clear();
        self.drain().await;
        self.set_state(ReplicationState::Lost, Some(format!("{reason}; a repair runs")), None);
        self.repair_now().await;
    }

    /// Runs a repair; what becomes of the database then is decided by how that went.
    pub(super) async fn repair_now(&mut self) {
        let began = self.now();
        self.failed_task = None;
        // It puts rows and tables in place.
        if let Err(error) = self.permitted(&Right::ALL) {
            self.phase = Phase::Closed;
            return self.fail(&error);
        }
        let repaired = self.repair().await;
        if self.phase != Phase::Unoffered {
            self.phase = Phase::Closed;
        }
        match repaired {
            Ok(position) => {
                self.repair_asked = false;
                self.failures = 0;
                self.failed_task = None;
                self.skips.clear();
                self.backoff.reset();
                self.face.set_applied(position.seq, self.now());
                self.face.set_acknowledged(position.seq);
                let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
                let mut board = self.face.board.lock();
                board.clear();
                board.done(special(position.seq, Operation::Append, now), true, began, now, monotonic);
                drop(board);
                self.enabled();
            }
            Err(reason) if self.link.is_none() || self.stopping => {
                self.repair_asked &= !self.awaits_tables();
                tracing::info!(database = self.face.name, reason, "a repair was interrupted");
                self.face.board.lock().clear();
            }
            Err(reason) => {
                // The feed tells whether the database is still there, and asks again.
                self.repair_asked &= !self.awaits_tables();
                self.fail_with(&format!("repair: {reason}"));
            }
        }
    }

    /// Asks for the repair that brings tables which were chosen since. Not of a database that has ended at the primary: its
    /// feed leads to that end.
    fn bring_awaited(&mut self) {
        if self.offered && self.phase == Phase::Open && self.awaits_tables() {
            tracing::info!(database = self.face.name, "a repair brings tables that were chosen");
            self.repair_asked = true;
        }
    }

    /// Whether tables are chosen that only a repair brings.
    fn awaits_tables(&self) -> bool {
        let version = self.shared.engine.version();
        let here = version.database(&self.face.name).filter(|here| here.id == self.face.history);
        here.is_some_and(|here| !here.awaited_tables().is_empty())
    }

    /// Waits until nothing is being committed.
    pub(super) async fn drain(&mut self) {
        while !self.pipeline.is_settled() {
            let step = self.pipeline.next(self.applier.as_ref(), true, &self.on_start, &self.skips).await;
            if matches!(step, Step::Failed(_)) {
                return;
            }
            self.step(step);
        }
    }

    async fn dropped(&mut self, end: Seq) {
        self.pipeline.clear();
        self.drain().await;
        let began = self.now();
        let dropped = match self.permitted(&[Right::Ddl]) {
            Ok(()) => self.shared.engine.drop_followed(self.face.history).await,
            Err(error) => Err(error),
        };
        match dropped {
            Ok(()) => {
                let (now, monotonic) = (self.shared.engine.clock().now(), self.now());
                let info = special(end, Operation::DropDatabase, now);
                self.face.board.lock().done(info, false, began, now, monotonic);
                self.ended = true;
            }
            Err(error) => {
                self.phase = Phase::Closed;
                self.fail(&error);
            }
        }
    }

    fn name_taken(&mut self, link: &Link) {
        self.phase = Phase::NameTaken;
        let version = self.shared.engine.version();
        let holder = version.database(&self.face.name).map(|database| database.role.clone());
        if matches!(holder, Some(Role::Replica { primary }) if primary == link.primary) {
            // The name's former database is about to end here.
            let reason = "waits until the former database of this name has ended here".to_owned();
            self.set_state(ReplicationState::Enabled, Some(reason), None);
            return;
        }
        let name = &self.face.name;
        let reason = format!(
            "this cluster has a database {name:?} of its own; it is left alone, and {name:?} of {:?} is not followed",
            link.primary
        );
        let remedy = format!(
            "DROP DATABASE {name} here if it is no longer wanted, or leave it out of [replication.replica] databases"
        );
        self.set_state(ReplicationState::NameTaken, Some(reason), Some(remedy));
    }

    fn fail(&mut self, error: &EngineError) {
        self.lacks = None;
        match error {
            EngineError::Forked(reason) => self.forked(reason),
            EngineError::Log(error @ LogError::Forked { .. }) => self.forked(&error.to_string()),
            EngineError::Closed => {
                self.pipeline.clear();
                self.stopping = true;
            }
            // As soon as it is granted, it goes on.
            EngineError::NotPermitted { right, .. } => {
                self.lacks = Some(*right);
                self.fail_with(&error.to_string());
            }
            // Trying again changes nothing about these.
            EngineError::Log(LogError::Poisoned { .. }) => {
                let remedy = "put the disk right and restart this node".to_owned();
                self.block(ReplicationState::Stopped, error.to_string(), remedy);
            }
            // Nor does skipping: it has no seq yet.
            EngineError::TransactionTooLarge { .. } => {
                let remedy =
                    "raise engine.transaction_max_bytes of this node to its primary's and restart it".to_owned();
                self.block(ReplicationState::Stopped, error.to_string(), remedy);
            }
            EngineError::DatabaseStopped { .. } => {
                let remedy = format!("CALL repair_database('{}')", self.face.name);
                self.block(ReplicationState::Stopped, error.to_string(), remedy);
            }
            // The record is whole and will be taken once there is space: nobody has to call for it.
            error if error.is_full() => {
                self.failures = 0;
                self.fail_with(&error.to_string());
            }
            error => self.fail_with(&error.to_string()),
        }
    }

    fn fail_with(&mut self, reason: &str) {
        self.failures += 1;
        let most = self.shared.config.task_failures_max.max(1);
        self.pipeline.restart();
        if self.failures >= most {
            let reason = format!("{reason} (failed {} times)", self.failures);
            self.face.board.lock().failed(&reason);
            let remedy = self.remedy();
            let failing = self.failing(None);
            self.block_failing(ReplicationState::Stopped, reason, remedy.unwrap_or_else(|| RETRY.to_owned()), failing);
            return;
        }
        let pause = self.pause();
        let details = format!(
            "{reason}; attempt {} of {most} failed, the next follows in {} ms",
            self.failures,
            pause.as_millis()
        );
        tracing::warn!(database = self.face.name, details, "a task of a followed database failed");
        self.face.board.lock().failed(&details);
        let state = if self.face.state() == ReplicationState::Lost {
            ReplicationState::Lost
        } else {
            ReplicationState::Enabled
        };
        let now = self.shared.engine.clock().now();
        self.face.set_state(state, Some(details), self.remedy(), self.failing(Some(pause)), now);
    }

    /// What ends the failures other than waiting.
    fn remedy(&self) -> Option<String> {
        if let (Some(right), Some(user)) = (self.lacks, &self.shared.config.apply_user) {
            return Some(format!("CALL grant_right('{user}', '{}', '{}')", self.face.name, right.name()));
        }
        // The first one begins the database.
        let may_skip = self.failed_task.filter(|task| *task > Seq(1));
        may_skip.map(|task| format!("{RETRY}, or {}", self.skip_statement(task)))
    }

    /// What fails, and after what pause it is tried again.
    fn failing(&self, next: Option<Duration>) -> Failing {
        let now = self.shared.engine.clock().now();
        let after = |pause: Duration| CommitTime(now.0.saturating_add(pause.as_micros() as i64));
        Failing { attempts: self.failures, next_try: next.map(after), task: self.failed_task }
    }

    fn pause(&mut self) -> Duration {
        let pause = self.backoff.next();
        self.resume_at = Some(self.now() + pause);
        pause
    }

    fn block(&mut self, state: ReplicationState, reason: String, remedy: String) {
        self.block_failing(state, reason, remedy, Failing::default());
    }

    fn block_failing(&mut self, state: ReplicationState, reason: String, remedy: String, failing: Failing) {
        self.phase = Phase::Blocked;
        self.pipeline.clear();
        self.face.board.lock().clear_waiting();
        self.say(Event::CloseFeed { history: self.face.history });
        let now = self.shared.engine.clock().now();
        self.face.set_state(state, Some(reason), Some(remedy), failing, now);
    }

    fn finish(&mut self) {
        self.phase = Phase::Ended;
        self.face.set_ended();
        self.say(Event::CloseFeed { history: self.face.history });
        tracing::info!(database = self.face.name, history = %self.face.history, "a followed database ended");
    }

    pub(super) fn enabled(&self) {
        self.set_state(ReplicationState::Enabled, None, None);
    }

    pub(super) fn set_state(&self, state: ReplicationState, reason: Option<String>, remedy: Option<String>) {
        self.face.set_state(state, reason, remedy, Failing::default(), self.shared.engine.clock().now());
    }

    pub(super) fn say(&self, event: Event) {
        if let Some(link) = &self.link {
            link.say(event);
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.shared.engine.clock().monotonic()
    }
}
