//! Queries: planned by DataFusion over one pinned version, run as a stream.

use std::{collections::BTreeMap, sync::Arc};

use datafusion::{
    arrow::{
        array::StringArray,
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    common::{
        ParamValues, ScalarValue,
        tree_node::{Transformed, TreeNode},
    },
    execution::{SendableRecordBatchStream, SessionState, context::SQLOptions},
    logical_expr::{Expr, LogicalPlan, expr::Placeholder},
    physical_plan::{ExecutionPlan, display::DisplayableExecutionPlan},
    sql::{parser::Statement as DataFusionStatement, sqlparser::ast},
};
use futures::TryStreamExt;
use tailrace_engine::{DatabaseVersion, TableVersion, Version};

use super::settings::rows;
use crate::{
    Outcome, Result, Session, SqlError, feed,
    provider::{PinnedVersion, check_readable, only_table},
    remote::check_names,
};

/// Plans a query; names are resolved in `state`.
pub(crate) async fn plan(state: &SessionState, query: &ast::Statement, sql: &str) -> Result<LogicalPlan> {
    check_names(query)?;
    let statement = DataFusionStatement::Statement(Box::new(query.clone()));
    let plan = state.statement_to_plan(statement).await.map_err(|error| SqlError::planning(error, sql))?;
    // The parsed statement is a query, but some queries (SELECT INTO) would still write.
    let reads_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    reads_only.verify_plan(&plan).map_err(|_| SqlError::unsupported("a query that writes, such as SELECT INTO"))?;
    check_readable(state, &plan)?;
    Ok(plan)
}

/// Types of `$1` to `$count`, where the plan tells.
pub(crate) fn parameter_types(plan: &LogicalPlan, count: usize) -> Result<Vec<Option<DataType>>> {
    let types: BTreeMap<_, _> = plan.get_parameter_types()?.into_iter().collect();
    Ok((1..=count).map(|number| types.get(&format!("${number}")).cloned().flatten()).collect())
}

/// Puts values in the place of parameters, each cast to the type that the plan wants there.
pub(crate) fn with_parameters(plan: LogicalPlan, parameters: &[ScalarValue], count: usize) -> Result<LogicalPlan> {
    if parameters.len() < count {
        return Err(SqlError::new("08P01", format!("{count} parameters are wanted, {} are there", parameters.len())));
    }
    if count == 0 {
        return Ok(plan);
    }
    let types = parameter_types(&plan, count)?;
    let values = parameters
        .iter()
        .zip(types)
        .map(|(value, wanted)| match wanted {
            Some(wanted) if wanted != value.data_type() => value.cast_to(&wanted),
            _ => Ok(value.clone()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(plan.with_param_values(ParamValues::from(values))?)
}

/// Puts values in the place of parameters in one expression.
pub(crate) fn bind(expr: Expr, parameters: &[ScalarValue]) -> Result<Expr> {
    let bound = expr.transform(|expr| match &expr {
        Expr::Placeholder(Placeholder { id, .. }) => {
            let number = id.strip_prefix('$').and_then(|number| number.parse::<usize>().ok());
            match number.and_then(|number| parameters.get(number.checked_sub(1)?)) {
                Some(value) => Ok(Transformed::yes(Expr::Literal(value.clone(), None))),
                None => datafusion::common::plan_err!("there is no parameter {id}"),
            }
        }
        _ => Ok(Transformed::no(expr)),
    })?;
    Ok(bound.data)
}

/// Plans and starts a query.
pub(crate) async fn start(
    session: &Session,
    query: &ast::Statement,
    sql: &str,
    parameters: &[ScalarValue],
    count: usize,
) -> Result<SendableRecordBatchStream> {
    let mut state = session.planning_state();
    let plan = with_parameters(plan(&state, query, sql).await?, parameters, count)?;
    let feeds = prepare_for_feeds(&mut state, &plan)?;
    let physical = physical(&state, &plan, sql).await?;
    if feeds == Some(feed::Kind::Tail) {
        // Scans have what they need of the version; the statement may run for weeks.
        state.config_mut().set_extension(Arc::new(PinnedVersion(Version::default())));
        return session.threads().run_waiting(physical, state.task_ctx());
    }
    session.run_plan(physical, &state)
}

/// A query over one table, started.
pub(crate) struct SelectedRows {
    /// The table's database, at the position that is read.
    pub(crate) database: Arc<DatabaseVersion>,
    /// The table.
    pub(crate) table: Arc<TableVersion>,
    /// What the query gives.
    pub(crate) rows: SendableRecordBatchStream,
}

/// Plans and starts a query without parameters that reads one table of a database.
pub(crate) async fn select_one(session: &Session, query: &ast::Statement, sql: &str) -> Result<SelectedRows> {
    let state = session.planning_state();
    let plan = plan(&state, query, sql).await?;
    let version = PinnedVersion::of(state.config(), &session.instance().engine);
    let (database, table) = only_table(&plan, &version)?;
    let physical = physical(&state, &plan, sql).await?;
    Ok(SelectedRows { database, table, rows: session.run_plan(physical, &state)? })
}

/// A feed's rows come in its order, so nothing is divided among threads.
fn prepare_for_feeds(state: &mut SessionState, plan: &LogicalPlan) -> Result<Option<feed::Kind>> {
    let feeds = feed::feeds_of(plan)?;
    if feeds.is_some() {
        state.config_mut().options_mut().execution.target_partitions = 1;
    }
    Ok(feeds)
}

/// EXPLAIN: the physical plan, a line a row; with ANALYZE after having run it, with figures.
pub(crate) async fn explain(
    session: &Session,
    query: &ast::Statement,
    sql: &str,
    (analyze, verbose): (bool, bool),
    parameters: &[ScalarValue],
    count: usize,
) -> Result<Outcome> {
    let mut state = session.planning_state();
    let logical = with_parameters(plan(&state, query, sql).await?, parameters, count)?;
    prepare_for_feeds(&mut state, &logical)?;
    let physical = physical(&state, &logical, sql).await?;
    let mut text = String::new();
    if verbose {
        text.push_str(&format!("{}\n\n", state.optimize(&logical)?.display_indent()));
    }
    if analyze {
        let mut stream = session.run_plan(physical.clone(), &state)?;
        let mut returned = 0;
        while let Some(batch) = stream.try_next().await? {
            returned += batch.num_rows();
        }
        let shown = match verbose {
            true => DisplayableExecutionPlan::with_full_metrics(physical.as_ref()),
            false => DisplayableExecutionPlan::with_metrics(physical.as_ref()),
        };
        text.push_str(&format!("{}rows returned: {returned}", shown.indent(verbose)));
    } else {
        text.push_str(&DisplayableExecutionPlan::new(physical.as_ref()).indent(verbose).to_string());
    }
    let lines: Vec<&str> = text.lines().collect();
    rows(explain_schema(), vec![Arc::new(StringArray::from(lines))])
}

/// The schema of EXPLAIN's rows.
pub(crate) fn explain_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8, false)]))
}

async fn physical(state: &SessionState, plan: &LogicalPlan, sql: &str) -> Result<Arc<dyn ExecutionPlan>> {
    state.create_physical_plan(plan).await.map_err(|error| SqlError::planning(error, sql))
}
