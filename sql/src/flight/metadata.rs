//! What clients ask about a server: catalogs, schemas, tables, what it can do.

use std::sync::Arc;

use arrow_flight::sql::{
    CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes,
    CommandGetTables, SqlInfo, SqlSupportedTransaction,
    metadata::{SqlInfoData, SqlInfoDataBuilder},
};
use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    catalog::CatalogProvider,
    logical_expr::TableType,
};

use crate::{Result, Session, SqlError, provider::CATALOG};

/// Kinds of tables, as clients know them.
const TABLE_TYPES: [&str; 2] = ["TABLE", "VIEW"];

pub(super) fn catalogs(command: CommandGetCatalogs) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    builder.append(CATALOG);
    done(builder.build())
}

pub(super) fn schemas(session: &Session, command: CommandGetDbSchemas) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for schema in catalog(session)?.schema_names() {
        builder.append(CATALOG, schema);
    }
    done(builder.build())
}

pub(super) async fn tables(session: &Session, command: CommandGetTables) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    let catalog = catalog(session)?;
    for schema_name in catalog.schema_names() {
        let Some(schema) = catalog.schema(&schema_name) else { continue };
        for name in schema.table_names() {
            // Dropped meanwhile.
            let Some(table) = schema.table(&name).await? else { continue };
            let kind = match table.table_type() {
                TableType::Base => TABLE_TYPES[0],
                TableType::View | TableType::Temporary => TABLE_TYPES[1],
            };
            builder.append(CATALOG, &schema_name, &name, kind, &table.schema()).map_err(wrong)?;
        }
    }
    done(builder.build())
}

pub(super) fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    TABLE_TYPES.iter().for_each(|kind| builder.append(kind));
    done(builder.build())
}

/// There are none.
pub(super) fn primary_keys(_: &CommandGetPrimaryKeys) -> RecordBatch {
    RecordBatch::new_empty(primary_key_schema())
}

pub(super) fn primary_key_schema() -> SchemaRef {
    let field = |name: &str, data_type, nullable| Field::new(name, data_type, nullable);
    Arc::new(Schema::new(vec![
        field("catalog_name", DataType::Utf8, true),
        field("db_schema_name", DataType::Utf8, true),
        field("table_name", DataType::Utf8, false),
        field("column_name", DataType::Utf8, false),
        field("key_name", DataType::Utf8, true),
        field("key_sequence", DataType::Int32, false),
    ]))
}

pub(super) fn sql_info(command: CommandGetSqlInfo) -> Result<RecordBatch> {
    done(command.into_builder(&facts()?).build())
}

pub(super) fn sql_info_schema(command: CommandGetSqlInfo) -> Result<SchemaRef> {
    Ok(command.into_builder(&facts()?).schema())
}

fn facts() -> Result<SqlInfoData> {
    let mut facts = SqlInfoDataBuilder::new();
    facts.append(SqlInfo::FlightSqlServerName, "Tailrace");
    facts.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    facts.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    facts.append(SqlInfo::FlightSqlServerReadOnly, false);
    facts.append(SqlInfo::FlightSqlServerSql, true);
    facts.append(SqlInfo::FlightSqlServerSubstrait, false);
    facts.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    facts.append(SqlInfo::FlightSqlServerCancel, false);
    facts.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    facts.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    done(facts.build())
}

fn catalog(session: &Session) -> Result<Arc<dyn CatalogProvider>> {
    let state = session.planning_state();
    state.catalog_list().catalog(CATALOG).ok_or_else(|| SqlError::internal("the catalog is not registered"))
}

fn done<T, E: std::fmt::Display>(built: Result<T, E>) -> Result<T> {
    built.map_err(|error| SqlError::internal(error.to_string()))
}

fn wrong(error: impl std::fmt::Display) -> SqlError {
    SqlError::internal(error.to_string())
}
