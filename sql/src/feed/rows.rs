//! The rows of a feed: what the engine gives, filtered and cut to the columns that are wanted.

use std::sync::Arc;

use datafusion::{
    arrow::{array::RecordBatch, compute::filter_record_batch, datatypes::SchemaRef},
    common::{Result, cast::as_boolean_array},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::PhysicalExpr,
    physical_plan::{stream::RecordBatchStreamAdapter, streaming::PartitionStream},
};
use tailrace_engine::{Changes, ChangesRequest, Engine, Subscribed};

use crate::SqlError;

/// A feed that is not begun.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) engine: Arc<Engine>,
    pub(super) request: ChangesRequest,
    /// Whose position it takes.
    pub(super) subscription: Option<String>,
    /// Over the columns that are read.
    pub(super) filter: Option<Arc<dyn PhysicalExpr>>,
    /// Columns of the result among those that are read.
    pub(super) output: Vec<usize>,
    pub(super) schema: SchemaRef,
}

/// One that is.
struct Begun {
    changes: Changes,
    filter: Option<Arc<dyn PhysicalExpr>>,
    output: Vec<usize>,
    /// Frees the subscription for the next consumer when the statement ends, however it does.
    _subscribed: Option<Subscribed>,
}

impl PartitionStream for Rows {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let begin = begin(
            self.engine.clone(),
            self.request.clone(),
            self.subscription.clone(),
            self.filter.clone(),
            self.output.clone(),
        );
        let rows = futures::stream::try_unfold(Stage::New(Box::pin(begin)), |stage| async move {
            let mut begun = match stage {
                Stage::New(begin) => begin.await?,
                Stage::Begun(begun) => begun,
            };
            Ok(begun.next().await?.map(|batch| (batch, Stage::Begun(begun))))
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows))
    }
}

enum Stage<F> {
    New(F),
    Begun(Box<Begun>),
}

async fn begin(
    engine: Arc<Engine>,
    mut request: ChangesRequest,
    subscription: Option<String>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    output: Vec<usize>,
) -> Result<Box<Begun>> {
    let mut subscribed = None;
    if let Some(name) = subscription {
        let attached = engine.attach_subscription(&name).await.map_err(external)?;
        if (attached.history, attached.table) != (request.history, request.table.id) {
            let error =
                SqlError::new("22023", format!("subscription {name:?} is not of table {:?}", request.table.name));
            return Err(DataFusionError::External(Box::new(
                error.hint("system.subscriptions shows which tables subscriptions are of"),
            )));
        }
        (request.after, request.restart) = (attached.acknowledged, Some(attached.restart));
        subscribed = Some(attached);
    }
    let changes = engine.changes(request).map_err(external)?;
    Ok(Box::new(Begun { changes, filter, output, _subscribed: subscribed }))
}

impl Begun {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(batch) = self.changes.next().await.map_err(external)? else { return Ok(None) };
            let batch = match &self.filter {
                Some(filter) => {
                    let holds = filter.evaluate(&batch)?.into_array(batch.num_rows())?;
                    filter_record_batch(&batch, as_boolean_array(&holds)?)?
                }
                None => batch,
            };
            if batch.num_rows() > 0 {
                return Ok(Some(batch.project(&self.output)?));
            }
            // Others run, too, while nothing is wanted.
            tokio::task::consume_budget().await;
        }
    }
}

fn external(error: tailrace_engine::EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(SqlError::from(error)))
}
