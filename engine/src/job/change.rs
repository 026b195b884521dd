//! Changes of jobs and runs. Each is decided and written while nobody else writes to the system history.

use std::{sync::Arc, time::Duration};

use tailrace_wal::CommitTime;

use super::{
    JOB_MESSAGE_BYTES_MAX, JOBS_MAX, Job, JobDefinition, JobOutcome, JobPause, JobRetry, JobRun, JobTrigger, RunNumber,
    after,
};
use crate::{Engine, EngineError, Result, SystemFact};

/// Which run begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobBegin {
    /// The run of a due time.
    Due {
        /// What the caller took as settled: whoever moved it meanwhile has seen to the due time.
        settled: CommitTime,
        /// The due time.
        due: CommitTime,
        /// [`JobTrigger::Schedule`] or [`JobTrigger::CatchUp`].
        trigger: JobTrigger,
    },
    /// The next attempt of the run that is to be tried again.
    Retry(JobRetry),
    /// A run that a user asks for.
    Manual {
        /// Who.
        user: String,
    },
}

/// Due times that get no run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedRuns {
    /// What the caller took as settled.
    pub settled: CommitTime,
    /// Settled from now on: the last due time that is skipped.
    pub until: CommitTime,
    /// Why, and how many.
    pub message: String,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobEnd {
    /// Outcome.
    pub outcome: JobOutcome,
    /// How long it took, where that is known.
    pub took: Option<Duration>,
    /// Rows that its statements wrote or returned.
    pub rows: u64,
    /// What the statements said, or the error.
    pub message: String,
}

impl Engine {
    /// All jobs, by name.
    pub fn jobs(&self) -> Vec<Job> {
        self.system.lock().jobs.all().cloned().collect()
    }

    /// One job.
    pub fn job(&self, name: &str) -> Option<Job> {
        self.system.lock().jobs.get(name).cloned()
    }

    /// Runs that are remembered, by job and oldest first.
    pub fn job_runs(&self) -> Vec<JobRun> {
        self.system.lock().jobs.runs().cloned().collect()
    }

    /// The run of a job that is under way on some node.
    pub fn running_job(&self, name: &str) -> Option<JobRun> {
        self.system.lock().jobs.running(name).cloned()
    }

    /// Makes a job, or changes one where `replace` says so: it keeps its runs. Due times from now on count. Durable on return.
    pub async fn schedule_job(self: &Arc<Self>, definition: JobDefinition, replace: bool) -> Result<()> {
        definition.check()?;
        self.change_jobs(move |engine, now| {
            let system = engine.system.lock();
            let known = system.jobs.get(&definition.name);
            if known.is_some() && !replace {
                return Err(EngineError::AlreadyExists { kind: "job", name: definition.name.clone() });
            }
            if known.is_none() && system.jobs.len() >= JOBS_MAX {
                return Err(EngineError::Invalid(format!(
                    "there are {JOBS_MAX} jobs already, which is all there can be"
                )));
            }
            let next_run = known.map_or(RunNumber(1), |job| job.next_run);
            Ok((vec![fact(Job { definition, created: now, paused: None, settled: now, next_run, retry: None })], ()))
        })
        .await
    }

    /// Pauses a job or lets it go on. What was due while it was paused, and a retry that waited, is not made up for.
    /// Durable on return. Whether anything changed.
    pub async fn pause_job(self: &Arc<Self>, name: &str, user: &str, paused: bool) -> Result<bool> {
        let (name, user) = (name.to_owned(), user.to_owned());
        self.change_jobs(move |engine, now| {
            let mut job = engine.known_job(&name)?;
            if job.paused.is_some() == paused {
                return Ok((Vec::new(), false));
            }
            job.paused = paused.then_some(JobPause { by: user, at: now });
            (job.settled, job.retry) = (now, None);
            Ok((vec![fact(job)], true))
        })
        .await
    }

    /// Deletes a job and its runs. Durable on return.
    pub async fn delete_job(self: &Arc<Self>, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.change_jobs(move |engine, _| {
            engine.known_job(&name)?;
            Ok((vec![SystemFact::JobDeleted { name }], ()))
        })
        .await
    }

    /// Begins a run; durable on return. `None`: what was to be run is settled by now, or the job is paused, gone or
    /// running. A run that was asked for fails with the reason instead.
    pub async fn begin_job_run(self: &Arc<Self>, name: &str, begin: JobBegin) -> Result<Option<JobRun>> {
        let name = name.to_owned();
        self.change_jobs(move |engine, now| {
            let (mut job, running) = match engine.known_job(&name) {
                Ok(job) => (job, engine.running_job(&name)),
                Err(error) if matches!(begin, JobBegin::Manual { .. }) => return Err(error),
                Err(_) => return Ok((Vec::new(), None)),
            };
            if running.is_some() {
                return match begin {
                    JobBegin::Manual { .. } => Err(EngineError::InUse { kind: "job", name }),
                    _ => Ok((Vec::new(), None)),
                };
            }
            let is_next = match &begin {
                JobBegin::Due { settled, .. } => job.paused.is_none() && job.settled == *settled,
                JobBegin::Retry(retry) => job.paused.is_none() && job.retry.as_ref() == Some(retry),
                JobBegin::Manual { .. } => true,
            };
            if !is_next {
                return Ok((Vec::new(), None));
            }
            let user = job.definition.user.clone();
            let mut number = || {
                let number = job.next_run;
                job.next_run = RunNumber(number.0 + 1);
                number
            };
            let (run, attempt, trigger, due, user) = match begin {
                JobBegin::Due { due, trigger, .. } => {
                    let run = number();
                    (job.settled, job.retry) = (due, None);
                    (run, 1, trigger, Some(due), user)
                }
                JobBegin::Retry(retry) => {
                    job.retry = None;
                    (retry.run, retry.attempt, retry.trigger, retry.due, user)
                }
                JobBegin::Manual { user } => (number(), 1, JobTrigger::Manual, None, user),
            };
            let run = JobRun {
                job: name,
                run,
                attempt,
                trigger,
                due,
                user,
                node: engine.node(),
                begun: now,
                ended: None,
                micros: None,
                outcome: JobOutcome::Running,
                rows: 0,
                message: String::new(),
            };
            Ok((vec![fact(job), run_fact(run.clone())], Some(run)))
        })
        .await
    }

