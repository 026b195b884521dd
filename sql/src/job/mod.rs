//! Jobs: statements that this node runs when they are due.
//!
//! What is to run and what came of it are facts of the system history (`tailrace_engine::Job`). [`schedule`] knows when a job is
//! due, [`decide`] what is to be done about it now, [`turns`] who is next where more are due than may run at once, [`run`] does
//! a job's statements. [`Jobs`] is the task around them.
//!
//! The wall clock decides what is due; it is looked at once a second and whenever a job changes, so a clock that jumps is seen
//! within a second. How long runs take is measured by the monotonic one.

mod decide;
mod run;
pub(crate) mod schedule;
mod turns;

pub(crate) use run::check as check_statement;
pub(crate) use turns::Waiting;

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tailrace_engine::{Engine, Job, JobBegin, JobEnd, JobOutcome, JobRun};
use tailrace_wal::CommitTime;
use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    decide::{Decision, decide},
    schedule::Schedule,
    turns::Turns,
};
use crate::{Result, SessionFactory, SqlError};

/// Between two looks at the clock.
const LOOK: Duration = Duration::from_secs(1);
/// How long a stop waits for the statements of runs that it has cancelled.
const STOP_MAX: Duration = Duration::from_secs(30);

/// The jobs of a node: runs them when they are due, from [`Self::start`] to [`Self::shutdown`].
#[derive(Debug)]
pub struct Jobs {
    engine: Arc<Engine>,
    running_max: NonZeroUsize,
    changed: Notify,
    running: Mutex<Runs>,
    /// Runs that are due, beyond as many as may be under way.
    turns: Mutex<Turns>,
    /// How many runs are under way.
    under_way: watch::Sender<usize>,
    /// Looks that were asked for, and up to which they have been made.
    asked: AtomicU64,
    looked: watch::Sender<u64>,
    /// While it runs.
    sessions: Mutex<Option<SessionFactory>>,
    scheduler: Mutex<Option<JoinHandle<()>>>,
    stopping: CancellationToken,
    runs: TaskTracker,
}

/// Runs that are under way here.
#[derive(Debug, Default)]
struct Runs {
    last: u64,
    by_number: HashMap<u64, Running>,
}

/// One of them.
#[derive(Debug)]
struct Running {
    job: String,
    cancel: CancellationToken,
    cause: Arc<Mutex<Option<Cause>>>,
    /// Monotonic.
    deadline: Option<Duration>,
}

/// Why a run was ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    TimedOut,
    Cancelled,
    Deleted,
    Stopping,
}

/// A run that somebody asked for; unless [`Self::forget`] is called, dropping this cancels it.
pub(crate) struct Asked {
    /// As it began.
    pub(crate) run: JobRun,
    ended: watch::Receiver<Option<JobRun>>,
    cause: Arc<Mutex<Option<Cause>>>,
    cancel: Option<CancellationToken>,
}

impl Jobs {
    /// The jobs of an engine's system history. At most `running_max` runs that are due are under way at once; those that somebody
    /// asks for begin at once, and count. Nothing runs before [`Self::start`].
    pub fn new(engine: Arc<Engine>, running_max: NonZeroUsize) -> Arc<Self> {
        Arc::new(Self {
            engine,
            running_max,
            changed: Notify::new(),
            running: Mutex::default(),
            turns: Mutex::default(),
            under_way: watch::Sender::new(0),
            asked: AtomicU64::new(0),
            looked: watch::Sender::new(0),
            sessions: Mutex::default(),
            scheduler: Mutex::default(),
            stopping: CancellationToken::new(),
            runs: TaskTracker::new(),
        })
    }

    /// Records what an earlier stop interrupted, then runs what is due, in sessions of that factory. Where there is no space to
    /// record it, nothing runs until there is some. Must run within a tokio runtime.
    pub async fn start(self: &Arc<Self>, sessions: SessionFactory) {
        let recorded = self.interrupt().await;
        if recorded {
            *self.sessions.lock() = Some(sessions.clone());
        }
        let jobs = Arc::clone(self);
        *self.scheduler.lock() = Some(tokio::spawn(async move {
            if !recorded && !jobs.interrupt_again().await {
                return;
            }
            *jobs.sessions.lock() = Some(sessions);
            jobs.schedule().await;
        }));
    }

