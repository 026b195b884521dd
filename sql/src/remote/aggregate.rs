//! Counts, sums, least and greatest values of one remote table are made there: rows that only they need are not sent.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, Field, Schema},
    catalog::default_table_source::{provider_as_source, source_as_provider},
    common::{Column, Result, tree_node::Transformed},
    logical_expr::{
        Aggregate, Expr, LogicalPlan, LogicalPlanBuilder, TableScan,
        expr::{AggregateFunction, AggregateFunctionParams},
    },
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use super::{
    filter::quoted,
    table::{RemoteQuery, RemoteTable},
};

/// Aggregates that a remote cluster can make.
const FUNCTIONS: [&str; 5] = ["count", "sum", "min", "max", "avg"];

/// Replaces an aggregate over one remote table, whose filters are all done there, by a query of that cluster.
#[derive(Debug, Default)]
pub(crate) struct PushDownAggregate;

impl OptimizerRule for PushDownAggregate {
    fn name(&self) -> &str {
        "push_down_remote_aggregate"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::BottomUp)
    }

    fn supports_rewrite(&self) -> bool {
        true
    }

    fn rewrite(&self, plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Aggregate(aggregate) = &plan else { return Ok(Transformed::no(plan)) };
        match pushed(aggregate)? {
            Some(pushed) => Ok(Transformed::yes(pushed)),
            None => Ok(Transformed::no(plan)),
        }
    }
}

fn pushed(aggregate: &Aggregate) -> Result<Option<LogicalPlan>> {
    let mut input = aggregate.input.as_ref();
    while let LogicalPlan::SubqueryAlias(alias) = input {
        input = &alias.input;
    }
    let LogicalPlan::TableScan(scan @ TableScan { fetch: None, .. }) = input else { return Ok(None) };
    let provider = source_as_provider(&scan.source)?;
    let Some(table) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<RemoteTable>() else { return Ok(None) };

    let groups = aggregate.group_expr.iter().map(|expr| match expr {
        Expr::Column(column) if table.schema.field_with_name(&column.name).is_ok() => Some(quoted(&column.name)),
        _ => None,
    });
    let Some(groups) = groups.collect::<Option<Vec<_>>>() else { return Ok(None) };
    let calls = aggregate.aggr_expr.iter().map(|expr| call(expr, &table.schema));
    let Some(calls) = calls.collect::<Option<Vec<_>>>() else { return Ok(None) };

    // Columns by position; names and qualifiers of the plan are given back above.
    let name = |index: usize| format!("c{index}");
    let selected = groups.iter().chain(&calls).enumerate();
    let selected: Vec<_> = selected.map(|(index, sql)| format!("{sql} AS {}", name(index))).collect();
    let mut sql = format!("SELECT {} {}", selected.join(", "), table.rows_of(&scan.filters)?);
    if !groups.is_empty() {
        sql.push_str(&format!(" GROUP BY {}", groups.join(", ")));
    }
    let outputs: Vec<_> = aggregate.schema.iter().collect();
    if outputs.len() != selected.len() {
        return Ok(None);
    }
    let fields = outputs.iter().enumerate();
    let fields: Vec<_> = fields
        .map(|(index, (_, field))| Field::new(name(index), field.data_type().clone(), field.is_nullable()))
        .collect();
    let query = RemoteQuery { remote: Arc::clone(&table.remote), sql, schema: Arc::new(Schema::new(fields)) };
    let columns = outputs.iter().enumerate().map(|(index, (qualifier, field))| {
        Expr::Column(Column::new(Some(scan.table_name.clone()), name(index)))
            .alias_qualified(qualifier.map(|qualifier| (*qualifier).clone()), field.name())
    });
    let columns: Vec<_> = columns.collect();
    let source = provider_as_source(Arc::new(query));
    LogicalPlanBuilder::scan(scan.table_name.clone(), source, None)?.project(columns)?.build().map(Some)
}

/// An aggregate in SQL, if it is one that means the same there.
fn call(expr: &Expr, schema: &Schema) -> Option<String> {
    let expr = match expr {
        Expr::Alias(alias) => &alias.expr,
        expr => expr,
    };
    let Expr::AggregateFunction(AggregateFunction { func, params }) = expr else { return None };
    let AggregateFunctionParams { args, distinct, filter, order_by, null_treatment } = params;
    let plain = !distinct && filter.is_none() && order_by.is_empty() && null_treatment.is_none();
    let name = func.name();
    match &args[..] {
        _ if !plain || !FUNCTIONS.contains(&name) => None,
        // Of a constant that is not NULL: of every row.
        [Expr::Literal(value, _)] if name == "count" && !value.is_null() => Some("count(*)".to_owned()),
        [argument] => Some(format!("{name}({})", self::argument(argument, schema)?)),
        _ => None,
    }
}

/// A column, or a column made wider.
fn argument(expr: &Expr, schema: &Schema) -> Option<String> {
    let of_column = |expr: &Expr| match expr {
        Expr::Column(column) => {
            let field = schema.field_with_name(&column.name).ok()?;
            Some((quoted(&column.name), field.data_type().clone()))
        }
        _ => None,
    };
    match expr {
        Expr::Cast(cast) => {
            use DataType::{Float32, Float64, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
            let (column, from) = of_column(&cast.expr)?;
            let of = match (from, cast.field.data_type()) {
                (Int8 | Int16 | Int32, Int64) => "BIGINT",
                (UInt8 | UInt16 | UInt32, UInt64) => "BIGINT UNSIGNED",
                (Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 | Float32, Float64) => {
                    "DOUBLE PRECISION"
                }
                _ => return None,
            };
            Some(format!("CAST({column} AS {of})"))
        }
        expr => of_column(expr).map(|(column, _)| column),
    }
}
