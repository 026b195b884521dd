//! Replication of Tailrace: publisher and follower over QUIC, repair.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs, unreachable_pub))]

mod config;
mod error;
mod follower;
#[cfg(test)]
mod hostile;
mod publisher;
mod session;
mod status;
#[cfg(test)]
#[allow(dead_code, reason = "shared with the tests of the public face")]
#[path = "../tests/it/support.rs"]
mod support;
mod tls;
mod transport;
mod wire;

#[cfg(test)]
extern crate self as tailrace_replicator;

pub use config::{FollowerConfig, PublisherConfig, ReplicaGrant, TlsConfig};
pub use error::{ReplicationError, Result};
pub use follower::Follower;
pub use publisher::Publisher;
pub use status::{
    FollowedDatabaseStatus, FollowerStatus, ReplicaFeedStatus, ReplicaTask, ReplicationMetrics, ReplicationState,
    TaskState,
};
