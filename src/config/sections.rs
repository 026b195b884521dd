//! The sections of the settings file, with their defaults and what they cost.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::{ArchiveUrl, ListenAddress, Size, Span, StorageUrl, TableName};

/// Everything that can be set.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Who this node is.
    pub node: NodeSettings,
    /// Where it listens.
    #[serde(default)]
    pub listen: ListenSettings,
    /// Certificates between clusters. Needed by replication, either side.
    #[serde(default)]
    pub tls: Option<TlsSettings>,
    /// Where datafiles lie.
    #[serde(default)]
    pub storage: StorageSettings,
    /// Which server-side files statements may read.
    #[serde(default)]
    pub files: FilesSettings,
    /// The write-ahead log.
    #[serde(default)]
    pub wal: WalSettings,
    /// Memory, flushes and transactions.
    #[serde(default)]
    pub engine: EngineSettings,
    /// Queries.
    #[serde(default)]
    pub query: QuerySettings,
    /// Jobs.
    #[serde(default)]
    pub jobs: JobSettings,
    /// Replication; each side is off until its section is there.
    #[serde(default)]
    pub replication: ReplicationSettings,
}

/// `[node]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// This cluster's name, as others see it: letters, digits, `-`, `_` and `.`, at most 63.
    pub name: String,
    /// Folder of log, manifest and (unless `storage.url` says otherwise) datafiles. Default `data`.
    #[serde(default = "data_dir")]
    pub data_dir: PathBuf,
}

/// `[listen]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ListenSettings {
    /// PostgreSQL clients (TCP); loopback only, as there are no passwords yet. Default `127.0.0.1:5442`.
    pub pgwire: ListenAddress,
    /// Replicas of this cluster (UDP), when `[replication.primary]` is there. Default `:7443`.
    pub replication: Option<ListenAddress>,
    /// Flight SQL clients and other clusters (TCP), by certificate: needs `[tls]`. Usual `:50051`. Default: none.
    pub flight: Option<ListenAddress>,
    /// HTTP: accepted, not served yet.
    pub http: Option<ListenAddress>,
}

/// `[tls]`: PEM files.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TlsSettings {
    /// The authority that signed the certificates of all clusters that replicate with this one.
    pub ca: PathBuf,
    /// This node's certificate chain; carries `tailrace://replica/<name>`.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[storage]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageSettings {
    /// Where datafiles lie, `file:///…`. Default: `store` in the data folder.
    pub url: Option<StorageUrl>,
}

/// `[files]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilesSettings {
    /// Folders under which COPY may read files of the server, and folders and `s3://bucket/prefix` URLs under which
    /// backups may lie. Default: none.
    pub allow: Vec<PathBuf>,
}

/// Whether an entry of `files.allow` is not a folder but a prefix in a bucket.
pub(crate) fn is_bucket(place: &Path) -> bool {
    place.to_str().is_some_and(|text| text.starts_with("s3://"))
}

/// `[wal]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WalSettings {
    /// Folder of the segments; a disk of its own halves the latency of commits under flushes. Default: `wal` in the
    /// data folder.
    pub dir: Option<PathBuf>,
    /// Size at which a segment is sealed, 64 KiB to 4 GiB. Larger: fewer files, coarser truncation. Default 64 MiB.
    pub segment_bytes: Size,
    /// When a write that does not say otherwise is acknowledged. Default `sync`.
    pub persistence: WalPersistence,
    /// Longest time that an asynchronous write waits for its sync: what may be lost. Default 200 ms.
    pub sync_interval: Span,
    /// Most bytes that asynchronous writes may have unsynced before writers wait. Default 64 MiB.
    pub async_max_bytes: Size,
    /// Most log that one replica may hold back; beyond it the replica repairs itself instead. Default 16 GiB.
    pub pin_max_bytes: Size,
    /// Longest time that a replica may stand still while the log grows. Default 7 days.
    pub pin_max_age: Span,
    /// A file of this size in the data folder, given back when the disk is full so that the node can still flush,
    /// checkpoint and start; clients' writes are refused until it is there again. At most a sixteenth of the file
    /// system. 0: none. Default 64 MiB.
    pub reserve_bytes: Size,
    /// Where sealed segments are archived, `file:///…` or `s3://bucket/prefix`: a copy of every transaction away from
    /// this node's disk. For S3, endpoint and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`). What is not archived is kept within the budgets above. Default:
    /// none.
    pub archive: Option<ArchiveUrl>,
    /// Longest time that a record waits for its segment to fill up before it is archived. Shorter: less is lost with
    /// the node; more and smaller objects. Default 5 minutes.
    pub archive_interval: Span,
}

