//! Settings of replication.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

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
    /// Threads that decode and check records.
    pub apply_workers: usize,
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
