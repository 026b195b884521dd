//! Errors of the log. Each says what the caller should do.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{FileOffset, GapHistory, HistoryId, Lsn, NodeId, Position, Seq};

/// Why a log call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// An I/O call failed; nothing was acknowledged.
    #[error("{operation} {path}: {source}")]
    Io {
        /// The call.
        operation: &'static str,
        /// Its file.
        path: PathBuf,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// No space left. The record was not written; writes can be tried again once there is space.
    #[error("no space left on the log's disk at {path}: nothing was written; free some space and try again")]
    Full {
        /// The segment.
        path: PathBuf,
        /// It was refused because the disk counts as full already; no write was tried.
        refused: bool,
    },
    /// An earlier write or sync failed, so the page cache proves nothing any more. The outcome of waiting
    /// records is unknown until the node has been restarted.
    #[error(
        "the log stopped after a failed write ({reason}); whether waiting records survive is decided by the next start; restart the node"
    )]
    Poisoned {
        /// The first failure.
        reason: Arc<str>,
    },
    /// Bytes that were stated durable are damaged.
    #[error(
        "{path} is damaged at byte {offset}: {reason}; restore this file from a backup or rebuild the node from a replica"
    )]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Where the damage begins.
        offset: FileOffset,
        /// What is wrong.
        reason: String,
    },
    /// Bytes from a peer or a caller are not a valid record.
    #[error("invalid record: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// A record kind that this version does not know.
    #[error("record kind {code} is not known to this version; upgrade this node first")]
    UnknownRecordKind {
        /// Its code.
        code: u16,
    },
    /// A file of a newer format.
    #[error("{path} has format version {found}, this version reads up to {known}; upgrade this node")]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Newest known.
        known: u32,
    },
    /// A file from before the first format that is kept readable.
    #[error(
        "{path} has the pre-release format 0, which is not read any more; begin with an empty folder and load the data again"
    )]
    PreReleaseFormat {
        /// The file.
        path: PathBuf,
    },
    /// A record whose checksum is right and whose content this version cannot take.
    #[error(
        "{path} holds at byte {offset} what this version does not know: {reason}; if a newer version wrote it, upgrade this node"
    )]
    UnknownContent {
        /// The segment.
        path: PathBuf,
        /// Where the frame begins.
        offset: FileOffset,
        /// What is not known.
        reason: String,
    },
    /// The records asked for have been truncated.
    #[error("history {history} is retained after seq {retained_after} only, seq {wanted} was asked for")]
    Truncated {
        /// Which history.
        history: HistoryId,
        /// Readers can start after this seq.
        retained_after: Seq,
        /// Where the reader wanted to start after.
        wanted: Seq,
    },
    /// A verbatim record does not continue the history.
    #[error("a record does not continue history {}: this node is at {here}, the record says {record}", here.history)]
    Forked {
        /// Where this node is.
        here: Box<Position>,
        /// What the record claims.
        record: Box<Position>,
    },
    /// The history is not open here.
    #[error("history {0} is not open in this log")]
    UnknownHistory(HistoryId),
    /// A replayed or awaited LSN is beyond the log's end.
    #[error(
        "the log ends at LSN {end}, but LSN {wanted} was already used; the log's folder is not the one that belongs to this data"
    )]
    EndsBefore {
        /// Last LSN found.
        end: Lsn,
        /// Needed.
        wanted: Lsn,
    },
    /// A replay was to start with a record that has been truncated.
    #[error("the log starts with LSN {first}, LSN {wanted} was asked for and has been truncated")]
    ReplayTruncated {
        /// First LSN retained.
        first: Lsn,
        /// Asked for.
        wanted: Lsn,
    },
    /// A segment that another node wrote.
    #[error("{path} was written by node {found}, this is node {expected}; put the log's own folder back")]
    ForeignNode {
        /// The segment.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who opens it.
        expected: NodeId,
    },
    /// Two processes on one folder.
    #[error("{path} is in use by another process")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The archive's store failed or did not answer. The call may be tried again.
    #[error("the archive: {operation} {object}: {reason}")]
    Archive {
        /// The call.
        operation: &'static str,
        /// Its object.
        object: String,
        /// The cause.
        reason: String,
    },
    /// What is archived is not of this log. Nothing was written.
    #[error("{object} does not fit this log: {reason}; set wal.archive to another place to archive this log")]
    ArchiveConflict {
        /// What was found.
        object: String,
        /// How it differs.
        reason: String,
    },
    /// Records that neither the archive nor the log holds.
    #[error("LSN {from} to {to} are not archived{}: {reason}; a reader can start behind them", in_gap(missing.as_ref()))]
    ArchiveGap {
        /// The first missing record.
        from: Lsn,
        /// The last one.
        to: Lsn,
        /// What is missing of the history that was read.
        missing: Option<GapHistory>,
        /// Why.
        reason: String,
    },
    /// The log was shut down.
    #[error("the log is shut down")]
    Closed,
}

fn in_gap(missing: Option<&GapHistory>) -> String {
    missing.map_or_else(String::new, |missing| {
        format!(" (history {}: seq {} to {})", missing.history, missing.after.next(), missing.upto)
    })
}

impl LogError {
    /// Whether a write was tried and found no space.
    pub fn found_no_space(&self) -> bool {
        match self {
            Self::Full { refused, .. } => !refused,
            error => error.is_full(),
        }
    }

    /// Whether it failed for want of space: nothing was acknowledged, and it can be tried again once there is some.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Io { source, .. } => crate::reserve::is_no_space(source),
            _ => false,
        }
    }
}

/// An [`LogError::Io`].
pub(crate) fn io_error(operation: &'static str, path: &Path, source: io::Error) -> LogError {
    LogError::Io { operation, path: path.into(), source: Arc::new(source) }
}
