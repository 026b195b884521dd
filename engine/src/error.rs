//! Errors of the engine, by what the caller can do about them.

use tailrace_wal::{LogError, Position, Seq};

use crate::Right;

/// Why an engine call failed. Unless said otherwise, nothing was written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A database, table or column that does not exist.
    #[error("{kind} {name:?} does not exist")]
    NotFound {
        /// `database`, `table`, `column`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A name that is taken.
    #[error("{kind} {name:?} already exists")]
    AlreadyExists {
        /// `database`, `table`, `column`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The request itself is wrong; the message says how to put it right.
    #[error("{0}")]
    Invalid(String),
    /// A type or feature that is not supported, by name.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A write to a database that is replicated here.
    #[error("database {database:?} is a replica here and read-only; write to its primary, {primary:?}")]
    ReadOnlyReplica {
        /// The database.
        database: String,
        /// The primary's name.
        primary: String,
    },
    /// The transaction lost against another (a table dropped or changed meanwhile). Try again.
    #[error("{0}; nothing was committed, run the transaction again")]
    Conflict(String),
    /// The transaction was aborted because it was idle or too large.
    #[error("{0}")]
    TransactionAborted(String),
    /// What a primary sends of an open transaction is larger than this node takes.
    #[error(
        "an open transaction of database {database:?} is larger than engine.transaction_max_bytes of this node ({bytes_max} \
         bytes)"
    )]
    TransactionTooLarge {
        /// The database.
        database: String,
        /// The limit.
        bytes_max: u64,
    },
    /// The database is stopped; the reason says what to do.
    #[error("database {database:?} is stopped: {reason}")]
    DatabaseStopped {
        /// The database.
        database: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// The user under whose name records of a primary are applied may not do that here.
    #[error("user {user:?} lacks the right {:?} on database {database:?}", .right.name())]
    NotPermitted {
        /// Who.
        user: String,
        /// Where.
        database: String,
        /// What would be needed.
        right: Right,
    },
    /// Received records do not continue this node's copy.
    #[error("history forked: {0}")]
    Forked(String),
    /// The commit is written and applied, but whether it is durable is unknown: the log failed while syncing.
    #[error("the transaction was written at {position}, but it is unknown whether it is durable: {source}")]
    Indeterminate {
        /// Where it was written.
        position: Box<Position>,
        /// The log's failure.
        source: LogError,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// There is no space for it. What waits in memory and in the log is kept; it can be tried again once there is some.
    #[error("no space left for {object}: {reason}")]
    Full {
        /// What was to be written.
        object: String,
        /// The cause.
        reason: String,
    },
    /// A datafile or the manifest failed or is damaged.
    #[error("{operation} {object}: {reason}")]
    Storage {
        /// The call.
        operation: &'static str,
        /// Its file or object.
        object: String,
        /// The cause.
        reason: String,
    },
    /// Changes that a feed was to give are not there any more.
    #[error("changes of database {database:?} from seq {wanted} on are gone: the first that can be had is seq {first}")]
    ChangesGone {
        /// The database.
        database: String,
        /// The first that was wanted.
        wanted: Seq,
        /// The first that is there.
        first: Seq,
    },
    /// A transaction that a feed was to give was skipped on this node: its rows are not in the table.
    #[error("transaction {seq} of table {table:?} was skipped on this node: its rows are not in the table")]
    ChangesSkipped {
        /// Database and table.
        table: String,
        /// The transaction.
        seq: Seq,
    },
    /// What a feed reads has ended or changed; the message says how.
    #[error("{0}")]
    FeedEnded(String),
    /// Somebody else uses it now.
    #[error("{kind} {name:?} is in use")]
    InUse {
        /// `subscription`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A subscription whose pin is lost: what it has not acknowledged may be gone.
    #[error("subscription {name:?} is lost after seq {acknowledged}: {reason}")]
    SubscriptionLost {
        /// Its name.
        name: String,
        /// What was acknowledged.
        acknowledged: Seq,
        /// Why it is lost.
        reason: String,
    },
    /// Whoever asked for it asked for its end; the message says what stays done.
    #[error("{0}")]
    Cancelled(String),
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    Closed,
}

/// Result of an engine call.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
