//! The schema of system tables.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{SchemaProvider, TableProvider},
    common::Result,
};

use super::{computed::Computed, table};
use crate::Instance;

/// Schema `system`.
#[derive(Debug)]
pub(super) struct SystemSchema {
    tables: BTreeMap<&'static str, Arc<dyn TableProvider>>,
}

impl SystemSchema {
    pub(super) fn new(instance: &Arc<Instance>) -> Self {
        let tables = table::ALL.iter().map(|table| {
            let provider = Computed::new(table.name, table.columns, instance.clone(), table.rows);
            (table.name, Arc::new(provider) as Arc<dyn TableProvider>)
        });
        Self { tables: tables.collect() }
    }
}

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        self.tables.keys().map(|name| (*name).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        Ok(self.tables.get(name).cloned())
    }

    fn table_exist(&self, name: &str) -> bool {
        self.tables.contains_key(name)
    }
}
