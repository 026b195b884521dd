//! What a synchronization did.

use std::sync::Arc;

use datafusion::arrow::{
    array::{ArrayRef, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use tailrace_engine::{PartitionKey, Table};

use super::plan::Item;
use crate::Result;

/// What became of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It was equal: nothing was moved.
    Equal,
    /// It was not here.
    Copied,
    /// It was another.
    Replaced,
    /// It was here alone.
    Removed,
    /// It is here alone, and was left as it is.
    Extra,
    /// Of a dry run: it would come.
    Copy,
    /// Of a dry run: it would be made equal.
    Replace,
    /// Of a dry run: it would go.
    Remove,
}

impl Action {
    /// As the procedure shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "EQUAL",
            Self::Copied => "COPIED",
            Self::Replaced => "REPLACED",
            Self::Removed => "REMOVED",
            Self::Extra => "EXTRA",
            Self::Copy => "COPY",
            Self::Replace => "REPLACE",
            Self::Remove => "REMOVE",
        }
    }

    /// What is said of it before it is done.
    fn to_do(self) -> Self {
        match self {
            Self::Copied => Self::Copy,
            Self::Replaced => Self::Replace,
            Self::Removed => Self::Remove,
            other => other,
        }
    }

    /// Whether nothing is done.
    pub(super) fn is_quiet(self) -> bool {
        matches!(self, Self::Equal | Self::Extra)
    }
}

/// One partition of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedPartition {
    /// Which.
    pub key: PartitionKey,
    /// What became of it.
    pub action: Action,
    /// Rows that came from the other side, or would come; of one that is removed, those that go.
    pub rows: u64,
    /// Bytes of those that came, as Arrow; 0 in a dry run.
    pub bytes: u64,
}

impl ReportedPartition {
    pub(super) fn left_alone(item: &Item) -> Self {
        Self { key: item.key.clone(), action: item.action, rows: 0, bytes: 0 }
    }

    pub(super) fn to_do(item: &Item) -> Self {
        let rows = if item.action == Action::Removed { item.here.rows } else { item.there.rows };
        Self { key: item.key.clone(), action: item.action.to_do(), rows, bytes: 0 }
    }
}

/// All partitions of both sides, in key order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One each.
    pub partitions: Vec<ReportedPartition>,
    /// The table that would be made, where a dry run found none.
    pub made: Option<Table>,
}

impl Report {
    /// The rows of the procedure: partition, action, rows, bytes. `name` shows a key.
    pub(crate) fn batch(&self, name: impl Fn(&PartitionKey) -> Result<Option<String>>) -> Result<RecordBatch> {
        let names = self.partitions.iter().map(|partition| name(&partition.key)).collect::<Result<StringArray>>()?;
        let numbers = |of: fn(&ReportedPartition) -> u64| -> ArrayRef {
            let number = |partition| i64::try_from(of(partition)).unwrap_or(i64::MAX);
            Arc::new(Int64Array::from_iter_values(self.partitions.iter().map(number)))
        };
        let actions = self.partitions.iter().map(|partition| partition.action.name());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(names),
            Arc::new(StringArray::from_iter_values(actions)),
            numbers(|partition| partition.rows),
            numbers(|partition| partition.bytes),
        ];
        Ok(RecordBatch::try_new(schema(), columns)?)
    }
}

/// The columns of the procedure's rows.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("partition", DataType::Utf8, true),
        Field::new("action", DataType::Utf8, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("bytes", DataType::Int64, false),
    ]))
}
