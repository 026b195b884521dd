//! What is to be done about a job now. Pure: the clock and what is known are arguments.

use std::{collections::VecDeque, time::Duration};

use tailrace_engine::{CatchUp, Job, JobBegin, JobRun, JobTrigger, SkippedRuns};
use tailrace_wal::CommitTime;

use super::schedule::Schedule;

/// A due time so recent is on time, not missed.
pub(super) const ON_TIME: Duration = Duration::from_secs(60);
/// A clock that is set back by less does not bring due times again; one that is set back further had been wrong, and due
/// times count from where it is now.
pub(super) const SET_BACK_MAX: Duration = Duration::from_secs(3 * 3600);
/// Most due times that a job which catches up with all of them makes up for.
pub(super) const CAUGHT_UP_MAX: usize = 1000;
/// Due times before are not counted one by one.
const LOOK_BACK_MAX: Duration = Duration::from_secs(400 * 86_400);

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing before that moment; `None`: nothing until something changes.
    Wait(Option<CommitTime>),
    /// Due times pass without a run; then decide again.
    Skip(SkippedRuns),
    /// A run.
    Begin(JobBegin),
}

/// Decides. `running`: the run of the job that is under way.
pub(super) fn decide(job: &Job, schedule: &Schedule, running: Option<&JobRun>, now: CommitTime) -> Decision {
    if job.paused.is_some() {
        return Decision::Wait(None);
    }
    let settled = job.settled;
    let skip = |until: CommitTime, message: String| Decision::Skip(SkippedRuns { settled, until, message });
    if settled > later(now, SET_BACK_MAX) {
        let (was, is) = (schedule.shown(settled), schedule.shown(now));
        return skip(
            now,
            format!("the clock was set back: due times up to {was} had been settled, they count from {is}"),
        );
    }
    let catch_up = job.definition.catch_up;
    if running.is_some() && catch_up == CatchUp::All {
        // What becomes due waits for its turn.
        return Decision::Wait(None);
    }
    let due = Due::between(schedule, settled, now);
    let (Some(first), Some(last)) = (due.latest.front().copied(), due.latest.back().copied()) else {
        let next = schedule.next(settled.max(now));
        return match (&job.retry, running) {
            (Some(retry), None) if retry.at <= now => Decision::Begin(JobBegin::Retry(retry.clone())),
            (Some(retry), None) => Decision::Wait(Some(next.map_or(retry.at, |next| next.min(retry.at)))),
            _ => Decision::Wait(next),
        };
    };
    if let Some(run) = running {
        let since = schedule.shown(run.begun);
        let message = format!("{}: run {}, begun at {since}, is under way", due.words(schedule), run.run);
        return skip(last, message);
    }
    let begin = |due: CommitTime| {
        let trigger = if later(due, ON_TIME) < now { JobTrigger::CatchUp } else { JobTrigger::Schedule };
        Decision::Begin(JobBegin::Due { settled, due, trigger })
    };
    let missed = |due: &Due, why: &str| format!("{}: nobody was there to run the job{why}", due.words(schedule));
    match catch_up {
        CatchUp::All if due.before > 0 => {
            let due = Due { latest: VecDeque::from([due.last_before]), before: due.before - 1, ..due };
            skip(due.last_before, missed(&due, &format!(", and it catches up with the last {CAUGHT_UP_MAX} at most")))
        }
        CatchUp::All => begin(first),
        CatchUp::Skip if later(last, ON_TIME) < now => {
            skip(last, missed(&due, "; with catch_up => 'once' or 'all' it would run now"))
        }
        _ => match due.without_last() {
            // The last one is on time, or stands for all of them.
            Some((earlier, until)) if catch_up == CatchUp::Once => {
                skip(until, missed(&earlier, "; the run that follows stands for them"))
            }
            Some((earlier, until)) => skip(until, missed(&earlier, "")),
            None => begin(last),
        },
    }
}

/// Due times that have come and are not settled.
struct Due {
    /// The last ones, oldest first.
    latest: VecDeque<CommitTime>,
    /// How many came before those.
    before: u64,
    /// The last of these.
    last_before: CommitTime,
    /// There may be more before all of them.
    or_more: bool,
}

impl Due {
    fn between(schedule: &Schedule, settled: CommitTime, now: CommitTime) -> Self {
        let oldest = CommitTime(now.0.saturating_sub(micros(LOOK_BACK_MAX)));
        let mut after = settled.max(oldest);
        let mut due = Self { latest: VecDeque::new(), before: 0, last_before: after, or_more: settled < oldest };
        while let Some(next) = schedule.next(after).filter(|next| *next <= now) {
            due.latest.push_back(next);
            if due.latest.len() > CAUGHT_UP_MAX
                && let Some(oldest) = due.latest.pop_front()
            {
                (due.before, due.last_before) = (due.before + 1, oldest);
            }
            after = next;
        }
        due
    }

