//! End to end: real `tailrace` processes, real files, real QUIC, and PostgreSQL clients.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may stop at the first surprise")]

mod harness;

mod archive;
mod binary;
mod crash;
mod demo;
mod drop_and_recreate;
mod lag;
mod offline;
mod psql;
mod replicate;
mod states;
mod stop_and_start;
mod synchronous;
mod tail;
mod topologies;
#[allow(dead_code, reason = "shared with the tests of faults")]
#[path = "../chaos/volume.rs"]
mod volume;
mod wal;
