//! The log: append, watermarks, histories, truncation.

use std::{
    future::Future,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::{
    Clock, CommitTime, Disk, DiskLock, Frame, HistoryId, LogConfig, LogError, Lsn, NodeId, Pin, PinKey, PinStatus,
    Position, Record, SavedPin, Seq, Tail, TransactionNumber, VerbatimRecord,
    config::planted,
    error::io_error,
    marks::Marks,
    poison::Poison,
    queue::{Item, Queue, Queued, Request},
    recovery::recover,
    retention::LogHolders,
    run::Run,
    shared::Shared,
    writer::{Pen, Writer},
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
    shared: Arc<Shared>,
    written: Option<oneshot::Receiver<Result<Written, LogError>>>,
    outcome: Option<Result<Written, LogError>>,
    durable: oneshot::Receiver<Result<Written, LogError>>,
}

impl Appending {
    /// Waits until the record is handed to the operating system and has its position. Cancel-safe; the same answer
    /// on every call. After [`LogError::Poisoned`] it is unknown whether the record survives.
    pub async fn written(&mut self) -> Result<Written, LogError> {
        if let Some(receiver) = &mut self.written {
            let outcome = receiver.await.unwrap_or_else(|_| Err(stopped(&self.shared)));
            self.outcome = Some(outcome);
            self.written = None;
        }
        self.outcome.clone().unwrap_or_else(|| Err(stopped(&self.shared)))
    }

    /// Waits until the record is durable.
    pub async fn durable(self) -> Result<Written, LogError> {
        self.durable.await.unwrap_or_else(|_| Err(stopped(&self.shared)))
    }
}

/// One node's write-ahead log. Cheap to clone; the last clone dropped stops the writer.
#[derive(Debug, Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

/// Stops the writer when the last clone goes; pins and tails do not keep it.
#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    /// For appenders' turns. Empty where the writer is stepped by hand: then there are none.
    pen: OnceLock<Arc<Pen>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Nobody else opens the folder, until the log is closed.
    lock: Mutex<Option<DiskLock>>,
}

impl Log {
    /// Opens or creates the log in `config.dir` and recovers it. `durable_floor` is the highest LSN that others
    /// (the manifest) state durable: damage at or below it is refused. Blocks.
    pub fn open(
        config: LogConfig,
        node: NodeId,
        durable_floor: Lsn,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), LogError> {
        let (log, writer, recovery) = Self::recovered(config, node, durable_floor, disk, clock)?;
        let inner = &log.inner;
        let pen = inner.pen.get_or_init(|| Arc::new(Pen::new(inner.shared.clone(), writer))).clone();
        let thread = std::thread::Builder::new()
            .name("wal-writer".into())
            .spawn(move || pen.run())
            .map_err(|error| io_error("start the writer of", &inner.shared.config.dir, error))?;
        *inner.thread.lock() = Some(thread);
        Ok((log, recovery))
    }

