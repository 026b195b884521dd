//! Reads the rows of a query that a remote cluster runs.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{RecordBatch, RecordBatchOptions},
        datatypes::SchemaRef,
    },
    common::Result,
    execution::SendableRecordBatchStream,
    physical_plan::{ExecutionPlan, stream::RecordBatchStreamAdapter},
};
use futures::StreamExt;

use super::Remote;
use crate::{
    SqlError,
    provider::{Leaf, external},
};

/// A leaf of a plan. EXPLAIN shows the SQL that is sent. `schema` is that of the result; without columns where rows are only
/// counted, the query then has one that is not looked at.
pub(super) fn remote_scan(remote: &Arc<Remote>, sql: String, schema: SchemaRef) -> Arc<dyn ExecutionPlan> {
    let shown = format!("cluster={}, sql={sql}", remote.name());
    let (remote, planned) = (Arc::clone(remote), schema.clone());
    let sql: Arc<str> = sql.into();
    Leaf::streamed("RemoteScan", shown, schema, move |_| {
        let (remote, sql, schema) = (Arc::clone(&remote), Arc::clone(&sql), planned.clone());
        async move {
            let rows = remote.query(&sql).await.map_err(external)?;
            check(&remote, &rows.schema(), &schema)?;
            let relabelled = schema.clone();
            let rows = rows.map(move |batch| relabel(&batch?, &relabelled));
            Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)) as SendableRecordBatchStream)
        }
    })
}

/// The result must have the columns that the statement was planned with.
fn check(remote: &Remote, found: &SchemaRef, planned: &SchemaRef) -> Result<()> {
    let counted = planned.fields().is_empty();
    let same = found.fields().len() == planned.fields().len()
        && found.fields().iter().zip(planned.fields()).all(|(one, other)| one.data_type() == other.data_type());
    if same || counted {
        return Ok(());
    }
    let types = |schema: &SchemaRef| {
        let types: Vec<_> = schema.fields().iter().map(|field| field.data_type().to_string()).collect();
        types.join(", ")
    };
    let error = SqlError::new("0A000", format!("remote cluster {:?} gives other columns than planned", remote.name()))
        .detail(format!("Planned: {}; given: {}.", types(planned), types(found)))
        .hint("run the statement again");
    Err(external(error))
}

fn relabel(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = if schema.fields().is_empty() { Vec::new() } else { batch.columns().to_vec() };
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}
