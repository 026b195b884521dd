//! Rows to digests.

use std::ops::Range;

use arrow_array::{Array, ArrayRef, RecordBatch, UInt64Array, cast::AsArray, types::UInt64Type};
use arrow_schema::Schema;
use tailrace_wal::Seq;
use xxhash_rust::xxh3::xxh3_128;

use super::{
    Digest,
    canonical::{Kind, decoded, fold, hash_u64},
};
use crate::{Chunk, EngineError, IdentityRun, ORDINAL_COLUMN, Ordinal, Result, SEQ_COLUMN, Table};

/// Rows whose sums are held at a time: 16 KiB, so that they stay in the first cache while column after column is added.
const BLOCK_ROWS: usize = 1024;

/// Computes digests of batches with certain columns. Cheap to make and to clone; holds no rows.
///
/// A batch has the hasher's columns in its order; their types may be any encoding of the same kind of value (dictionaries,
/// views, wider integers).
#[derive(Debug, Clone)]
pub struct RowHasher {
    columns: Vec<HashedColumn>,
    seq_key: u64,
    ordinal_key: u64,
}

#[derive(Debug, Clone)]
struct HashedColumn {
    name: String,
    kind: Kind,
    key: u64,
}

/// Where the identities of a batch's rows are.
enum Identities<'a> {
    None,
    Runs(&'a [IdentityRun]),
    Columns(&'a UInt64Array, &'a UInt64Array),
}

impl RowHasher {
    /// For batches with these columns, named and typed. A type that no table can have is refused with its column.
    pub fn new(schema: &Schema) -> Result<Self> {
        let columns = schema.fields().iter().map(|field| {
            let kind = Kind::of(field.data_type());
            let kind = kind.ok_or_else(|| refused(field.name(), field.data_type()))?;
            Ok(HashedColumn { name: field.name().clone(), kind, key: kind.key(field.name()) })
        });
        // As other integers: their names are reserved, so no column has their keys.
        let identity =
            Kind::of(&arrow_schema::DataType::UInt64).map(|kind| (kind.key(SEQ_COLUMN), kind.key(ORDINAL_COLUMN)));
        let (seq_key, ordinal_key) = identity.unwrap_or_default();
        Ok(Self { columns: columns.collect::<Result<_>>()?, seq_key, ordinal_key })
    }

    /// For the rows of a table.
    pub fn of_table(table: &Table) -> Result<Self> {
        Self::new(&table.schema())
    }

    /// Rows without identities: [`Digest::identity`] is 0.
    pub fn values(&self, batch: &RecordBatch) -> Result<Digest> {
        self.digest(batch.columns(), 0..batch.num_rows(), &Identities::None)
    }

    /// Rows of one transaction; the first has this ordinal, the others follow one by one.
    pub fn rows(&self, batch: &RecordBatch, seq: Seq, first_ordinal: Ordinal) -> Result<Digest> {
        let run = IdentityRun { start: 0, seq, first_ordinal };
        self.digest(batch.columns(), 0..batch.num_rows(), &Identities::Runs(&[run]))
    }

    /// A chunk.
    pub fn chunk(&self, chunk: &Chunk) -> Result<Digest> {
        self.chunk_rows(chunk, 0..chunk.batch.num_rows())
    }

    /// Some rows of a chunk.
    pub(crate) fn chunk_rows(&self, chunk: &Chunk, rows: Range<usize>) -> Result<Digest> {
        self.digest(chunk.batch.columns(), rows, &Identities::Runs(&chunk.identities))
    }

    /// Rows whose identities are the two columns behind the others, as in a datafile.
    pub fn with_identity_columns(&self, batch: &RecordBatch) -> Result<Digest> {
        let split = batch.columns().split_at_checked(self.columns.len());
        if let Some((columns, [seqs, ordinals])) = split
            && let (Some(seqs), Some(ordinals)) =
                (seqs.as_primitive_opt::<UInt64Type>(), ordinals.as_primitive_opt::<UInt64Type>())
            && seqs.null_count() + ordinals.null_count() == 0
        {
            return self.digest(columns, 0..batch.num_rows(), &Identities::Columns(seqs, ordinals));
        }
        Err(EngineError::Invalid(format!(
            "rows of {} columns are to have {} and two of identities",
            batch.num_columns(),
            self.columns.len()
        )))
    }

