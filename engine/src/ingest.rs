//! Ingest: rows become parts. Splitting, encoding and hashing run on blocking threads, a few slices at a time, and come
//! back in the order of the rows.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
};

use arrow_array::{Array as _, RecordBatch};
use tailrace_wal::{FRAME_BYTES_MAX, Part, PartEntry, PartHash};
use tokio::task::JoinHandle;

use crate::{EngineError, Operation, Ordinal, PartitionKey, Result, TableVersion, effect::Append, encode_part};

/// Rows that one job splits and encodes, bytes: large enough for partitions to stay together, small enough to share
/// the work and to start writing early.
const SLICE_BYTES: usize = 16 << 20;
/// Below this, a job costs more than it saves.
const INLINE_BYTES: usize = 64 << 10;
/// Largest part but for single rows, bytes: a fragment takes several.
const PART_BYTES: usize = 2 << 20;
/// Largest part at all: one frame, less its header and directory.
const PART_BYTES_MAX: usize = FRAME_BYTES_MAX - (256 << 10);

/// A part and the rows that it carries. Ordinals are given when it is taken in order.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) part: Part,
    pub(crate) append: Append,
}

/// Slices on their way, in the order of their rows.
#[derive(Debug, Default)]
pub(crate) struct Ingest {
    queue: VecDeque<Slice>,
}

#[derive(Debug)]
enum Slice {
    Encoded(Vec<Encoded>),
    Encoding(JoinHandle<Result<Vec<Encoded>>>),
}

impl Ingest {
    /// Queues a batch of the table's schema. Returns the encoded parts that are ready to be taken.
    pub(crate) async fn push(&mut self, table: &Arc<TableVersion>, batch: RecordBatch) -> Result<Vec<Encoded>> {
        let mut ready = Vec::new();
        for slice in slices(batch) {
            if batch_bytes(&slice) <= INLINE_BYTES {
                self.queue.push_back(Slice::Encoded(encode(table, &slice)?));
            } else {
                let table = table.clone();
                self.queue.push_back(Slice::Encoding(tokio::task::spawn_blocking(move || encode(&table, &slice))));
            }
            while self.queue.len() > workers() || matches!(self.queue.front(), Some(Slice::Encoded(_))) {
                ready.extend(self.next().await?);
            }
        }
        Ok(ready)
    }

    /// Everything that is still queued.
    pub(crate) async fn finish(&mut self) -> Result<Vec<Encoded>> {
        let mut ready = Vec::new();
        while !self.queue.is_empty() {
            ready.extend(self.next().await?);
        }
        Ok(ready)
    }

    async fn next(&mut self) -> Result<Vec<Encoded>> {
        match self.queue.pop_front() {
            None => Ok(Vec::new()),
            Some(Slice::Encoded(parts)) => Ok(parts),
            Some(Slice::Encoding(job)) => match job.await {
                Ok(parts) => parts,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(EngineError::Closed),
            },
        }
    }
}

fn workers() -> usize {
    // Asking costs file reads on Linux.
    static WORKERS: OnceLock<usize> = OnceLock::new();
    *WORKERS.get_or_init(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get).min(8))
}

/// Bytes of a batch's rows, whatever larger buffers they are slices of.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0)).sum()
}

fn slices(batch: RecordBatch) -> Vec<RecordBatch> {
    cut(batch.num_rows(), batch_bytes(&batch), SLICE_BYTES).map(|(start, rows)| batch.slice(start, rows)).collect()
}

/// Cuts rows into equal runs of at most about `limit` bytes each.
fn cut(rows: usize, bytes: usize, limit: usize) -> impl Iterator<Item = (usize, usize)> {
    let pieces = bytes.div_ceil(limit).clamp(1, rows.max(1));
    let step = rows.div_ceil(pieces).max(1);
    (0..rows).step_by(step).map(move |start| (start, step.min(rows - start)))
}

fn encode(table: &TableVersion, slice: &RecordBatch) -> Result<Vec<Encoded>> {
    let mut encoded = Vec::new();
    for (key, rows) in table.scheme.split(slice)? {
        for (start, length) in cut(rows.num_rows(), batch_bytes(&rows), PART_BYTES) {
            encode_rows(table, &key, rows.slice(start, length), &mut encoded)?;
        }
    }
    Ok(encoded)
}

/// Encodes rows as one part, or as two where it would not fit a frame (rows of very different lengths).
fn encode_rows(table: &TableVersion, key: &PartitionKey, batch: RecordBatch, into: &mut Vec<Encoded>) -> Result<()> {
    let rows = batch.num_rows();
    let pieces = encode_part(&batch)?;
    let length: usize = pieces.iter().map(bytes::Bytes::len).sum();
    if length > 2 * PART_BYTES && rows > 1 {
        drop(pieces);
        encode_rows(table, key, batch.slice(0, rows / 2), into)?;
        return encode_rows(table, key, batch.slice(rows / 2, rows - rows / 2), into);
    }
    if length > PART_BYTES_MAX {
        return Err(EngineError::Invalid(format!(
            "a row of table {:?} has {length} bytes; the most that a row may have is {PART_BYTES_MAX}",
            table.table.name
        )));
    }
    let too_long = || EngineError::Invalid(format!("{rows} rows or {length} bytes are too much for one part"));
    let entry = PartEntry {
        table: table.table.id.0,
        schema_version: table.table.schema_version.0,
        operation: Operation::Append.code(),
        first_ordinal: 0,
        rows: u32::try_from(rows).map_err(|_| too_long())?,
        length: u32::try_from(length).map_err(|_| too_long())?,
        hash: PartHash::default(),
        partition: key.0.clone(),
    };
    into.push(Encoded {
        part: Part::new(entry, pieces)?,
        append: Append {
            table: table.table.id,
            schema_version: table.table.schema_version,
            key: key.clone(),
            first_ordinal: Ordinal(0),
            batch,
        },
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_all_rows_in_order() {
        for (rows, bytes, limit) in [(0, 0, 10), (1, 1000, 10), (7, 21, 10), (100, 99, 100), (1000, 12_345, 1000)] {
            let runs: Vec<_> = cut(rows, bytes, limit).collect();
            let mut next = 0;
            for (start, length) in &runs {
                assert_eq!(*start, next);
                next += length;
            }
            assert_eq!(next, rows);
            assert!(runs.len() <= bytes.div_ceil(limit).max(1) + 1);
        }
    }
}
