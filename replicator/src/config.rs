//! Settings of replication.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use tailrace_engine::TableChoice;

/// Where certificates lie. Both sides present one; both are checked against `ca`.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM file of the certificate authority.
    pub ca: PathBuf,
    /// PEM file of this node's certificate chain.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
}

/// A replica that may pull, by name, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaGrant {
    /// The name in its certificate, `tailrace://replica/<name>`.
    pub name: String,
    /// Databases it may pull; `None`: all that are replicated.
    pub databases: Option<Vec<String>>,
    /// In which form its chunks go; `None`: as for all.
    pub compression: Option<CompressionPolicy>,
    /// Bytes per second that it is sent at most; `None`: as for all.
    pub rate_limit: Option<u64>,
}

/// Whether chunks are compressed (zstd, level 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CompressionPolicy {
    /// As long as compressed chunks carry more over the link than raw ones: decided for each replica, from the bytes per
    /// second that its connection acknowledges and the speed and gain of compressing on this node. Chunks below 4 KiB, single
    /// commits at the log's end, go raw: they are there sooner.
    #[default]
    Auto,
    /// Never.
    None,
    /// Always, where it makes them smaller.
    Zstd,
}

/// How one replica is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplicaFlow {
    /// In which form chunks go.
    pub compression: CompressionPolicy,
    /// Bytes per second that it is sent at most, chunks and repairs together, headers of packets not counted; `None`: no
    /// limit.
    pub rate_limit: Option<u64>,
}

/// A primary's side.
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// This cluster's name, as replicas show it.
    pub name: String,
    /// UDP address.
    pub listen: SocketAddr,
    /// Certificates.
    pub tls: TlsConfig,
    /// Most replicas that may be attached, connected or pinned.
    pub max_replicas: u32,
    /// Who may pull; `None`: any replica whose certificate this CA signed.
    pub replicas: Option<Vec<ReplicaGrant>>,
    /// How replicas are served whose grant says nothing else.
    pub flow: ReplicaFlow,
    /// Bytes of chunks that are kept for replicas which come to the same place a moment later; of all histories together.
    pub cache_bytes: u64,
    /// Bytes of chunks and repairs that may be on their way to one replica, read and not acknowledged by its connection.
    pub send_bytes: u64,
}

impl PublisherConfig {
    /// Default of [`PublisherConfig::cache_bytes`].
    pub const CACHE_BYTES: u64 = 64 << 20;
    /// Default of [`PublisherConfig::send_bytes`].
    pub const SEND_BYTES: u64 = 64 << 20;

    /// How a replica is served.
    pub(crate) fn flow_of(&self, replica: &str) -> ReplicaFlow {
        let grant = self.replicas.iter().flatten().find(|grant| grant.name == replica);
        ReplicaFlow {
            compression: grant.and_then(|grant| grant.compression).unwrap_or(self.flow.compression),
            rate_limit: grant.and_then(|grant| grant.rate_limit).or(self.flow.rate_limit),
        }
    }
}

/// A replica's side.
#[derive(Debug, Clone)]
pub struct FollowerConfig {
    /// This cluster's name towards the primary; must be the name in its certificate.
    pub name: String,
    /// `host:port` of primaries, tried in turn.
    pub primary_addresses: Vec<String>,
    /// Databases to follow; `None`: all that are replicated.
    pub databases: Option<Vec<String>>,
    /// By database: the tables that have rows here. Databases that are not among them: all of their tables.
    pub tables: BTreeMap<String, TableChoice>,
    /// Threads that decode and check records.
    pub apply_workers: usize,
    /// Uncompressed bytes of chunks that may be on their way and waiting to be applied, of all databases together; each may
    /// have one chunk (some 2 MiB, at most 16) however many there are.
    pub receive_bytes: u64,
    /// User under whose name records are applied, with the rights that this cluster gives it; `None`: everything is
    /// allowed.
    pub apply_user: Option<String>,
    /// Certificates.
    pub tls: TlsConfig,
    /// First pause after a failed connection or task; doubles with jitter up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause.
    pub backoff_max: Duration,
    /// Failures of one task after which its database is STOPPED. The documented number is 30.
    pub task_failures_max: u32,
}

impl FollowerConfig {
    /// Default of [`FollowerConfig::receive_bytes`]: below the connection's window of 64 MiB, so that control moves.
    pub const RECEIVE_BYTES: u64 = 48 << 20;
}
