//! Functions in FROM whose arguments are constants, by position or by name.

use std::{fmt, sync::Arc};

use datafusion::{
    catalog::{TableProvider, default_table_source::provider_as_source},
    common::{Result as DataFusionResult, TableReference},
    error::DataFusionError,
    logical_expr::{
        LogicalPlanBuilder,
        planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning},
    },
    prelude::SessionContext,
    sql::sqlparser::ast::{FunctionArg, ObjectName, TableFactor},
};
use tailrace_engine::{DatabaseVersion, Engine, TableVersion};

use crate::{Result, feed::table_name, session::NO_DATABASE, statement::name};

/// Adds a function to the planning template. `read` makes of its arguments what is read.
pub(crate) fn register_relation(
    context: &SessionContext,
    name: &'static str,
    read: impl Fn(Vec<FunctionArg>, &mut dyn RelationPlannerContext) -> Result<Arc<dyn TableProvider>>
    + Send
    + Sync
    + 'static,
) -> DataFusionResult<()> {
    context.register_relation_planner(Arc::new(Planner { name, read }))
}

/// The table that an argument names, and its database, as they are now.
pub(crate) fn named_table(
    engine: &Engine,
    written: &str,
    context: &mut dyn RelationPlannerContext,
) -> Result<(Arc<DatabaseVersion>, Arc<TableVersion>)> {
    let name = table_name(written)?;
    let current = context.context_provider().options().catalog.default_schema.clone();
    let database = name.database(Some(current.as_str()).filter(|current| *current != NO_DATABASE))?;
    let version = engine.version();
    let found = version.database(&database).ok_or_else(|| name::no_database(&version, &database))?;
    let table = found.table(&name.table).ok_or_else(|| name::no_table(found, &name.to_string(), &name.table))?;
    Ok((found.clone(), table.clone()))
}

/// Plans one function; leaves everything else alone.
struct Planner<F> {
    name: &'static str,
    read: F,
}

impl<F> fmt::Debug for Planner<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<F> RelationPlanner for Planner<F>
where
    F: Fn(Vec<FunctionArg>, &mut dyn RelationPlannerContext) -> Result<Arc<dyn TableProvider>> + Send + Sync,
{
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> DataFusionResult<RelationPlanning> {
        let is_it = |name: &ObjectName| name::parts(name).is_ok_and(|parts| parts == [self.name]);
        let (arguments, alias) = match relation {
            TableFactor::Table { name, args: Some(arguments), alias, .. } if is_it(&name) => (arguments.args, alias),
            TableFactor::Function { name, args, alias, .. } if is_it(&name) => (args, alias),
            other => return Ok(RelationPlanning::Original(Box::new(other))),
        };
        let read = (self.read)(arguments, context).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let plan =
            LogicalPlanBuilder::scan(TableReference::bare(self.name), provider_as_source(read), None)?.build()?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}
