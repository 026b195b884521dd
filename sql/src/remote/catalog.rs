//! Catalogs: this node's own, and any other name is a remote cluster's.

use std::{ops::ControlFlow, sync::Arc};

use async_trait::async_trait;
use datafusion::{
    catalog::{CatalogProvider, CatalogProviderList, SchemaProvider, TableProvider},
    error::{DataFusionError, Result},
    sql::sqlparser::ast::{self, visit_relations},
};

use super::{Remotes, filter::quoted, table::RemoteTable};
use crate::{SqlError, provider::CATALOG, statement::name};

/// The catalogs of a node. Only its own are listed, so that nothing looks into a remote cluster unless it is named.
#[derive(Debug)]
pub(crate) struct Catalogs {
    own: Arc<dyn CatalogProviderList>,
    remotes: Arc<Remotes>,
}

impl Catalogs {
    pub(crate) fn new(own: Arc<dyn CatalogProviderList>, remotes: Arc<Remotes>) -> Self {
        Self { own, remotes }
    }
}

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, name: String, catalog: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        self.own.register_catalog(name, catalog)
    }

    fn catalog_names(&self) -> Vec<String> {
        self.own.catalog_names()
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        // Whether there is such a cluster is told by the first table that is asked for: only there can an error say so.
        self.own
            .catalog(name)
            .or_else(|| Some(Arc::new(RemoteCatalog { remotes: Arc::clone(&self.remotes), cluster: name.to_owned() })))
    }
}

/// Refuses what would be answered here although it is asked of a remote cluster: DataFusion knows one
/// `information_schema`, whatever stands before it.
pub(crate) fn check_names(statement: &ast::Statement) -> crate::Result<()> {
    let found = visit_relations(statement, |relation| match name::parts(relation) {
        Ok(parts) if parts.len() == 3 && parts[0] != CATALOG && parts[1] == "information_schema" => {
            ControlFlow::Break(parts)
        }
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Break(parts) => {
            Err(SqlError::unsupported(format!("information_schema of remote cluster {:?}", parts[0]))
                .hint(format!("look at {}.system.tables", parts[0])))
        }
        ControlFlow::Continue(()) => Ok(()),
    }
}

#[derive(Debug)]
struct RemoteCatalog {
    remotes: Arc<Remotes>,
    cluster: String,
}

impl CatalogProvider for RemoteCatalog {
    fn schema_names(&self) -> Vec<String> {
        Vec::new()
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let (remotes, cluster) = (Arc::clone(&self.remotes), self.cluster.clone());
        Some(Arc::new(RemoteSchema { remotes, cluster, database: name.to_owned() }))
    }
}

#[derive(Debug)]
struct RemoteSchema {
    remotes: Arc<Remotes>,
    cluster: String,
    database: String,
}

#[async_trait]
impl SchemaProvider for RemoteSchema {
    fn table_names(&self) -> Vec<String> {
        Vec::new()
    }

    /// Asks the cluster what columns it has, once for a statement.
    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let table = async {
            let remote = self.remotes.get(&self.cluster)?;
            let from = format!("{}.{}", quoted(&self.database), quoted(name));
            let schema = remote.schema(&format!("SELECT * FROM {from}")).await?;
            Ok::<_, SqlError>(RemoteTable::new(remote, from, schema))
        };
        let table = table.await.map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(Some(Arc::new(table)))
    }

    fn table_exist(&self, _: &str) -> bool {
        true
    }
}