    fn digest(&self, arrays: &[ArrayRef], rows: Range<usize>, identities: &Identities<'_>) -> Result<Digest> {
        if arrays.len() != self.columns.len() {
            return Err(EngineError::Invalid(format!(
                "rows of {} columns are to have {}",
                arrays.len(),
                self.columns.len()
            )));
        }
        let mut decoded_arrays = Vec::with_capacity(arrays.len());
        for (array, column) in arrays.iter().zip(&self.columns) {
            if Kind::of(array.data_type()) != Some(column.kind) {
                return Err(refused(&column.name, array.data_type()));
            }
            decoded_arrays.push(decoded(array).map_err(|error| EngineError::Invalid(error.to_string()))?);
        }
        let mut digest = Digest::default();
        let mut sums = [0u128; BLOCK_ROWS];
        let mut start = rows.start;
        while start < rows.end {
            let block = start..rows.end.min(start + BLOCK_ROWS);
            let sums = &mut sums[..block.len()];
            sums.fill(0);
            for (array, column) in decoded_arrays.iter().zip(&self.columns) {
                if !fold(array, block.clone(), column.key, sums) {
                    return Err(refused(&column.name, array.data_type()));
                }
            }
            digest.rows += block.len() as u64;
            digest.values = digest.values.wrapping_add(finished(sums));
            if self.add_identities(identities, block.clone(), sums) {
                digest.identity = digest.identity.wrapping_add(finished(sums));
            }
            start = block.end;
        }
        Ok(digest)
    }

    /// `false` where the rows have none.
    fn add_identities(&self, identities: &Identities<'_>, rows: Range<usize>, sums: &mut [u128]) -> bool {
        match identities {
            Identities::None => return false,
            Identities::Columns(seqs, ordinals) => {
                let identities = seqs.values()[rows.clone()].iter().zip(&ordinals.values()[rows]);
                for (sum, (seq, ordinal)) in sums.iter_mut().zip(identities) {
                    let identity = hash_u64(*seq, self.seq_key).wrapping_add(hash_u64(*ordinal, self.ordinal_key));
                    *sum = sum.wrapping_add(identity);
                }
            }
            Identities::Runs(runs) => {
                // The run that the first row is in, and those after it.
                let first = runs.partition_point(|run| run.start <= rows.start).saturating_sub(1);
                for (index, run) in runs.iter().enumerate().skip(first).take_while(|(_, run)| run.start < rows.end) {
                    let end = runs.get(index + 1).map_or(rows.end, |next| next.start.min(rows.end));
                    let start = run.start.max(rows.start);
                    let seq = hash_u64(run.seq.0, self.seq_key);
                    let first = run.first_ordinal.0.wrapping_add((start - run.start) as u64);
                    let sums = sums[start - rows.start..end - rows.start].iter_mut();
                    for (sum, offset) in sums.zip(0..) {
                        let ordinal = hash_u64(first.wrapping_add(offset), self.ordinal_key);
                        *sum = sum.wrapping_add(seq).wrapping_add(ordinal);
                    }
                }
            }
        }
        true
    }
}

/// The rows' hashes, added up. Hashing the sum of a row's columns binds them together: with the bare sums, two rows could
/// exchange a value unseen.
fn finished(sums: &[u128]) -> u128 {
    sums.iter().fold(0u128, |total, sum| total.wrapping_add(xxh3_128(&sum.to_le_bytes())))
}

fn refused(column: &str, data_type: &arrow_schema::DataType) -> EngineError {
    EngineError::Unsupported(format!("a digest of column {column:?} as {data_type}"))
}
