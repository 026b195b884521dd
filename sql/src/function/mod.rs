//! Operators and functions of PostgreSQL that DataFusion lacks.

mod interval;

use std::sync::Arc;

use datafusion::{common::Result, execution::FunctionRegistry, prelude::SessionContext};

/// Adds them to the planning template.
pub(crate) fn register(context: &mut SessionContext) -> Result<()> {
    SessionContext::register_udf(context, interval::multiply());
    context.register_expr_planner(Arc::new(interval::IntervalPlanner))
}
