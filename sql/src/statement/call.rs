//! CALL: constant arguments, then the procedure.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{RecordBatch, RecordBatchOptions},
        datatypes::Schema,
    },
    common::{DFSchema, ScalarValue},
    logical_expr::{ColumnarValue, simplify::SimplifyContext},
    optimizer::simplify_expressions::ExprSimplifier,
    sql::sqlparser::ast::{Expr, ExprWithAlias, Value},
};
use tokio_util::sync::CancellationToken;

use super::query::bind;
use crate::{
    Outcome, Result, Session, SqlError,
    procedure::{self, Argument},
};

/// Evaluates the arguments and calls. When `stop` fires, a procedure that takes long ends where it can.
pub(crate) async fn call(
    session: &Session,
    name: &str,
    arguments: &[(Option<String>, Expr)],
    parameters: &[ScalarValue],
    stop: &CancellationToken,
) -> Result<Outcome> {
    let constants: Option<Vec<_>> = arguments
        .iter()
        .map(|(name, expr)| Some(Argument { name: name.clone(), value: constant(expr, parameters)? }))
        .collect();
    let arguments = match constants {
        Some(constants) => constants,
        None => evaluate(session, arguments, parameters)?,
    };
    procedure::call(session, name, arguments, stop).await
}

/// What a literal or a parameter says. Most calls have nothing else, and `wait_for` is called where microseconds count.
fn constant(expr: &Expr, parameters: &[ScalarValue]) -> Option<ScalarValue> {
    let Expr::Value(value) = expr else { return None };
    match &value.value {
        Value::SingleQuotedString(text) => Some(ScalarValue::from(text.as_str())),
        Value::Number(number, false) => Some(ScalarValue::from(number.parse::<i64>().ok()?)),
        Value::Boolean(value) => Some(ScalarValue::from(*value)),
        Value::Placeholder(number) => {
            let index = number.strip_prefix('$')?.parse::<usize>().ok()?.checked_sub(1)?;
            parameters.get(index).cloned()
        }
        _ => None,
    }
}

fn evaluate(
    session: &Session,
    arguments: &[(Option<String>, Expr)],
    parameters: &[ScalarValue],
) -> Result<Vec<Argument>> {
    let state = session.planning_state();
    let moment = SimplifyContext::builder()
        .with_schema(Arc::new(DFSchema::empty()))
        .with_config_options(Arc::clone(state.config_options()))
        .with_query_execution_start_time(state.execution_props().query_execution_start_time)
        .build();
    let simplifier = ExprSimplifier::new(moment);
    let evaluate = |expr: &Expr| -> Result<ScalarValue> {
        let schema = DFSchema::empty();
        let expr = state
            .create_logical_expr_from_sql_expr(ExprWithAlias { expr: expr.clone(), alias: None }, &schema)
            .map_err(|error| match SqlError::from(error) {
                error if error.sqlstate == "42703" => {
                    SqlError::new("42P10", "arguments of a procedure are constants").hint("put text into single quotes")
                }
                error => error,
            })?;
        let expr = simplifier.coerce(bind(expr, parameters)?, &schema)?;
        // What the moment of the call decides, such as current_date, is a value from here on.
        let expr = simplifier.simplify(expr)?;
        let physical = state.create_physical_expr(expr, &schema)?;
        let row = RecordBatch::try_new_with_options(
            Arc::new(Schema::empty()),
            Vec::new(),
            &RecordBatchOptions::new().with_row_count(Some(1)),
        )?;
        match physical.evaluate(&row)? {
            ColumnarValue::Scalar(value) => Ok(value),
            ColumnarValue::Array(array) => Ok(ScalarValue::try_from_array(&array, 0)?),
        }
    };
    arguments.iter().map(|(name, expr)| Ok(Argument { name: name.clone(), value: evaluate(expr)? })).collect()
}
