//! Statements against a real engine in temporary folders.
#![allow(clippy::unwrap_used, missing_docs)]

mod copy;
mod ddl;
mod insert;
mod node;
mod query;
mod settings;
mod transaction;