/// `wal.persistence`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WalPersistence {
    /// Acknowledged when synced: nothing is lost on power loss.
    Sync,
    /// Acknowledged when handed to the operating system: a suffix may be lost.
    Async,
}

/// `[engine]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSettings {
    /// Unflushed rows in memory at which a flush starts; at twice this writers wait. Default 256 MiB.
    pub memtable_bytes: Size,
    /// Memory for recently written partitions after their flush. Default 1 GiB.
    pub cache_bytes: Size,
    /// Age of the oldest unflushed row at which a flush starts. Younger: faster restarts, more files. Default 60 s.
    pub flush_age: Span,
    /// Most bytes of one transaction. Default 16 GiB.
    pub transaction_max_bytes: Size,
    /// Longest time that a large open transaction may be idle. Default 10 minutes.
    pub transaction_max_age: Span,
    /// Not supported yet.
    #[serde(skip_serializing)]
    pub versions_kept: Option<NotYet>,
}

/// `[query]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuerySettings {
    /// Memory of all queries together. Default 1 GiB.
    pub memory_bytes: Size,
    /// Threads of all queries together, which are theirs alone: the network, commits and replication have others. One query
    /// takes as many. 0: as many as cores. At most 1024. Default 0.
    pub threads: usize,
    /// Longest statement. Default: no limit.
    pub statement_timeout: Option<Span>,
}

/// `[jobs]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSettings {
    /// Runs that are due and may be under way at once; further ones wait for their turn. Default 4.
    pub max_running: usize,
}

/// `[replication]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReplicationSettings {
    /// Serve replicas.
    pub primary: Option<PrimarySettings>,
    /// Follow a primary.
    pub replica: Option<ReplicaSettings>,
}

/// `[replication.primary]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrimarySettings {
    /// Most replicas that may be attached. Default 8.
    pub max_replicas: u32,
    /// Who may pull what. Default: any replica whose certificate the CA signed, everything that is replicated.
    pub replicas: Option<Vec<GrantSettings>>,
    /// Whether what replicas are sent is compressed. Default `auto`: as long as that carries more over a replica's link.
    pub compression: Compression,
    /// Bytes per second that a replica is sent at most, changes and repairs together. Default: no limit.
    pub rate_limit: Option<Size>,
    /// Memory for changes that were sent to one replica and are kept for others at the same place. Default 64 MiB.
    pub cache_bytes: Size,
    /// Memory for what is on its way to one replica. Default 64 MiB.
    pub send_bytes: Size,
    /// Not supported yet.
    #[serde(skip_serializing)]
    pub require_ack_within: Option<NotYet>,
}

/// One entry of `replication.primary.replicas`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct GrantSettings {
    /// The replica's name, as in its certificate.
    pub name: String,
    /// Databases it may pull. Default: all that are replicated.
    #[serde(default)]
    pub databases: Option<Vec<String>>,
    /// Whether what it is sent is compressed. Default: `replication.primary.compression`.
    #[serde(default)]
    pub compression: Option<Compression>,
    /// Bytes per second that it is sent at most. Default: `replication.primary.rate_limit`.
    #[serde(default)]
    pub rate_limit: Option<Size>,
}

/// `compression` of `[replication.primary]` and of one replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As long as compressed changes carry more over a replica's link than raw ones, as measured; a few small commits
    /// (below 4 KiB) go raw.
    #[default]
    Auto,
    /// Never.
    None,
    /// Always, where it makes them smaller.
    Zstd,
}

