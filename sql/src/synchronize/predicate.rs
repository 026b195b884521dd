//! `where`: a condition over a table's columns that means the same on both sides.

use std::ops::ControlFlow;

use datafusion::{
    arrow::datatypes::DataType,
    common::{
        DFSchema,
        tree_node::{TreeNode as _, TreeNodeRecursion},
    },
    logical_expr::{Expr, ExprSchemable as _, Volatility},
    sql::sqlparser::{
        ast::{self, ExprWithAlias, visit_expressions},
        dialect::PostgreSqlDialect,
        parser::Parser,
        tokenizer::Token,
    },
};

use super::shape::Shape;
use crate::{Result, Session, SqlError};

/// A condition that was checked.
#[derive(Debug, Clone)]
pub(super) struct Predicate(String);

impl Predicate {
    /// Refuses what is no condition over the rows of one table alone: it is put into queries on both sides.
    pub(super) fn check(session: &Session, shape: &Shape, text: &str) -> Result<Self> {
        let wrong = |what: String| SqlError::new("42601", what).hint("where => 'datetime >= ''2023-01-08'''");
        let no_condition = |reason: &str| wrong(format!("{text:?} is no condition: {reason}"));
        let dialect = PostgreSqlDialect {};
        let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(|error| no_condition(&error.to_string()))?;
        let parsed = parser.parse_expr().map_err(|error| no_condition(&error.to_string()))?;
        if parser.peek_token().token != Token::EOF {
            return Err(no_condition(&format!("{} follows it", parser.peek_token().token)));
        }
        let refuse = |what: String| {
            SqlError::unsupported(format!("{what} in where")).hint("a condition over the table's columns")
        };
        let asks = visit_expressions(&parsed, |expr| match expr {
            ast::Expr::Subquery(_) | ast::Expr::InSubquery { .. } | ast::Expr::Exists { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        if asks.is_break() {
            return Err(refuse("a query".to_owned()));
        }
        // Comments and the like are gone in this form.
        let written = parsed.to_string();
        let schema = DFSchema::try_from(shape.schema.as_ref().clone())?;
        let state = session.planning_state();
        let expr = state
            .create_logical_expr_from_sql_expr(ExprWithAlias { expr: parsed, alias: None }, &schema)
            .map_err(|error| SqlError::planning(error, text))?;
        let data_type = expr.get_type(&schema)?;
        if data_type != DataType::Boolean {
            let what = format!("{text:?} is no condition: it is {data_type}, not boolean");
            return Err(SqlError::new("42804", what));
        }
        let mut refused = None;
        expr.apply(|node| {
            refused = match node {
                Expr::ScalarFunction(function) if function.func.signature().volatility != Volatility::Immutable => {
                    Some(format!("{}(), which is not the same on both sides", function.func.name()))
                }
                Expr::AggregateFunction(_) | Expr::WindowFunction(_) => Some("a function of many rows".to_owned()),
                Expr::Placeholder(_) => Some("a parameter".to_owned()),
                _ => None,
            };
            Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        match refused {
            Some(refused) => Err(refuse(refused)),
            None => Ok(Self(written)),
        }
    }

    /// As SQL.
    pub(super) fn as_sql(&self) -> &str {
        &self.0
    }
}
