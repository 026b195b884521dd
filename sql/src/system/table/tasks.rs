//! `system.tasks`: the latest transactions of every database here, replicated or not.

use tailrace_wal::Seq;

use super::SystemTable;
use crate::{
    Result,
    system::{
        computed::{Context, Kind, Rows},
        function::table_names,
    },
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "tasks",
    columns: &[
        ("database", Kind::Text),
        ("history_id", Kind::Text),
        ("task_id", Kind::Int),
        ("group_id", Kind::Int),
        ("operation_type", Kind::Text),
        ("commit_time", Kind::Time),
        ("table", Kind::Text),
        ("rows", Kind::Int),
        ("bytes", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    for history in engine.histories() {
        for task in engine.tasks(history.id, Seq::ZERO) {
            rows.push([
                (&history.name).into(),
                history.id.to_string().into(),
                task.seq.into(),
                task.group.into(),
                task.operation.name().into_owned().into(),
                task.commit_time.into(),
                table_names(&task).into(),
                task.rows.into(),
                task.bytes.into(),
            ]);
        }
    }
    Ok(())
}
