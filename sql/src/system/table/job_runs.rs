//! `system.job_runs`: the latest runs of every job, an attempt a row, due times that were skipped, and runs that wait for
//! their turn.

use std::time::Duration;

use super::{SystemTable, jobs::turn_in_words};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows, Value},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "job_runs",
    columns: &[
        ("job", Kind::Text),
        ("run", Kind::Int),
        ("attempt", Kind::Int),
        // SCHEDULE, CATCH_UP, MANUAL.
        ("trigger", Kind::Text),
        // The due time that it stands for; NULL: it was asked for.
        ("due", Kind::Time),
        ("begun", Kind::Time),
        ("ended", Kind::Time),
        // NULL where the node died meanwhile.
        ("seconds", Kind::Float),
        // WAITING, RUNNING, SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, INTERRUPTED, SKIPPED.
        ("outcome", Kind::Text),
        ("rows", Kind::Int),
        ("message", Kind::Text),
        // Whose job it is; of a MANUAL run, who asked.
        ("user", Kind::Text),
        ("node", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let (engine, own_name) = (&context.instance.engine, &context.instance.config.node_name);
    for run in engine.job_runs() {
        let node = if run.node == engine.node() { own_name.clone() } else { run.node.to_string() };
        rows.push([
            run.job.into(),
            run.run.0.into(),
            run.attempt.into(),
            run.trigger.name().into(),
            run.due.into(),
            run.begun.into(),
            run.ended.into(),
            run.micros.map(Duration::from_micros).into(),
            run.outcome.name().into(),
            run.rows.into(),
            run.message.into(),
            run.user.into(),
            node.into(),
        ]);
    }
    let jobs = &context.instance.jobs;
    for (before, waiting) in jobs.waiting().into_iter().enumerate() {
        let definition = &waiting.job.definition;
        rows.push([
            (&definition.name).into(),
            waiting.run().0.into(),
            waiting.attempt().into(),
            waiting.trigger().name().into(),
            waiting.due().into(),
            Value::Null,
            Value::Null,
            Value::Null,
            "WAITING".into(),
            0_u64.into(),
            turn_in_words(before, jobs.running_max()).into(),
            (&definition.user).into(),
            own_name.into(),
        ]);
    }
    Ok(())
}
