//! Replication of Tailrace: publisher and follower over QUIC, repair.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod error;
mod follower;
mod publisher;
mod session;
mod status;
mod tls;
mod transport;
mod wire;

pub use config::{FollowerConfig, PublisherConfig, ReplicaGrant, TlsConfig};
pub use error::{ReplicationError, Result};
pub use follower::Follower;
pub use publisher::Publisher;
pub use status::{
    FollowedDatabaseStatus, FollowerStatus, ReplicaFeedStatus, ReplicaTask, ReplicationMetrics, ReplicationState,
    TaskState,
};
