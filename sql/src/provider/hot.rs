//! Rows in memory.

use std::sync::Arc;

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    catalog::Session,
    common::Result,
    datasource::{memory::MemorySourceConfig, source::DataSourceExec},
    physical_plan::ExecutionPlan,
};
use tailrace_engine::Chunk;

/// Fewest rows for which another thread is worth it.
const SHARE_ROWS: usize = 8192;

/// Scans chunks, divided evenly among the query's threads.
pub(super) fn scan(
    state: &dyn Session,
    schema: &SchemaRef,
    chunks: &[Arc<Chunk>],
    projection: Option<&Vec<usize>>,
    limit: Option<usize>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let batches = chunks.iter().map(|chunk| RecordBatch::try_new(schema.clone(), chunk.batch.columns().to_vec()));
    let batches: Vec<_> = batches.collect::<Result<_, _>>()?;
    let shares = divide(batches, state.config().target_partitions());
    let source = MemorySourceConfig::try_new(&shares, schema.clone(), projection.cloned())?.with_limit(limit);
    Ok(Arc::new(DataSourceExec::new(Arc::new(source))))
}

/// Divides rows into at most `most` shares of about the same size; batches are cut without copying.
fn divide(batches: Vec<RecordBatch>, most: usize) -> Vec<Vec<RecordBatch>> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let count = (rows / SHARE_ROWS).clamp(1, most.max(1));
    let size = rows.div_ceil(count).max(1);
    let mut shares = vec![Vec::new(); count];
    let (mut share, mut room) = (0, size);
    for batch in batches {
        let mut start = 0;
        while start < batch.num_rows() {
            if room == 0 {
                (share, room) = ((share + 1).min(count - 1), size);
            }
            let length = room.min(batch.num_rows() - start);
            shares[share].push(batch.slice(start, length));
            start += length;
            room -= length;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::{
        array::{AsArray, Int32Array},
        datatypes::{DataType, Field, Int32Type, Schema},
    };

    use super::*;

    #[test]
    fn shares_are_even_and_complete() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, false)]));
        let batch = |from: i32, to: i32| {
            RecordBatch::try_new(schema.clone(), vec![Arc::new(Int32Array::from_iter_values(from..to))]).unwrap()
        };
        let shares = divide(vec![batch(0, 90_000), batch(90_000, 90_010), batch(90_010, 100_001)], 3);
        let sizes: Vec<usize> = shares.iter().map(|share| share.iter().map(RecordBatch::num_rows).sum()).collect();
        assert_eq!(sizes, [33_334, 33_334, 33_333]);
        let all =
            shares.iter().flatten().flat_map(|batch| batch.column(0).as_primitive::<Int32Type>().values().to_vec());
        assert!(all.eq(0..100_001));
        assert_eq!(divide(vec![batch(0, 5)], 8).len(), 1);
    }
}
