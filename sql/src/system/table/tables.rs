//! `system.tables`: what each table is and how large.

use tailrace_engine::{Table, partition::Transform};

use super::{PartitionFigures, SystemTable, sorted_tables};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "tables",
    columns: &[
        ("database", Kind::Text),
        ("name", Kind::Text),
        ("table_id", Kind::Int),
        ("schema_version", Kind::Int),
        ("columns", Kind::Int),
        ("partition_by", Kind::Text),
        ("order_by", Kind::Text),
        ("rows", Kind::Int),
        ("hot_rows", Kind::Int),
        ("partitions", Kind::Int),
        ("datafiles", Kind::Int),
        ("bytes", Kind::Int),
        // Why its rows are not on this replica; NULL: they are.
        ("left_out", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for database in context.version.databases() {
        for version in sorted_tables(database) {
            let table = &version.table;
            let left_out = database.why_left_out(version);
            let figures = version
                .partitions()
                .map(|(_, partition)| PartitionFigures::of(partition))
                .fold(PartitionFigures::default(), PartitionFigures::add);
            rows.push([
                (&database.name).into(),
                (&table.name).into(),
                table.id.0.into(),
                table.schema_version.0.into(),
                table.columns.len().into(),
                partition_by(table).into(),
                order_by(table).into(),
                // Unknown is not empty.
                left_out.is_none().then(|| version.rows()).into(),
                figures.hot_rows.into(),
                version.partitions().count().into(),
                figures.datafiles.into(),
                figures.bytes.into(),
                left_out.map(|left_out| left_out.reason).into(),
            ]);
        }
    }
    Ok(())
}

/// As CREATE TABLE spells it: `day(datetime), security_id`.
fn partition_by(table: &Table) -> Option<String> {
    let fields = table.partition_by.iter().map(|(transform, column)| match (transform, name(table, *column)) {
        (Transform::Identity, name) => name.to_owned(),
        (transform, name) => format!("{}({name})", transform.name()),
    });
    non_empty(fields)
}

fn order_by(table: &Table) -> Option<String> {
    non_empty(table.order_by.iter().map(|column| name(table, *column).to_owned()))
}

fn non_empty(parts: impl Iterator<Item = String>) -> Option<String> {
    let parts: Vec<_> = parts.collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn name(table: &Table, column: tailrace_engine::ColumnId) -> &str {
    table.column(column).map_or("?", |column| column.name.as_str())
}
