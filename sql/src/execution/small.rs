//! Which plans run where they are asked for.
//!
//! Handing a plan to another thread and its rows back costs two wake-ups: nothing beside a scan of files, much beside a
//! query that looks at a row. So a plan is small when it is known beforehand how little it does: its rows are in memory,
//! at most [`ROWS_MAX`] of them, and no operator makes more rows than it gets. Whatever is not known to be so is not small.

use datafusion::{
    datasource::{memory::MemorySourceConfig, source::DataSourceExec},
    physical_plan::{
        ExecutionPlan, empty::EmptyExec, placeholder_row::PlaceholderRowExec, streaming::StreamingTableExec,
    },
};

/// Most rows that a small plan reads: two batches, which no operator passes on in pieces either.
pub(super) const ROWS_MAX: usize = 16 << 10;

/// Operators that make at most as many rows as they get, and look at each about once.
const LINEAR: [&str; 16] = [
    "AggregateExec",
    "BoundedWindowAggExec",
    "CoalesceBatchesExec",
    "CoalescePartitionsExec",
    "CooperativeExec",
    "FilterExec",
    "GlobalLimitExec",
    "LocalLimitExec",
    "ProjectionExec",
    "RepartitionExec",
    "SortExec",
    "SortExec(TopK)",
    "SortPreservingMergeExec",
    "UnionExec",
    "InterleaveExec",
    "WindowAggExec",
];

/// Whether a plan's sources wait for what comes, rather than compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waits {
    Yes,
    No,
}

/// Whether it costs less to run a plan than to hand it on.
pub(super) fn is_small(plan: &dyn ExecutionPlan, waits: Waits) -> bool {
    let mut rows = 0;
    fits(plan, waits, &mut rows)
}

fn fits(plan: &dyn ExecutionPlan, waits: Waits, rows: &mut usize) -> bool {
    let inputs = plan.children();
    if !inputs.is_empty() {
        return LINEAR.contains(&plan.name()) && inputs.into_iter().all(|input| fits(input.as_ref(), waits, rows));
    }
    let Some(more) = rows_of(plan, waits, ROWS_MAX - *rows) else { return false };
    *rows += more;
    *rows <= ROWS_MAX
}

/// How many rows a source has, where that is known; beyond `most`, it may be any number beyond `most`.
fn rows_of(plan: &dyn ExecutionPlan, waits: Waits, most: usize) -> Option<usize> {
    if plan.is::<EmptyExec>() || (waits == Waits::Yes && plan.is::<StreamingTableExec>()) {
        return Some(0);
    }
    if plan.is::<PlaceholderRowExec>() {
        return Some(1);
    }
    let source = plan.downcast_ref::<DataSourceExec>()?;
    let memory = source.data_source().downcast_ref::<MemorySourceConfig>()?;
    let mut rows: usize = 0;
    for batch in memory.partitions().iter().flatten() {
        rows = rows.saturating_add(batch.num_rows());
        if rows > most {
            break;
        }
    }
    Some(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::{
        arrow::{
            array::{ArrayRef, Int64Array, RecordBatch},
            datatypes::{DataType, Field, Schema},
        },
        datasource::MemTable,
        prelude::{SessionConfig, SessionContext},
    };

    use super::*;

    /// Tables `small` and `large` in memory.
    fn context() -> SessionContext {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let batch = |rows: usize| {
            let numbers = Int64Array::from_iter_values((0..rows).map(|row| row as i64));
            RecordBatch::try_new(schema.clone(), vec![Arc::new(numbers) as ArrayRef]).unwrap()
        };
        for (name, shares) in
            [("small", vec![vec![batch(100)], vec![batch(200)]]), ("large", vec![vec![batch(ROWS_MAX), batch(1)]])]
        {
            context.register_table(name, Arc::new(MemTable::try_new(schema.clone(), shares).unwrap())).unwrap();
        }
        context
    }

    #[tokio::test]
    async fn what_looks_at_few_rows_is_small() {
        let context = context();
        for sql in [
            "SELECT 1",
            "VALUES (1), (2)",
            "SELECT n + 1 FROM small WHERE n % 2 = 0 ORDER BY n LIMIT 3",
            "SELECT n % 3, count(*), avg(n) FROM small GROUP BY n % 3",
            "SELECT n, sum(n) OVER (ORDER BY n) FROM small",
            "SELECT n FROM small UNION ALL SELECT 5",
            "SELECT count(*) FROM large",
        ] {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            assert!(is_small(plan.as_ref(), Waits::No), "{sql}\n{plan:#?}");
        }
    }

    #[tokio::test]
    async fn what_multiplies_rows_or_is_not_known_is_not() {
        let context = context();
        for sql in [
            "SELECT n FROM large WHERE n = 5",
            "SELECT a.n FROM small a, small b",
            "SELECT a.n FROM small a JOIN small b ON a.n = b.n",
            "SELECT a.n FROM small a JOIN small b ON a.n < b.n",
            "SELECT unnest(range(n)) FROM small",
            "SELECT * FROM generate_series(1, 10)",
            "SELECT n FROM small UNION ALL SELECT n FROM large",
            "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM r) SELECT n FROM r LIMIT 5",
            "SELECT n FROM small WHERE n > (SELECT avg(n) FROM large)",
        ] {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            assert!(!is_small(plan.as_ref(), Waits::No), "{sql}");
        }
    }
}
