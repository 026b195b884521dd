//! `get_master_replication_status([limit])`: on the primary, the tasks of its replicated databases. A task is finished
//! when every replica that holds a pin has it durable.

use tailrace_engine::{HistoryInfo, Role, TaskInfo};
use tailrace_wal::{PinStatus, Seq};

use super::{Function, arrange, publisher, table_names};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const FUNCTION: Function = Function {
    name: "get_master_replication_status",
    argument: Some("limit"),
    columns: &[
        ("task_id", Kind::Int),
        ("database", Kind::Text),
        ("group_id", Kind::Int),
        ("operation_type", Kind::Text),
        ("submit_time", Kind::Time),
        ("table", Kind::Text),
        ("source", Kind::Text),
        ("is_truncated", Kind::Bool),
    ],
    rows,
};

struct MasterTask {
    database: String,
    task: TaskInfo,
    finished: bool,
    /// The log no longer holds its record.
    truncated: bool,
}

fn rows(context: &Context<'_>, limit: Option<i64>, rows: &mut Rows) -> Result<()> {
    publisher(context)?;
    let engine = &context.instance.engine;
    let pins = engine.log().pins();
    let mut tasks = Vec::new();
    let histories = engine.histories().into_iter();
    for history in histories.filter(|history| history.role == Role::Primary && history.replicated) {
        let acknowledged = acknowledged(&history, &pins);
        let of_history = engine.tasks(history.id, Seq::ZERO).into_iter();
        tasks.extend(of_history.map(|task| MasterTask {
            database: history.name.clone(),
            finished: acknowledged.is_some_and(|acknowledged| task.seq <= acknowledged),
            truncated: task.seq <= history.retained_after,
            task,
        }));
    }
    let source = &context.instance.config.node_name;
    for MasterTask { database, task, truncated, .. } in
        arrange(tasks, limit, |task| task.finished, |task| task.task.commit_time.0)
    {
        rows.push([
            task.seq.into(),
            database.into(),
            task.group.into(),
            task.operation.name().into_owned().into(),
            task.commit_time.into(),
            table_names(&task).into(),
            source.into(),
            truncated.into(),
        ]);
    }
    Ok(())
}

/// What all replicas of a history have; `None` without replicas.
fn acknowledged(history: &HistoryInfo, pins: &[PinStatus]) -> Option<Seq> {
    let replicas = pins.iter().filter(|pin| pin.key.history == history.id && pin.key.feed.starts_with("replica/"));
    replicas.map(|pin| pin.acknowledged).min()
}
