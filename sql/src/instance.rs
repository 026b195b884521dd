//! What all sessions of a node share.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tailrace_engine::Engine;
use tailrace_replicator::{Follower, Publisher, TlsConfig};

use crate::{Jobs, Remotes};

/// Settings of the SQL surface.
#[derive(Debug, Clone)]
pub struct SqlConfig {
    /// This node's name.
    pub node_name: String,
    /// pgwire address; loopback only, as there are no passwords yet.
    pub pgwire: SocketAddr,
    /// The node's certificates, towards other clusters and Flight clients.
    pub tls: Option<TlsConfig>,
    /// Folders (absolute, canonical) under which COPY may read files; those and `s3://` URLs under which backups may lie.
    pub files_allow: Vec<PathBuf>,
    /// Memory for queries, bytes.
    pub memory_bytes: u64,
    /// Threads of all queries, apart from those of everything else; 0: as many as cores.
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
    /// Clusters elsewhere.
    pub remotes: Arc<Remotes>,
    /// Statements that run when they are due.
    pub jobs: Arc<Jobs>,
    /// Settings.
    pub config: SqlConfig,
}