    /// A log whose writer is still to be run.
    pub(crate) fn recovered(
        config: LogConfig,
        node: NodeId,
        durable_floor: Lsn,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Writer, Recovery), LogError> {
        let dir = &config.dir;
        disk.create_dir_all(dir).map_err(|error| io_error("create", dir, error))?;
        let lock_path = dir.join("LOCK");
        let lock = disk.lock(&lock_path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => LogError::Locked { path: dir.clone() },
            _ => io_error("lock", &lock_path, error),
        })?;
        let recovered = recover(&config, node, durable_floor, &*disk, &*clock)?;
        if let Some(torn) = &recovered.report.torn {
            tracing::warn!("torn tail: {torn}");
        }
        let shared = Arc::new(Shared {
            queue: Queue::new(config.queue_max_bytes, config.gathers_crowds()),
            marks: Marks::new(recovered.last.last),
            poison: Poison::default(),
            refuses: AtomicBool::new(false),
            histories: Mutex::new(recovered.histories),
            claims: Mutex::default(),
            archive: Mutex::default(),
            rolled: tokio::sync::Notify::new(),
            segments: RwLock::new(recovered.segments),
            unsynced_removal: Mutex::default(),
            config,
            node,
            disk,
            clock,
        });
        let writer = Writer::new(shared.clone(), recovered.active, recovered.last);
        let inner = Inner { shared, pen: OnceLock::new(), thread: Mutex::default(), lock: Mutex::new(Some(lock)) };
        Ok((Self { inner: Arc::new(inner) }, writer, recovered.report))
    }

    /// Tells the writer where a history stands, before its first append: for a new history
    /// [`Position::start`], after a start the later of the recovered end and the manifest's. Opening it again
    /// replaces what the writer knew (after a repair); no record of it may be waiting then. Open transactions
    /// recovered in a history that this node writes are aborted by the caller, with `Record`s of kind abort, before
    /// anything else of it.
    ///
    /// A history's first [`Log::append`] after this begins a new epoch; [`Log::append_verbatim`] copies epochs.
    pub fn open_history(&self, end: HistoryEnd) -> Result<(), LogError> {
        let shared = &self.inner.shared;
        shared.check_running()?;
        let mut histories = shared.histories.lock();
        let history = histories.entry(end.position.history).or_default();
        #[cfg(feature = "simulation")]
        {
            history.fold.planted = shared.config.planted;
        }
        history.open(end, shared.marks.appended());
        Ok(())
    }

    /// Where a history stands: its last *written* position.
    pub fn history_end(&self, history: HistoryId) -> Option<HistoryEnd> {
        self.inner.shared.histories.lock().get(&history)?.fold.end
    }

    /// A number for a transaction that will be written in fragments. Begins the new epoch if nothing has yet.
    pub fn begin_transaction(&self, history: HistoryId) -> Result<TransactionNumber, LogError> {
        let shared = &self.inner.shared;
        shared.check_running()?;
        let mut histories = shared.histories.lock();
        let known = histories.get_mut(&history).filter(|known| known.opened > 0);
        let known = known.ok_or(LogError::UnknownHistory(history))?;
        let end = known.fold.end.ok_or(LogError::UnknownHistory(history))?;
        Ok(known.begin_transaction(&end, &*shared.clock))
    }

    /// Queues a record of a history that this node writes; a small one is written here and now where nobody writes and
    /// nothing waits, which takes microseconds, and never a sync. Waits only while the queue is over its byte budget.
    /// Records are written in the order of these calls' return.
    pub fn append(
        &self,
        record: Record,
        persistence: Persistence,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        let checked = record.payload.check().and_then(|()| self.inner.shared.check_space(record.kind));
        enqueue(&self.inner, checked.map(|()| Queued::Own(record)), persistence, None)
    }

    /// [`Log::append`] of a record that makes space: taken while clients' writes are refused for want of it.
    pub fn append_for_space(
        &self,
        record: Record,
        persistence: Persistence,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        let checked = record.payload.check();
        enqueue(&self.inner, checked.map(|()| Queued::Own(record)), persistence, None)
    }

    /// Refuses commits and fragments with [`LogError::Full`] from now on, or takes them again: what space there is then
    /// stays for what leads out of a full disk. Aborts are always taken, and so is [`Log::append_for_space`].
    pub fn refuse_writes(&self, refuse: bool) {
        self.inner.shared.refuses.store(refuse, Ordering::Release);
    }

    /// Queues or writes a record received from its primary, as [`Log::append`] does. A commit that does not continue the history fails with
    /// [`LogError::Forked`] before anything is written, one whose fragments are not in the log with
    /// [`LogError::Invalid`]; the [`Appending`] says so.
    pub fn append_verbatim(
        &self,
        record: VerbatimRecord,
        persistence: Persistence,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        self.append_received(record, persistence, None)
    }

    /// [`Log::append_verbatim`] of the next record of a run, which is refused if one before it was.
    pub fn append_in_run(
        &self,
        run: &Run,
        record: VerbatimRecord,
        persistence: Persistence,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        self.append_received(record, persistence, Some(run.clone()))
    }

    fn append_received(
        &self,
        record: VerbatimRecord,
        persistence: Persistence,
        run: Option<Run>,
    ) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
        let shared = &self.inner.shared;
        let run = run.filter(|_| !planted!(shared.config, TakesAfterRefused));
        let checked = record.check().and_then(|()| shared.check_space(record.header.kind));
        if let (Err(error), Some(run)) = (&checked, &run) {
            run.refuse(error);
        }
        enqueue(&self.inner, checked.map(|()| Queued::Verbatim(record)), persistence, run)
    }

    /// Makes everything queued so far durable. Returns the durable LSN.
    pub async fn sync(&self) -> Result<Lsn, LogError> {
        command(&self.inner.shared, Item::Sync).await
    }

    /// Follows the durable mark. The channel closes when the log is poisoned or shut down.
    pub fn durable(&self) -> tokio::sync::watch::Receiver<Lsn> {
        self.inner.shared.marks.watch()
    }

    /// Waits until the log is poisoned or shut down.
    pub async fn ended(&self) {
        let mut ended = self.inner.shared.marks.watch_end();
        while ended.changed().await.is_ok() {}
    }

    /// Reads one history, durable records only, in log order (fragments, aborts and commits), starting with the
    /// first record after the commit of `after`. Replicas pass the restart seq of their position.
    /// [`LogError::Truncated`] below [`Log::retained_after`]; the reader gives the same error when a repair replaces
    /// the history under it, or when truncation overtakes it because no pin held its records.
    pub fn tail(&self, history: HistoryId, after: Seq) -> Result<Tail, LogError> {
        let shared = &self.inner.shared;
        Tail::of_history(shared.clone(), history, after)
    }

    /// Reads all histories from the first record after `after`; for replay at start.
    /// [`LogError::ReplayTruncated`] when that record is gone.
    pub fn replay(&self, after: Lsn) -> Result<Tail, LogError> {
        let shared = &self.inner.shared;
        let first = shared.first();
        if after.next() < first {
            return Err(LogError::ReplayTruncated { first, wanted: after.next() });
        }
        Ok(Tail::of_all(shared.clone(), after))
    }

    /// One record by LSN, if retained and durable. Blocks.
    pub fn read(&self, lsn: Lsn) -> Result<Frame, LogError> {
        let shared = &self.inner.shared;
        if lsn > shared.marks.durable() || lsn == Lsn::ZERO {
            return Err(LogError::EndsBefore { end: shared.marks.durable(), wanted: lsn });
        }
        Tail::of_one(shared.clone(), Lsn(lsn.0 - 1))
            .try_next()?
            .ok_or(LogError::EndsBefore { end: shared.marks.durable(), wanted: lsn })
    }

    /// Readers of `history` can start after this seq or any later one; `None` for a history never opened.
    pub fn retained_after(&self, history: HistoryId) -> Option<Seq> {
        self.inner.shared.retained_after(history)
    }

    /// Position of `history` at `seq`, where that commit is retained (or is the history's end or start).
    pub fn position_at(&self, history: HistoryId, seq: Seq) -> Option<Position> {
        self.inner.shared.position_at(history, seq)
    }

    /// The restart seq of the commit of `seq`, where that is retained: who holds everything up to `seq`, and no
    /// fragments, starts to read after it. Blocks on the disk.
    pub fn restart_at(&self, history: HistoryId, seq: Seq) -> Option<Seq> {
        self.inner.shared.restart_at(history, seq)
    }

    /// Claims retention for a feed from the record after `restart` on, replacing the claim of the same key.
    /// [`LogError::Truncated`] if those records are gone.
    pub fn pin(&self, key: PinKey, acknowledged: Seq, restart: Seq) -> Result<Pin, LogError> {
        self.inner.shared.claim(key, acknowledged, restart)
    }

    /// Puts a pin back that was saved before a restart: lost ones stay lost with their reason and time, and one whose
    /// records are gone is lost from now on. Replaces the claim of the same key.
    pub fn restore_pin(&self, saved: SavedPin) {
        self.inner.shared.restore_claim(saved);
    }

    /// All pins, lost ones included. Those over budget are lost from here on.
    pub fn pins(&self) -> Vec<PinStatus> {
        self.inner.shared.pin_statuses()
    }

    /// Forgets a pin, lost or not, attached or not. `false` if there was none.
    pub fn forget_pin(&self, key: &PinKey) -> bool {
        self.inner.shared.forget_claim(key)
    }

    /// Forgets pins whose feeds are not attached: all of them, or none. The error names the first that is attached.
    pub fn forget_detached_pins(&self, keys: &[PinKey]) -> Result<(), PinKey> {
        self.inner.shared.forget_detached(keys)
    }

    /// Removes whole segments whose records all lie at or below `flushed`, and below every pin that is not lost and
    /// every open transaction; one whose end is not durable counts as open. A replay after `flushed` needs nothing from
    /// before it: that is the caller's to see to. Pins over budget are marked lost first. Blocks; returns the new first LSN.
    pub fn truncate(&self, flushed: Lsn) -> Result<Lsn, LogError> {
        self.inner.shared.truncate(flushed)
    }

    /// Looks at the pins' budgets and removes what nobody needs since the last [`Log::truncate`]. To be called from
    /// time to time: a feed that is dead does not call by itself. Blocks; returns the new first LSN.
    pub fn retain(&self) -> Result<Lsn, LogError> {
        self.inner.shared.retain()
    }

    /// Gives up the pin that alone holds back most log, whatever its budget says: no feed may keep this node from
    /// writing. `why` begins the reason of its loss. `None` when no pin holds log back; [`Log::retain`] frees it.
    pub fn give_up_pin(&self, why: &str) -> Option<PinStatus> {
        self.inner.shared.give_up(why)
    }

    /// As [`Log::give_up_pin`], where the archive's claim counts as a pin: whoever of them holds back most log loses it,
    /// and what is not archived becomes a gap. `false` when nobody holds log back.
    pub fn give_up_claim(&self, why: &str) -> bool {
        self.inner.shared.give_up_claim(why)
    }

    /// Who holds how much of the log beside the pins. Blocks.
    pub fn holders(&self) -> LogHolders {
        self.inner.shared.holders()
    }

    /// Seals the current segment and starts another, so that truncation can take it.
    pub async fn roll(&self) -> Result<(), LogError> {
        command(&self.inner.shared, Item::Roll).await.map(|_| ())
    }

    /// Figures for `system.wal`.
    pub fn status(&self) -> LogStatus {
        let shared = &self.inner.shared;
        let marks = &shared.marks;
        let segments = shared.all_segments();
        // Read in this order, so that durable ≤ appended holds in what is returned.
        let durable = marks.durable();
        LogStatus {
            first: shared.first(),
            appended: marks.appended(),
            durable,
            bytes: segments.iter().map(|segment| segment.state().bytes).sum(),
            segments: segments.len() as u64,
            unsynced_bytes: marks.unsynced_bytes.load(Ordering::Relaxed),
            syncs: marks.syncs.load(Ordering::Relaxed),
            appended_bytes: marks.appended_bytes.load(Ordering::Relaxed),
            poisoned: shared.poison.get().is_some(),
        }
    }

    /// What the parts of this crate share.
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Writes and syncs all that waits, then stops the writer. Later calls fail with [`LogError::Closed`]; those that read
    /// go on as long as the files are there. Once it is closed the folder can be opened anew, whoever still holds this.
    pub async fn close(&self) -> Result<(), LogError> {
        command(&self.inner.shared, Item::Close).await?;
        // What is being removed is removed before that, and nothing after.
        let _no_truncation = self.inner.shared.claims.lock();
        drop(self.inner.lock.lock().take());
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let (reply, _) = oneshot::channel();
        // Refused when it was closed or poisoned before: the thread has ended then.
        let _ = self.shared.queue.push(Item::Close(reply));
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the log's writer panicked");
        }
    }
}