    /// Without the last one, which is left; `None`: it is the only one.
    fn without_last(mut self) -> Option<(Self, CommitTime)> {
        self.latest.pop_back();
        let last = *self.latest.back()?;
        Some((self, last))
    }

    fn words(&self, schedule: &Schedule) -> String {
        let count = self.before + self.latest.len() as u64;
        let or_more = if self.or_more { " or more" } else { "" };
        let last = self.latest.back().map(|last| schedule.shown(*last)).unwrap_or_default();
        match count {
            1 => format!("not run at {last}"),
            _ => format!("{count}{or_more} due times up to {last} were not run"),
        }
    }
}

fn later(time: CommitTime, by: Duration) -> CommitTime {
    CommitTime(time.0.saturating_add(micros(by)))
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tailrace_engine::{JobDefinition, JobOutcome, JobPause, JobRetry, RunNumber};
    use tailrace_wal::NodeId;

    use super::*;

    const DAY: i64 = 86_400_000_000;
    const HOUR: i64 = DAY / 24;
    const MINUTE: i64 = HOUR / 60;
    /// Midnight of some day.
    const START: i64 = 20_000 * DAY;

    fn at(day: i64, hour: i64, minute: i64) -> CommitTime {
        CommitTime(START + day * DAY + hour * HOUR + minute * MINUTE)
    }

    fn job(cron: &str, catch_up: CatchUp) -> Job {
        Job {
            definition: JobDefinition {
                name: "nightly".into(),
                cron: cron.into(),
                time_zone: "UTC".into(),
                from: None,
                until: None,
                statement: "CALL flush()".into(),
                user: "ann".into(),
                database: None,
                catch_up,
                timeout_ms: None,
                retries: 3,
                retry_delay_ms: 60_000,
                runs_kept: 100,
            },
            created: at(0, 0, 0),
            paused: None,
            settled: at(0, 12, 0),
            next_run: RunNumber(1),
            retry: None,
        }
    }

    fn now(job: &Job, running: Option<&JobRun>, now: CommitTime) -> Decision {
        decide(job, &Schedule::of(&job.definition).unwrap(), running, now)
    }

    fn begins(decision: &Decision) -> Option<(CommitTime, JobTrigger)> {
        match decision {
            Decision::Begin(JobBegin::Due { due, trigger, .. }) => Some((*due, *trigger)),
            _ => None,
        }
    }

    fn skips(decision: Decision) -> (CommitTime, String) {
        match decision {
            Decision::Skip(skipped) => (skipped.until, skipped.message),
            other => panic!("{other:?}"),
        }
    }

    fn running() -> JobRun {
        JobRun {
            job: "nightly".into(),
            run: RunNumber(7),
            attempt: 1,
            trigger: JobTrigger::Schedule,
            due: Some(at(0, 22, 30)),
            user: "ann".into(),
            node: NodeId([0; 16]),
            begun: at(0, 22, 30),
            ended: None,
            micros: None,
            outcome: JobOutcome::Running,
            rows: 0,
            message: String::new(),
        }
    }

    #[test]
    fn it_waits_runs_when_due_and_a_minute_later() {
        let job = job("30 22 * * *", CatchUp::Skip);
        assert_eq!(now(&job, None, at(0, 22, 29)), Decision::Wait(Some(at(0, 22, 30))));
        let due = Some((at(0, 22, 30), JobTrigger::Schedule));
        assert_eq!(begins(&now(&job, None, at(0, 22, 30))), due);
        assert_eq!(begins(&now(&job, None, at(0, 22, 31))), due);
        let (until, message) = skips(now(&job, None, at(0, 22, 32)));
        assert_eq!(until, at(0, 22, 30));
        assert!(message.starts_with("not run at 2024-10-04 22:30:00 UTC: nobody was there"), "{message}");
    }

    #[test]
    fn missed_runs_by_policy() {
        let (three_days_later, missed) = (at(3, 8, 0), at(2, 22, 30));
        let (until, message) = skips(now(&job("30 22 * * *", CatchUp::Skip), None, three_days_later));
        assert!(until == missed && message.starts_with("3 due times up to"), "{message}");

        let mut once = job("30 22 * * *", CatchUp::Once);
        let (until, message) = skips(now(&once, None, three_days_later));
        assert!(until == at(1, 22, 30) && message.contains("stands for them"), "{message}");
        once.settled = until;
        assert_eq!(begins(&now(&once, None, three_days_later)), Some((missed, JobTrigger::CatchUp)));

        let mut all = job("30 22 * * *", CatchUp::All);
        for day in 0..3 {
            let due = at(day, 22, 30);
            assert_eq!(begins(&now(&all, None, three_days_later)), Some((due, JobTrigger::CatchUp)));
            all.settled = due;
        }
        assert_eq!(now(&all, None, three_days_later), Decision::Wait(Some(at(3, 22, 30))));
    }

    #[test]
    fn what_was_missed_before_a_run_that_is_on_time() {
        let mut skip = job("30 22 * * *", CatchUp::Skip);
        let (until, message) = skips(now(&skip, None, at(2, 22, 30)));
        assert!(until == at(1, 22, 30) && message.starts_with("2 due times"), "{message}");
        skip.settled = until;
        assert_eq!(begins(&now(&skip, None, at(2, 22, 30))), Some((at(2, 22, 30), JobTrigger::Schedule)));
    }

    #[test]
    fn catching_up_has_an_end() {
        let mut all = job("* * * * *", CatchUp::All);
        let (until, message) = skips(now(&all, None, at(1, 12, 0)));
        assert_eq!(until, CommitTime(at(1, 12, 0).0 - CAUGHT_UP_MAX as i64 * MINUTE));
        assert!(message.starts_with("440 due times up to") && message.contains("last 1000"), "{message}");
        all.settled = until;
        assert_eq!(begins(&now(&all, None, at(1, 12, 0))).unwrap().0, CommitTime(until.0 + MINUTE));
        let (_, message) = skips(now(&job("0 0 * * *", CatchUp::Skip), None, at(4000, 0, 5)));
        assert!(message.starts_with("400 or more due times"), "{message}");
    }

    #[test]
    fn due_while_a_run_is_under_way() {
        let run = running();
        let mut skip = job("30 22 * * *", CatchUp::Skip);
        skip.settled = at(0, 22, 30);
        assert_eq!(now(&skip, Some(&run), at(1, 22, 29)), Decision::Wait(Some(at(1, 22, 30))));
        let (until, message) = skips(now(&skip, Some(&run), at(1, 22, 30)));
        assert!(until == at(1, 22, 30) && message.contains("run 7, begun at"), "{message}");
        let mut all = job("30 22 * * *", CatchUp::All);
        all.settled = at(0, 22, 30);
        assert_eq!(now(&all, Some(&run), at(1, 22, 30)), Decision::Wait(None), "it is queued");
    }

    #[test]
    fn a_retry_waits_for_its_moment_and_gives_way_to_what_is_due() {
        let mut job = job("30 22 * * *", CatchUp::Skip);
        job.settled = at(0, 22, 30);
        let retry = |time| JobRetry {
            run: RunNumber(4),
            attempt: 2,
            due: Some(at(0, 22, 30)),
            trigger: JobTrigger::Schedule,
            at: time,
        };
        job.retry = Some(retry(at(0, 22, 40)));
        assert_eq!(now(&job, None, at(0, 22, 35)), Decision::Wait(Some(at(0, 22, 40))));
        assert_eq!(now(&job, None, at(0, 22, 40)), Decision::Begin(JobBegin::Retry(retry(at(0, 22, 40)))));
        job.retry = Some(retry(at(2, 0, 0)));
        assert_eq!(now(&job, None, at(0, 23, 0)), Decision::Wait(Some(at(1, 22, 30))));
        assert_eq!(begins(&now(&job, None, at(1, 22, 30))).unwrap().0, at(1, 22, 30));
    }

    #[test]
    fn a_clock_that_is_set_back() {
        let mut job = job("30 22 * * *", CatchUp::Skip);
        job.settled = at(5, 22, 30);
        assert_eq!(now(&job, None, at(5, 21, 0)), Decision::Wait(Some(at(6, 22, 30))), "not a second time");
        let (until, message) = skips(now(&job, None, at(2, 12, 0)));
        assert!(until == at(2, 12, 0) && message.contains("set back"), "{message}");
        job.settled = until;
        assert_eq!(now(&job, None, at(2, 12, 0)), Decision::Wait(Some(at(2, 22, 30))));
    }

    #[test]
    fn paused_is_paused() {
        let mut job = job("30 22 * * *", CatchUp::All);
        job.paused = Some(JobPause { by: "ann".into(), at: at(0, 0, 0) });
        assert_eq!(now(&job, None, at(9, 0, 0)), Decision::Wait(None));
    }
}
