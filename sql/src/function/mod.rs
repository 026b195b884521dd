//! Operators and functions of PostgreSQL that DataFusion lacks; [`relation`]: functions of ours in FROM.

mod interval;
mod relation;

pub(crate) use relation::{named_table, register_relation};

use std::sync::Arc;

use datafusion::{common::Result, execution::FunctionRegistry, prelude::SessionContext};

/// Adds them to the planning template.
pub(crate) fn register(context: &mut SessionContext) -> Result<()> {
    SessionContext::register_udf(context, interval::multiply());
    context.register_expr_planner(Arc::new(interval::IntervalPlanner))
}
