//! `system.jobs`: what runs when, whether it does, and how it went the last time.

use std::{num::NonZeroUsize, time::Duration};

use tailrace_engine::{CatchUp, Job, JobOutcome, JobRun};
use tailrace_wal::CommitTime;

use super::SystemTable;
use crate::{
    Result,
    job::{Waiting, schedule::Schedule},
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "jobs",
    columns: &[
        ("name", Kind::Text),
        ("cron", Kind::Text),
        ("time_zone", Kind::Text),
        ("from", Kind::Time),
        ("until", Kind::Time),
        ("statement", Kind::Text),
        // Whose names and rights, and the database in which names are looked up.
        ("user", Kind::Text),
        ("database", Kind::Text),
        // SCHEDULED, WAITING, RUNNING, RETRYING, PAUSED, ENDED.
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("next_run", Kind::Time),
        // Of the last run that was not skipped.
        ("last_run", Kind::Time),
        ("last_outcome", Kind::Text),
        ("last_seconds", Kind::Float),
        ("last_message", Kind::Text),
        ("catch_up", Kind::Text),
        ("timeout_seconds", Kind::Float),
        ("retries", Kind::Int),
        ("retry_delay_seconds", Kind::Float),
        ("max_runs_kept", Kind::Int),
        ("created", Kind::Time),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    let (now, runs) = (engine.clock().now(), engine.job_runs());
    let (waiting, running_max) = (context.instance.jobs.waiting(), context.instance.jobs.running_max());
    for job in engine.jobs() {
        let definition = &job.definition;
        let of_it = || runs.iter().rev().filter(|run| run.job == definition.name);
        let running = of_it().find(|run| run.outcome == JobOutcome::Running);
        let last = of_it().find(|run| run.outcome != JobOutcome::Skipped);
        let turn = waiting.iter().position(|waiting| waiting.job.definition.name == definition.name);
        let State { state, reason, next } = match turn {
            Some(before) if running.is_none() => State {
                state: "WAITING",
                reason: Some(turn_in_words(before, running_max)),
                next: waiting.get(before).and_then(Waiting::due),
            },
            _ => state(&job, running, now),
        };
        rows.push([
            (&definition.name).into(),
            (&definition.cron).into(),
            (&definition.time_zone).into(),
            definition.from.into(),
            definition.until.map(|until| CommitTime(until.0.saturating_sub(1))).into(),
            (&definition.statement).into(),
            (&definition.user).into(),
            definition.database.as_ref().into(),
            state.into(),
            reason.into(),
            next.into(),
            last.map(|run| run.begun).into(),
            last.map(|run| run.outcome.name()).into(),
            last.and_then(|run| run.micros).map(Duration::from_micros).into(),
            last.map(|run| &run.message).into(),
            match definition.catch_up {
                CatchUp::Skip => "skip",
                CatchUp::Once => "once",
                CatchUp::All => "all",
            }
            .into(),
            definition.timeout_ms.map(Duration::from_millis).into(),
            definition.retries.into(),
            Duration::from_millis(definition.retry_delay_ms).into(),
            definition.runs_kept.into(),
            job.created.into(),
        ]);
    }
    Ok(())
}

/// Why a run that is due has not begun.
pub(super) fn turn_in_words(before: usize, running_max: NonZeroUsize) -> String {
    format!("waits for its turn, with {before} before it: jobs.max_running = {running_max}")
}

struct State {
    state: &'static str,
    reason: Option<String>,
    next: Option<CommitTime>,
}

fn state(job: &Job, running: Option<&JobRun>, now: CommitTime) -> State {
    let name = &job.definition.name;
    let schedule = match Schedule::of(&job.definition) {
        Ok(schedule) => schedule,
        Err(error) => {
            let reason = format!("{error}; schedule it again with replace => true");
            return State { state: "ENDED", reason: Some(reason), next: None };
        }
    };
    let next = schedule.next(job.settled.max(now));
    if let Some(run) = running {
        let reason = format!("run {}, attempt {}, since {}", run.run, run.attempt, schedule.shown(run.begun));
        let next = next.filter(|_| job.paused.is_none());
        return State { state: "RUNNING", reason: Some(reason), next };
    }
    if let Some(pause) = &job.paused {
        let reason = format!("paused by {} at {}; CALL resume_job('{name}')", pause.by, schedule.shown(pause.at));
        return State { state: "PAUSED", reason: Some(reason), next: None };
    }
    if let Some(retry) = &job.retry {
        let reason =
            format!("run {} failed; attempt {} comes at {}", retry.run, retry.attempt, schedule.shown(retry.at));
        let next = next.map_or(retry.at, |next| next.min(retry.at));
        return State { state: "RETRYING", reason: Some(reason), next: Some(next) };
    }
    match next {
        Some(_) => State { state: "SCHEDULED", reason: None, next },
        None => {
            let reason =
                format!("no due time is left; schedule it again with replace => true, or CALL delete_job('{name}')");
            State { state: "ENDED", reason: Some(reason), next }
        }
    }
}
