//! How DataFusion sees the engine: one catalog, a schema per database, a provider per table.
//!
//! A statement pins one version of all databases ([`PinnedVersion`]); [`table`] plans its scans over it: partitions
//! and datafiles that cannot hold wanted rows are left out ([`pruning`]), the rest are rows in memory ([`hot`]) and
//! Parquet files ([`cold`]). [`partition_rows`] reads one partition of a table. [`leaf`] is for rows that come from elsewhere.

mod catalog;
mod cold;
mod hot;
mod leaf;
pub(crate) mod partition_rows;
mod pruning;
mod statistics;
mod table;

pub(crate) use catalog::{Catalog, PinnedVersion};
pub(crate) use cold::register_store;
pub(crate) use leaf::{Leaf, external};
pub(crate) use pruning::Pruner;
pub(crate) use table::{Table, check_readable, only_table};

/// The one catalog of a node.
pub(crate) const CATALOG: &str = "tailrace";