/// `[replication.replica]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaSettings {
    /// This cluster's name towards the primary; must be in its certificate. Default: `node.name`.
    #[serde(default)]
    pub name: Option<String>,
    /// `host:port` of the primary's nodes, tried in turn.
    pub primary_addresses: Vec<String>,
    /// Databases to follow. Default: all that are replicated.
    #[serde(default)]
    pub databases: Option<Vec<String>>,
    /// Tables that have rows here, `market.bars`. A database of which a table is named has the rows of its named tables
    /// alone; one that is not named has all. Everything is received and logged all the same: it saves memory, datafiles
    /// and time to apply, not network and log. Default: all tables.
    #[serde(default)]
    pub tables: Option<Vec<TableName>>,
    /// Threads that decode and check what arrives. Default: as many as cores.
    #[serde(default = "cores")]
    pub apply_workers: usize,
    /// Memory for what is on its way from the primary and waits to be applied. Default 48 MiB.
    #[serde(default = "receive_bytes")]
    pub receive_bytes: Size,
    /// User under whose name transactions are applied here: it needs the rights `write` and `ddl` on their databases
    /// (`CALL grant_right`). Default: everything is applied.
    #[serde(default)]
    pub apply_user: Option<String>,
    /// Failures of one task after which its database is STOPPED. Default 30.
    #[serde(default = "task_failures_max")]
    pub task_failures_max: u32,
    /// First pause after a failure of a task or of the connection; it doubles, with jitter. Default 100 ms.
    #[serde(default = "backoff_min")]
    pub backoff_min: Span,
    /// Longest pause. Default 10 s.
    #[serde(default = "backoff_max")]
    pub backoff_max: Span,
}

/// A setting whose name is reserved: any value is refused, so that nobody relies on one that does nothing.
#[derive(Debug, Clone)]
pub struct NotYet;

impl Settings {
    /// Joins relative paths to the settings file's folder.
    pub(super) fn resolve(&mut self, folder: &Path) {
        let join = |path: &mut PathBuf| *path = folder.join(&*path);
        join(&mut self.node.data_dir);
        if let Some(tls) = &mut self.tls {
            join(&mut tls.ca);
            join(&mut tls.certificate);
            join(&mut tls.key);
        }
        self.wal.dir.iter_mut().for_each(join);
        self.files.allow.iter_mut().filter(|place| !is_bucket(place)).for_each(join);
    }
}

impl Default for ListenSettings {
    fn default() -> Self {
        Self { pgwire: ListenAddress::loopback(5442), replication: None, flight: None, http: None }
    }
}

impl Default for WalSettings {
    fn default() -> Self {
        let log = tailrace_wal::LogConfig::new("");
        Self {
            dir: None,
            segment_bytes: Size(log.segment_bytes),
            persistence: WalPersistence::Sync,
            sync_interval: Span(log.sync_interval),
            async_max_bytes: Size(log.async_max_bytes),
            pin_max_bytes: Size(log.pin_max_bytes),
            pin_max_age: Span(log.pin_max_age),
            reserve_bytes: Size(64 << 20),
            archive: None,
            archive_interval: Span(tailrace_wal::ArchiverConfig::default().interval),
        }
    }
}

impl Default for EngineSettings {
    fn default() -> Self {
        let engine = tailrace_engine::EngineConfig::new("");
        Self {
            memtable_bytes: Size(engine.memtable_bytes),
            cache_bytes: Size(engine.cache_bytes),
            flush_age: Span(engine.flush_age),
            transaction_max_bytes: Size(engine.transaction_max_bytes),
            transaction_max_age: Span(engine.transaction_max_age),
            versions_kept: None,
        }
    }
}

impl Default for QuerySettings {
    fn default() -> Self {
        Self { memory_bytes: Size(1 << 30), threads: 0, statement_timeout: None }
    }
}

impl Default for JobSettings {
    fn default() -> Self {
        Self { max_running: 4 }
    }
}

impl Default for PrimarySettings {
    fn default() -> Self {
        Self {
            max_replicas: 8,
            replicas: None,
            compression: Compression::Auto,
            rate_limit: None,
            cache_bytes: Size(tailrace_replicator::PublisherConfig::CACHE_BYTES),
            send_bytes: Size(tailrace_replicator::PublisherConfig::SEND_BYTES),
            require_ack_within: None,
        }
    }
}

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer)?;
        Err(de::Error::custom("not supported yet; remove it"))
    }
}

fn data_dir() -> PathBuf {
    PathBuf::from("data")
}

fn receive_bytes() -> Size {
    Size(tailrace_replicator::FollowerConfig::RECEIVE_BYTES)
}

fn task_failures_max() -> u32 {
    30
}

fn backoff_min() -> Span {
    Span(Duration::from_millis(100))
}

fn backoff_max() -> Span {
    Span(Duration::from_secs(10))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
