//! Who begins next, where more runs are due than may be under way at once. Pure.

use tailrace_engine::{Job, JobBegin, JobTrigger, RunNumber};
use tailrace_wal::CommitTime;

/// A run that is due and waits for its turn. It is not recorded as begun: a node that ends forgets it, and the next start finds
/// its due time missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// The job, as it was when the run became due.
    pub(crate) job: Job,
    pub(super) begin: JobBegin,
}

impl Waiting {
    /// The number that it will have, unless somebody asks for a run before.
    pub(crate) fn run(&self) -> RunNumber {
        match &self.begin {
            JobBegin::Retry(retry) => retry.run,
            JobBegin::Due { .. } | JobBegin::Manual { .. } => self.job.next_run,
        }
    }

    /// Which attempt it is.
    pub(crate) fn attempt(&self) -> u32 {
        match &self.begin {
            JobBegin::Retry(retry) => retry.attempt,
            JobBegin::Due { .. } | JobBegin::Manual { .. } => 1,
        }
    }

    /// Why it runs.
    pub(crate) fn trigger(&self) -> JobTrigger {
        match &self.begin {
            JobBegin::Due { trigger, .. } => *trigger,
            JobBegin::Retry(retry) => retry.trigger,
            JobBegin::Manual { .. } => JobTrigger::Manual,
        }
    }

    /// The due time that it stands for.
    pub(crate) fn due(&self) -> Option<CommitTime> {
        match &self.begin {
            JobBegin::Due { due, .. } => Some(*due),
            JobBegin::Retry(retry) => retry.due,
            JobBegin::Manual { .. } => None,
        }
    }

    /// Since when it could have begun.
    fn since(&self) -> CommitTime {
        match &self.begin {
            JobBegin::Due { due, .. } => *due,
            JobBegin::Retry(retry) => retry.at,
            JobBegin::Manual { .. } => CommitTime(i64::MIN),
        }
    }
}

/// Those that wait, first come first: by due time, and by the names of their jobs where that is the same. At most one of each job.
#[derive(Debug, Default)]
pub(super) struct Turns(Vec<Waiting>);

impl Turns {
    /// Adds one. Another of its job gives way.
    pub(super) fn queue(&mut self, waiting: Waiting) {
        self.0.retain(|other| other.job.definition.name != waiting.job.definition.name);
        let key = |waiting: &Waiting| (waiting.since(), waiting.job.definition.name.clone());
        let place = self.0.partition_point(|other| key(other) < key(&waiting));
        self.0.insert(place, waiting);
    }

    /// Takes the first.
    pub(super) fn next(&mut self) -> Option<Waiting> {
        (!self.0.is_empty()).then(|| self.0.remove(0))
    }

    /// Whether a run of that job waits.
    pub(super) fn has(&self, job: &str) -> bool {
        self.0.iter().any(|waiting| waiting.job.definition.name == job)
    }

    /// Forgets what is not to be run any more: its job is gone, paused or changed, or somebody else saw to it.
    pub(super) fn keep(&mut self, jobs: &[Job]) {
        self.0.retain(|Waiting { job, .. }| {
            let same = |now: &&Job| {
                (&now.definition, now.settled, &now.paused, &now.retry)
                    == (&job.definition, job.settled, &job.paused, &job.retry)
            };
            jobs.iter().find(|now| now.definition.name == job.definition.name).filter(same).is_some()
        });
    }

    /// All of them, in order.
    pub(super) fn all(&self) -> &[Waiting] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use tailrace_engine::{CatchUp, JobDefinition, JobPause, JobRetry};

    use super::*;

    fn job(name: &str) -> Job {
        Job {
            definition: JobDefinition {
                name: name.into(),
                cron: "30 22 * * *".into(),
                time_zone: "UTC".into(),
                from: None,
                until: None,
                statement: "CALL flush()".into(),
                user: "ann".into(),
                database: None,
                catch_up: CatchUp::Skip,
                timeout_ms: None,
                retries: 3,
                retry_delay_ms: 60_000,
                runs_kept: 100,
            },
            created: CommitTime(0),
            paused: None,
            settled: CommitTime(0),
            next_run: RunNumber(7),
            retry: None,
        }
    }

    fn due(name: &str, at: i64) -> Waiting {
        let begin = JobBegin::Due { settled: CommitTime(0), due: CommitTime(at), trigger: JobTrigger::Schedule };
        Waiting { job: job(name), begin }
    }

    fn retry(name: &str, due: i64, at: i64) -> Waiting {
        let retry = JobRetry {
            run: RunNumber(3),
            attempt: 2,
            due: Some(CommitTime(due)),
            trigger: JobTrigger::CatchUp,
            at: CommitTime(at),
        };
        Waiting { job: Job { retry: Some(retry.clone()), ..job(name) }, begin: JobBegin::Retry(retry) }
    }

    fn order(turns: &mut Turns) -> Vec<String> {
        std::iter::from_fn(|| turns.next()).map(|waiting| waiting.job.definition.name).collect()
    }

    #[test]
    fn who_was_due_first_is_first() {
        let mut turns = Turns::default();
        for waiting in [due("c", 20), due("b", 30), due("d", 10), retry("a", 5, 25), due("e", 20), due("b", 30)] {
            turns.queue(waiting);
        }
        assert!(turns.has("a") && !turns.has("f"));
        let shown: Vec<_> = turns.all().iter().map(|w| (w.run().0, w.attempt(), w.due().unwrap().0)).collect();
        assert_eq!(shown, [(7, 1, 10), (7, 1, 20), (7, 1, 20), (3, 2, 5), (7, 1, 30)]);
        assert_eq!(order(&mut turns), ["d", "c", "e", "a", "b"]);
    }

    #[test]
    fn what_is_settled_otherwise_loses_its_turn() {
        let mut turns = Turns::default();
        for name in ["asked", "deleted", "paused", "replaced", "seen_to"] {
            turns.queue(due(name, 10));
        }
        turns.queue(retry("tried", 5, 6));
        let jobs = [
            // Its number is another by now.
            Job { next_run: RunNumber(8), ..job("asked") },
            Job { paused: Some(JobPause { by: "bob".into(), at: CommitTime(11) }), ..job("paused") },
            Job { definition: JobDefinition { cron: "@daily".into(), ..job("").definition }, ..job("replaced") },
            Job { settled: CommitTime(10), ..job("seen_to") },
            Job { retry: None, ..job("tried") },
        ];
        turns.keep(&jobs);
        assert_eq!(order(&mut turns), ["asked"]);
    }
}
