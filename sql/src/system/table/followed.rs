//! `system.followed`: on a replica, a row per database that it follows, and how far behind it is.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "followed",
    columns: &[
        ("database", Kind::Text),
        ("history_id", Kind::Text),
        ("primary", Kind::Text),
        ("address", Kind::Text),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("remedy", Kind::Text),
        ("since", Kind::Time),
        ("applied_seq", Kind::Int),
        ("durable_seq", Kind::Int),
        ("primary_seq", Kind::Int),
        // The lag is NULL when nothing was heard of the primary lately: unknown is not caught up.
        ("lag_tasks", Kind::Int),
        ("lag_bytes", Kind::Int),
        ("lag_seconds", Kind::Float),
        ("catch_up_seconds", Kind::Float),
        // For how long it has stood still with something to move on to, and in what.
        ("stuck_seconds", Kind::Float),
        ("stuck_in", Kind::Text),
        // The tables that have rows here, as chosen; NULL: all of them.
        ("tables", Kind::Text),
        // Of transactions that are not committed at the primary: what is here, and what of it is in memory.
        ("open_transactions", Kind::Int),
        ("open_bytes", Kind::Int),
        ("open_memory_bytes", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let Some(follower) = &context.instance.follower else { return Ok(()) };
    let status = follower.status();
    for database in status.databases {
        let lag = database.lag;
        rows.push([
            (&database.database).into(),
            database.history.to_string().into(),
            (&database.primary).into(),
            status.connected.clone().into(),
            database.state.name().into(),
            database.reason.into(),
            database.remedy.into(),
            database.since.into(),
            database.applied.into(),
            database.acknowledged.into(),
            database.primary_seq.into(),
            lag.map(|lag| lag.tasks).into(),
            lag.and_then(|lag| lag.bytes).into(),
            lag.map(|lag| lag.age).into(),
            lag.and_then(|lag| lag.catch_up).into(),
            database.stuck.map(|(since, _)| since).into(),
            database.stuck.map(|(_, activity)| activity).into(),
            database.tables.map(|tables| tables.into_iter().collect::<Vec<_>>().join(", ")).into(),
            database.open.transactions.into(),
            database.open.bytes.into(),
            database.open.memory_bytes.into(),
        ]);
    }
    Ok(())
}
