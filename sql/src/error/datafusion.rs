//! Errors of planning and running queries.

use datafusion::{
    common::{Column, SchemaError, TableReference},
    error::DataFusionError,
    parquet::errors::ParquetError,
};
use tailrace_engine::EngineError;

use super::{parser::syntax_error, position_of};
use crate::{SqlError, provider::CATALOG};

impl SqlError {
    /// As the `From` of DataFusion's error, with the place in the statement where that is known.
    pub(crate) fn planning(error: DataFusionError, sql: &str) -> Self {
        match error {
            DataFusionError::Diagnostic(diagnostic, error) => {
                let start = diagnostic.span.map(|span| span.start);
                let position = start.and_then(|start| position_of(sql, start.line, start.column));
                Self::planning(*error, sql).at(position)
            }
            DataFusionError::SQL(error, _) => syntax_error(&error, sql),
            DataFusionError::Context(_, error) => Self::planning(*error, sql),
            DataFusionError::Collection(errors) => match errors.into_iter().next() {
                Some(error) => Self::planning(error, sql),
                None => Self::internal("an empty list of errors"),
            },
            error => error.into(),
        }
    }
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        match error {
            DataFusionError::ArrowError(error, _) => (*error).into(),
            DataFusionError::ParquetError(error) => parquet_error(&error),
            DataFusionError::ObjectStore(error) => Self::new("58030", error.to_string()),
            DataFusionError::IoError(error) => Self::new("58030", error.to_string()),
            DataFusionError::SQL(error, _) => syntax_error(&error, ""),
            DataFusionError::NotImplemented(text) => Self::new("0A000", text),
            DataFusionError::SchemaError(error, _) => schema_error(&error),
            DataFusionError::Plan(text) => plan_error(&text),
            DataFusionError::Configuration(text) => Self::new("22023", text),
            DataFusionError::Execution(text) => Self::new("22000", text),
            DataFusionError::ResourcesExhausted(text) => Self::new("53200", "out of memory for queries")
                .detail(text)
                .hint("raise [query] memory_bytes, or ask for less at once"),
            DataFusionError::ExecutionJoin(error) => Self::new("XX000", error.to_string()),
            DataFusionError::External(error) => external(error),
            DataFusionError::Context(_, error) | DataFusionError::Diagnostic(_, error) => (*error).into(),
            DataFusionError::Collection(errors) => match errors.into_iter().next() {
                Some(error) => error.into(),
                None => Self::internal("an empty list of errors"),
            },
            DataFusionError::Shared(error) => shared(&error),
            DataFusionError::Internal(text) => Self::internal(text),
            other => Self::new("XX000", other.strip_backtrace()),
        }
    }
}

/// A disk that does not answer is no damage; a file that is not there, or is not what was written, is.
fn parquet_error(error: &ParquetError) -> SqlError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut is_disk = false;
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<object_store::Error>() {
            is_disk = !matches!(error, object_store::Error::NotFound { .. });
            break;
        }
        is_disk |= error.is::<std::io::Error>();
        cause = error.source();
    }
    SqlError::new(if is_disk { "58030" } else { "XX001" }, format!("a datafile cannot be read: {error}"))
}

fn external(error: Box<dyn std::error::Error + Send + Sync>) -> SqlError {
    match error.downcast::<SqlError>() {
        Ok(error) => *error,
        Err(error) => match error.downcast::<EngineError>() {
            Ok(error) => (*error).into(),
            Err(error) => match error.downcast::<DataFusionError>() {
                Ok(error) => (*error).into(),
                Err(error) => SqlError::new("XX000", error.to_string()),
            },
        },
    }
}

/// An error that several consumers hold (a shared build side): it cannot be moved out.
fn shared(error: &DataFusionError) -> SqlError {
    match error {
        DataFusionError::Shared(error) => shared(error),
        DataFusionError::Context(_, error) | DataFusionError::Diagnostic(_, error) => shared(error),
        DataFusionError::External(error) => match error.downcast_ref::<SqlError>() {
            Some(error) => error.clone(),
            None => SqlError::new("XX000", error.to_string()),
        },
        DataFusionError::ResourcesExhausted(text) => DataFusionError::ResourcesExhausted(text.clone()).into(),
        DataFusionError::ParquetError(error) => parquet_error(error),
        DataFusionError::Execution(text) => SqlError::new("22000", text.clone()),
        DataFusionError::Plan(text) => plan_error(text),
        other => SqlError::new("XX000", other.strip_backtrace()),
    }
}

