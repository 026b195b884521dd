//! A table's partitioning at work.

use arrow_array::{ArrayRef, RecordBatch};

use crate::{ColumnId, PartitionKey, Result, Table};

/// Smallest and largest value that a column can have within one partition: arrays of one value of the column's type.
#[derive(Debug, Clone)]
pub struct ColumnBounds {
    /// Source column of a partition field.
    pub column: ColumnId,
    /// Inclusive; `None` when the partition's value is NULL.
    pub min: Option<ArrayRef>,
    /// Inclusive; `None` when the partition's value is NULL.
    pub max: Option<ArrayRef>,
}

/// Evaluates a table's partition fields.
#[derive(Debug, Clone)]
pub struct PartitionScheme {
    _private: (),
}

impl PartitionScheme {
    /// The scheme of a table; column types were checked by [`Table::create`].
    pub fn new(_table: &Table) -> Result<Self> {
        todo!()
    }

    /// Splits a batch of the table's schema by partition, keeping row order within each; the common case of one
    /// partition is found without copying.
    pub fn split(&self, _batch: &RecordBatch) -> Result<Vec<(PartitionKey, RecordBatch)>> {
        todo!()
    }

    /// Names and readable values of a key, one per partition field: `("datetime_day", Some("2023-01-08"))`; `None` is
    /// NULL. An error for bytes that are no key of this scheme.
    pub fn describe(&self, _key: &PartitionKey) -> Result<Vec<(String, Option<String>)>> {
        todo!()
    }

    /// What a key says of the source columns, for pruning.
    pub fn bounds(&self, _key: &PartitionKey) -> Result<Vec<ColumnBounds>> {
        todo!()
    }
}
