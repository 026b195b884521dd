//! Statements and the wire protocol against a real engine in temporary folders.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod copy;
mod ddl;
mod digests;
mod drop_partition;
mod feed;
mod insert;
mod node;
mod query;
mod settings;
mod transaction;
mod wire;
mod wire_psql;
mod wire_system;
