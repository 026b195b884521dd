//! Table functions that read backups: `get_backup_list(url)`, `get_backup_meta(url, backup)`, `check_backup(url [, backup])`.

use std::sync::Arc;

use datafusion::{
    catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider},
    common::{Result as DataFusionResult, ScalarValue},
    error::DataFusionError,
    logical_expr::Expr,
    prelude::SessionContext,
};
use futures::{FutureExt as _, future::BoxFuture};
use tailrace_engine::{BackupId, BackupScope};

use crate::{
    Instance, Result, SqlError,
    procedure::place,
    system::computed::{Awaited, Columns, Kind, Value},
};

type Rows = BoxFuture<'static, Result<Vec<Vec<Value>>>>;

/// A function of a place and, perhaps, a backup.
#[derive(Clone, Copy)]
struct Function {
    name: &'static str,
    /// Whether a backup may be named, and whether it must be.
    takes_backup: Option<bool>,
    columns: Columns,
    rows: fn(Arc<Instance>, String, Option<BackupId>) -> Rows,
}

const ALL: [Function; 3] = [LIST, META, CHECK];

const LIST: Function = Function {
    name: "get_backup_list",
    takes_backup: None,
    columns: &[
        ("backup", Kind::Text),
        ("started", Kind::Time),
        ("finished", Kind::Time),
        ("scope", Kind::Text),
        // `market at seq 17`, for each database.
        ("positions", Kind::Text),
        ("tables", Kind::Int),
        ("partitions", Kind::Int),
        ("files", Kind::Int),
        ("rows", Kind::Int),
        ("bytes", Kind::Int),
        // Of these, what the backup wrote itself.
        ("written_bytes", Kind::Int),
        ("encrypted", Kind::Bool),
        // Why its manifest cannot be read.
        ("fault", Kind::Text),
    ],
    rows: start_list,
};

const META: Function = Function {
    name: "get_backup_meta",
    takes_backup: Some(false),
    columns: &[
        ("backup", Kind::Text),
        ("database", Kind::Text),
        ("history", Kind::Text),
        ("seq", Kind::Int),
        ("commit_time", Kind::Time),
        ("table", Kind::Text),
        ("columns", Kind::Text),
        ("partition", Kind::Text),
        ("rows", Kind::Int),
        ("files", Kind::Int),
        ("bytes", Kind::Int),
        ("digest", Kind::Text),
        // What selected the rows, where a query did.
        ("query", Kind::Text),
    ],
    rows: start_meta,
};

const CHECK: Function = Function {
    name: "check_backup",
    takes_backup: Some(false),
    columns: &[
        ("backup", Kind::Text),
        ("database", Kind::Text),
        ("table", Kind::Text),
        ("partition", Kind::Text),
        ("file", Kind::Text),
        ("what", Kind::Text),
        ("expected", Kind::Text),
        ("found", Kind::Text),
    ],
    rows: start_check,
};

/// Registers all of them.
pub(super) fn register(context: &SessionContext, instance: &Arc<Instance>) {
    for function in ALL {
        context.register_udtf(function.name, Arc::new(Call { function, instance: instance.clone() }));
    }
}

struct Call {
    function: Function,
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
        let (url, backup) =
            arguments(&function, args.exprs()).map_err(|error| DataFusionError::External(Box::new(error)))?;
        let instance = self.instance.clone();
        Ok(Arc::new(Awaited::new(function.name, function.columns, move || {
            (function.rows)(instance.clone(), url.clone(), backup.clone())
        })))
    }
}

fn arguments(function: &Function, given: &[Expr]) -> Result<(String, Option<BackupId>)> {
    let usage = || {
        let backup = match function.takes_backup {
            None => "",
            Some(true) => ", backup text",
            Some(false) => ", [backup text]",
        };
        format!("its signature is {}(url text{backup})", function.name)
    };
    let text = |value: &Expr| match literal(value) {
        Some(
            ScalarValue::Utf8(Some(text)) | ScalarValue::LargeUtf8(Some(text)) | ScalarValue::Utf8View(Some(text)),
        ) => Ok(text),
        // A place is not repeated: it may hold a secret.
        _ => Err(SqlError::new("22023", format!("{} takes text in single quotes", function.name)).hint(usage())),
    };
    match given {
        [url] if function.takes_backup != Some(true) => Ok((text(url)?, None)),
        [url, backup] if function.takes_backup.is_some() => Ok((text(url)?, Some(text(backup)?.parse()?))),
        _ => {
            let count = given.len();
            Err(SqlError::new("42883", format!("{} does not take {count} arguments", function.name)).hint(usage()))
        }
    }
}

fn literal(value: &Expr) -> Option<ScalarValue> {
    match value {
        Expr::Literal(value, _) => Some(value.clone()),
        Expr::Cast(cast) => literal(&cast.expr),
        _ => None,
    }
}

fn start_list(instance: Arc<Instance>, url: String, _backup: Option<BackupId>) -> Rows {
    list(instance, url).boxed()
}

fn start_meta(instance: Arc<Instance>, url: String, backup: Option<BackupId>) -> Rows {
    meta(instance, url, backup).boxed()
}

fn start_check(instance: Arc<Instance>, url: String, backup: Option<BackupId>) -> Rows {
    check(instance, url, backup).boxed()
}

