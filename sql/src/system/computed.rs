//! Tables whose rows are computed when they are read.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{
            ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, RecordBatchOptions, StringBuilder,
            TimestampMicrosecondBuilder,
        },
        datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit},
    },
    catalog::{Session, TableProvider},
    common::Result,
    datasource::memory::MemorySourceConfig,
    logical_expr::{Expr, TableType},
    physical_plan::ExecutionPlan,
};
use futures::future::BoxFuture;
use tailrace_engine::Version;
use tailrace_wal::{CommitTime, Lsn, Seq};

use crate::{
    Instance, SqlError,
    provider::{Leaf, PinnedVersion, external},
};

/// Type of a column. All numbers are signed, as clients have no others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text.
    Text,
    /// 64-bit integer.
    Int,
    /// Double.
    Float,
    /// Boolean.
    Bool,
    /// Moment, microseconds, UTC.
    Time,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Bool => DataType::Boolean,
            Self::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }
}

/// Columns of a table, in order.
pub(crate) type Columns = &'static [(&'static str, Kind)];

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// NULL of any type.
    Null,
    Text(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    Time(CommitTime),
}

macro_rules! values {
    ($($from:ty => $value:expr;)*) => {
        $(impl From<$from> for Value {
            fn from(from: $from) -> Self {
                let make: fn($from) -> Self = $value;
                make(from)
            }
        })*
    };
}

values! {
    &str => |text| Self::Text(text.to_owned());
    &String => |text| Self::Text(text.clone());
    String => Self::Text;
    i64 => Self::Int;
    // Counts beyond what clients can hold are shown as the largest that they can.
    u64 => |count| Self::Int(i64::try_from(count).unwrap_or(i64::MAX));
    u32 => |count| Self::Int(count.into());
    usize => |count| Self::Int(i64::try_from(count).unwrap_or(i64::MAX));
    f64 => Self::Float;
    bool => Self::Bool;
    CommitTime => Self::Time;
    Seq => |seq| seq.0.into();
    Lsn => |lsn| lsn.0.into();
    std::time::Duration => |duration| Self::Float(duration.as_secs_f64());
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Rows of a table under way.
#[derive(Debug)]
pub(crate) struct Rows {
    columns: Columns,
    rows: Vec<Vec<Value>>,
}

impl Rows {
    /// None yet.
    pub(crate) fn new(columns: Columns) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row: as many values as the table has columns, of their types.
    pub(crate) fn push<const N: usize>(&mut self, row: [Value; N]) {
        self.push_row(row.into());
    }

    /// The same, where a row is put together.
    pub(crate) fn push_row(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row has a value for each column");
        self.rows.push(row);
    }

    /// All of them; `schema` is that of the columns.
    pub(crate) fn batch(self, schema: &SchemaRef) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        let columns = self.columns.iter().enumerate().map(|(index, (_, kind))| {
            let values = self.rows.iter().map(|row| row.get(index).unwrap_or(&Value::Null));
            column(*kind, values)
        });
        Ok(RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &options)?)
    }
}

/// The Arrow schema of columns.
pub(crate) fn schema(columns: Columns) -> SchemaRef {
    let fields = columns.iter().map(|(name, kind)| Field::new(*name, kind.data_type(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn column<'a>(kind: Kind, values: impl Iterator<Item = &'a Value>) -> ArrayRef {
    macro_rules! build {
        ($builder:expr, $pattern:pat => $value:expr) => {{
            let mut builder = $builder;
            for value in values {
                builder.append_option(match value {
                    $pattern => Some($value),
                    _ => None,
                });
            }
            Arc::new(builder.finish())
        }};
    }
    match kind {
        Kind::Text => build!(StringBuilder::new(), Value::Text(text) => text),
        Kind::Int => build!(Int64Builder::new(), Value::Int(int) => *int),
        Kind::Float => build!(Float64Builder::new(), Value::Float(float) => *float),
        Kind::Bool => build!(BooleanBuilder::new(), Value::Bool(bool) => *bool),
        Kind::Time => {
            build!(TimestampMicrosecondBuilder::new().with_timezone("UTC"), Value::Time(time) => time.0)
        }
    }
}

/// What rows are computed from: the node, and the version that the statement reads.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) instance: &'a Instance,
    pub(super) version: Version,
}

type Compute = dyn Fn(&Context<'_>, &mut Rows) -> Result<(), SqlError> + Send + Sync;

/// A table provider around a function.
pub(super) struct Computed {
    name: &'static str,
    columns: Columns,
    schema: SchemaRef,
    instance: Arc<Instance>,
    compute: Box<Compute>,
}

impl Computed {
    pub(super) fn new(
        name: &'static str,
        columns: Columns,
        instance: Arc<Instance>,
        compute: impl Fn(&Context<'_>, &mut Rows) -> Result<(), SqlError> + Send + Sync + 'static,
    ) -> Self {
        Self { name, columns, schema: schema(columns), instance, compute: Box::new(compute) }
    }
}

impl fmt::Debug for Computed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Computed").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Computed {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let version = PinnedVersion::of(state.config(), &self.instance.engine);
        let mut rows = Rows::new(self.columns);
        let context = Context { instance: &self.instance, version };
        (self.compute)(&context, &mut rows).map_err(external)?;
        let batch = rows.batch(&self.schema)?;
        Ok(MemorySourceConfig::try_new_exec(&[vec![batch]], self.schema.clone(), projection.cloned())?)
    }
}

type Awaiting = dyn Fn() -> BoxFuture<'static, Result<Vec<Vec<Value>>, SqlError>> + Send + Sync;

/// A table provider around a function that waits for something outside of the node, when the plan is run.
pub(super) struct Awaited {
    name: &'static str,
    columns: Columns,
    schema: SchemaRef,
    rows: Arc<Awaiting>,
}

impl Awaited {
    /// `rows` gives as many values in each row as there are columns, of their types.
    pub(super) fn new(
        name: &'static str,
        columns: Columns,
        rows: impl Fn() -> BoxFuture<'static, Result<Vec<Vec<Value>>, SqlError>> + Send + Sync + 'static,
    ) -> Self {
        Self { name, columns, schema: schema(columns), rows: Arc::new(rows) }
    }
}

impl fmt::Debug for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Awaited").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Awaited {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (columns, schema, rows) = (self.columns, self.schema.clone(), Arc::clone(&self.rows));
        Leaf::computed(self.name, &self.schema, projection, move |_| {
            let (computed, schema) = (rows(), schema.clone());
            async move {
                let mut rows = Rows::new(columns);
                computed.await.map_err(external)?.into_iter().for_each(|row| rows.push_row(row));
                rows.batch(&schema)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Array, AsArray};

    use super::*;

    #[test]
    fn rows_become_columns_of_their_types() {
        let columns: Columns = &[("a", Kind::Text), ("b", Kind::Int), ("c", Kind::Time)];
        let fields = columns.iter().map(|(name, kind)| Field::new(*name, kind.data_type(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut rows = Rows { columns, rows: Vec::new() };
        rows.push(["x".into(), u64::MAX.into(), CommitTime(5).into()]);
        rows.push([Value::Null, None::<u64>.into(), Value::Null]);
        let batch = rows.batch(&schema).unwrap();
        assert_eq!(batch.column(0).as_string::<i32>().value(0), "x");
        let ints = batch.column(1).as_primitive::<datafusion::arrow::datatypes::Int64Type>();
        assert_eq!(ints.value(0), i64::MAX);
        assert!(ints.is_null(1) && batch.column(2).is_null(1));
    }
}