    /// Looks at the clock and at all jobs at once: for whoever has moved either.
    pub fn look(&self) {
        self.asked.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    /// The same, and returns when everything that was due has begun, waits for its turn, or is recorded as skipped.
    pub async fn looked(&self) {
        let mut looked = self.looked.subscribe();
        let asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.changed.notify_one();
        tokio::select! {
            _ = looked.wait_for(|looked| *looked >= asked) => {}
            () = self.stopping.cancelled() => {}
        }
    }

    /// The same, and returns when every run has ended, too.
    pub async fn idle(&self) {
        let mut under_way = self.under_way.subscribe();
        loop {
            self.looked().await;
            // Who gets its turn counts as under way before it leaves the line.
            let waits = !self.turns.lock().all().is_empty() && !self.stopping.is_cancelled();
            let count = *under_way.borrow_and_update();
            match count {
                0 if waits => {}
                0 => return,
                _ => {
                    under_way.wait_for(|under_way| *under_way == 0).await.ok();
                }
            }
        }
    }

    /// How many runs that are due may be under way at once.
    pub(crate) fn running_max(&self) -> NonZeroUsize {
        self.running_max
    }

    /// Runs that are due and wait for their turn, in that order.
    pub(crate) fn waiting(&self) -> Vec<Waiting> {
        self.turns.lock().all().to_vec()
    }

    /// Begins nothing any more, cancels what is under way, waits for its end and records it as interrupted.
    pub async fn shutdown(&self) {
        self.stopping.cancel();
        let scheduler = self.scheduler.lock().take();
        if let Some(scheduler) = scheduler {
            scheduler.await.ok();
        }
        self.running.lock().by_number.values().for_each(|running| running.end(Cause::Stopping));
        self.runs.close();
        if tokio::time::timeout(STOP_MAX, self.runs.wait()).await.is_err() {
            tracing::warn!("statements of jobs go on; the next start shows their runs as interrupted");
        }
        self.sessions.lock().take();
    }

    /// Begins a run that a user asks for.
    pub(crate) async fn ask(self: &Arc<Self>, name: &str, user: &str) -> Result<Asked> {
        let job = self.engine.job(name).ok_or_else(|| no_job(&self.engine, name))?;
        let sessions = self.sessions.lock().clone().filter(|_| !self.stopping.is_cancelled());
        let sessions =
            sessions.ok_or_else(|| SqlError::new("57P01", "this node runs no jobs now: it stops or starts"))?;
        let begin = JobBegin::Manual { user: user.to_owned() };
        let jobs = Arc::clone(self);
        let under_way = UnderWay::new(self);
        // Whoever asks may go away in the middle: what is recorded as begun has to run, or to end.
        let asking = self.runs.spawn(async move {
            let run = jobs.engine.begin_job_run(&job.definition.name, begin).await?;
            let run = run.ok_or_else(|| SqlError::internal("a run that was asked for did not begin"))?;
            let (ended, receiver) = watch::channel(None);
            let (cancel, cause) = jobs.perform(sessions, job, run.clone(), Some(ended));
            drop(under_way);
            Ok(Asked { run, ended: receiver, cause, cancel: Some(cancel) })
        });
        asking.await.map_err(SqlError::internal)?
    }

    /// Ends the run of a job that is no more. Whether there was one.
    pub(crate) fn deleted(&self, name: &str) -> bool {
        let running = self.running.lock();
        let found: Vec<&Running> = running.by_number.values().filter(|running| running.job == name).collect();
        found.iter().for_each(|running| running.end(Cause::Deleted));
        !found.is_empty()
    }

    async fn interrupt(&self) -> bool {
        let message = "the node ended while the run was under way; its last statement may have been done";
        match self.engine.interrupt_job_runs(message).await {
            Ok(0) => true,
            Ok(interrupted) => {
                tracing::warn!(interrupted, "jobs were under way when the node ended");
                true
            }
            Err(error) => {
                tracing::error!(%error, "no job runs before it is recorded which runs were interrupted");
                false
            }
        }
    }

    /// Until it is recorded; `false`: the node stops.
    async fn interrupt_again(&self) -> bool {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return false,
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.interrupt().await {
                return true;
            }
        }
    }