async fn list(instance: Arc<Instance>, url: String) -> Result<Vec<Vec<Value>>> {
    let location = place::location(&instance, &url, false).await?;
    let rows = location.list().await?.into_iter().map(|summary| {
        let backup: Value = summary.id.as_str().into();
        match summary.facts {
            Ok(facts) => {
                let positions: Vec<String> =
                    facts.databases.iter().map(|(name, position)| format!("{name} at seq {}", position.seq)).collect();
                vec![
                    backup,
                    facts.started.into(),
                    facts.finished.into(),
                    scope(&facts.scope).into(),
                    positions.join(", ").into(),
                    facts.tables.into(),
                    facts.partitions.into(),
                    facts.files.into(),
                    facts.rows.into(),
                    facts.bytes.into(),
                    facts.written_bytes.into(),
                    facts.is_encrypted.into(),
                    Value::Null,
                ]
            }
            Err(fault) => {
                let mut row = vec![Value::Null; LIST.columns.len()];
                row[0] = backup;
                row[LIST.columns.len() - 1] = fault.into();
                row
            }
        }
    });
    Ok(rows.collect())
}

/// What was asked for, in words.
fn scope(scope: &BackupScope) -> String {
    match scope {
        BackupScope::Cluster => "cluster".to_owned(),
        BackupScope::Database(name) => format!("database {name}"),
        BackupScope::Table { database, table, partitions, condition } => {
            let pattern = partitions.as_ref().map_or_else(String::new, |pattern| format!("partitions {pattern} of "));
            let condition = condition.as_ref().map_or_else(String::new, |condition| format!(" where {condition}"));
            format!("{pattern}table {database}.{table}{condition}")
        }
        BackupScope::Query(query) => format!("query {query}"),
    }
}

async fn meta(instance: Arc<Instance>, url: String, backup: Option<BackupId>) -> Result<Vec<Vec<Value>>> {
    let location = place::location(&instance, &url, false).await?;
    let manifest = location.chosen(backup.as_ref()).await?;
    let mut rows = Vec::new();
    for database in &manifest.databases {
        let of_database = || -> Vec<Value> {
            vec![
                manifest.id.as_str().into(),
                database.name.as_str().into(),
                database.position.history.to_string().into(),
                database.position.seq.into(),
                database.commit_time.into(),
            ]
        };
        let mut push = |rest: [Value; 8]| {
            let mut row = of_database();
            row.extend(rest);
            rows.push(row);
        };
        if database.tables.is_empty() {
            push(std::array::from_fn(|_| Value::Null));
        }
        for table in &database.tables {
            let columns: Vec<String> =
                table.table.columns.iter().map(|column| format!("{} {}", column.name, column.data_type)).collect();
            let query: Option<String> = table.selected.as_ref().map(|selected| selected.query.clone());
            let of_table = || -> (Value, Value) { (table.table.name.as_str().into(), columns.join(", ").into()) };
            if table.partitions.is_empty() {
                let ((name, columns), null) = (of_table(), || Value::Null);
                push([name, columns, null(), null(), null(), null(), null(), query.clone().into()]);
            }
            for partition in &table.partitions {
                let (name, columns) = of_table();
                push([
                    name,
                    columns,
                    Some(partition.name.clone()).filter(|name| !name.is_empty()).into(),
                    partition.rows.into(),
                    partition.files.len().into(),
                    partition.files.iter().map(|file| file.bytes).sum::<u64>().into(),
                    partition.digest.values_hex().into(),
                    query.clone().into(),
                ]);
            }
        }
    }
    Ok(rows)
}

async fn check(instance: Arc<Instance>, url: String, backup: Option<BackupId>) -> Result<Vec<Vec<Value>>> {
    let location = place::location(&instance, &url, false).await?;
    let report = instance.engine.check_backup(&location, backup.as_ref()).await?;
    let rows = report.faults.into_iter().map(|fault| {
        let backup: Value = fault.backup.as_str().into();
        let place: [Value; 4] = match fault.place {
            None => std::array::from_fn(|_| Value::Null),
            Some(place) => {
                let partition = Some(place.partition).filter(|name| !name.is_empty());
                [place.database.into(), place.table.into(), partition.into(), place.file.into()]
            }
        };
        let mut row = vec![backup];
        row.extend(place);
        row.extend([fault.what.into(), fault.expected.into(), fault.found.into()]);
        row
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use datafusion::prelude::lit;

    use super::*;

    #[test]
    fn arguments_are_a_place_and_a_backup() {
        assert_eq!(arguments(&LIST, &[lit("/a")]).unwrap(), ("/a".to_owned(), None));
        let id = "20230108T000000.000000Z-00000007";
        let (_, backup) = arguments(&CHECK, &[lit("/a"), lit(id)]).unwrap();
        assert_eq!(backup.unwrap().as_str(), id);
        assert_eq!(arguments(&CHECK, &[]).unwrap_err().sqlstate, "42883");
        assert_eq!(arguments(&LIST, &[lit("/a"), lit(id)]).unwrap_err().sqlstate, "42883");
        assert_eq!(arguments(&LIST, &[lit(7)]).unwrap_err().sqlstate, "22023");
        assert_eq!(arguments(&META, &[lit("/a"), lit("../x")]).unwrap_err().sqlstate, "22023");
    }
}
