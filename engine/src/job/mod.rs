//! Jobs: statements that run at certain times, as facts of the system history.
//!
//! The history says what is to run, up to which moment due times are settled, and what every run came to; when something is
//! due, and running it, is the business of whoever knows SQL. A run is a fact before it begins and again when it has ended,
//! and both are decided while nobody else writes to the history: of all who find the same due time, one begins its run.

mod change;
mod fold;

pub use change::{JobBegin, JobEnd, SkippedRuns};
pub(crate) use fold::Jobs;

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, NodeId};

use crate::{EngineError, Result, check_name};

/// Most jobs of a cluster.
pub const JOBS_MAX: usize = 1000;
/// Most runs that are kept of one job.
pub const JOB_RUNS_KEPT_MAX: u32 = 1000;
/// Most runs that are kept of all jobs together: they are written with every flush that follows a run.
pub const JOB_RUNS_MAX: usize = 10_000;
/// Longest statement of a job, bytes.
pub const JOB_STATEMENT_BYTES_MAX: usize = 64 << 10;
/// Longest message of a run, bytes; longer ones are cut.
pub const JOB_MESSAGE_BYTES_MAX: usize = 2 << 10;
/// Most retries of a run.
pub const JOB_RETRIES_MAX: u32 = 100;
/// Pauses before retries grow up to this, or to the first one where that is longer.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(3600);

/// What is to run, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobDefinition {
    /// Its name.
    pub name: String,
    /// When: an expression that the layer above reads.
    pub cron: String,
    /// The time zone that it is read in, by its IANA name.
    pub time_zone: String,
    /// Nothing is due before.
    pub from: Option<CommitTime>,
    /// Nothing is due from here on.
    pub until: Option<CommitTime>,
    /// Statements.
    pub statement: String,
    /// Under whose name they run.
    pub user: String,
    /// The database in which names are looked up.
    pub database: Option<String>,
    /// What becomes of due times at which nobody was there to run it.
    pub catch_up: CatchUp,
    /// Longest run, milliseconds.
    pub timeout_ms: Option<u64>,
    /// How often a run that failed is tried again.
    pub retries: u32,
    /// Pause before the first retry, milliseconds; it doubles with each further one.
    pub retry_delay_ms: u64,
    /// Runs that are remembered.
    pub runs_kept: u32,
}

/// What becomes of due times at which nobody was there to run the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// They are recorded as skipped.
    Skip,
    /// One run stands for all of them.
    Once,
    /// Each gets its run, one after another.
    All,
}

/// A job as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// What is to run, and when.
    pub definition: JobDefinition,
    /// When it was scheduled.
    pub created: CommitTime,
    /// Who paused it, and when.
    pub paused: Option<JobPause>,
    /// Due times up to here have had their run, or are recorded as skipped.
    pub settled: CommitTime,
    /// The number of its next run.
    pub next_run: RunNumber,
    /// A run that failed and is to be tried again.
    pub retry: Option<JobRetry>,
}

/// Who paused a job, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobPause {
    /// User.
    pub by: String,
    /// Since when.
    pub at: CommitTime,
}

/// A run that is to be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRetry {
    /// Which run.
    pub run: RunNumber,
    /// The attempt that comes.
    pub attempt: u32,
    /// The due time that it stands for.
    pub due: Option<CommitTime>,
    /// Why it ran at first.
    pub trigger: JobTrigger,
    /// Not before.
    pub at: CommitTime,
}

/// Number of a run of a job, 1, 2, 3 …; its attempts share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunNumber(pub u64);

impl fmt::Display for RunNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a run began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobTrigger {
    /// It was due.
    Schedule,
    /// It had been due when nobody was there.
    CatchUp,
    /// Somebody asked for it.
    Manual,
}

impl JobTrigger {
    /// `SCHEDULE`, `CATCH_UP`, `MANUAL`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Schedule => "SCHEDULE",
            Self::CatchUp => "CATCH_UP",
            Self::Manual => "MANUAL",
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// It is under way.
    Running,
    /// Every statement was done.
    Succeeded,
    /// A statement failed; those behind it were not run.
    Failed,
    /// It took longer than it may.
    TimedOut,
    /// Somebody ended it.
    Cancelled,
    /// The node stopped, or died, while it was under way: its last statement may have been done.
    Interrupted,
    /// It was due, and did not run.
    Skipped,
}