fn schema_error(error: &SchemaError) -> SqlError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<&str> = valid_fields.iter().map(Column::name).collect();
            let error = SqlError::new("42703", format!("column {:?} does not exist", written(field)))
                .did_you_mean(field.name(), names.iter().copied());
            match (error.hint.is_some(), names.len()) {
                (true, _) | (_, 0) => error,
                (false, 1..=20) => error.hint(format!("columns here: {}", names.join(", "))),
                (false, _) => error.hint(format!("columns here: {} …", names[..20].join(", "))),
            }
        }
        SchemaError::AmbiguousReference { field } => {
            SqlError::new("42702", format!("column reference {:?} is ambiguous", written(field)))
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            SqlError::new("42701", format!("column {name:?} is there more than once"))
                .hint("give one of them another name")
        }
    }
}

/// A column as a statement would write it.
fn written(column: &Column) -> String {
    match &column.relation {
        Some(TableReference::Full { schema, table, .. } | TableReference::Partial { schema, table }) => {
            format!("{schema}.{table}.{}", column.name)
        }
        Some(TableReference::Bare { table }) => format!("{table}.{}", column.name),
        None => column.name.clone(),
    }
}

fn plan_error(text: &str) -> SqlError {
    if let Some(name) =
        text.strip_prefix("table '").and_then(|rest| rest.split_once("' not found")).map(|(name, _)| name)
    {
        let name = name.strip_prefix(CATALOG).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
        let name = name.strip_prefix("public.").unwrap_or(name);
        return SqlError::new("42P01", format!("table {name:?} does not exist"));
    }
    if text.contains("Cannot execute pipeline breaking queries") {
        return SqlError::new("0A000", "the query needs all rows before it can give one, and a tail has no end")
            .hint("give the tail a LIMIT in a subquery or a to_seq, or read changes(…)");
    }
    let text = text.replace("Utf8View", "text").replace("Utf8", "text").replace("LargeUtf8", "text");
    let text = first_line(&text);
    let lower = text.to_lowercase();
    if lower.starts_with("invalid function") {
        return SqlError::new("42883", text);
    }
    if lower.contains("function") && (lower.contains("does not support") || lower.contains("failed to")) {
        return SqlError::new("42883", text);
    }
    if lower.contains("cannot coerce") || lower.contains("cannot infer common") || lower.contains("type mismatch") {
        return SqlError::new("42804", text);
    }
    if lower.contains("group by") || lower.contains("could not be resolved from available columns") {
        return SqlError::new("42803", text);
    }
    if lower.contains("not found") && lower.contains("table function") {
        return SqlError::new("42883", text);
    }
    SqlError::new("42000", text)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_table_is_named_as_it_was_written() {
        let error = SqlError::from(DataFusionError::Plan("table 'tailrace.market.barz' not found".to_owned()));
        assert_eq!(
            (error.sqlstate.as_ref(), error.message.as_str()),
            ("42P01", "table \"market.barz\" does not exist")
        );
    }

    #[test]
    fn our_own_errors_pass_through_every_wrapping() {
        let own = SqlError::new("23502", "null value");
        let wrapped = DataFusionError::External(Box::new(own.clone())).context("while inserting");
        assert_eq!(SqlError::from(wrapped), own);
        let shared = DataFusionError::Shared(std::sync::Arc::new(DataFusionError::External(Box::new(own.clone()))));
        assert_eq!(SqlError::from(shared), own);
    }

    #[test]
    fn a_disk_that_fails_is_told_from_a_damaged_datafile() {
        let source = |kind: std::io::ErrorKind| Box::new(std::io::Error::from(kind));
        let failed = object_store::Error::Generic { store: "file", source: source(std::io::ErrorKind::Other) };
        let missing = object_store::Error::NotFound {
            path: "market/bars/1.parquet".to_owned(),
            source: source(std::io::ErrorKind::NotFound),
        };
        let damaged = ParquetError::General("invalid footer".to_owned());
        for (error, state) in [
            (ParquetError::External(Box::new(failed)), "58030"),
            (ParquetError::External(Box::new(missing)), "XX001"),
            (damaged, "XX001"),
        ] {
            assert_eq!(SqlError::from(DataFusionError::ParquetError(Box::new(error))).sqlstate, state);
        }
    }

    #[test]
    fn memory_has_a_remedy() {
        let error = SqlError::from(DataFusionError::ResourcesExhausted("pool is full".to_owned()));
        assert_eq!(error.sqlstate, "53200");
        assert!(error.hint.unwrap().contains("memory_bytes"));
    }
}
