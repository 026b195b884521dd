//! A feed's rows: pieces of transactions, and the batches made of them.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow_select::concat::concat;
use tailrace_wal::{CommitTime, Seq};

use crate::{Column, EngineError, ORDINAL_COLUMN, Ordinal, Result, SEQ_COLUMN};

/// When the row's transaction was committed.
pub const COMMIT_TIME_COLUMN: &str = "_commit_time";
/// What happened: [`INSERT`] or [`DROP_PARTITION`].
pub const OPERATION_COLUMN: &str = "_op";
/// The row was added.
pub const INSERT: &str = "insert";
/// All earlier rows of a partition went; rows of the same transaction that follow are in their place. The row tells which
/// partition: its columns hold the first value that belongs there (the value itself, or the first moment of the year,
/// month, day or hour), NULL for the partition of NULLs; all other columns are NULL. Its ordinal is that of the
/// transaction's next row.
pub const DROP_PARTITION: &str = "drop_partition";
/// What a feed adds before a table's own columns: two 64-bit integers, a moment in UTC microseconds, a word.
pub const FEED_COLUMNS: [&str; 4] = [SEQ_COLUMN, ORDINAL_COLUMN, COMMIT_TIME_COLUMN, OPERATION_COLUMN];

/// Rows that are enough for a batch.
const ROWS: usize = 8192;
/// Bytes that are.
const BYTES: usize = 1 << 20;

/// Rows of one part.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) seq: Seq,
    pub(super) commit_time: CommitTime,
    pub(super) first_ordinal: Ordinal,
    pub(super) operation: &'static str,
    /// The wanted columns of the table.
    pub(super) columns: Vec<ArrayRef>,
    pub(super) rows: usize,
    /// Of the part that they are from.
    pub(super) bytes: usize,
}

/// Rows that wait to become a batch.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pieces: Vec<Piece>,
    rows: usize,
    bytes: usize,
}

/// The schema of a feed with these columns of a table. They are nullable whatever the table says: a row may have been
/// written before a column was added, and a row that is deleted is given by its key.
pub fn feed_schema(columns: &[&Column]) -> SchemaRef {
    let types = [
        DataType::Int64,
        DataType::Int64,
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::Utf8,
    ];
    let feed = FEED_COLUMNS.into_iter().zip(types).map(|(name, data_type)| Field::new(name, data_type, false));
    let own = columns.iter().map(|column| Field::new(&column.name, column.data_type.clone(), true));
    Arc::new(Schema::new(feed.chain(own).collect::<Vec<_>>()))
}

impl Pending {
    pub(super) fn extend(&mut self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.rows += piece.rows;
            self.bytes += piece.bytes;
            self.pieces.push(piece);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.rows >= ROWS || self.bytes >= BYTES
    }

    /// Everything as one batch.
    pub(super) fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch> {
        let Self { pieces, rows, .. } = std::mem::take(self);
        let failed = |error: arrow_schema::ArrowError| EngineError::Invalid(error.to_string());
        let each = |value: fn(&Piece, i64) -> i64| {
            let values = pieces.iter().flat_map(move |piece| (0..piece.rows as i64).map(move |row| value(piece, row)));
            values.collect::<Vec<i64>>()
        };
        let times = TimestampMicrosecondArray::from(each(|piece, _| piece.commit_time.0)).with_timezone("UTC");
        let operations: Vec<&str> =
            pieces.iter().flat_map(|piece| std::iter::repeat_n(piece.operation, piece.rows)).collect();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(each(|piece, _| signed(piece.seq.0)))),
            Arc::new(Int64Array::from(each(|piece, row| signed(piece.first_ordinal.0).saturating_add(row)))),
            Arc::new(times),
            Arc::new(StringArray::from(operations)),
        ];
        for index in 0..schema.fields().len() - FEED_COLUMNS.len() {
            columns.push(match &pieces[..] {
                [piece] => piece.columns[index].clone(),
                pieces => {
                    let arrays: Vec<_> = pieces.iter().map(|piece| &*piece.columns[index]).collect();
                    concat(&arrays).map_err(failed)?
                }
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(failed)
    }
}

/// Clients have no other 64-bit integers.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