    async fn schedule(self: Arc<Self>) {
        let mut schedules = Schedules::default();
        let mut failing = false;
        while !self.stopping.is_cancelled() {
            let asked = self.asked.load(Ordering::Acquire);
            let looked = self.look_at_all(&mut schedules).await;
            self.looked.send_replace(asked);
            match &looked {
                Ok(_) => failing = false,
                Err(error) if !std::mem::replace(&mut failing, true) => {
                    tracing::error!(%error, "a run of a job could not be recorded, so it does not begin; it is tried every second");
                }
                Err(_) => {}
            }
            let wait = looked.unwrap_or(Some(LOOK));
            tokio::select! {
                () = self.stopping.cancelled() => {}
                () = self.changed.notified() => {}
                () = sleep(wait) => {}
            }
        }
    }

    /// Does what is to be done now. How long nothing is, at most; `None`: there are no jobs.
    async fn look_at_all(self: &Arc<Self>, schedules: &mut Schedules) -> Result<Option<Duration>> {
        self.end_what_takes_too_long();
        let jobs = self.engine.jobs();
        schedules.keep(&jobs);
        self.turns.lock().keep(&jobs);
        let mut wait = (!jobs.is_empty()).then_some(LOOK);
        let mut failure = None;
        let mut looked = |looked: Result<Option<Duration>>| match looked {
            Ok(Some(until)) => wait = Some(wait.unwrap_or(LOOK).min(until)),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        };
        for job in jobs {
            looked(self.look_at(job, schedules).await);
        }
        // All that are due are known now: who comes first is.
        while let Some((turn, under_way)) = self.next_turn() {
            let begun = self.begin(turn).await;
            drop(under_way);
            match begun {
                Ok(Some(job)) => looked(self.look_at(job, schedules).await),
                Ok(None) => {}
                Err(error) => {
                    looked(Err(error));
                    break;
                }
            }
        }
        failure.map_or(Ok(wait), Err)
    }

    /// Who begins now. `None`: nobody waits, or enough is under way.
    fn next_turn(self: &Arc<Self>) -> Option<(Waiting, UnderWay)> {
        if self.running.lock().by_number.len() >= self.running_max.get() {
            return None;
        }
        let under_way = UnderWay::new(self);
        self.turns.lock().next().map(|turn| (turn, under_way))
    }

    /// Begins a run whose turn it is. Its job afterwards; `None`: the run is not to be any more.
    async fn begin(self: &Arc<Self>, turn: Waiting) -> Result<Option<Job>> {
        let Some(sessions) = self.sessions.lock().clone() else { return Ok(None) };
        let name = &turn.job.definition.name;
        match self.engine.begin_job_run(name, turn.begin.clone()).await {
            Ok(Some(run)) => {
                let job = self.engine.job(name);
                self.perform(sessions, turn.job, run, None);
                Ok(job)
            }
            Ok(None) => Ok(None),
            Err(error) => {
                self.turns.lock().queue(turn);
                Err(error.into())
            }
        }
    }

    /// Decides about one job until there is nothing to do. How long that is so. A run that is due gets in line.
    async fn look_at(self: &Arc<Self>, mut job: Job, schedules: &mut Schedules) -> Result<Option<Duration>> {
        let name = job.definition.name.clone();
        if self.turns.lock().has(&name) {
            // Its due time is on time, however long its turn takes to come.
            return Ok(Some(LOOK));
        }
        loop {
            let Some(schedule) = schedules.of(&job) else { return Ok(None) };
            let running = self.engine.running_job(&name);
            let now = self.engine.clock().now();
            match decide(&job, schedule, running.as_ref(), now) {
                Decision::Wait(until) => return Ok(until.map(|until| between(now, until))),
                Decision::Skip(skipped) => {
                    tracing::warn!(job = name, "{}", skipped.message);
                    self.engine.skip_job_runs(&name, skipped).await?;
                }
                Decision::Begin(begin) => {
                    self.turns.lock().queue(Waiting { job, begin });
                    return Ok(Some(LOOK));
                }
            }
            match self.engine.job(&name) {
                // Somebody else has seen to it, or it goes on as before: nothing changed by what was done.
                Some(again) if again == job => return Ok(Some(LOOK)),
                Some(again) => job = again,
                None => return Ok(None),
            }
        }
    }

