//! Lets others run, and a cancel through, where a plan multiplies rows.
//!
//! DataFusion's plans yield at their sources: so often as these give a batch. What a join makes of two batches may be
//! billions of rows, which whoever counts them would take without a pause. So joins, and whatever else gives more rows than it
//! gets, count their own batches too ([`CooperativeExec`]). A join over a condition that hardly anything meets gives no batches
//! to count; the batches that it takes from one side are cut small, and each is a pause ([`Sips`]).

use std::{fmt, sync::Arc};

use datafusion::{
    arrow::array::RecordBatch,
    common::{
        Result, Statistics, internal_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    config::ConfigOptions,
    execution::{SendableRecordBatchStream, TaskContext},
    physical_optimizer::PhysicalOptimizerRule,
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, PhysicalExpr, PlanProperties,
        coop::CooperativeExec,
        execution_plan::replace_children_if_necessary,
        joins::NestedLoopJoinExec,
        statistics::{ChildStats, StatisticsArgs},
        stream::RecordBatchStreamAdapter,
    },
};
use futures::{StreamExt, TryStreamExt, stream};

/// Rows of a sip: with so few, a join takes several rows of its other side at a time, and costs no more.
const SIP_ROWS: usize = 256;

/// The last rule of the physical optimizer.
#[derive(Debug)]
pub(crate) struct Yielding;

impl PhysicalOptimizerRule for Yielding {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            if let Some(join) = plan.downcast_ref::<NestedLoopJoinExec>() {
                let (build, probe) = (join.left().clone(), join.right().clone());
                let plan = replace_children_if_necessary(plan, vec![build, Arc::new(Sips::new(probe))])?;
                return Ok(Transformed::yes(Arc::new(CooperativeExec::new(plan)) as _));
            }
            let multiplies = match plan.name() {
                "UnionExec" | "InterleaveExec" => false,
                "UnnestExec" => true,
                _ => plan.children().len() > 1,
            };
            Ok(match multiplies {
                true => Transformed::yes(Arc::new(CooperativeExec::new(plan))),
                false => Transformed::no(plan),
            })
        })
        .map(|transformed| transformed.data)
    }

    fn name(&self) -> &str {
        "Yielding"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The same rows in small batches, with a pause before each.
#[derive(Debug)]
struct Sips {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
}

impl Sips {
    fn new(input: Arc<dyn ExecutionPlan>) -> Self {
        let properties = Arc::clone(input.properties());
        Self { input, properties }
    }
}

impl DisplayAs for Sips {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sips: rows={SIP_ROWS}")
    }
}

impl ExecutionPlan for Sips {
    fn name(&self) -> &str {
        "Sips"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn with_new_children(self: Arc<Self>, inputs: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let mut inputs = inputs.into_iter();
        match (inputs.next(), inputs.next()) {
            (Some(input), None) => Ok(Arc::new(Self::new(input))),
            _ => internal_err!("Sips have one input"),
        }
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let batches = self.input.execute(partition, context)?;
        let sips = batches.map_ok(|batch| stream::iter(sips_of(batch)).then(paused)).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), sips)))
    }

    fn child_stats_requests(&self, partition: Option<usize>) -> Vec<ChildStats> {
        vec![ChildStats::At(partition)]
    }

    fn statistics_from_inputs(&self, inputs: &[Arc<Statistics>], _: &StatisticsArgs) -> Result<Arc<Statistics>> {
        inputs.first().cloned().map_or_else(|| internal_err!("Sips have one input"), Ok)
    }
}

async fn paused(batch: RecordBatch) -> Result<RecordBatch> {
    tokio::task::yield_now().await;
    Ok(batch)
}

fn sips_of(batch: RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let rows = batch.num_rows();
    (0..rows).step_by(SIP_ROWS).map(move |start| batch.slice(start, SIP_ROWS.min(rows - start)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use datafusion::{
        execution::{SessionState, SessionStateBuilder},
        physical_plan::{displayable, execute_stream},
        prelude::{SessionConfig, SessionContext},
    };

    use super::*;

    fn state() -> SessionState {
        SessionStateBuilder::new()
            .with_config(SessionConfig::new().with_target_partitions(2))
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(Yielding))
            .build()
    }

    async fn plan(sql: &str) -> (SessionContext, Arc<dyn ExecutionPlan>) {
        let context = SessionContext::new_with_state(state());
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        (context, plan)
    }

    #[tokio::test]
    async fn joins_give_what_they_gave() {
        for (sql, rows) in [
            (
                "SELECT count(*) AS c FROM generate_series(1, 1000) a(x) CROSS JOIN generate_series(1, 300) b(y)",
                "300000",
            ),
            (
                "SELECT count(*) AS c FROM generate_series(1, 1000) a(x) JOIN generate_series(1, 900) b(y) ON x < y",
                "404550",
            ),
            (
                "SELECT count(y) AS c FROM generate_series(1, 1000) a(x) LEFT JOIN generate_series(1, 900) b(y) ON x + y = 7 AND x < y",
                "3",
            ),
            (
                "SELECT count(*) AS c FROM generate_series(1, 700) a(x) FULL JOIN generate_series(1, 900) b(y) ON x * y < 0",
                "1600",
            ),
            (
                "SELECT count(*) AS c FROM generate_series(1, 700) a(x) JOIN generate_series(1, 900) b(y) ON x = y",
                "700",
            ),
            ("SELECT count(*) AS c FROM (SELECT unnest(range(0, x)) FROM generate_series(1, 100) a(x))", "5050"),
        ] {
            let (context, plan) = plan(sql).await;
            let shown = displayable(plan.as_ref()).indent(false).to_string();
            assert!(shown.contains("CooperativeExec"), "{sql}\n{shown}");
            let batches = datafusion::physical_plan::collect(plan, context.task_ctx()).await.unwrap();
            let text = datafusion::arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
            assert!(text.contains(&format!("| {rows} ")), "{sql}\n{text}\n{shown}");
        }
    }

    /// With one thread, which the query has, the test goes on only when the query yields.
    #[tokio::test]
    async fn others_run_while_a_join_multiplies_rows() {
        for condition in ["ON true", "ON a.x + b.y = -5", "ON a.x % 2 = b.y % 2"] {
            let sql = format!(
                "SELECT count(*) FROM generate_series(1, 100000) a(x) JOIN generate_series(1, 99999) b(y) {condition}"
            );
            let (context, plan) = plan(&sql).await;
            let mut rows = execute_stream(plan, context.task_ctx()).unwrap();
            let query = tokio::spawn(async move { rows.next().await.map(|batch| batch.unwrap().num_rows()) });
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(!query.is_finished(), "{condition}: it should take for ever");
            query.abort();
            assert!(query.await.unwrap_err().is_cancelled());
        }
    }
}
