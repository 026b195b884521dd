//! The catalog and its schemas: databases as the engine has them at this moment, beside fixed schemas.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, SchemaProvider, TableProvider},
    common::Result,
    prelude::SessionConfig,
};
use parking_lot::RwLock;
use tailrace_engine::{Engine, Version};

use super::table::Table;

/// Session extension: the version that a statement reads. All its tables are read at this one.
#[derive(Debug, Clone)]
pub(crate) struct PinnedVersion(pub(crate) Version);

impl PinnedVersion {
    /// The version pinned by a statement's configuration, else the newest.
    pub(crate) fn of(config: &SessionConfig, engine: &Engine) -> Version {
        config.get_extension::<Self>().map_or_else(|| engine.version(), |pinned| pinned.0.clone())
    }
}

/// The node's databases as schemas, and the schemas that were registered (`system`, `pg_catalog`).
#[derive(Debug)]
pub(crate) struct Catalog {
    engine: Arc<Engine>,
    fixed: RwLock<BTreeMap<String, Arc<dyn SchemaProvider>>>,
}

impl Catalog {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, fixed: RwLock::default() }
    }
}

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.fixed.read().keys().cloned().collect();
        names.extend(self.engine.version().databases().map(|database| database.name.clone()));
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if let Some(schema) = self.fixed.read().get(name) {
            return Some(schema.clone());
        }
        self.engine.version().database(name)?;
        Some(Arc::new(Database { engine: self.engine.clone(), name: name.to_owned() }))
    }

    fn register_schema(&self, name: &str, schema: Arc<dyn SchemaProvider>) -> Result<Option<Arc<dyn SchemaProvider>>> {
        Ok(self.fixed.write().insert(name.to_owned(), schema))
    }
}

/// A database as a schema.
#[derive(Debug)]
struct Database {
    engine: Arc<Engine>,
    name: String,
}

#[async_trait]
impl SchemaProvider for Database {
    fn table_names(&self) -> Vec<String> {
        let version = self.engine.version();
        let mut names: Vec<_> = version
            .database(&self.name)
            .map(|database| database.tables().map(|table| table.table.name.clone()).collect())
            .unwrap_or_default();
        names.sort();
        names
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let version = self.engine.version();
        let table = version.database(&self.name).and_then(|database| database.table(name));
        Ok(table.map(|table| Arc::new(Table::new(self.engine.clone(), &self.name, table)) as Arc<dyn TableProvider>))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.engine.version().database(&self.name).is_some_and(|database| database.table(name).is_some())
    }
}
