//! What can be known as tables and table functions: schema `system`, `pg_catalog`, status functions.

use std::sync::Arc;

use datafusion::prelude::SessionContext;

use crate::{Instance, Result};

/// Registers schemas, table functions and scalar functions with the planning template. The catalog
/// [`crate::provider::CATALOG`] is there already; schemas are added with its `register_schema`.
pub(crate) fn register(_context: &SessionContext, _instance: &Arc<Instance>) -> Result<()> {
    Ok(())
}
