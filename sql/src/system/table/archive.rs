//! `system.archive`: how archiving of the log goes; no row when it is not archived.

use tailrace_wal::ArchiveState;

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "archive",
    columns: &[
        ("url", Kind::Text),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("since", Kind::Time),
        ("archived_lsn", Kind::Int),
        ("segments", Kind::Int),
        ("raw_bytes", Kind::Int),
        ("stored_bytes", Kind::Int),
        // What is durable here and not archived.
        ("lag_records", Kind::Int),
        ("lag_bytes", Kind::Int),
        ("lag_seconds", Kind::Float),
        // Whether the log keeps what is not archived, as for a replica's pin.
        ("pin_state", Kind::Text),
        ("pin_reason", Kind::Text),
        ("gaps", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    let (Some(status), Some(config)) = (engine.archive_status(), &engine.config().archive) else { return Ok(()) };
    let state = match status.state {
        ArchiveState::Starting => "STARTING",
        ArchiveState::Running => "RUNNING",
        ArchiveState::Failing => "FAILING",
        ArchiveState::Stopped => "STOPPED",
    };
    rows.push([
        config.url.as_str().into(),
        state.into(),
        status.reason.into(),
        status.since.into(),
        status.archived.into(),
        status.segments.into(),
        status.raw_bytes.into(),
        status.stored_bytes.into(),
        status.lag_records.into(),
        status.lag_bytes.into(),
        status.lag.into(),
        if status.lost.is_some() { "LOST" } else { "RESERVED" }.into(),
        status.lost.into(),
        status.gaps.len().into(),
    ]);
    Ok(())
}
