//! What can be known as tables and table functions: schema `system`, `pg_catalog`, status functions.

mod catalog_function;
mod catalog_query;
pub(crate) mod computed;
mod function;
mod pg_catalog;
mod scalar;
mod schema;
mod table;

pub(crate) use catalog_query::rewrite as rewrite_catalog_query;
pub(crate) use function::{CONFIGURE, not_configured};
pub(crate) use scalar::ClientFacts;
pub(crate) use table::partition_name;

use std::sync::Arc;

use datafusion::prelude::SessionContext;

use self::schema::SystemSchema;
use crate::{Instance, Result, SqlError, provider::CATALOG};

/// Name of the schema of system tables.
const SCHEMA: &str = "system";

/// Registers schemas, table functions and scalar functions with the planning template. The catalog
/// [`CATALOG`] is there already; schemas are added with its `register_schema`.
pub(crate) fn register(context: &SessionContext, instance: &Arc<Instance>) -> Result<()> {
    let catalog = context.catalog(CATALOG).ok_or_else(|| SqlError::internal("the catalog is not registered"))?;
    catalog.register_schema(SCHEMA, Arc::new(SystemSchema::new(instance)))?;
    function::register(context, instance)?;
    pg_catalog::register(context)?;
    catalog_function::register(context);
    scalar::register(context);
    Ok(())
}
