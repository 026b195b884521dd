//! Names of databases, tables and columns.

use datafusion::sql::sqlparser::ast::{Ident, ObjectName};
use tailrace_engine::{DatabaseVersion, Version};

use crate::{Result, SqlError, provider::CATALOG};

/// Schemas that are not databases.
pub(crate) const RESERVED: [&str; 4] = ["system", "information_schema", "pg_catalog", "pg_toast"];

/// A table's name as a statement gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableName {
    /// `market` of `market.bars`.
    pub(crate) database: Option<String>,
    /// `bars`.
    pub(crate) table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.database {
            Some(database) => write!(f, "{database}.{}", self.table),
            None => f.write_str(&self.table),
        }
    }
}

/// An identifier as PostgreSQL reads it: lower case unless quoted.
pub(crate) fn identifier(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_lowercase(),
    }
}

/// The parts of a dotted name.
pub(crate) fn parts(name: &ObjectName) -> Result<Vec<String>> {
    name.0
        .iter()
        .map(|part| part.as_ident().map(identifier).ok_or_else(|| SqlError::syntax(format!("{name} is not a name"))))
        .collect()
}

/// A name without dots.
pub(crate) fn single(name: &ObjectName, what: &str) -> Result<String> {
    match &mut parts(name)?[..] {
        [name] => Ok(std::mem::take(name)),
        _ => Err(SqlError::syntax(format!("{name} is not the name of a {what}: it has more than one part"))),
    }
}

impl TableName {
    /// `table`, `database.table` or `tailrace.database.table`.
    pub(crate) fn parse(name: &ObjectName) -> Result<Self> {
        match &mut parts(name)?[..] {
            [table] => Ok(Self { database: None, table: std::mem::take(table) }),
            [database, table] => Ok(Self { database: Some(std::mem::take(database)), table: std::mem::take(table) }),
            [catalog, database, table] if catalog == CATALOG => {
                Ok(Self { database: Some(std::mem::take(database)), table: std::mem::take(table) })
            }
            [catalog, _, _] => Err(SqlError::unsupported(format!("changing anything in catalog {catalog:?}")).hint(format!(
                "what can be changed here is named database.table, its catalog is {CATALOG:?}; remote clusters are only read"
            ))),
            _ => {
                Err(SqlError::syntax(format!("{name} has too many parts for a table's name"))
                    .hint("write database.table"))
            }
        }
    }

    /// The database it lies in: its own, else the session's current one.
    pub(crate) fn database(&self, current: Option<&str>) -> Result<String> {
        match (&self.database, current) {
            (Some(database), _) => Ok(database.clone()),
            (None, Some(current)) => Ok(current.to_owned()),
            (None, None) => Err(SqlError::new("3F000", format!("no database is selected for table {:?}", self.table))
                .hint("write database.table, or select one with SET search_path TO <database>")),
        }
    }
}

/// `3F000` with near names.
pub(crate) fn no_database(version: &Version, name: &str) -> SqlError {
    SqlError::new("3F000", format!("database {name:?} does not exist"))
        .did_you_mean(name, version.databases().map(|database| database.name.as_str()))
}

/// `42P01` with near names.
pub(crate) fn no_table(database: &DatabaseVersion, written: &str, table: &str) -> SqlError {
    let names: Vec<&str> = database.tables().map(|table| table.table.name.as_str()).collect();
    SqlError::new("42P01", format!("table {written:?} does not exist")).did_you_mean(table, names)
}
