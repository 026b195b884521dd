//! `partition_rows('market.bars', '<key>')` in FROM: the rows of one partition, found by its key, whatever its values look
//! like. The key is hexadecimal, as `partition_digests` gives it; a partition that is not there has no rows. Clusters that are
//! synchronized ask each other so.

use std::sync::Arc;

use datafusion::{
    common::{DFSchema, Result as DataFusionResult, ScalarValue},
    logical_expr::{Expr, planner::RelationPlannerContext},
    prelude::SessionContext,
    sql::sqlparser::ast::{FunctionArg, FunctionArgExpr},
};
use tailrace_engine::{Engine, PartitionKey};

use super::table::Table;
use crate::{
    Result, SqlError,
    function::{named_table, register_relation},
};

const NAME: &str = "partition_rows";
const USAGE: &str = "partition_rows('database.table', '<key in hexadecimal digits>'); partition_digests gives the keys";

/// Adds the function to the planning template.
pub(crate) fn register(context: &SessionContext, engine: &Arc<Engine>) -> DataFusionResult<()> {
    let engine = engine.clone();
    register_relation(context, NAME, move |given, context| Ok(Arc::new(rows(&engine, given, context)?)))
}

fn rows(engine: &Arc<Engine>, given: Vec<FunctionArg>, context: &mut dyn RelationPlannerContext) -> Result<Table> {
    let usage = || SqlError::new("42883", format!("{NAME} takes a table and the key of a partition")).hint(USAGE);
    let mut texts = Vec::with_capacity(2);
    for argument in given {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) = argument else { return Err(usage()) };
        let value = context.sql_to_expr(value, &DFSchema::empty())?;
        let Expr::Literal(ScalarValue::Utf8(Some(text)), _) = value else { return Err(usage()) };
        texts.push(text);
    }
    let [table, key] = &texts[..] else { return Err(usage()) };
    let (database, table) = named_table(engine, table, context)?;
    let key = PartitionKey::from_hex(key).ok_or_else(usage)?;
    table.scheme.describe(&key)?;
    Ok(Table::of_partition(engine.clone(), &database.name, &table, key))
}
