//! CREATE and DROP of databases and tables.

use datafusion::sql::sqlparser::ast::{self, ColumnOption, Expr, FunctionArg, FunctionArgExpr, FunctionArguments};
use tailrace_engine::{ColumnDefinition, EngineError, TableDefinition, partition::Transform};

use super::{
    Kind,
    guard::Guard,
    name::{self, RESERVED, TableName, identifier},
    types::column_type,
};
use crate::{Outcome, Result, Session, SqlError};

/// Checks CREATE TABLE as far as that goes without a catalog.
pub(super) fn check_create_table(create: ast::CreateTable) -> Result<Kind> {
    let name = TableName::parse(&create.name)?;
    refuse_clauses(&create)?;
    let columns = create.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
    if columns.is_empty() {
        return Err(SqlError::new("42P16", format!("table {name} has no columns")));
    }
    let known = |wanted: &str| {
        let names = || columns.iter().map(|column| column.name.as_str());
        if names().any(|name| name == wanted) {
            return Ok(());
        }
        Err(SqlError::new("42703", format!("column {wanted:?} is not among the columns of {name}"))
            .did_you_mean(wanted, names()))
    };
    let partition_by = match &create.partition_by {
        Some(by) => partition_fields(by)?,
        None => Vec::new(),
    };
    partition_by.iter().try_for_each(|(_, column)| known(column))?;
    let order_by = create.order_by.iter().flat_map(|by| by.iter()).map(plain_column).collect::<Result<Vec<_>>>()?;
    order_by.iter().try_for_each(|column| known(column))?;
    let definition = TableDefinition { name: name.table.clone(), columns, partition_by, order_by };
    Ok(Kind::CreateTable { name, definition, if_not_exists: create.if_not_exists })
}

/// CREATE DATABASE.
pub(crate) async fn create_database(session: &Session, name: &str, if_not_exists: bool) -> Result<Outcome> {
    if RESERVED.contains(&name) || name.starts_with("pg_") {
        return Err(SqlError::new("42939", format!("{name:?} is a reserved name")).hint("choose another name"));
    }
    match session.instance().engine.create_database(name).await {
        Ok(_) => Ok(Outcome::done("CREATE DATABASE")),
        Err(EngineError::AlreadyExists { .. }) if if_not_exists => {
            Ok(Outcome::noted("CREATE DATABASE", format!("database {name:?} already exists, skipping")))
        }
        Err(error) => Err(error.into()),
    }
}

/// DROP DATABASE.
pub(crate) async fn drop_database(
    session: &Session,
    names: &[String],
    if_exists: bool,
    restrict: bool,
) -> Result<Outcome> {
    let engine = &session.instance().engine;
    let mut notices = Vec::new();
    for name in names {
        let version = engine.version();
        let Some(database) = version.database(name) else {
            if !if_exists {
                return Err(name::no_database(&version, name));
            }
            notices.push(format!("database {name:?} does not exist, skipping").into());
            continue;
        };
        if restrict && let Some(table) = database.tables().next() {
            return Err(SqlError::new(
                "2BP01",
                format!("database {name:?} has tables, {:?} for one", table.table.name),
            )
            .hint("leave out RESTRICT to drop them too"));
        }
        engine.drop_database(name).await?;
    }
    Ok(Outcome::Done { tag: "DROP DATABASE".to_owned(), notices })
}

