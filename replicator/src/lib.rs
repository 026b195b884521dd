//! Replication of Tailrace: publisher and follower over QUIC, repair.
//!
//! A [`Publisher`] serves the histories of its engine whose replication is on; a [`Follower`] puts them, record by record
//! and verbatim, into another engine. What holds at every moment: a followed database is a prefix of its primary's, or its
//! status says that it is not; a record is applied once; nothing is acknowledged before it is on the replica's disk; and a
//! replica, however slow or dead, costs the primary no more than its pin's budget of log.
//!
//! The path of a record:
//!
//! 1. `publisher/reader.rs` reads it from the log's tail, records that are durable and readable only, and makes chunks
//!    (`publisher/chunk.rs`), once for all replicas that are at the same place; `publisher/feed.rs` brings them ahead into
//!    the form that suits the replica's link (`publisher/form.rs`) and sends them in order, as far as credit, the link's
//!    budget and its rate limit go (`publisher/link.rs`), one after another (`publisher/schedule.rs`).
//! 2. `wire/` is what `PROTOCOL.md` draws; `transport.rs` bounds what a connection may hold.
//! 3. `follower/connection.rs` reads streams; `session/follower.rs` says which may be read and puts chunks in order.
//! 4. `follower/pipeline.rs` has records prepared by `follower/workers.rs` in parallel, commits runs of them, syncs once
//!    per batch; `follower/database.rs` decides what a database does when something fails, ends or comes too late.
//! 5. The acknowledgement goes back through `session/publisher/` to `publisher/connection.rs`, which moves the pin.
//!
//! `session/` decides everything that the protocol decides, without sockets or clock: `session/decide.rs` is the
//! handshake's decision, `session/simulation/` runs both ends over a hostile network. To change what is said: first
//! `PROTOCOL.md`, then `wire/control.rs`, both sessions, the simulation.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, unreachable_pub))]

mod config;
mod error;
mod follower;
#[cfg(test)]
mod hostile;
mod publisher;
mod rate;
mod session;
mod status;
#[cfg(test)]
#[allow(dead_code, reason = "shared with the tests of the public face")]
#[path = "../tests/it/support.rs"]
mod support;
mod tls;
mod transport;
mod watchdog;
mod wire;

#[cfg(test)]
extern crate self as tailrace_replicator;

pub use config::{CompressionPolicy, FollowerConfig, PublisherConfig, ReplicaFlow, ReplicaGrant, TlsConfig};
pub use error::{Refused, ReplicationError, Result};
pub use follower::{Follower, VerifiedDatabase};
pub use publisher::{Publisher, ReplicaStage};
pub use status::{
    FollowedDatabaseStatus, FollowerStatus, PublisherFigures, ReplicaFeedStatus, ReplicaLinkStatus, ReplicaTask,
    ReplicationLag, ReplicationMetrics, ReplicationState, TaskState,
};
pub use tls::{client_tls, replica_name, server_tls};
