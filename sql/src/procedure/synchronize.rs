//! `synchronize(cluster, table [, where] [, by_partition] [, parallel] [, delete_extra] [, create] [, dry_run])`: a
//! table here is made equal to that of another cluster. Returns a row per partition.

use std::sync::Arc;

use datafusion::{arrow::datatypes::SchemaRef, physical_plan::stream::RecordBatchStreamAdapter};
use tailrace_engine::PartitionScheme;

use super::arguments::{Arguments, Parameter, Type};
use crate::{
    Outcome, Result, Session,
    feed::table_name,
    synchronize::{Request, report_schema, synchronize},
    system::partition_name,
};

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("cluster", Type::Text),
    Parameter::required("table", Type::Text),
    Parameter::optional("where", Type::Text),
    Parameter::optional("by_partition", Type::Bool),
    Parameter::optional("parallel", Type::Int),
    Parameter::optional("delete_extra", Type::Bool),
    Parameter::optional("create", Type::Bool),
    Parameter::optional("dry_run", Type::Bool),
];

pub(super) fn schema() -> SchemaRef {
    report_schema()
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<Outcome> {
    let cluster = session.instance().remotes.get(arguments.text(0)?)?;
    let table = arguments.text(1)?;
    let default = Request::new(table);
    let parallel = match arguments.optional_int(4)? {
        // What is no number of partitions is refused by its value.
        Some(parallel) => usize::try_from(parallel).unwrap_or(0),
        None => default.parallel,
    };
    let request = Request {
        predicate: arguments.optional_text(2)?.map(str::to_owned),
        by_partition: arguments.optional_bool(3)?.unwrap_or(default.by_partition),
        parallel,
        delete_extra: arguments.optional_bool(5)?.unwrap_or(default.delete_extra),
        create: arguments.optional_bool(6)?.unwrap_or(default.create),
        dry_run: arguments.optional_bool(7)?.unwrap_or(default.dry_run),
        ..default
    };
    let report = synchronize(session, &*cluster, request).await?;
    let scheme = match &report.made {
        Some(made) => Arc::new(PartitionScheme::new(made)?),
        None => session.resolve_table(&table_name(table)?)?.1.scheme.clone(),
    };
    let batch = report.batch(|key| partition_name(&scheme, key))?;
    let rows = futures::stream::once(async move { Ok(batch) });
    Ok(Outcome::Rows(Box::pin(RecordBatchStreamAdapter::new(schema(), rows))))
}
