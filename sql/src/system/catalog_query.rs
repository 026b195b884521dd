//! What clients write over `pg_catalog` and DataFusion cannot plan.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, CastKind, DataType, Expr, FunctionArguments, Statement, Value, visit_expressions_mut,
};

/// Replaces by NULL of their type `array(SELECT …)`, which lists options and memberships that nothing has here, and
/// `pg_class.reloptions`, which is not there.
pub(crate) fn rewrite(statement: &mut Statement) {
    let _: ControlFlow<()> = visit_expressions_mut(statement, |expr| {
        let replaced = match expr {
            Expr::Function(function) => {
                matches!(function.args, FunctionArguments::Subquery(_))
                    && function.name.to_string().eq_ignore_ascii_case("array")
            }
            Expr::CompoundIdentifier(parts) => parts.last().is_some_and(|part| part.value == "reloptions"),
            _ => false,
        };
        if replaced {
            *expr = no_texts();
        }
        ControlFlow::Continue(())
    });
}

/// `CAST(NULL AS TEXT[])`.
fn no_texts() -> Expr {
    Expr::Cast {
        kind: CastKind::Cast,
        expr: Box::new(Expr::Value(Value::Null.into())),
        data_type: DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None)),
        array: false,
        format: None,
    }
}
