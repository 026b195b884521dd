//! `pg_catalog`, for clients that look there: psql's `\d`, drivers, browsers of tables.
//!
//! Databases are schemas of one catalog. To `pg_database` they are shown as databases as well, since each can be
//! connected to (`psql -d market`); all connections see all of them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Weak},
};

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::SchemaRef,
    catalog::{CatalogProvider, SchemaProvider},
    common::Result as DataFusionResult,
    logical_expr::TableType,
    prelude::SessionContext,
};
use datafusion_pg_catalog::{
    pg_catalog::{
        PgCatalogSchemaProvider, PgCatalogStaticTables, catalog_info::CatalogInfo, context::EmptyContextProvider,
    },
    setup_pg_catalog,
};

use crate::{Result, SqlError, provider::CATALOG};

const SCHEMA: &str = "pg_catalog";

/// Schemas that are no databases.
const OTHERS: [&str; 3] = [SCHEMA, "information_schema", super::SCHEMA];

/// Registers the schema and the functions that clients expect beside it.
pub(super) fn register(context: &SessionContext) -> Result<()> {
    setup_pg_catalog(context, CATALOG, EmptyContextProvider).map_err(|error| SqlError::from(*error))?;
    let catalog = context.catalog(CATALOG).ok_or_else(|| SqlError::internal("the catalog is not registered"))?;
    let tables = Arc::new(PgCatalogStaticTables::try_new()?);
    let schema = PgCatalogSchemaProvider::try_new(Databases(Arc::downgrade(&catalog)), tables, EmptyContextProvider)?;
    catalog.register_schema(SCHEMA, Arc::new(schema))?;
    Ok(())
}

/// What `pg_catalog` sees: the one catalog with its schemas, and each database once more under its own name. Weak: the
/// catalog has this schema, and would hold itself, and the engine with it, for ever.
#[derive(Debug, Clone)]
struct Databases(Weak<dyn CatalogProvider>);

impl Databases {
    fn schema(&self, catalog: &str, schema: &str) -> Option<Arc<dyn SchemaProvider>> {
        let own = self.0.upgrade().filter(|_| catalog == CATALOG)?;
        own.schema(schema)
    }

    fn schema_names(&self) -> Vec<String> {
        self.0.upgrade().map(|catalog| catalog.schema_names()).unwrap_or_default()
    }
}

#[async_trait]
impl CatalogInfo for Databases {
    async fn catalog_names(&self) -> DataFusionResult<Vec<String>> {
        let databases = Databases::schema_names(self).into_iter().filter(|name| !OTHERS.contains(&name.as_str()));
        let names: BTreeSet<String> = databases.filter(|name| name != CATALOG).collect();
        Ok([CATALOG.to_owned()].into_iter().chain(names).collect())
    }

    async fn schema_names(&self, catalog: &str) -> DataFusionResult<Option<Vec<String>>> {
        Ok((catalog == CATALOG).then(|| Databases::schema_names(self)))
    }

    async fn table_names(&self, catalog: &str, schema: &str) -> DataFusionResult<Option<Vec<String>>> {
        Ok(self.schema(catalog, schema).map(|schema| schema.table_names()))
    }

    async fn table_schema(&self, catalog: &str, schema: &str, table: &str) -> DataFusionResult<Option<SchemaRef>> {
        match self.schema(catalog, schema) {
            Some(schema) => Ok(schema.table(table).await?.map(|table| table.schema())),
            None => Ok(None),
        }
    }

    async fn table_type(&self, catalog: &str, schema: &str, table: &str) -> DataFusionResult<Option<TableType>> {
        match self.schema(catalog, schema) {
            Some(schema) => schema.table_type(table).await,
            None => Ok(None),
        }
    }
}
