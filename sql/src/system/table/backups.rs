//! `system.backups`, and `get_backup_status()`: backups, restores, checks and prunes of this node, under way and lately.

use tailrace_engine::{BackupState, BackupStatus};

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Columns, Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable { name: "backups", columns: COLUMNS, rows };

pub(in crate::system) const COLUMNS: Columns = &[
    ("kind", Kind::Text),
    ("backup", Kind::Text),
    ("url", Kind::Text),
    ("state", Kind::Text),
    ("started", Kind::Time),
    ("elapsed_seconds", Kind::Float),
    ("percent", Kind::Float),
    // At the speed so far.
    ("remaining_seconds", Kind::Float),
    ("files", Kind::Int),
    ("files_done", Kind::Int),
    ("bytes", Kind::Int),
    ("bytes_done", Kind::Int),
    ("rows", Kind::Int),
    ("rows_done", Kind::Int),
    ("reason", Kind::Text),
];

pub(in crate::system) fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for status in context.instance.engine.backup_tasks() {
        let (percent, remaining) = (status.percent(), status.remaining());
        let BackupStatus { kind, backup, location, state, started, elapsed, files, bytes, rows: counted } = status;
        let reason = match &state {
            BackupState::Failed(reason) => Some(reason.clone()),
            _ => None,
        };
        rows.push([
            kind.name().into(),
            Some(backup).filter(|backup| !backup.is_empty()).into(),
            location.into(),
            state.name().into(),
            started.into(),
            elapsed.into(),
            percent.into(),
            remaining.into(),
            files.0.into(),
            files.1.into(),
            bytes.0.into(),
            bytes.1.into(),
            counted.0.into(),
            counted.1.into(),
            reason.into(),
        ]);
    }
    Ok(())
}
