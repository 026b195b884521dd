//! The fold of the facts about jobs.

use std::collections::{BTreeMap, VecDeque};

use super::{JOB_RUNS_MAX, Job, JobOutcome, JobRun};
use crate::SystemFact;

/// Jobs and their runs, oldest run first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Jobs {
    jobs: BTreeMap<String, Job>,
    runs: BTreeMap<String, VecDeque<JobRun>>,
    /// Of all jobs.
    count: usize,
}

impl Jobs {
    /// A job as it is from now on.
    pub(crate) fn set(&mut self, job: Job) {
        let name = job.definition.name.clone();
        self.jobs.insert(name.clone(), job);
        self.forget(&name);
    }

    /// A job is no more, and its runs with it.
    pub(crate) fn remove(&mut self, name: &str) {
        self.jobs.remove(name);
        self.count -= self.runs.remove(name).map_or(0, |runs| runs.len());
    }

    /// A run as it is from now on. One whose job is gone is nobody's.
    pub(crate) fn set_run(&mut self, run: JobRun) {
        if !self.jobs.contains_key(&run.job) {
            return;
        }
        let name = run.job.clone();
        let runs = self.runs.entry(name.clone()).or_default();
        // The latest ones change.
        match runs.iter_mut().rev().find(|known| (known.run, known.attempt) == (run.run, run.attempt)) {
            Some(known) => *known = run,
            None => {
                runs.push_back(run);
                self.count += 1;
            }
        }
        self.forget(&name);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Job> {
        self.jobs.get(name)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Runs of all jobs, by job and oldest first.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &JobRun> {
        self.runs.values().flatten()
    }

    /// The run of a job that is under way.
    pub(crate) fn running(&self, name: &str) -> Option<&JobRun> {
        self.runs.get(name)?.iter().rev().find(|run| run.outcome == JobOutcome::Running)
    }

    pub(crate) fn facts(&self) -> impl Iterator<Item = SystemFact> {
        let jobs = self.jobs.values().map(|job| SystemFact::Job { job: Box::new(job.clone()) });
        jobs.chain(self.runs().map(|run| SystemFact::JobRun { run: Box::new(run.clone()) }))
    }

    /// Forgets the oldest runs of a job beyond what it keeps, and of the job with most where all together are too many. A run
    /// that is under way stays.
    fn forget(&mut self, name: &str) {
        let kept = self.jobs.get(name).map_or(0, |job| job.definition.runs_kept as usize);
        self.count -= self.runs.get_mut(name).map_or(0, |runs| shorten(runs, kept));
        while self.count > JOB_RUNS_MAX {
            let Some(runs) = self.runs.values_mut().max_by_key(|runs| runs.len()) else { return };
            let kept = runs.len() - 1;
            match shorten(runs, kept) {
                0 => return,
                forgotten => self.count -= forgotten,
            }
        }
    }
}

/// Takes the oldest that have ended until `kept` are left. How many went.
fn shorten(runs: &mut VecDeque<JobRun>, kept: usize) -> usize {
    let before = runs.len();
    while runs.len() > kept {
        match runs.iter().position(|run| run.outcome != JobOutcome::Running) {
            Some(oldest) => runs.remove(oldest),
            None => break,
        };
    }
    before - runs.len()
}

#[cfg(test)]
pub(crate) mod tests {
    use tailrace_wal::{CommitTime, NodeId};

    use super::*;
    use crate::job::{CatchUp, JobDefinition, JobTrigger, RunNumber};

    pub(crate) fn definition(name: &str) -> JobDefinition {
        JobDefinition {
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
            retries: 0,
            retry_delay_ms: 60_000,
            runs_kept: 3,
        }
    }

    fn job(name: &str) -> Job {
        Job {
            definition: definition(name),
            created: CommitTime(1),
            paused: None,
            settled: CommitTime(1),
            next_run: RunNumber(1),
            retry: None,
        }
    }

    fn run(job: &str, number: u64, outcome: JobOutcome) -> JobRun {
        JobRun {
            job: job.into(),
            run: RunNumber(number),
            attempt: 1,
            trigger: JobTrigger::Schedule,
            due: Some(CommitTime(5)),
            user: "ann".into(),
            node: NodeId([1; 16]),
            begun: CommitTime(5),
            ended: None,
            micros: None,
            outcome,
            rows: 0,
            message: String::new(),
        }
    }

    fn numbers(jobs: &Jobs) -> Vec<u64> {
        jobs.runs().map(|run| run.run.0).collect()
    }

    #[test]
    fn the_newest_runs_are_kept_and_the_one_under_way() {
        let mut jobs = Jobs::default();
        jobs.set_run(run("a", 1, JobOutcome::Running));
        assert!(numbers(&jobs).is_empty(), "a run without a job is nobody's");
        jobs.set(job("a"));
        jobs.set_run(run("a", 1, JobOutcome::Running));
        (2..=6).for_each(|number| jobs.set_run(run("a", number, JobOutcome::Skipped)));
        assert_eq!(numbers(&jobs), [1, 5, 6]);
        assert_eq!(jobs.running("a").unwrap().run, RunNumber(1));
        jobs.set_run(run("a", 1, JobOutcome::Failed));
        assert!(jobs.running("a").is_none());
        jobs.set_run(run("a", 7, JobOutcome::Running));
        assert_eq!(numbers(&jobs), [5, 6, 7]);
        jobs.remove("a");
        assert_eq!((jobs.count, jobs.len(), jobs.runs().count()), (0, 0, 0));
    }

    #[test]
    fn facts_fold_into_what_they_came_from() {
        let mut jobs = Jobs::default();
        jobs.set(job("a"));
        jobs.set(job("b"));
        (1..=5).for_each(|number| jobs.set_run(run("b", number, JobOutcome::Succeeded)));
        let mut again = Jobs::default();
        for fact in jobs.facts() {
            match fact {
                SystemFact::Job { job } => again.set(*job),
                SystemFact::JobRun { run } => again.set_run(*run),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(again.facts().collect::<Vec<_>>(), jobs.facts().collect::<Vec<_>>());
        assert_eq!(again.count, 3);
    }

    #[test]
    fn all_jobs_together_keep_so_many_runs() {
        let mut jobs = Jobs::default();
        for index in 0..=JOB_RUNS_MAX / 1000 {
            let name = format!("{index:02}");
            let mut job = job(&name);
            job.definition.runs_kept = 1000;
            jobs.set(job);
            (1..=1000).for_each(|number| jobs.set_run(run(&name, number, JobOutcome::Succeeded)));
        }
        assert_eq!((jobs.count, jobs.runs().count()), (JOB_RUNS_MAX, JOB_RUNS_MAX));
        let of = |name: &str| jobs.runs().filter(|run| run.job == name).count();
        assert!(of("10") > 900 && of("00") > 900, "the job with most runs forgets");
    }
}
