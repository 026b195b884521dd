//! `system.dead_letters`: tasks that were skipped on this replica, and where what they do is kept.

use super::SystemTable;
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "dead_letters",
    columns: &[
        ("database", Kind::Text),
        ("history_id", Kind::Text),
        ("task_id", Kind::Int),
        ("operation_type", Kind::Text),
        ("table", Kind::Text),
        ("rows", Kind::Int),
        ("bytes", Kind::Int),
        ("commit_time", Kind::Time),
        ("reason", Kind::Text),
        ("skipped_at", Kind::Time),
        ("location", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for database in context.version.databases() {
        for letter in database.dead_letters() {
            let tables: Vec<&str> = letter.tables.iter().map(|(_, name)| name.as_str()).collect();
            rows.push([
                (&database.name).into(),
                database.id.to_string().into(),
                letter.seq.into(),
                letter.operation_name().into(),
                (!tables.is_empty()).then(|| tables.join(", ")).into(),
                letter.rows.into(),
                letter.bytes.into(),
                letter.commit_time.into(),
                (&letter.reason).into(),
                letter.skipped_at.into(),
                context.instance.engine.dead_letter_path(database.id, letter.seq).display().to_string().into(),
            ]);
        }
    }
    Ok(())
}
