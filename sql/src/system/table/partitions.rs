//! `system.partitions`: the partitions that rows created.

use super::{PartitionFigures, SystemTable, partition_name, sorted_tables};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "partitions",
    columns: &[
        ("database", Kind::Text),
        ("table", Kind::Text),
        ("partition", Kind::Text),
        ("rows", Kind::Int),
        ("hot_rows", Kind::Int),
        ("datafiles", Kind::Int),
        ("bytes", Kind::Int),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for database in context.version.databases() {
        for table in sorted_tables(database) {
            for (key, partition) in table.partitions() {
                let figures = PartitionFigures::of(partition);
                rows.push([
                    (&database.name).into(),
                    (&table.table.name).into(),
                    partition_name(&table.scheme, key)?.into(),
                    partition.rows().into(),
                    figures.hot_rows.into(),
                    figures.datafiles.into(),
                    figures.bytes.into(),
                ]);
            }
        }
    }
    Ok(())
}
