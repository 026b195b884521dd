//! The identity columns of chunks.

use arrow_array::UInt64Array;
use tailrace_wal::Seq;

use crate::Chunk;

/// Seq and ordinal of every row.
pub(super) fn columns(chunk: &Chunk) -> (UInt64Array, UInt64Array) {
    let rows = chunk.batch.num_rows();
    let (mut seqs, mut ordinals) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    let ends = chunk.identities.iter().skip(1).map(|run| run.start).chain([rows]);
    for (run, end) in chunk.identities.iter().zip(ends) {
        let length = end.saturating_sub(run.start);
        seqs.resize(seqs.len() + length, run.seq.0);
        ordinals.extend((run.first_ordinal.0..).take(length));
    }
    (seqs.into(), ordinals.into())
}

/// Smallest and largest seq.
pub(super) fn seqs(chunks: &[Chunk]) -> (Seq, Seq) {
    let seqs = || chunks.iter().flat_map(|chunk| &chunk.identities).map(|run| run.seq);
    (seqs().min().unwrap_or_default(), seqs().max().unwrap_or_default())
}