    fn end_what_takes_too_long(&self) {
        let now = self.engine.clock().monotonic();
        let running = self.running.lock();
        let late =
            running.by_number.values().filter(|running| running.deadline.is_some_and(|deadline| deadline <= now));
        late.for_each(|running| running.end(Cause::TimedOut));
    }

    /// Does a run that has begun, in a task of its own.
    fn perform(
        self: &Arc<Self>,
        sessions: SessionFactory,
        job: Job,
        run: JobRun,
        ended: Option<watch::Sender<Option<JobRun>>>,
    ) -> (CancellationToken, Arc<Mutex<Option<Cause>>>) {
        let (cancel, cause) = (CancellationToken::new(), Arc::new(Mutex::new(None)));
        let began = self.engine.clock().monotonic();
        let deadline = job.definition.timeout_ms.map(|limit| began + Duration::from_millis(limit));
        let running = Running { job: run.job.clone(), cancel: cancel.clone(), cause: Arc::clone(&cause), deadline };
        let number = {
            let mut runs = self.running.lock();
            // A stop looks at what is here, after it has said so.
            if self.stopping.is_cancelled() {
                running.end(Cause::Stopping);
            }
            runs.insert(running)
        };
        let under_way = UnderWay::new(self);
        tracing::info!(
            job = run.job,
            run = run.run.0,
            attempt = run.attempt,
            trigger = run.trigger.name(),
            "a job begins"
        );
        let (jobs, token, why) = (Arc::clone(self), cancel.clone(), Arc::clone(&cause));
        self.runs.spawn(async move {
            let statements = {
                let (sessions, token, definition) = (sessions.clone(), token.clone(), job.definition.clone());
                tokio::spawn(async move {
                    let session = sessions.session(&definition.user, definition.database.as_deref());
                    session.introduce(0);
                    run::run(&session, &definition.statement, &token).await
                })
            };
            let done = statements.await.unwrap_or_else(|error| {
                let error = SqlError::internal(error);
                run::Done { rows: 0, message: run::in_words(&error), result: Err(error) }
            });
            let took = jobs.engine.clock().monotonic().saturating_sub(began);
            let end = ending(done, *why.lock(), took, &job);
            let run = jobs.record_end(run, end).await;
            jobs.running.lock().by_number.remove(&number);
            drop(under_way);
            jobs.look();
            if let Some(ended) = ended {
                ended.send_replace(Some(run));
            }
        });
        (cancel, cause)
    }

