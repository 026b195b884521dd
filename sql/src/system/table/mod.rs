//! The tables of schema `system`, one file each.

mod archive;
mod archive_gaps;
pub(super) mod backups;
mod databases;
mod datafiles;
mod dead_letters;
mod disk;
mod followed;
mod job_runs;
mod jobs;
mod memory;
mod partitions;
mod pins;
mod remote_clusters;
mod replicas;
mod rights;
mod settings;
mod subscriptions;
mod synchronizations;
mod tables;
mod tasks;
mod wal;

use super::computed::{Columns, Context, Rows};
use crate::Result;

/// A system table.
pub(super) struct SystemTable {
    /// Its name in the schema.
    pub(super) name: &'static str,
    /// Its columns.
    pub(super) columns: Columns,
    /// Computes its rows.
    pub(super) rows: fn(&Context<'_>, &mut Rows) -> Result<()>,
}

/// All of them.
pub(super) const ALL: &[SystemTable] = &[
    archive::TABLE,
    archive_gaps::TABLE,
    backups::TABLE,
    databases::TABLE,
    datafiles::TABLE,
    dead_letters::TABLE,
    disk::TABLE,
    followed::TABLE,
    job_runs::TABLE,
    jobs::TABLE,
    memory::TABLE,
    partitions::TABLE,
    pins::TABLE,
    remote_clusters::TABLE,
    replicas::TABLE,
    rights::TABLE,
    settings::TABLE,
    subscriptions::TABLE,
    synchronizations::TABLE,
    tables::TABLE,
    tasks::TABLE,
    wal::TABLE,
];

/// A partition's values in words, `datetime_day=2023-01-08`; NULL for the one partition of an unpartitioned table.
pub(crate) fn partition_name(
    scheme: &tailrace_engine::PartitionScheme,
    key: &tailrace_engine::PartitionKey,
) -> Result<Option<String>> {
    let values = scheme.describe(key)?;
    let values = values.iter().map(|(field, value)| format!("{field}={}", value.as_deref().unwrap_or("NULL")));
    Ok(Some(values.collect::<Vec<_>>().join(", ")).filter(|name| !name.is_empty()))
}

/// Bytes and rows of a partition.
#[derive(Debug, Default, Clone, Copy)]
struct PartitionFigures {
    /// Rows not in a datafile yet.
    hot_rows: u64,
    datafiles: u64,
    /// Bytes of its datafiles.
    bytes: u64,
}

impl PartitionFigures {
    fn of(partition: &tailrace_engine::PartitionVersion) -> Self {
        Self {
            hot_rows: partition.chunks.iter().map(|chunk| chunk.batch.num_rows() as u64).sum(),
            datafiles: partition.datafiles.len() as u64,
            bytes: partition.datafiles.iter().map(|datafile| datafile.meta.bytes).sum(),
        }
    }

    fn add(self, other: Self) -> Self {
        Self {
            hot_rows: self.hot_rows + other.hot_rows,
            datafiles: self.datafiles + other.datafiles,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Tables of a database by name.
fn sorted_tables(database: &tailrace_engine::DatabaseVersion) -> Vec<&std::sync::Arc<tailrace_engine::TableVersion>> {
    let mut tables: Vec<_> = database.tables().collect();
    tables.sort_by(|left, right| left.table.name.cmp(&right.table.name));
    tables
}
