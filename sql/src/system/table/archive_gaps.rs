//! `system.archive_gaps`: what the archive of the log lacks, a row per gap and history; one row without a history for
//! a gap in which no transaction is known to be missing.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows, Value},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "archive_gaps",
    columns: &[
        ("first_lsn", Kind::Int),
        ("last_lsn", Kind::Int),
        ("database", Kind::Text),
        ("history_id", Kind::Text),
        ("first_seq", Kind::Int),
        ("last_seq", Kind::Int),
        ("reason", Kind::Text),
        ("found_at", Kind::Time),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let engine = &context.instance.engine;
    let Some(archive) = engine.archive() else { return Ok(()) };
    for gap in archive.gaps() {
        let missing = gap.histories.iter().map(|missing| {
            let name = engine.history(missing.history).map(|history| history.name);
            [name.into(), missing.history.to_string().into(), missing.after.next().into(), missing.upto.into()]
        });
        let mut missing: Vec<[Value; 4]> = missing.collect();
        if missing.is_empty() {
            missing.push([Value::Null, Value::Null, Value::Null, Value::Null]);
        }
        for [database, history, first, last] in missing {
            rows.push([
                gap.from.into(),
                gap.to.into(),
                database,
                history,
                first,
                last,
                (&gap.reason).into(),
                gap.found_at.into(),
            ]);
        }
    }
    Ok(())
}