    /// Records the end of a run, again and again until it is recorded or the node stops.
    async fn record_end(&self, run: JobRun, end: JobEnd) -> JobRun {
        loop {
            match self.engine.end_job_run(run.clone(), end.clone()).await {
                Ok(run) => {
                    let (outcome, message) = (run.outcome.name(), &run.message);
                    match run.outcome {
                        JobOutcome::Succeeded => tracing::info!(job = run.job, run = run.run.0, outcome, "a job ended"),
                        _ => tracing::warn!(job = run.job, run = run.run.0, outcome, "a job ended: {message}"),
                    }
                    return run;
                }
                Err(error) => {
                    tracing::error!(job = run.job, %error, "the end of a job's run could not be recorded");
                    if self.stopping.is_cancelled() {
                        return run;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
    }
}

/// Counts as under way while it is there.
struct UnderWay(Arc<Jobs>);

impl UnderWay {
    fn new(jobs: &Arc<Jobs>) -> Self {
        jobs.under_way.send_modify(|under_way| *under_way += 1);
        Self(Arc::clone(jobs))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|under_way| *under_way -= 1);
    }
}

impl Runs {
    fn insert(&mut self, running: Running) -> u64 {
        self.last += 1;
        self.by_number.insert(self.last, running);
        self.last
    }
}

impl Running {
    /// The first cause counts.
    fn end(&self, cause: Cause) {
        self.cause.lock().get_or_insert(cause);
        self.cancel.cancel();
    }
}

impl Asked {
    /// Waits for the end.
    pub(crate) async fn ended(mut self) -> Result<JobRun> {
        let ended = self.ended.wait_for(Option::is_some).await;
        let run = ended.ok().and_then(|ended| ended.clone());
        self.cancel = None;
        run.ok_or_else(|| SqlError::new("57P01", "the server ends"))
    }

    /// Lets it go on by itself.
    pub(crate) fn forget(mut self) -> JobRun {
        self.cancel = None;
        self.run.clone()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(cancel) = self.cancel.take() {
            self.cause.lock().get_or_insert(Cause::Cancelled);
            cancel.cancel();
        }
    }
}

/// Schedules as they were read, by the name of their job.
#[derive(Default)]
struct Schedules(BTreeMap<String, (tailrace_engine::JobDefinition, Option<Schedule>)>);

impl Schedules {
    /// Forgets those of jobs that are no more.
    fn keep(&mut self, jobs: &[Job]) {
        if self.0.len() > jobs.len() {
            self.0.retain(|name, _| jobs.iter().any(|job| job.definition.name == *name));
        }
    }

    /// `None`: it cannot be read, which `system.jobs` shows.
    fn of(&mut self, job: &Job) -> Option<&Schedule> {
        let definition = &job.definition;
        let known = self.0.get(&definition.name).is_some_and(|(known, _)| known == definition);
        if !known {
            let schedule = Schedule::of(definition);
            if let Err(error) = &schedule {
                tracing::error!(job = definition.name, "a job cannot be scheduled: {error}");
            }
            self.0.insert(definition.name.clone(), (definition.clone(), schedule.ok()));
        }
        self.0.get(&definition.name)?.1.as_ref()
    }
}

/// `42704`, with the nearest name.
pub(crate) fn no_job(engine: &Engine, name: &str) -> SqlError {
    let jobs = engine.jobs();
    let names = jobs.iter().map(|job| job.definition.name.as_str());
    SqlError::new("42704", format!("job {name:?} does not exist")).did_you_mean(name, names)
}

/// What a run came to.
fn ending(done: run::Done, cause: Option<Cause>, took: Duration, job: &Job) -> JobEnd {
    let run::Done { rows, message, result } = done;
    let limit = Duration::from_millis(job.definition.timeout_ms.unwrap_or_default());
    let (outcome, message) = match (result, cause) {
        (Ok(()), None) => (JobOutcome::Succeeded, message),
        // It was done before the cancel reached it.
        (Ok(()), Some(Cause::TimedOut)) => (
            JobOutcome::Succeeded,
            format!("{message}; it took longer than its time-out of {limit:?} and could not be ended"),
        ),
        (Ok(()), Some(_)) => (JobOutcome::Succeeded, message),
        (Err(error), Some(cause)) if error.sqlstate == "57014" || error.sqlstate == "57P01" => match cause {
            Cause::TimedOut => (JobOutcome::TimedOut, format!("it ran for its time-out of {limit:?} and was ended")),
            Cause::Cancelled => (JobOutcome::Cancelled, "who asked for it cancelled it".to_owned()),
            Cause::Deleted => (JobOutcome::Cancelled, "its job was deleted".to_owned()),
            Cause::Stopping => (JobOutcome::Interrupted, "the node was stopped while the run was under way".to_owned()),
        },
        (Err(_), _) => (JobOutcome::Failed, message),
    };
    JobEnd { outcome, took: Some(took), rows, message }
}

/// How long it is from one moment to another.
fn between(now: CommitTime, then: CommitTime) -> Duration {
    Duration::from_micros(u64::try_from(then.0.saturating_sub(now.0)).unwrap_or(0))
}

async fn sleep(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}
