//! `get_database_cluster_replication_status()`: on either side, a row per database.

use super::{CONFIGURE, Function, database_state, not_configured};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const FUNCTION: Function = Function {
    name: "get_database_cluster_replication_status",
    argument: None,
    columns: &[
        ("database", Kind::Text),
        ("enabled", Kind::Bool),
        ("role", Kind::Text),
        ("primary", Kind::Text),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("remedy", Kind::Text),
        ("since", Kind::Time),
        ("attempts", Kind::Int),
        ("next_try", Kind::Time),
        ("last_task_id", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, _argument: Option<i64>, rows: &mut Rows) -> Result<()> {
    let instance = context.instance;
    if instance.publisher.is_none() && instance.follower.is_none() {
        return Err(not_configured("This cluster is neither a primary nor a replica.", CONFIGURE));
    }
    for database in context.version.databases() {
        let state = database_state(instance, database);
        rows.push([
            (&database.name).into(),
            (database.replicated || state.primary.is_some()).into(),
            state.role.into(),
            state.primary.into(),
            state.state.into(),
            state.reason.into(),
            state.remedy.into(),
            state.since.into(),
            state.attempts.into(),
            state.next_try.into(),
            database.position.seq.into(),
        ]);
    }
    // Those that could not begin here: their name is another database's.
    let followed = instance.follower.iter().flat_map(|follower| follower.status().databases);
    for followed in followed.filter(|followed| !context.version.databases().any(|here| here.id == followed.history)) {
        rows.push([
            followed.database.into(),
            true.into(),
            "replica".into(),
            followed.primary.into(),
            followed.state.name().into(),
            followed.reason.into(),
            followed.remedy.into(),
            followed.since.into(),
            followed.attempts.into(),
            followed.next_try.into(),
            followed.applied.into(),
        ]);
    }
    Ok(())
}
