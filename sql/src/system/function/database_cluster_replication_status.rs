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
            database.position.seq.into(),
        ]);
    }
    Ok(())
}
