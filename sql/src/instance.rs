//! What all sessions of a node share.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tailrace_engine::Engine;
use tailrace_replicator::{Follower, Publisher};

/// Settings of the SQL surface.
#[derive(Debug, Clone)]
pub struct SqlConfig {
    /// This node's name.
    pub node_name: String,
    /// pgwire address; loopback only, as there are no passwords yet.
    pub pgwire: SocketAddr,
    /// Folders (absolute, canonical) under which COPY may read files.
    pub files_allow: Vec<PathBuf>,
    /// Memory for queries, bytes.
    pub memory_bytes: u64,
    /// Threads of a query; 0: as many as cores.
    pub threads: usize,
    /// Longest statement; `None`: no limit.
    pub statement_timeout: Option<Duration>,
    /// Effective settings by name, for `system.settings`; secrets left out.
    pub settings: Vec<(String, String)>,
}

/// A node, as SQL sees it.
#[derive(Debug)]
pub struct Instance {
    /// Storage.
    pub engine: Arc<Engine>,
    /// Present when `[replication.primary]` is configured.
    pub publisher: Option<Arc<Publisher>>,
    /// Present when `[replication.replica]` is configured.
    pub follower: Option<Arc<Follower>>,
    /// Settings.
    pub config: SqlConfig,
}
