//! The primary's side: serves feeds and repairs.

use std::{net::SocketAddr, sync::Arc};

use tailrace_engine::Engine;

use crate::{PublisherConfig, ReplicaFeedStatus, Result};

/// Serves this cluster's replicated databases to replicas.
#[derive(Debug)]
pub struct Publisher {
    _private: (),
}

impl Publisher {
    /// Binds and begins to serve. Databases whose replication is on, and the cluster's switch, come from the engine and
    /// are followed as they change.
    pub async fn start(_engine: Arc<Engine>, _config: PublisherConfig) -> Result<Arc<Self>> {
        todo!()
    }

    /// Address bound (port 0 picks one).
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }

    /// A row per replica and database, connected or pinned.
    pub fn feeds(&self) -> Vec<ReplicaFeedStatus> {
        todo!()
    }

    /// Bytes sent since start, as on the wire, and uncompressed.
    pub fn sent_bytes(&self) -> (u64, u64) {
        todo!()
    }

    /// Ends sessions and closes the socket.
    pub async fn shutdown(&self) {
        todo!()
    }
}
