//! `get_slave_replication_status([limit])`: on the replica, the tasks that it has or is working at.

use tailrace_replicator::TaskState;

use super::{Function, arrange, follower, table_names};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const FUNCTION: Function = Function {
    name: "get_slave_replication_status",
    argument: Some("limit"),
    columns: &[
        ("task_id", Kind::Int),
        ("database", Kind::Text),
        ("group_id", Kind::Int),
        ("queue", Kind::Int),
        ("operation_type", Kind::Text),
        ("create_time", Kind::Time),
        ("table", Kind::Text),
        ("source", Kind::Text),
        ("finish_time", Kind::Time),
        ("worker", Kind::Int),
        ("state", Kind::Text),
        ("details", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, limit: Option<i64>, rows: &mut Rows) -> Result<()> {
    let tasks = follower(context)?.tasks();
    for task in arrange(
        tasks,
        limit,
        |task| matches!(task.state, TaskState::Finished | TaskState::Skipped),
        |task| task.task.commit_time.0,
    ) {
        rows.push([
            task.task.seq.into(),
            (&task.database).into(),
            task.task.group.into(),
            task.queue.into(),
            if task.repair { "REPAIR".into() } else { task.task.operation.name().into_owned().into() },
            task.received.into(),
            table_names(&task.task).into(),
            (&task.source).into(),
            task.finished.into(),
            task.worker.into(),
            task.state.name().into(),
            task.details.into(),
        ]);
    }
    Ok(())
}
