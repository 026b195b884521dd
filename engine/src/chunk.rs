//! Chunks: rows in memory with their identities.

use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_select::concat::concat_batches;
use tailrace_wal::Seq;

use crate::Ordinal;

/// A run of rows of one transaction within a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentityRun {
    /// The run's first row in the chunk.
    pub start: usize,
    /// Transaction of these rows.
    pub seq: Seq,
    /// Ordinal of the run's first row; the others follow one by one.
    pub first_ordinal: Ordinal,
}

/// Rows of one partition in memory. Runs are in row order, the first starts at 0; identities increase.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// The rows, in the table's schema.
    pub batch: RecordBatch,
    /// Whose they are.
    pub identities: Vec<IdentityRun>,
}

impl Chunk {
    /// A chunk of one transaction.
    pub fn new(batch: RecordBatch, seq: Seq, first_ordinal: Ordinal) -> Self {
        Self { batch, identities: vec![IdentityRun { start: 0, seq, first_ordinal }] }
    }
}

/// Rows and bytes up to which chunks are merged. Beyond, merging again costs more than one more chunk in a scan.
const MERGED_ROWS_MAX: usize = 64 << 10;
const MERGED_BYTES_MAX: usize = 8 << 20;

/// Adds a chunk at the end, merging it with those before it that are no larger, in sizes like the digits of a binary
/// counter: n small chunks become about log n, and every row is copied about log n times. Merged chunks own their
/// buffers and share none with a log record.
pub(crate) fn push_chunk(chunks: &mut Vec<Arc<Chunk>>, chunk: Chunk) {
    let mut rows = chunk.batch.num_rows();
    let mut bytes = slice_bytes(&chunk);
    let mut first = chunks.len();
    while let Some(before) = first.checked_sub(1).and_then(|index| chunks.get(index)) {
        let (more_rows, more_bytes) = (before.batch.num_rows(), slice_bytes(before));
        if more_rows > rows || rows + more_rows > MERGED_ROWS_MAX || bytes + more_bytes > MERGED_BYTES_MAX {
            break;
        }
        rows += more_rows;
        bytes += more_bytes;
        first -= 1;
    }
    let chunk = Arc::new(chunk);
    let tail: Vec<&Chunk> = chunks[first..].iter().chain([&chunk]).map(Arc::as_ref).collect();
    match merge(&tail) {
        Some(merged) => {
            chunks.truncate(first);
            chunks.push(Arc::new(merged));
        }
        None => chunks.push(chunk),
    }
}

/// One chunk of several, or `None` where there is nothing to merge or arrow cannot.
fn merge(chunks: &[&Chunk]) -> Option<Chunk> {
    if chunks.len() < 2 {
        return None;
    }
    let schema = chunks[0].batch.schema();
    let batch = concat_batches(&schema, chunks.iter().map(|chunk| &chunk.batch)).ok()?;
    let mut identities: Vec<IdentityRun> = Vec::new();
    let mut start = 0;
    for chunk in chunks {
        for run in &chunk.identities {
            let run = IdentityRun { start: start + run.start, ..*run };
            let continues = identities.last().is_some_and(|last| {
                let next = last.first_ordinal.0 + (run.start - last.start) as u64;
                last.seq == run.seq && run.first_ordinal.0 == next
            });
            if !continues {
                identities.push(run);
            }
        }
        start += chunk.batch.num_rows();
    }
    Some(Chunk { batch, identities })
}

/// Bytes of a chunk's own rows, whatever larger buffers they are slices of.
pub(crate) fn slice_bytes(chunk: &Chunk) -> usize {
    let columns = chunk.batch.columns().iter();
    columns
        .map(|column| column.to_data().get_slice_memory_size().unwrap_or(usize::MAX / 2))
        .fold(0, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use arrow_array::{ArrayRef, Int64Array, cast::AsArray, types::Int64Type};

    use super::*;

    fn chunk(seq: u64, first_ordinal: u64, values: std::ops::Range<i64>) -> Chunk {
        let array: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
        Chunk::new(RecordBatch::try_from_iter([("x", array)]).unwrap(), Seq(seq), Ordinal(first_ordinal))
    }

    fn identities(chunks: &[Arc<Chunk>]) -> Vec<(u64, u64, i64)> {
        let mut rows = Vec::new();
        for chunk in chunks {
            let values = chunk.batch.column(0).as_primitive::<Int64Type>().values();
            let ends = chunk.identities.iter().skip(1).map(|run| run.start).chain([values.len()]);
            for (run, end) in chunk.identities.iter().zip(ends) {
                for row in run.start..end {
                    rows.push((run.seq.0, run.first_ordinal.0 + (row - run.start) as u64, values[row]));
                }
            }
        }
        rows
    }

    #[test]
    fn single_rows_become_few_chunks_and_keep_their_identities() {
        let mut chunks = Vec::new();
        let mut copied = 0;
        for seq in 1..=5_000u64 {
            let before: Vec<_> = chunks.clone();
            push_chunk(&mut chunks, chunk(seq, 0, seq as i64..seq as i64 + 1));
            let kept = chunks.iter().filter(|chunk| before.iter().any(|old| Arc::ptr_eq(old, chunk)));
            copied += 5_000.min(seq as usize) - kept.map(|chunk| chunk.batch.num_rows()).sum::<usize>();
        }
        assert!(chunks.len() <= 13, "{} chunks", chunks.len());
        assert!(copied < 5_000 * 13, "{copied} rows copied");
        let expected: Vec<_> = (1..=5_000).map(|seq| (seq, 0, seq as i64)).collect();
        assert_eq!(identities(&chunks), expected);
    }

    #[test]
    fn runs_of_one_transaction_are_fused() {
        let mut chunks = Vec::new();
        push_chunk(&mut chunks, chunk(1, 0, 0..4));
        push_chunk(&mut chunks, chunk(1, 4, 4..8));
        push_chunk(&mut chunks, chunk(1, 9, 9..17));
        assert_eq!(chunks.len(), 1);
        let runs: Vec<_> = chunks[0].identities.iter().map(|run| (run.start, run.first_ordinal.0)).collect();
        assert_eq!(runs, [(0, 0), (8, 9)]);
        assert_eq!(identities(&chunks).last(), Some(&(1, 16, 16)));
    }

    #[test]
    fn large_chunks_stay_as_they_are() {
        let mut chunks = Vec::new();
        let rows = MERGED_ROWS_MAX as i64;
        for seq in 0..4 {
            push_chunk(&mut chunks, chunk(seq, 0, 0..rows));
        }
        assert_eq!(chunks.len(), 4);
        // A small one does not drag a large one along.
        push_chunk(&mut chunks, chunk(9, 0, 0..1));
        assert_eq!(chunks.len(), 5);
    }

    #[test]
    fn a_slice_weighs_its_own_rows() {
        let whole = chunk(1, 0, 0..1_000);
        let slice = Chunk::new(whole.batch.slice(500, 10), Seq(1), Ordinal(500));
        assert_eq!((slice_bytes(&whole), slice_bytes(&slice)), (8_000, 80));
    }
}