    /// Records due times that get no run. Durable on return.
    pub async fn skip_job_runs(self: &Arc<Self>, name: &str, skipped: SkippedRuns) -> Result<()> {
        let name = name.to_owned();
        self.change_jobs(move |engine, now| {
            let SkippedRuns { settled, until, message } = skipped;
            let job = engine.system.lock().jobs.get(&name).cloned();
            let Some(mut job) = job.filter(|job| job.settled == settled && job.paused.is_none()) else {
                return Ok((Vec::new(), ()));
            };
            let run = job.next_run;
            (job.settled, job.next_run) = (until, RunNumber(run.0 + 1));
            let run = JobRun {
                job: name,
                run,
                attempt: 1,
                trigger: JobTrigger::Schedule,
                due: Some(until),
                user: job.definition.user.clone(),
                node: engine.node(),
                begun: now,
                ended: Some(now),
                micros: Some(0),
                outcome: JobOutcome::Skipped,
                rows: 0,
                message: cut(message),
            };
            Ok((vec![fact(job), run_fact(run)], ()))
        })
        .await
    }

    /// Records how a run ended, and whether it is tried again. Durable on return. A run whose job has been deleted is
    /// nobody's. Returns it as it is recorded.
    pub async fn end_job_run(self: &Arc<Self>, run: JobRun, end: JobEnd) -> Result<JobRun> {
        self.change_jobs(move |engine, now| {
            let (facts, run) = engine.ending(run, end, now);
            Ok((facts, run))
        })
        .await
    }

    /// Records that the runs which this node had under way when it stopped were interrupted. Called before any begins.
    /// Durable on return. How many there were.
    pub async fn interrupt_job_runs(self: &Arc<Self>, message: &str) -> Result<usize> {
        let message = message.to_owned();
        self.change_jobs(move |engine, now| {
            let is_mine = |run: &JobRun| run.outcome == JobOutcome::Running && run.node == engine.node();
            let runs: Vec<JobRun> = engine.job_runs().into_iter().filter(is_mine).collect();
            let count = runs.len();
            let end = JobEnd { outcome: JobOutcome::Interrupted, took: None, rows: 0, message };
            let facts = runs.into_iter().flat_map(|run| engine.ending(run, end.clone(), now).0);
            Ok((facts.collect(), count))
        })
        .await
    }

    fn ending(&self, mut run: JobRun, end: JobEnd, now: CommitTime) -> (Vec<SystemFact>, JobRun) {
        let JobEnd { outcome, took, rows, message } = end;
        let system = self.system.lock();
        let begun = system.jobs.running(&run.job).is_some_and(|known| *known == run);
        (run.ended, run.outcome, run.rows, run.message) = (Some(now), outcome, rows, cut(message));
        run.micros = took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let job = system.jobs.get(&run.job).filter(|_| begun).cloned();
        drop(system);
        let Some(mut job) = job else { return (Vec::new(), run) };
        let retried = outcome.is_retried() && run.trigger != JobTrigger::Manual && job.paused.is_none();
        let delay = retried.then(|| job.definition.retry_delay(run.attempt)).flatten();
        let mut facts = Vec::with_capacity(2);
        if let Some(delay) = delay {
            job.retry = Some(JobRetry {
                run: run.run,
                attempt: run.attempt + 1,
                due: run.due,
                trigger: run.trigger,
                at: after(now, delay),
            });
            facts.push(fact(job));
        }
        facts.push(run_fact(run.clone()));
        (facts, run)
    }

    fn known_job(&self, name: &str) -> Result<Job> {
        self.job(name).ok_or_else(|| EngineError::NotFound { kind: "job", name: name.to_owned() })
    }

    /// Decides facts and writes them, with nobody in between.
    async fn change_jobs<T: Send + 'static>(
        self: &Arc<Self>,
        decide: impl FnOnce(&Self, CommitTime) -> Result<(Vec<SystemFact>, T)> + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        self.to_the_end(async move { engine.record_decided(|| decide(&engine, engine.clock.now())).await }).await
    }
}

fn fact(job: Job) -> SystemFact {
    SystemFact::Job { job: Box::new(job) }
}

fn run_fact(run: JobRun) -> SystemFact {
    SystemFact::JobRun { run: Box::new(run) }
}

/// A message of bounded length.
fn cut(mut message: String) -> String {
    if message.len() > JOB_MESSAGE_BYTES_MAX {
        let end = (0..=JOB_MESSAGE_BYTES_MAX - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}
