//! A leaf of a plan whose rows are made by an async function when the plan is run, not while it is planned.

use std::{fmt, sync::Arc};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
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
use futures::{FutureExt, TryFutureExt, TryStreamExt, future::BoxFuture, stream};

use crate::SqlError;

type Start = dyn Fn(Arc<TaskContext>) -> BoxFuture<'static, Result<SendableRecordBatchStream>> + Send + Sync;

/// Rows of one partition, in no order. EXPLAIN shows its name, and whatever else is to be known of it.
pub(crate) struct Leaf {
    name: &'static str,
    shown: String,
    start: Arc<Start>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl Leaf {
    /// Rows of `schema` that `start` gives. It is called once for each time that the plan is run.
    pub(crate) fn streamed<F>(
        name: &'static str,
        shown: String,
        schema: SchemaRef,
        start: impl Fn(Arc<TaskContext>) -> F + Send + Sync + 'static,
    ) -> Arc<dyn ExecutionPlan>
    where
        F: Future<Output = Result<SendableRecordBatchStream>> + Send + 'static,
    {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let start: Arc<Start> = Arc::new(move |context| start(context).boxed());
        let metrics = ExecutionPlanMetricsSet::new();
        Arc::new(Self { name, shown, start, properties: Arc::new(properties), metrics })
    }

    /// All rows in one batch of `schema`, of which the columns of `projection` are wanted.
    pub(crate) fn computed<F>(
        name: &'static str,
        schema: &SchemaRef,
        projection: Option<&Vec<usize>>,
        compute: impl Fn(Arc<TaskContext>) -> F + Send + Sync + 'static,
    ) -> Result<Arc<dyn ExecutionPlan>>
    where
        F: Future<Output = Result<RecordBatch>> + Send + 'static,
    {
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..schema.fields().len()).collect());
        let schema = Arc::new(schema.project(&wanted)?);
        let shown = schema.clone();
        Ok(Self::streamed(name, String::new(), schema, move |context| {
            let (batch, wanted, shown) = (compute(context), wanted.clone(), shown.clone());
            let batch = async move { Ok(batch.await?.project(&wanted)?) };
            let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(shown, stream::once(batch)));
            std::future::ready(Ok(rows))
        }))
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct(self.name).field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl DisplayAs for Leaf {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.shown.is_empty() {
            true => f.write_str(self.name),
            false => write!(f, "{}: {}", self.name, self.shown),
        }
    }
}

impl ExecutionPlan for Leaf {
    fn name(&self) -> &str {
        self.name
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

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = (self.start)(context).try_flatten_stream();
        let rows = rows.inspect_ok(move |batch| metrics.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// An error of ours on its way through a plan.
pub(crate) fn external(error: SqlError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use datafusion::{
        arrow::{
            array::{ArrayRef, Int64Array, StringArray},
            datatypes::{DataType, Field, Schema},
        },
        physical_plan::{collect, displayable},
        prelude::SessionContext,
    };

    use super::*;

    #[tokio::test]
    async fn rows_are_computed_when_the_plan_is_run_and_each_time() {
        let fields = vec![Field::new("a", DataType::Int64, false), Field::new("b", DataType::Utf8, false)];
        let schema = Arc::new(Schema::new(fields));
        let (of, times) = (schema.clone(), Arc::new(AtomicUsize::new(0)));
        let counted = times.clone();
        let plan = Leaf::computed("Counted", &schema, Some(&vec![1]), move |_| {
            let (of, times) = (of.clone(), counted.clone());
            async move {
                let time = times.fetch_add(1, Ordering::SeqCst) as i64;
                let columns: Vec<ArrayRef> =
                    vec![Arc::new(Int64Array::from(vec![time])), Arc::new(StringArray::from(vec!["x"]))];
                if time == 2 {
                    return Err(external(SqlError::new("22023", "not a third time")));
                }
                Ok(RecordBatch::try_new(of, columns)?)
            }
        });
        let plan = plan.unwrap();
        assert_eq!(displayable(plan.as_ref()).indent(false).to_string(), "Counted\n");
        assert_eq!((plan.schema().fields().len(), times.load(Ordering::SeqCst)), (1, 0));
        let context = SessionContext::new().task_ctx();
        for _ in 0..2 {
            let batches = collect(plan.clone(), context.clone()).await.unwrap();
            assert_eq!((batches.len(), batches[0].num_rows(), batches[0].schema()), (1, 1, plan.schema()));
        }
        assert_eq!(plan.metrics().unwrap().output_rows(), Some(2));
        let error = collect(plan, context).await.unwrap_err();
        assert_eq!(SqlError::from(error).sqlstate, "22023");
    }
}
