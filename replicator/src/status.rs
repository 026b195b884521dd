//! What SQL shows of replication.

use std::{collections::BTreeSet, time::Duration};

use tailrace_engine::{OpenFragments, TaskInfo};
use tailrace_wal::{CommitTime, HistoryId, PinState, Seq};

/// State of a database's replication, or of the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationState {
    /// Running.
    Enabled,
    /// Stopped by hand, or not configured.
    Disabled,
    /// A task failed too often.
    Stopped,
    /// Both sides went on separately; never overwritten silently.
    Forked,
    /// The log does not reach back: a repair runs or is needed.
    Lost,
    /// A local database of that name is in the way.
    NameTaken,
    /// It is followed, and is not its primary's: a task was skipped.
    Diverged,
}

impl ReplicationState {
    /// As shown: `ENABLED`, `DISABLED`, `STOPPED`, `FORKED`, `LOST`, `NAME TAKEN`, `DIVERGED`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "ENABLED",
            Self::Disabled => "DISABLED",
            Self::Stopped => "STOPPED",
            Self::Forked => "FORKED",
            Self::Lost => "LOST",
            Self::NameTaken => "NAME TAKEN",
            Self::Diverged => "DIVERGED",
        }
    }
}

/// How far a replica's database is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicationLag {
    /// Transactions that are not there.
    pub tasks: u64,
    /// Bytes of the primary's log that are not acknowledged; `None` when unknown.
    pub bytes: Option<u64>,
    /// Age of the oldest transaction that is not there: since it was committed, seen from the primary; since it was
    /// first heard of, seen from the replica.
    pub age: Duration,
    /// Time until it has caught up at the rates of the last ten seconds; zero when it has, `None` when it does not gain.
    pub catch_up: Option<Duration>,
}

/// On the primary: one replica's feed of one database.
#[derive(Debug, Clone)]
pub struct ReplicaFeedStatus {
    /// The replica.
    pub replica: String,
    /// Its address, while connected.
    pub address: Option<String>,
    /// The way to it, while connected; the same for all of its databases.
    pub link: Option<ReplicaLinkStatus>,
    /// Database name.
    pub database: String,
    /// Its history.
    pub history: HistoryId,
    /// Everything up to here is durable on the replica.
    pub acknowledged: Seq,
    /// Everything up to here is readable on the replica.
    pub applied: Seq,
    /// When it last pulled; `None` since this node's start.
    pub last_pull: Option<CommitTime>,
    /// Transactions it has not acknowledged.
    pub lag_tasks: u64,
    /// Log bytes it has not acknowledged; `None` when unknown.
    pub lag_bytes: Option<u64>,
    /// Age of the oldest transaction it has not acknowledged; zero when none.
    pub lag: Duration,
    /// Its pin.
    pub pin: PinState,
    /// Time until it has caught up at the rates of the last ten seconds; zero when it has, `None` when it does not gain.
    pub catch_up: Option<Duration>,
    /// For how long it has acknowledged nothing although there was something; `None` when there was not.
    pub stuck: Option<Duration>,
    /// Log bytes that its pin may still hold back before it is lost; `None` when it holds none.
    pub headroom_bytes: Option<u64>,
    /// Time that its pin may still stand still before it is lost; `None` when it holds none.
    pub headroom: Option<Duration>,
    /// Running, or why not.
    pub state: ReplicationState,
    /// Reason for a state other than ENABLED, with the remedy.
    pub reason: Option<String>,
}

/// On the primary: the way to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaLinkStatus {
    /// Whether chunks are compressed for it now.
    pub compressed: bool,
    /// Bytes per second that its connection acknowledges when it is busy; `None` before it was.
    pub bytes_per_second: Option<u64>,
    /// Bytes per second that it is sent at most; `None`: no limit.
    pub rate_limit: Option<u64>,
    /// Bytes in memory that are on their way to it: read, and not acknowledged by its connection. Chunks of a few KiB are
    /// not counted.
    pub in_flight_bytes: u64,
}

impl ReplicaLinkStatus {
    /// The form of its chunks, as shown and as in the settings: `none`, `zstd`.
    pub fn compression(&self) -> &'static str {
        if self.compressed { "zstd" } else { "none" }
    }
}

