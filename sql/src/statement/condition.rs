//! A condition over the columns of one table, given as text: `where => 'datetime >= ''2023-01-08'''`.

use std::ops::ControlFlow;

use datafusion::{
    arrow::datatypes::{DataType, Schema},
    common::{
        DFSchema,
        tree_node::{TreeNode as _, TreeNodeRecursion},
    },
    execution::SessionState,
    logical_expr::{Expr, ExprSchemable as _, Volatility},
    sql::sqlparser::{
        ast::{self, ExprWithAlias, visit_expressions},
        dialect::PostgreSqlDialect,
        parser::Parser,
        tokenizer::Token,
    },
};

use crate::{Result, SqlError};

/// A condition that can be asked of any row of a table.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    /// Over columns without their table's name; types are not coerced.
    pub(crate) expr: Expr,
    /// As SQL. Comments and the like are gone in this form.
    pub(crate) written: String,
}

impl Condition {
    /// Refuses what is no condition over the rows of one table alone.
    pub(crate) fn parse(state: &SessionState, schema: &Schema, text: &str) -> Result<Self> {
        let wrong = |what: String| SqlError::new("42601", what).hint("where => 'datetime >= ''2023-01-08'''");
        let no_condition = |reason: &str| wrong(format!("{text:?} is no condition: {reason}"));
        let dialect = PostgreSqlDialect {};
        let mut parser = Parser::new(&dialect).try_with_sql(text).map_err(|error| no_condition(&error.to_string()))?;
        let parsed = parser.parse_expr().map_err(|error| no_condition(&error.to_string()))?;
        if parser.peek_token().token != Token::EOF {
            return Err(no_condition(&format!("{} follows it", parser.peek_token().token)));
        }
        let asks = visit_expressions(&parsed, |expr| match expr {
            ast::Expr::Subquery(_) | ast::Expr::InSubquery { .. } | ast::Expr::Exists { .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        if asks.is_break() {
            return Err(refused("a query"));
        }
        let written = parsed.to_string();
        let schema = DFSchema::try_from(schema.clone())?;
        let expr = state
            .create_logical_expr_from_sql_expr(ExprWithAlias { expr: parsed, alias: None }, &schema)
            .map_err(|error| SqlError::planning(error, text))?;
        let data_type = expr.get_type(&schema)?;
        if data_type != DataType::Boolean {
            let what = format!("{text:?} is no condition: it is {data_type}, not boolean");
            return Err(SqlError::new("42804", what));
        }
        let mut other = None;
        expr.apply(|node| {
            other = match node {
                Expr::AggregateFunction(_) | Expr::WindowFunction(_) => Some("a function of many rows"),
                Expr::Placeholder(_) => Some("a parameter"),
                _ => None,
            };
            Ok(if other.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })?;
        match other {
            Some(other) => Err(refused(other)),
            None => Ok(Self { expr, written }),
        }
    }

    /// A function in it whose result changes more than this allows: `now()`.
    pub(crate) fn beyond(&self, most: Volatility) -> Result<Option<String>> {
        let mut found = None;
        self.expr.apply(|node| {
            Ok(match node {
                Expr::ScalarFunction(function) if function.func.signature().volatility > most => {
                    found = Some(format!("{}()", function.func.name()));
                    TreeNodeRecursion::Stop
                }
                _ => TreeNodeRecursion::Continue,
            })
        })?;
        Ok(found)
    }
}

/// The error of something that a condition cannot have.
pub(crate) fn refused(what: &str) -> SqlError {
    SqlError::unsupported(format!("{what} in where")).hint("a condition over the table's columns")
}
