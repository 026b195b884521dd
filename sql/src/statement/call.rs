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
    sql::sqlparser::ast::{Expr, ExprWithAlias},
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
    let arguments = arguments
        .iter()
        .map(|(name, expr)| Ok(Argument { name: name.clone(), value: evaluate(expr)? }))
        .collect::<Result<_>>()?;
    procedure::call(session, name, arguments, stop).await
}
