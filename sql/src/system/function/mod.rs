//! Table functions, one file each. Those about replication are named as the tutorials name them, in snake case.

mod arguments;
mod backup;
mod backup_status;
mod cluster_replication_metrics;
mod database_cluster_replication_status;
mod master_replication_status;
mod partition_digests;
pub(super) mod recent_slave_replication_info;
mod slave_replication_status;
mod state;

pub(super) use state::database_state;

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::{Result as DataFusionResult, ScalarValue},
    error::DataFusionError,
    logical_expr::Expr,
    prelude::SessionContext,
};
use tailrace_engine::TaskInfo;
use tailrace_replicator::{Follower, Publisher};

use super::computed::{Columns, Computed, Context, Rows};
use crate::{Instance, Result, SqlError};

/// A table function with at most one argument, an integer that may be left out.
struct Function {
    name: &'static str,
    /// The argument's name.
    argument: Option<&'static str>,
    columns: Columns,
    /// Computes its rows.
    rows: fn(&Context<'_>, Option<i64>, &mut Rows) -> Result<()>,
}

const ALL: &[Function] = &[
    backup_status::FUNCTION,
    cluster_replication_metrics::FUNCTION,
    database_cluster_replication_status::FUNCTION,
    master_replication_status::FUNCTION,
    recent_slave_replication_info::FUNCTION,
    slave_replication_status::FUNCTION,
];

/// Registers all of them.
pub(super) fn register(context: &SessionContext, instance: &Arc<Instance>) -> DataFusionResult<()> {
    backup::register(context, instance);
    for function in ALL {
        context.register_udtf(function.name, Arc::new(Call { function, instance: instance.clone() }));
    }
    partition_digests::register(context, instance)
}

struct Call {
    function: &'static Function,
    instance: Arc<Instance>,
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Call").field(&self.function.name).finish()
    }
}

impl TableFunctionImpl for Call {
    fn call_with_args(&self, args: TableFunctionArgs) -> DataFusionResult<Arc<dyn TableProvider>> {
        let function = self.function;
        let argument = argument(function, args.exprs()).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let rows = function.rows;
        let table = Computed::new(function.name, function.columns, self.instance.clone(), move |context, to| {
            rows(context, argument, to)
        });
        Ok(Arc::new(table))
    }
}

/// The argument's value.
fn argument(function: &Function, given: &[Expr]) -> Result<Option<i64>> {
    let signature =
        format!("{}({})", function.name, function.argument.map_or_else(String::new, |name| format!("[{name} bigint]")));
    let usage = || format!("its signature is {signature}");
    match given {
        [] => Ok(None),
        [value] if function.argument.is_some() => match integer(value) {
            Some(value) => Ok(value),
            None => {
                Err(SqlError::new("22023", format!("{} takes an integer, not {value}", function.name)).hint(usage()))
            }
        },
        _ => {
            Err(SqlError::new("42883", format!("{} does not take {} arguments", function.name, given.len()))
                .hint(usage()))
        }
    }
}

/// An integer literal, perhaps with a sign; `Some(None)` is NULL.
fn integer(value: &Expr) -> Option<Option<i64>> {
    match value {
        Expr::Literal(ScalarValue::Null, _) => Some(None),
        Expr::Literal(value, _) if value.data_type().is_integer() => {
            match value.cast_to(&datafusion::arrow::datatypes::DataType::Int64) {
                Ok(ScalarValue::Int64(value)) => Some(value),
                _ => None,
            }
        }
        Expr::Negative(value) => match integer(value)? {
            Some(value) => value.checked_neg().map(Some),
            None => Some(None),
        },
        Expr::Cast(cast) => integer(&cast.expr),
        _ => None,
    }
}

/// The documented error where nothing is configured, with what to set.
pub(crate) fn not_configured(detail: &str, hint: &str) -> SqlError {
    SqlError::new("55000", "Asynchronous replication is not properly configured for the cluster")
        .detail(detail)
        .hint(hint)
}

/// What to set for either side.
pub(crate) const CONFIGURE: &str = "set [replication.primary] (and listen.replication) on the cluster that is written, \
     [replication.replica] with primary_addresses on the cluster that follows, and [tls] on both";

fn publisher<'a>(context: &Context<'a>) -> Result<&'a Arc<Publisher>> {
    context.instance.publisher.as_ref().ok_or_else(|| match context.instance.follower {
        None => not_configured("This cluster is neither a primary nor a replica.", CONFIGURE),
        Some(_) => not_configured("This cluster is a replica, not a primary.", "run it on the primary"),
    })
}

fn follower<'a>(context: &Context<'a>) -> Result<&'a Arc<Follower>> {
    context.instance.follower.as_ref().ok_or_else(|| match context.instance.publisher {
        None => not_configured("This cluster is neither a primary nor a replica.", CONFIGURE),
        Some(_) => not_configured("This cluster is a primary, not a replica.", "run it on the replica"),
    })
}

/// Names of the tables that a task touches; `None` where it touches the database itself.
pub(super) fn table_names(task: &TaskInfo) -> Option<String> {
    let names: Vec<&str> = task.tables.iter().map(|(_, name)| name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// The order of both status functions: finished tasks first, the latest 10,000 of them, then unfinished ones, oldest
/// first. `limit`: the last so many of that list; negative or none: all.
fn arrange<T>(tasks: Vec<T>, limit: Option<i64>, finished: impl Fn(&T) -> bool, time: impl Fn(&T) -> i64) -> Vec<T> {
    let (mut done, mut open): (Vec<T>, Vec<T>) = tasks.into_iter().partition(finished);
    done.sort_by_key(&time);
    open.sort_by_key(&time);
    done.drain(..done.len().saturating_sub(tailrace_engine::TASKS_KEPT));
    done.append(&mut open);
    if let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) {
        done.drain(..done.len().saturating_sub(limit));
    }
    done
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::lit;

    use super::*;

    #[test]
    fn finished_tasks_come_first_and_the_limit_keeps_the_last() {
        // (time, finished)
        let tasks = vec![(5, false), (1, true), (4, false), (3, true), (2, false)];
        let all = arrange(tasks.clone(), None, |task| task.1, |task| task.0);
        assert_eq!(all, [(1, true), (3, true), (2, false), (4, false), (5, false)]);
        assert_eq!(arrange(tasks.clone(), Some(2), |task| task.1, |task| task.0), [(4, false), (5, false)]);
        assert_eq!(arrange(tasks, Some(-1), |task| task.1, |task| task.0).len(), 5);
        let many: Vec<_> = (0..10_005).map(|time| (time, true)).collect();
        let kept = arrange(many, None, |task| task.1, |task| task.0);
        assert_eq!((kept.len(), kept[0].0), (10_000, 5));
    }

    #[test]
    fn arguments_are_checked() {
        let with = &master_replication_status::FUNCTION;
        assert_eq!(argument(with, &[]).unwrap(), None);
        assert_eq!(argument(with, &[lit(7)]).unwrap(), Some(7));
        assert_eq!(argument(with, &[Expr::Negative(Box::new(lit(1)))]).unwrap(), Some(-1));
        assert_eq!(argument(with, &[lit("x")]).unwrap_err().sqlstate, "22023");
        assert_eq!(argument(with, &[lit(1), lit(2)]).unwrap_err().sqlstate, "42883");
        let without = &recent_slave_replication_info::FUNCTION;
        let error = argument(without, &[lit(1)]).unwrap_err();
        assert_eq!(error.hint.unwrap(), "its signature is get_recent_slave_replication_info()");
    }
}