/// CREATE TABLE.
pub(crate) async fn create_table(
    session: &Session,
    name: &TableName,
    definition: &TableDefinition,
    if_not_exists: bool,
    guard: &mut Guard,
) -> Result<Outcome> {
    let engine = &session.instance().engine;
    let database = name.database(session.current_database().as_deref())?;
    let version = engine.version();
    if version.database(&database).is_none() {
        return Err(name::no_database(&version, &database).hint(format!("CREATE DATABASE {database} first")));
    }
    let wanted = session.settings(|settings| settings.synchronous_commit());
    wanted.check(session, &database)?;
    match engine.create_table(&database, definition.clone()).await {
        Ok(receipt) => {
            let notices = wanted.wait(session, &receipt, guard).await.into_iter().collect();
            Ok(Outcome::Done { tag: "CREATE TABLE".to_owned(), notices })
        }
        Err(EngineError::AlreadyExists { .. }) if if_not_exists => {
            Ok(Outcome::noted("CREATE TABLE", format!("table \"{name}\" already exists, skipping")))
        }
        Err(EngineError::AlreadyExists { .. }) => {
            Err(SqlError::new("42P07", format!("table \"{name}\" already exists")))
        }
        Err(error) => Err(error.into()),
    }
}

/// DROP TABLE.
pub(crate) async fn drop_table(
    session: &Session,
    names: &[TableName],
    if_exists: bool,
    guard: &mut Guard,
) -> Result<Outcome> {
    let engine = &session.instance().engine;
    let wanted = session.settings(|settings| settings.synchronous_commit());
    let mut notices = Vec::new();
    for name in names {
        let current = session.current_database();
        let database = name.database(current.as_deref())?;
        let version = engine.version();
        let found = version.database(&database);
        match found.map(|found| (found, found.table(&name.table))) {
            Some((_, Some(_))) => {
                wanted.check(session, &database)?;
                let receipt = engine.drop_table(&database, &name.table).await?;
                notices.extend(wanted.wait(session, &receipt, guard).await);
            }
            _ if if_exists => notices.push(format!("table \"{name}\" does not exist, skipping").into()),
            Some((found, None)) => return Err(name::no_table(found, &name.to_string(), &name.table)),
            None => return Err(name::no_database(&version, &database)),
        }
    }
    Ok(Outcome::Done { tag: "DROP TABLE".to_owned(), notices })
}

/// Clauses of CREATE TABLE that have no meaning here, by name.
fn refuse_clauses(create: &ast::CreateTable) -> Result<()> {
    use ast::CreateTableOptions;
    let refused = [
        (create.or_replace, "CREATE OR REPLACE TABLE"),
        (create.temporary, "CREATE TEMPORARY TABLE"),
        (create.external, "CREATE EXTERNAL TABLE"),
        (create.query.is_some(), "CREATE TABLE … AS"),
        (create.like.is_some(), "CREATE TABLE … LIKE"),
        (create.clone.is_some(), "CREATE TABLE … CLONE"),
        (create.inherits.is_some(), "INHERITS"),
        (create.partition_of.is_some(), "PARTITION OF"),
        (create.on_commit.is_some(), "ON COMMIT"),
        (create.primary_key.is_some(), "PRIMARY KEY"),
        (create.cluster_by.is_some(), "CLUSTER BY"),
        (create.clustered_by.is_some(), "CLUSTERED BY"),
        (create.location.is_some(), "LOCATION"),
        (create.file_format.is_some(), "STORED AS"),
        (!matches!(create.table_options, CreateTableOptions::None), "WITH (…) of CREATE TABLE"),
        (create.without_rowid, "WITHOUT ROWID"),
        (create.transient || create.volatile || create.iceberg || create.dynamic, "this kind of CREATE TABLE"),
    ];
    if let Some((_, name)) = refused.iter().find(|(there, _)| *there) {
        return Err(SqlError::unsupported(name));
    }
    match create.constraints.first() {
        Some(ast::TableConstraint::PrimaryKey(_)) => Err(primary_key()),
        Some(ast::TableConstraint::Unique(_)) => Err(SqlError::unsupported("UNIQUE")),
        Some(ast::TableConstraint::ForeignKey(_)) => Err(SqlError::unsupported("FOREIGN KEY")),
        Some(ast::TableConstraint::Check(_)) => Err(SqlError::unsupported("CHECK")),
        Some(other) => Err(SqlError::unsupported(format!("constraint {other}"))),
        None => Ok(()),
    }
}

