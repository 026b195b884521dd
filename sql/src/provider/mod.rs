//! How DataFusion sees the engine: one catalog, a schema per database, a provider per table.

mod catalog;

pub(crate) use catalog::{Catalog, PinnedVersion};

/// The one catalog of a node.
pub(crate) const CATALOG: &str = "tailrace";
