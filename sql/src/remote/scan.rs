//! Reads the rows of a query that a remote cluster runs.

use std::{fmt, sync::Arc};

use datafusion::{
    arrow::{
        array::{RecordBatch, RecordBatchOptions},
        datatypes::SchemaRef,
    },
    common::{Result, tree_node::TreeNodeRecursion},
    error::DataFusionError,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_expr::EquivalenceProperties,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PhysicalExpr, PlanProperties,
        execution_plan::{Boundedness, EmissionType},
        metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};

use super::Remote;
use crate::SqlError;

/// A leaf of a plan. EXPLAIN shows the SQL that is sent.
#[derive(Debug)]
pub(super) struct RemoteScan {
    remote: Arc<Remote>,
    sql: String,
    /// Of the result; without columns where rows are only counted, the query then has one that is not looked at.
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl RemoteScan {
    pub(super) fn new(remote: Arc<Remote>, sql: String, schema: SchemaRef) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { remote, sql, schema, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for RemoteScan {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteScan: cluster={}, sql={}", self.remote.name(), self.sql)
    }
}

impl ExecutionPlan for RemoteScan {
    fn name(&self) -> &str {
        "RemoteScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, _: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let (remote, sql, schema) = (Arc::clone(&self.remote), self.sql.clone(), self.schema.clone());
        let rows = stream::once(async move {
            let rows = remote.query(&sql).await.map_err(external)?;
            check(&remote, &rows.schema(), &schema)?;
            Ok::<_, DataFusionError>(rows.map(move |batch| relabel(&batch?, &schema)))
        });
        let rows = rows.try_flatten().inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
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

fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