fn primary_key() -> SqlError {
    SqlError::unsupported("PRIMARY KEY")
        .hint("rows are not unique here; ORDER BY (…) after the columns sorts and finds them")
}

fn column(column: &ast::ColumnDef) -> Result<ColumnDefinition> {
    let name = identifier(&column.name);
    let data_type = column_type(&column.data_type).map_err(|error| {
        let message = format!("column {name:?}: {}", error.message);
        SqlError { message, ..error }
    })?;
    let mut nullable = true;
    for option in &column.options {
        let refused = match &option.option {
            ColumnOption::Null => continue,
            ColumnOption::NotNull => {
                nullable = false;
                continue;
            }
            ColumnOption::PrimaryKey(_) => return Err(primary_key()),
            ColumnOption::Default(_) => "DEFAULT".to_owned(),
            ColumnOption::Unique(_) => "UNIQUE".to_owned(),
            ColumnOption::ForeignKey(_) => "REFERENCES".to_owned(),
            ColumnOption::Check(_) => "CHECK".to_owned(),
            ColumnOption::Generated { .. } | ColumnOption::Identity(_) => "a generated column".to_owned(),
            ColumnOption::Collation(_) => "COLLATE".to_owned(),
            other => other.to_string(),
        };
        return Err(SqlError::unsupported(format!("{refused} (column {name:?})")));
    }
    Ok(ColumnDefinition { name, data_type, nullable })
}

/// The fields of `VALUE (day(datetime), security_id)`.
fn partition_fields(by: &Expr) -> Result<Vec<(Transform, String)>> {
    let usage = "PARTITION BY VALUE (column, day(column), …)";
    let Expr::Function(function) = by else {
        return Err(SqlError::unsupported(format!("PARTITION BY {by}")).hint(usage));
    };
    match name::single(&function.name, "kind of partition")?.as_str() {
        "value" => {}
        other => {
            return Err(SqlError::unsupported(format!("PARTITION BY {}", other.to_uppercase())).hint(usage));
        }
    }
    let fields = arguments(function).ok_or_else(|| SqlError::syntax("PARTITION BY VALUE takes columns").hint(usage))?;
    if fields.is_empty() {
        return Err(SqlError::syntax("PARTITION BY VALUE () names no column").hint(usage));
    }
    fields.into_iter().map(partition_field).collect()
}

fn partition_field(field: &Expr) -> Result<(Transform, String)> {
    let Expr::Function(function) = field else { return Ok((Transform::Identity, plain_column(field)?)) };
    let name = name::single(&function.name, "transform")?;
    let transform = match name.as_str() {
        "identity" => Transform::Identity,
        "year" | "years" => Transform::Year,
        "month" | "months" => Transform::Month,
        "day" | "days" | "date" => Transform::Day,
        "hour" | "hours" => Transform::Hour,
        "bucket" => return Err(SqlError::unsupported("bucket(…) in PARTITION BY VALUE")),
        _ => {
            return Err(SqlError::unsupported(format!("{name}(…) in PARTITION BY VALUE"))
                .hint("transforms: year, month, day, hour"));
        }
    };
    match arguments(function).as_deref() {
        Some([column]) => Ok((transform, plain_column(column)?)),
        _ => Err(SqlError::syntax(format!("{name}(…) in PARTITION BY VALUE takes one column"))),
    }
}

fn arguments(function: &ast::Function) -> Option<Vec<&Expr>> {
    let FunctionArguments::List(list) = &function.args else { return None };
    list.args
        .iter()
        .map(|argument| match argument {
            FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => Some(expr),
            _ => None,
        })
        .collect()
}

fn plain_column(expr: &Expr) -> Result<String> {
    match expr {
        Expr::Identifier(ident) => Ok(identifier(ident)),
        Expr::Nested(expr) => plain_column(expr),
        other => Err(SqlError::unsupported(format!("{other} where a column is expected"))),
    }
}
