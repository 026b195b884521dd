//! Writes a datafile.

use std::sync::Arc;

use object_store::ObjectStore;

use crate::{Chunk, DatafileMeta, Result, Table, partition::DatafilePath};

/// What to write.
#[derive(Debug)]
pub struct WriteRequest<'a> {
    /// Whose rows.
    pub table: &'a Table,
    /// Where; unique.
    pub path: DatafilePath,
    /// The rows of one partition, in identity order.
    pub chunks: &'a [Chunk],
}

/// Sorts the rows by the table's ORDER BY (ties and tables without one: by identity), writes them as Parquet (zstd 1,
/// page statistics, field ids) with the two identity columns, and returns once the object is durable. CPU work runs
/// on blocking threads.
pub async fn write_datafile(_store: &Arc<dyn ObjectStore>, _request: WriteRequest<'_>) -> Result<DatafileMeta> {
    todo!()
}
