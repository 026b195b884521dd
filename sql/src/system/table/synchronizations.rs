//! `system.synchronizations`: runs of `synchronize` since this node's start, the latest ones.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "synchronizations",
    columns: &[
        ("id", Kind::Int),
        ("cluster", Kind::Text),
        ("table", Kind::Text),
        // NULL: all rows.
        ("where", Kind::Text),
        // STARTING, COMPARING, MOVING, FINISHED, FAILED, CANCELLED.
        ("state", Kind::Text),
        ("percent", Kind::Float),
        // Seconds that are left at the pace so far; NULL where nothing tells, or it is over.
        ("estimate", Kind::Float),
        // On both sides; those that differ; those that are equal since.
        ("partitions", Kind::Int),
        ("differing", Kind::Int),
        ("done", Kind::Int),
        // That have come, those of further attempts among them.
        ("rows", Kind::Int),
        ("bytes", Kind::Int),
        ("started", Kind::Time),
        ("finished", Kind::Time),
        ("message", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for run in context.instance.remotes.synchronizations.runs() {
        rows.push([
            run.id.into(),
            run.source.into(),
            run.table.into(),
            run.predicate.into(),
            run.state.into(),
            run.percent.into(),
            run.remaining.into(),
            run.partitions.into(),
            run.differing.into(),
            run.done.into(),
            run.rows.into(),
            run.bytes.into(),
            run.started.into(),
            run.finished.into(),
            run.message.into(),
        ]);
    }
    Ok(())
}
