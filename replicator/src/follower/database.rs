//! One followed database: opens its feed when it can, puts what arrives through the pipeline, says what it holds. Lives
//! from the first time that it is heard of until it ends or the follower does; sessions come and go.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tailrace_engine::{Applier, EngineError, Right, TableId};
use tailrace_wal::Seq;
use tokio::sync::mpsc;

use super::{
    Shared,
    backoff::Backoff,
    link::{Command, Event, Link, Records},
    pipeline::{OnStart, Pipeline, Step},
    status::{Face, Failing},
};
use crate::ReplicationState;

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
    pub(super) lacks_tasks: bool,
    /// The right that the apply user lacked.
    pub(super) lacks: Option<Right>,
    /// Somebody asked for a repair.
    pub(super) repair_asked: bool,
    /// In this session the primary has offered it.
    pub(super) offered: bool,
    pub(super) backoff: Backoff,
    pub(super) resume_at: Option<Duration>,
    /// The last record was DROP DATABASE: nothing follows it.
    pub(super) ended: bool,
    pub(super) stopping: bool,
    pub(super) on_start: OnStart,
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
    pub(super) fn permitted(&self, rights: &[Right]) -> Result<(), EngineError> {
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

    /// Says what is durable here and what of it is applied: a task that was skipped is not, nor is what follows it complete.
    pub(super) fn acknowledge(&mut self, durable: Seq, restart_seq: Seq) {
        let version = self.shared.engine.version();
        let here = version.database(&self.face.name).filter(|here| here.id == self.face.history);
        let applied = here.map_or(durable, |here| here.whole_upto());
        self.lacks_tasks = here.is_some_and(|here| applied < here.position.seq);
        self.say(Event::Acknowledge { history: self.face.history, durable, applied, restart_seq });
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