/// On the primary: what its publisher sent and made since it started, and what it keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PublisherFigures {
    /// Bytes sent, as on the wire, headers of packets not counted.
    pub wire_bytes: u64,
    /// The same, uncompressed.
    pub raw_bytes: u64,
    /// Chunks made, each once for all replicas that are at the same place.
    pub chunks: u64,
    /// Chunks compressed: none while nobody takes them compressed, each once however many do.
    pub compressions: u64,
    /// Bytes of chunks kept for others now.
    pub cache_bytes: u64,
}

/// On the replica: one followed database.
#[derive(Debug, Clone)]
pub struct FollowedDatabaseStatus {
    /// Database name.
    pub database: String,
    /// Its history.
    pub history: HistoryId,
    /// The primary cluster.
    pub primary: String,
    /// State.
    pub state: ReplicationState,
    /// Reason, for any state but ENABLED.
    pub reason: Option<String>,
    /// Statement or setting that remedies it.
    pub remedy: Option<String>,
    /// Since when.
    pub since: CommitTime,
    /// Readable up to here.
    pub applied: Seq,
    /// Durable up to here.
    pub acknowledged: Seq,
    /// Last transaction known at the primary; `None` before it was heard of. Unknown is never shown as caught up.
    pub primary_seq: Option<Seq>,
    /// How far behind; `None` when nothing was heard of the primary lately.
    pub lag: Option<ReplicationLag>,
    /// For how long it has stood still with something to move on to, and what it is doing.
    pub stuck: Option<(Duration, &'static str)>,
    /// Failures in a row of what fails now; 0: nothing does.
    pub attempts: u32,
    /// When it is tried again by itself; `None` when it is not, or nothing fails.
    pub next_try: Option<CommitTime>,
    /// The task that fails, which may be skipped.
    pub failed_task: Option<Seq>,
    /// The tables that are chosen, by name; `None`: all.
    pub tables: Option<BTreeSet<String>>,
    /// What is here of transactions that have not been committed at the primary.
    pub open: OpenFragments,
}

/// On the replica: the cluster.
#[derive(Debug, Clone)]
pub struct FollowerStatus {
    /// ENABLED, DISABLED (by hand), STOPPED (all databases are).
    pub state: ReplicationState,
    /// The primary's address now, if connected.
    pub connected: Option<String>,
    /// Why not, the last time it failed.
    pub last_error: Option<String>,
    /// Databases.
    pub databases: Vec<FollowedDatabaseStatus>,
    /// Bytes received since start, as on the wire (compressed).
    pub wire_bytes: u64,
    /// The same, uncompressed.
    pub raw_bytes: u64,
}

/// State of a task on the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// Received, not begun.
    Waiting,
    /// Being prepared or applied.
    Executing,
    /// Applied.
    Finished,
    /// Failed; details say why.
    Failed,
    /// Left out by hand; details say why.
    Skipped,
}

impl TaskState {
    /// As shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "WAITING",
            Self::Executing => "EXECUTING",
            Self::Finished => "FINISHED",
            Self::Failed => "FAILED",
            Self::Skipped => "SKIPPED",
        }
    }
}

/// A task on the replica.
#[derive(Debug, Clone)]
pub struct ReplicaTask {
    /// What it is.
    pub task: TaskInfo,
    /// Its database.
    pub database: String,
    /// The primary it came from.
    pub source: String,
    /// Queue number: one queue per database.
    pub queue: u32,
    /// Worker that prepared it; `None` before.
    pub worker: Option<u32>,
    /// When it arrived; `None` for a task finished before this node's start.
    pub received: Option<CommitTime>,
    /// When it was applied; `None` before, or before this node's start.
    pub finished: Option<CommitTime>,
    /// State.
    pub state: TaskState,
    /// Failure, attempts, next try.
    pub details: Option<String>,
    /// A repair shown as one task: its task id is the position's seq and its operation REPAIR.
    pub repair: bool,
}

/// Progress over a window, from receipt to applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReplicationMetrics {
    /// State of the cluster.
    pub state: ReplicationState,
    /// Tasks finished in the window.
    pub finished: u64,
    /// Tasks received or known at the primary, not finished now.
    pub unfinished: u64,
    /// Finished per second of the window.
    pub per_second: f64,
    /// Longest time from receipt to applied.
    pub max_cost: Duration,
    /// Mean of it.
    pub mean_cost: Duration,
    /// Mean tasks per group.
    pub mean_group_size: f64,
}
