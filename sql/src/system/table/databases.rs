//! `system.databases`: what this cluster holds, at which position, and how its replication stands.

use super::SystemTable;
use crate::{
    Result,
    system::{
        computed::{Context, Kind, Rows},
        function::database_state,
    },
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "databases",
    columns: &[
        ("name", Kind::Text),
        ("history_id", Kind::Text),
        ("role", Kind::Text),
        ("primary", Kind::Text),
        ("replicated", Kind::Bool),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("remedy", Kind::Text),
        ("since", Kind::Time),
        ("attempts", Kind::Int),
        ("next_try", Kind::Time),
        ("seq", Kind::Int),
        ("epoch", Kind::Int),
        ("chain", Kind::Text),
        ("commit_time", Kind::Time),
        ("tables", Kind::Int),
        ("rows", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for database in context.version.databases() {
        let state = database_state(context.instance, database);
        rows.push([
            (&database.name).into(),
            database.id.to_string().into(),
            state.role.into(),
            state.primary.into(),
            database.replicated.into(),
            state.state.into(),
            state.reason.into(),
            state.remedy.into(),
            state.since.into(),
            state.attempts.into(),
            state.next_try.into(),
            database.position.seq.into(),
            database.position.epoch.counter.into(),
            format!("{:016x}", database.position.chain.0).into(),
            database.commit_time.into(),
            database.tables().count().into(),
            database.tables().map(|table| table.rows()).sum::<u64>().into(),
        ]);
    }
    Ok(())
}
