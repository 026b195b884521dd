//! `verify_database(database [, from_files] [, timeout])`: compares a followed database with its primary at one position and
//! gives a row per table and partition.

use std::{sync::Arc, time::Duration};

use datafusion::{
    arrow::datatypes::SchemaRef, error::DataFusionError, physical_plan::stream::RecordBatchStreamAdapter,
};

use super::{
    arguments::{Arguments, Parameter, Type},
    repair_database::{follower, refused},
};
use crate::{
    Instance, Outcome, Result, SqlError,
    system::computed::{self, Columns, Kind, Rows},
};

/// `from_files`: read the datafiles on both sides instead of trusting what was kept when they were written. `timeout` is in
/// milliseconds.
pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("database", Type::Text),
    Parameter::optional("from_files", Type::Bool),
    Parameter::optional("timeout", Type::Int),
];

/// How long both sides may take unless it is said.
const TIMEOUT: Duration = Duration::from_secs(600);

const COLUMNS: Columns = &[
    ("table", Kind::Text),
    ("partition", Kind::Text),
    ("rows_here", Kind::Int),
    ("rows_there", Kind::Int),
    ("equal", Kind::Bool),
    // What differs, in words.
    ("difference", Kind::Text),
    // Of the position at which both were compared.
    ("seq", Kind::Int),
];

/// Columns of its rows.
pub(super) fn schema() -> SchemaRef {
    computed::schema(COLUMNS)
}

pub(super) async fn run(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Outcome> {
    let timeout = arguments.optional_int(2)?.map(u64::try_from).transpose();
    let timeout = timeout.map_err(|_| SqlError::new("22023", "argument \"timeout\" of verify_database is below 0"))?;
    let timeout = timeout.map_or(TIMEOUT, Duration::from_millis);
    let from_files = arguments.optional_bool(1)?.unwrap_or(false);
    let verified = follower(instance)?.verify(arguments.text(0)?, from_files, timeout).await.map_err(refused)?;
    let mut rows = Rows::new(COLUMNS);
    for compared in &verified.partitions {
        rows.push([
            (&compared.table_name).into(),
            compared.partition_name.as_ref().into(),
            compared.rows_here.into(),
            compared.rows_there.into(),
            compared.difference.is_none().into(),
            compared.difference.as_ref().into(),
            verified.position.seq.into(),
        ]);
    }
    let batch = rows.batch(&schema())?;
    let rows = futures::stream::once(async move { Ok::<_, DataFusionError>(batch) });
    Ok(Outcome::Rows(Box::pin(RecordBatchStreamAdapter::new(schema(), rows))))
}
