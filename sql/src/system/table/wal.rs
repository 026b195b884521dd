//! `system.wal`: one row, how far the log is and what a crash could lose now.

use tailrace_wal::Persistence;

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "wal",
    columns: &[
        ("first_lsn", Kind::Int),
        ("flushed_lsn", Kind::Int),
        ("durable_lsn", Kind::Int),
        ("appended_lsn", Kind::Int),
        ("bytes", Kind::Int),
        ("segments", Kind::Int),
        ("segment_bytes", Kind::Int),
        // What asynchronous commits may lose now, and the bounds of it.
        ("unsynced_bytes", Kind::Int),
        ("async_max_bytes", Kind::Int),
        ("sync_interval_seconds", Kind::Float),
        ("persistence", Kind::Text),
        ("syncs", Kind::Int),
        ("appended_bytes", Kind::Int),
        ("poisoned", Kind::Bool),
        // Writes are refused for want of space: since when and why; NULL while they are taken.
        ("full_since", Kind::Time),
        ("full_reason", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    let (status, config) = (engine.log().status(), engine.config());
    let (full_since, full_reason) = engine.reserves().into_iter().find_map(|reserve| reserve.released).unzip();
    rows.push([
        status.first.into(),
        engine.memory().flushed.into(),
        status.durable.into(),
        status.appended.into(),
        status.bytes.into(),
        status.segments.into(),
        config.wal.segment_bytes.into(),
        status.unsynced_bytes.into(),
        config.wal.async_max_bytes.into(),
        config.wal.sync_interval.into(),
        match config.persistence {
            Persistence::Sync => "sync",
            Persistence::Async => "async",
        }
        .into(),
        status.syncs.into(),
        status.appended_bytes.into(),
        status.poisoned.into(),
        full_since.into(),
        full_reason.into(),
    ]);
    Ok(())
}
