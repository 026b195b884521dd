//! Chunks: rows in memory with their identities.

use arrow_array::RecordBatch;
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
