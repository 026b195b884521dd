//! The log: append, watermarks, histories, truncation.

use std::{future::Future, sync::Arc};

use crate::{
    Clock, CommitTime, Disk, Frame, HistoryId, LogConfig, LogError, Lsn, NodeId, Pin, PinKey, PinStatus, Position,
    Record, Seq, Tail, TransactionNumber, VerbatimRecord,
};

/// When the writer syncs for a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Persistence {
    /// Synced at once, with whatever else waits.
    Sync,
    /// Synced within the log's `sync_interval`.
    Async,
}

/// What the writer gave a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Number in this node's log.
    pub lsn: Lsn,
    /// Position after it.
    pub position: Position,
    /// Where a reader at this position has to start.
    pub restart_seq: Seq,
    /// Commit time.
    pub commit_time: CommitTime,
}

/// Where a history stands, as the writer needs it to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryEnd {
    /// Its last committed transaction here.
    pub position: Position,
    /// Its last commit time.
    pub commit_time: CommitTime,
}

/// What recovery found of one history in the retained log.
#[derive(Debug, Clone)]
pub struct RecoveredHistory {
    /// Its last committed transaction in the retained log.
    pub end: HistoryEnd,
    /// Transactions with fragments and neither commit nor abort.
    pub open: Vec<TransactionNumber>,
}

/// What opening a log found and did.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// First LSN retained.
    pub first: Lsn,
    /// Last LSN kept: everything up to here is durable now.
    pub last: Lsn,
    /// The torn tail that was cut, if any, in words: file, offset, bytes.
    pub torn: Option<String>,
    /// Histories seen.
    pub histories: Vec<RecoveredHistory>,
}

/// How full and how far the log is. All marks are LSNs of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogStatus {
    /// Oldest record retained.
    pub first: Lsn,
    /// Last record handed to the operating system.
    pub appended: Lsn,
    /// Last record known durable.
    pub durable: Lsn,
    /// Bytes of all segments.
    pub bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes written and not yet synced: what `synchronous_commit = off` may lose now.
    pub unsynced_bytes: u64,
    /// fdatasync calls since start.
    pub syncs: u64,
    /// Payload and header bytes appended since start.
    pub appended_bytes: u64,
    /// Why the log stopped, if it did.
    pub poisoned: bool,
}

/// An append under way. The two stages are awaited separately; dropping this does not cancel the record.
#[derive(Debug)]
pub struct Appending {
    _private: (),
}

impl Appending {
    /// Waits until the record is handed to the operating system and has its position.
    pub async fn written(&mut self) -> Result<Written, LogError> {
        todo!()
    }

    /// Waits until the record is durable.
    pub async fn durable(self) -> Result<Written, LogError> {
        todo!()
    }
}

/// One node's write-ahead log. Cheap to clone; the last clone dropped stops the writer.
#[derive(Debug, Clone)]
pub struct Log {
    _inner: Arc<()>,
}

impl Log {
    /// Opens or creates the log in `config.dir` and recovers it. `durable_floor` is the highest LSN that others
    /// (the manifest) state durable: damage at or below it is refused. Blocks.
    pub fn open(
        _config: LogConfig,
        _node: NodeId,
        _durable_floor: Lsn,
        _disk: Arc<dyn Disk>,
        _clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), LogError> {
        todo!()
    }

    /// Tells the writer where a history stands, before its first append: for a new history
    /// [`Position::start`], after a start the later of the recovered end and the manifest's. Opening it again
    /// replaces what the writer knew (after a repair). Open transactions recovered in a history that this node
    /// writes are aborted by the caller, with `Record`s of kind abort.
    ///
    /// A history's first [`Log::append`] after this begins a new epoch; [`Log::append_verbatim`] copies epochs.
    pub fn open_history(&self, _end: HistoryEnd) -> Result<(), LogError> {
        todo!()
    }

    /// Where a history stands: its last *written* position.
    pub fn history_end(&self, _history: HistoryId) -> Option<HistoryEnd> {
        todo!()
    }

    /// A number for a transaction that will be written in fragments.
    pub fn begin_transaction(&self, _history: HistoryId) -> Result<TransactionNumber, LogError> {
        todo!()
    }

    /// Queues a record of a history that this node writes. Waits only while the queue is over its byte budget.
    /// Records are written in the order of these calls' return.
    pub fn append(
        &self,
        _record: Record,
        _persistence: Persistence,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        async { todo!() }
    }

    /// Queues a record received from its primary. A commit that does not continue the history fails with
    /// [`LogError::Forked`] before anything is written.
    pub fn append_verbatim(
        &self,
        _record: VerbatimRecord,
        _persistence: Persistence,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        async { todo!() }
    }

    /// Makes everything written so far durable.
    pub async fn sync(&self) -> Result<Lsn, LogError> {
        todo!()
    }

    /// Follows the durable mark. The channel closes when the log is poisoned or shut down.
    pub fn durable(&self) -> tokio::sync::watch::Receiver<Lsn> {
        todo!()
    }

    /// Reads one history, durable records only, in log order (fragments, aborts and commits), starting with the
    /// first record after the commit of `after`. Replicas pass the restart seq of their position.
    pub fn tail(&self, _history: HistoryId, _after: Seq) -> Result<Tail, LogError> {
        todo!()
    }

    /// Reads all histories from the first record after `after`; for replay at start.
    pub fn replay(&self, _after: Lsn) -> Result<Tail, LogError> {
        todo!()
    }

    /// One record by LSN, if retained and durable.
    pub fn read(&self, _lsn: Lsn) -> Result<Frame, LogError> {
        todo!()
    }

    /// Readers of `history` can start after this seq or any later one; `None` for a history never opened.
    pub fn retained_after(&self, _history: HistoryId) -> Option<Seq> {
        todo!()
    }

    /// Position of `history` at `seq`, where that commit is retained (or is the history's end or start).
    pub fn position_at(&self, _history: HistoryId, _seq: Seq) -> Option<Position> {
        todo!()
    }

    /// Claims retention for a feed from the record after `restart` on, replacing the claim of the same key.
    /// [`LogError::Truncated`] if those records are gone.
    pub fn pin(&self, _key: PinKey, _acknowledged: Seq, _restart: Seq) -> Result<Pin, LogError> {
        todo!()
    }

    /// All pins, lost ones included.
    pub fn pins(&self) -> Vec<PinStatus> {
        todo!()
    }

    /// Forgets a pin, lost or not. `false` if there was none.
    pub fn forget_pin(&self, _key: &PinKey) -> bool {
        todo!()
    }

    /// Removes whole segments whose records all lie at or below `flushed`, and below every pin that is not lost and
    /// every open transaction. Pins over budget are marked lost first. Blocks; returns the new first LSN.
    pub fn truncate(&self, _flushed: Lsn) -> Result<Lsn, LogError> {
        todo!()
    }

    /// Seals the current segment and starts another, so that truncation can take it.
    pub async fn roll(&self) -> Result<(), LogError> {
        todo!()
    }

    /// Figures for `system.wal`.
    pub fn status(&self) -> LogStatus {
        todo!()
    }

    /// Writes and syncs all that waits, then stops the writer. Later calls fail with [`LogError::Closed`].
    pub async fn close(&self) -> Result<(), LogError> {
        todo!()
    }
}
