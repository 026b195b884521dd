//! `backup(url, …)`: a cluster, a database, a table, some of its partitions, or the rows of a query.

use futures::TryStreamExt as _;
use tailrace_engine::{
    BackupEstimate, BackupReport, BackupRequest, BackupScope, EngineError, EstimatedTable, Recipients, SelectedSource,
};
use tailrace_wal::Position;
use tokio_util::sync::CancellationToken;

use super::{
    arguments::{Arguments, Parameter, Type},
    partition_condition, place,
};
use crate::{
    Result, Session, SqlError, feed,
    statement::{Kind, query},
};

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("url", Type::Text),
    Parameter::optional("query", Type::Text),
    Parameter::optional("database", Type::Text),
    Parameter::optional("table", Type::Text),
    Parameter::optional("partitions", Type::Text),
    Parameter::optional("parallel", Type::Int),
    Parameter::optional("force", Type::Bool),
    Parameter::optional("key", Type::Text),
    Parameter::optional("where", Type::Text),
    Parameter::optional("dry_run", Type::Bool),
];

pub(super) async fn run(session: &Session, arguments: &Arguments, stop: &CancellationToken) -> Result<Vec<String>> {
    let instance = session.instance();
    let (query, database, table, partitions, condition) = (
        arguments.optional_text(1)?,
        arguments.optional_text(2)?,
        arguments.optional_text(3)?,
        arguments.optional_text(4)?,
        arguments.optional_text(8)?,
    );
    let picks = partitions.or(condition);
    let scope = match (query, database, table, picks) {
        (Some(query), None, None, None) => BackupScope::Query(query.to_owned()),
        (None, None, None, None) => BackupScope::Cluster,
        (None, Some(database), None, None) => BackupScope::Database(database.to_owned()),
        (None, database, Some(table), _) => {
            let (database, table) = table_of(session, database, table)?;
            BackupScope::Table {
                database,
                table,
                partitions: partitions.map(ToOwned::to_owned),
                condition: condition.map(ToOwned::to_owned),
            }
        }
        (None, _, None, Some(_)) => {
            return Err(SqlError::new("22023", "partitions and where are about a table").hint("table => 'market.bars'"));
        }
        (Some(_), ..) => {
            return Err(SqlError::new("22023", "a query says itself what is backed up")
                .hint("leave out database, table, partitions and where"));
        }
    };
    let recipients = match arguments.optional_text(7)? {
        None => None,
        Some(path) => Some(Recipients::parse(&place::key_file(instance, path).await?)?),
    };
    let mut request = BackupRequest::new(scope);
    request.condition = condition.map(|text| partition_condition::condition(session, text));
    request.parallel = parallel(arguments.optional_int(5)?)?;
    request.force = arguments.optional_bool(6)?.unwrap_or_default();
    request.recipients = recipients;
    request.cancel = stop.clone();
    let url = arguments.text(0)?;
    if arguments.optional_bool(9)?.unwrap_or_default() {
        if query.is_some() {
            return Err(SqlError::unsupported("dry_run of a backup by query")
                .hint("all of its rows are written each time: SELECT count(*) counts them"));
        }
        let location = place::look(instance, url).await?;
        return Ok(foretell(&instance.engine.estimate_backup(&location, &request).await?));
    }
    let report = match query {
        None => {
            let location = place::location(instance, url, true).await?;
            instance.engine.backup(&location, request).await?
        }
        Some(query) => of_query(session, url, query, request).await?,
    };
    Ok(vec![describe(&report)])
}

/// Database and name of a table that is named with its database, or beside it, or lies in the current one.
pub(super) fn table_of(session: &Session, database: Option<&str>, table: &str) -> Result<(String, String)> {
    let name = feed::table_name(table)?;
    let current = session.current_database();
    let database = match (&name.database, database) {
        (Some(of), Some(given)) if of != given => {
            return Err(SqlError::new("22023", format!("table {table} is not in database {given}")));
        }
        (None, Some(given)) => given.to_owned(),
        _ => name.database(current.as_deref())?,
    };
    Ok((database, name.table))
}

/// How many files may be under way.
pub(super) fn parallel(given: Option<i64>) -> Result<Option<usize>> {
    match given {
        None => Ok(None),
        Some(given @ 1..=64) => Ok(usize::try_from(given).ok()),
        Some(given) => Err(SqlError::new("22023", format!("parallel => {given}: it is from 1 to 64"))),
    }
}

async fn of_query(session: &Session, url: &str, text: &str, request: BackupRequest) -> Result<BackupReport> {
    let statements = session.parse(text)?;
    let [statement] = &statements[..] else {
        return Err(SqlError::syntax("a backup by query has one query"));
    };
    let parsed = statement.parsed();
    let (Kind::Query(ast), 0) = (&parsed.kind, parsed.parameters) else {
        return Err(SqlError::syntax("a backup by query has a SELECT without parameters"));
    };
    let selected = query::select_one(session, ast, &parsed.sql).await?;
    let instance = session.instance();
    let location = place::location(instance, url, true).await?;
    let source = SelectedSource { database: selected.database, table: selected.table, schema: selected.rows.schema() };
    let rows = selected.rows.map_err(|error| {
        let error = SqlError::from(error);
        EngineError::Invalid(format!("the query failed: {error}"))
    });
    Ok(instance.engine.backup_rows(&location, request, source, rows).await?)
}

/// What a backup would do, a line for each table.
fn foretell(estimate: &BackupEstimate) -> Vec<String> {
    let line = |table: &EstimatedTable| {
        let resumed = match table.resumed_files {
            0 => String::new(),
            files => format!(", take {files} files over from an interrupted backup"),
        };
        format!(
            "table {}.{}: {} partitions with {} rows in {} files of {} bytes; write {} partitions, {} files of {} bytes\
             {resumed}",
            table.database,
            table.table,
            table.partitions,
            table.rows,
            table.files,
            table.bytes,
            table.written_partitions,
            table.written_files,
            table.written_bytes
        )
    };
    let mut lines: Vec<String> = estimate.tables.iter().map(line).collect();
    let sum = |of: fn(&EstimatedTable) -> u64| estimate.tables.iter().map(of).sum::<u64>();
    lines.push(format!(
        "nothing was written, this was a dry run: a backup would hold {}, and write {} of {} partitions, {} of {} files, {} of \
         {} bytes",
        positions(&estimate.databases),
        sum(|table| table.written_partitions),
        sum(|table| table.partitions),
        sum(|table| table.written_files),
        sum(|table| table.files),
        sum(|table| table.written_bytes),
        sum(|table| table.bytes)
    ));
    lines
}

fn positions(databases: &[(String, Position)]) -> String {
    let positions = databases.iter().map(|(name, position)| format!("{name} at seq {}", position.seq));
    positions.collect::<Vec<_>>().join(", ")
}

fn describe(report: &BackupReport) -> String {
    let resumed = match report.resumed_files {
        0 => String::new(),
        files => format!(", {files} files taken over from an interrupted backup"),
    };
    format!(
        "backup {}: {}; {} partitions with {} rows in {} files of {} bytes, written {} partitions, {} files of {} bytes\
         {resumed}, in {:.3} s",
        report.id,
        positions(&report.databases),
        report.partitions,
        report.rows,
        report.files,
        report.bytes,
        report.written_partitions,
        report.written_files,
        report.written_bytes,
        report.elapsed.as_secs_f64()
    )
}