/// Has a record written by the caller, or queues it.
fn enqueue(
    inner: &Inner,
    record: Result<Queued, LogError>,
    persistence: Persistence,
    run: Option<Run>,
) -> impl Future<Output = Result<Appending, LogError>> + Send + use<> {
    let (shared, pen) = (inner.shared.clone(), inner.pen.get().cloned());
    async move {
        let (written, on_written) = oneshot::channel();
        let (durable, on_durable) = oneshot::channel();
        let request = Request { record: record?, persistence, run, written, durable };
        let left = match &pen {
            Some(pen) => pen.append(request).err(),
            None => Some(request),
        };
        if let Some(request) = left {
            shared.queue.push_within_budget(Item::Append(request)).await?;
        }
        Ok(Appending { shared, written: Some(on_written), outcome: None, durable: on_durable })
    }
}

pub(crate) async fn command(
    shared: &Shared,
    item: impl FnOnce(oneshot::Sender<Result<Lsn, LogError>>) -> Item,
) -> Result<Lsn, LogError> {
    let (reply, on_reply) = oneshot::channel();
    shared.queue.push(item(reply))?;
    on_reply.await.unwrap_or_else(|_| Err(stopped(shared)))
}

/// Why a waiter was left without an answer.
fn stopped(shared: &Shared) -> LogError {
    shared.poison.get().or_else(|| shared.queue.closed()).unwrap_or(LogError::Closed)
}
