//! Statements and the wire protocol against a real engine in temporary folders.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

mod backup;
mod copy;
mod ddl;
mod digests;
mod drop_partition;
mod end;
mod feed;
mod flight;
mod insert;
mod job;
mod nightly;
mod node;
mod query;
mod remote;
mod settings;
mod site;
mod synchronize;
mod threads;
mod transaction;
mod wire;
mod wire_psql;
mod wire_system;
