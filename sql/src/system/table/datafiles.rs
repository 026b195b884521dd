//! `system.datafiles`: the Parquet files that hold the rows at rest.

use super::{SystemTable, partition_name, sorted_tables};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows},
};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "datafiles",
    columns: &[
        ("database", Kind::Text),
        ("table", Kind::Text),
        ("partition", Kind::Text),
        ("path", Kind::Text),
        ("bytes", Kind::Int),
        ("rows", Kind::Int),
        ("first_seq", Kind::Int),
        ("last_seq", Kind::Int),
        ("schema_version", Kind::Int),
        ("identity_bytes", Kind::Int),
        ("hash", Kind::Text),
    ],
    rows,
};

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    for database in context.version.databases() {
        for table in sorted_tables(database) {
            for (key, partition) in table.partitions() {
                let name = partition_name(&table.scheme, key)?;
                for datafile in &partition.datafiles {
                    let meta = &datafile.meta;
                    rows.push([
                        (&database.name).into(),
                        (&table.table.name).into(),
                        name.clone().into(),
                        (&meta.path.0).into(),
                        meta.bytes.into(),
                        meta.rows.into(),
                        meta.seqs.0.into(),
                        meta.seqs.1.into(),
                        meta.schema_version.0.into(),
                        meta.identity_bytes.into(),
                        (&meta.hash).into(),
                    ]);
                }
            }
        }
    }
    Ok(())
}