impl JobOutcome {
    /// `RUNNING`, `SUCCEEDED`, `FAILED`, `TIMED_OUT`, `CANCELLED`, `INTERRUPTED`, `SKIPPED`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::TimedOut => "TIMED_OUT",
            Self::Cancelled => "CANCELLED",
            Self::Interrupted => "INTERRUPTED",
            Self::Skipped => "SKIPPED",
        }
    }

    /// Whether the run is tried again where the job says so.
    fn is_retried(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Interrupted)
    }
}

/// An attempt at running a job, or due times that were skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRun {
    /// Its job.
    pub job: String,
    /// Which run.
    pub run: RunNumber,
    /// 1, 2, 3 …
    pub attempt: u32,
    /// Why it began.
    pub trigger: JobTrigger,
    /// The due time that it stands for; of skipped ones the last.
    pub due: Option<CommitTime>,
    /// Under whose name it runs; of a run that was asked for, who asked.
    pub user: String,
    /// The node that runs it.
    pub node: NodeId,
    /// When it began.
    pub begun: CommitTime,
    /// When it ended.
    pub ended: Option<CommitTime>,
    /// How long it took, microseconds; unknown after a crash.
    pub micros: Option<u64>,
    /// What it came to.
    pub outcome: JobOutcome,
    /// Rows that its statements wrote or returned.
    pub rows: u64,
    /// What the statements said, or the error.
    pub message: String,
}

impl JobDefinition {
    /// What cannot be kept is refused, whatever it means.
    pub(crate) fn check(&self) -> Result<()> {
        check_name("job", &self.name)?;
        let refuse = |what: String| Err(EngineError::Invalid(format!("job {:?}: {what}", self.name)));
        if self.statement.len() > JOB_STATEMENT_BYTES_MAX {
            return refuse(format!(
                "its statement has {} bytes; it can have {JOB_STATEMENT_BYTES_MAX}",
                self.statement.len()
            ));
        }
        if self.cron.len() > 1000 || self.time_zone.len() > 100 {
            return refuse("its cron expression or its time zone is too long".to_owned());
        }
        if !(1..=JOB_RUNS_KEPT_MAX).contains(&self.runs_kept) {
            return refuse(format!("{} runs cannot be kept; 1 to {JOB_RUNS_KEPT_MAX} can", self.runs_kept));
        }
        if self.retries > JOB_RETRIES_MAX {
            return refuse(format!("{} retries are too many; {JOB_RETRIES_MAX} are allowed", self.retries));
        }
        Ok(())
    }

    /// The pause before the attempt that follows `attempt`; `None`: there is none.
    fn retry_delay(&self, attempt: u32) -> Option<Duration> {
        if attempt > self.retries {
            return None;
        }
        let first = Duration::from_millis(self.retry_delay_ms);
        let doubled = first.saturating_mul(1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX));
        Some(doubled.min(RETRY_DELAY_MAX.max(first)))
    }
}

/// A moment later.
fn after(time: CommitTime, pause: Duration) -> CommitTime {
    CommitTime(time.0.saturating_add(i64::try_from(pause.as_micros()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_before_retries_double_up_to_an_hour() {
        let definition = fold::tests::definition("a");
        let definition = JobDefinition { retries: 9, retry_delay_ms: 60_000, ..definition };
        let minutes: Vec<u64> = (1..=9).map(|n| definition.retry_delay(n).unwrap().as_secs() / 60).collect();
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(definition.retry_delay(10), None);
        let long = JobDefinition { retry_delay_ms: 7_200_000, retries: 100, ..definition };
        assert_eq!(long.retry_delay(100), Some(Duration::from_secs(7200)));
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let good = fold::tests::definition("a");
        good.check().unwrap();
        for (bad, words) in [
            (JobDefinition { name: String::new(), ..good.clone() }, "job name"),
            (JobDefinition { statement: "x".repeat(JOB_STATEMENT_BYTES_MAX + 1), ..good.clone() }, "65537 bytes"),
            (JobDefinition { runs_kept: 0, ..good.clone() }, "0 runs"),
            (JobDefinition { retries: 101, ..good.clone() }, "101 retries"),
            (JobDefinition { cron: "*".repeat(1001), ..good }, "too long"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
