//! CALL: constant arguments, then the procedure.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{RecordBatch, RecordBatchOptions},
        datatypes::Schema,
    },
    common::{DFSchema, ScalarValue},
    logical_expr::ColumnarValue,
    sql::sqlparser::ast::{Expr, ExprWithAlias},
};

use super::query::bind;
use crate::{
    Outcome, Result, Session, SqlError,
    procedure::{self, Argument},
};

/// Evaluates the arguments and calls.
pub(crate) async fn call(
    session: &Session,
    name: &str,
    arguments: &[(Option<String>, Expr)],
    parameters: &[ScalarValue],
) -> Result<Outcome> {
    let state = session.planning_state();
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
        let expr = bind(expr, parameters)?;
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
    procedure::call(session, name, arguments).await
}
