//! `partition_rows('market.bars', '<key>')` in FROM: the rows of one partition, found by its key, whatever its values look
//! like. The key is hexadecimal, as `partition_digests` gives it; a partition that is not there has no rows. Clusters that are
//! synchronized ask each other so.

use std::sync::Arc;

use datafusion::{
    catalog::{TableProvider, default_table_source::provider_as_source},
    common::{DFSchema, Result as DataFusionResult, ScalarValue, TableReference},
    error::DataFusionError,
    logical_expr::{
        Expr, LogicalPlanBuilder,
        planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning},
    },
    prelude::SessionContext,
    sql::sqlparser::ast::{FunctionArg, FunctionArgExpr, TableFactor},
};
use tailrace_engine::{Engine, PartitionKey};

use super::table::Table;
use crate::{Result, SqlError, feed::table_name, session::NO_DATABASE, statement::name};

const NAME: &str = "partition_rows";
const USAGE: &str = "partition_rows('database.table', '<key in hexadecimal digits>'); partition_digests gives the keys";

/// Plans the function; leaves everything else alone.
#[derive(Debug)]
struct Planner {
    engine: Arc<Engine>,
}

/// Adds the function to the planning template.
pub(crate) fn register(context: &SessionContext, engine: &Arc<Engine>) -> DataFusionResult<()> {
    context.register_relation_planner(Arc::new(Planner { engine: engine.clone() }))
}

impl RelationPlanner for Planner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> DataFusionResult<RelationPlanning> {
        let is_it = |name| name::parts(name).is_ok_and(|parts| parts == [NAME]);
        let called = match &relation {
            TableFactor::Table { name, args: Some(args), alias, .. } if is_it(name) => {
                Some((args.args.clone(), alias.clone()))
            }
            TableFactor::Function { name, args, alias, .. } if is_it(name) => Some((args.clone(), alias.clone())),
            _ => None,
        };
        let Some((arguments, alias)) = called else { return Ok(RelationPlanning::Original(Box::new(relation))) };
        let rows = self.rows(arguments, context).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let source = provider_as_source(Arc::new(rows) as Arc<dyn TableProvider>);
        let plan = LogicalPlanBuilder::scan(TableReference::bare(NAME), source, None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

impl Planner {
    fn rows(&self, given: Vec<FunctionArg>, context: &mut dyn RelationPlannerContext) -> Result<Table> {
        let usage = || SqlError::new("42883", format!("{NAME} takes a table and the key of a partition")).hint(USAGE);
        let mut texts = Vec::with_capacity(2);
        for argument in given {
            let FunctionArg::Unnamed(FunctionArgExpr::Expr(value)) = argument else { return Err(usage()) };
            let value = context.sql_to_expr(value, &DFSchema::empty())?;
            let Expr::Literal(ScalarValue::Utf8(Some(text)), _) = value else { return Err(usage()) };
            texts.push(text);
        }
        let [table, key] = &texts[..] else { return Err(usage()) };
        let current = context.context_provider().options().catalog.default_schema.clone();
        let name = table_name(table)?;
        let database = name.database(Some(current.as_str()).filter(|current| *current != NO_DATABASE))?;
        let version = self.engine.version();
        let found = version.database(&database).ok_or_else(|| name::no_database(&version, &database))?;
        let table = found.table(&name.table).ok_or_else(|| name::no_table(found, &name.to_string(), &name.table))?;
        let key = PartitionKey::from_hex(key).ok_or_else(usage)?;
        table.scheme.describe(&key)?;
        Ok(Table::of_partition(self.engine.clone(), &database, table, key))
    }
}
