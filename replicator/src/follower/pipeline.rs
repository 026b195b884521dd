//! Received records on their way into a history: prepared in parallel, committed in runs, made durable in batches.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesOrdered};
use tailrace_engine::{Applied, Applier, EngineError, OperationCode, Prepared};
use tailrace_wal::{HistoryHeader, Payload, Position, RecordKind, Seq};

use super::{link::Records, workers::Workers};

/// Payload bytes and records that one worker prepares in one go: large enough that handing over costs little, small
/// enough that all workers have something to do within one chunk.
const BATCH_BYTES: usize = 512 << 10;
const BATCH_RECORDS: usize = 256;
/// A batch within both is prepared where it arrived: handing it over would take longer.
const INLINE_BYTES: usize = 16 << 10;
const INLINE_RECORDS: usize = 8;

/// See the module. Nothing here waits: `next` says what happened.
pub(crate) struct Pipeline {
    workers: Arc<Workers>,
    /// Under whose name records are applied; `None`: everything is allowed.
    user: Option<Arc<str>>,
    queue: VecDeque<Item>,
    /// Items at the queue's front that are being prepared or are prepared.
    started: usize,
    preparing: FuturesOrdered<BoxFuture<'static, Batch>>,
    /// Prepared items at the queue's front.
    ready_items: usize,
    ready: Vec<Prepared>,
    /// The item after the ready ones failed.
    failed: Option<EngineError>,
    /// DDL, or a task that is left out, is being prepared or committed; what follows it waits.
    alone: bool,
    /// The ready item is to be left out, for this reason.
    skip: Option<Skip>,
    committing: Option<BoxFuture<'static, Result<Option<Applied>, EngineError>>>,
    in_commit: Vec<Item>,
    syncing: Option<BoxFuture<'static, Result<(Position, Seq), EngineError>>>,
    unsynced: bool,
    /// What was received before a reset is not put back.
    generation: u64,
    commit_generation: u64,
}

#[derive(Debug)]
struct Item {
    header: HistoryHeader,
    payload: Payload,
    /// Last record of its chunk.
    ends_chunk: bool,
}

struct Batch {
    items: usize,
    prepared: Vec<Option<Prepared>>,
    error: Option<EngineError>,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Step {
    /// Workers took records; see [`Pipeline::next`]'s `on_start`.
    Prepared,
    /// Records are applied and readable; `applied` is `None` when all were duplicates. So many chunks are used up.
    Applied { applied: Option<Applied>, chunks: u32 },
    /// Everything up to here is durable.
    Durable { position: Position, restart_seq: Seq },
    /// The oldest record could not be prepared or committed, or the disk failed.
    Failed(EngineError),
}

/// A record that is left out, and why.
type Skip = (HistoryHeader, Payload, String);

/// Told when a worker takes the transactions of a range.
pub(crate) type OnStart = Arc<dyn Fn(Seq, Seq, u32) + Send + Sync>;

impl Pipeline {
    pub(crate) fn new(workers: Arc<Workers>, user: Option<Arc<str>>) -> Self {
        Self {
            workers,
            user,
            queue: VecDeque::new(),
            started: 0,
            preparing: FuturesOrdered::new(),
            ready_items: 0,
            ready: Vec::new(),
            failed: None,
            alone: false,
            skip: None,
            committing: None,
            in_commit: Vec::new(),
            syncing: None,
            unsynced: false,
            generation: 0,
            commit_generation: 0,
        }
    }

    /// A chunk arrived.
    pub(crate) fn push(&mut self, records: Records) {
        let count = records.len();
        self.queue.extend(records.into_iter().enumerate().map(|(index, (header, payload))| Item {
            header,
            payload,
            ends_chunk: index + 1 == count,
        }));
    }

    /// Nothing waits and nothing is being committed.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.committing.is_none()
    }

    /// What the oldest record waits for.
    pub(crate) fn activity(&self) -> &'static str {
        if self.committing.is_some() {
            "appending to the log and applying"
        } else if !self.queue.is_empty() {
            "preparing"
        } else if self.syncing.is_some() || self.unsynced {
            "syncing the log"
        } else {
            "waiting for records from the primary"
        }
    }

    /// Nothing waits to be made durable either.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_idle() && self.syncing.is_none() && !self.unsynced
    }

    /// Drops everything that is not being committed.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.generation += 1;
        self.restart();
    }

    /// Forgets preparation: the records that wait are prepared anew.
    pub(crate) fn restart(&mut self) {
        self.started = 0;
        self.preparing = FuturesOrdered::new();
        self.ready_items = 0;
        self.ready.clear();
        self.failed = None;
        self.alone = false;
        self.skip = None;
    }

    /// Starts what can be started and waits for the first thing to happen; for ever when nothing is under way.
    /// `paused`: nothing is started (after a failure). Cancel-safe.
    /// `skips`: tasks that are to be left out, with the reason.
    pub(crate) async fn next(
        &mut self,
        applier: Option<&Arc<Applier>>,
        paused: bool,
        on_start: &OnStart,
        skips: &BTreeMap<Seq, String>,
    ) -> Step {
        if let Some(applier) = applier {
            if !paused {
                self.prepare(applier, on_start, skips);
                self.commit(applier);
                if self.ready_items == 0
                    && self.committing.is_none()
                    && let Some(error) = self.failed.take()
                {
                    return Step::Failed(error);
                }
            }
            if self.unsynced && self.syncing.is_none() {
                self.unsynced = false;
                let applier = applier.clone();
                let durable = async move {
                    // Those who wait for what was just applied go on first.
                    tokio::task::yield_now().await;
                    applier.durable().await
                };
                self.syncing = Some(durable.boxed());
            }
        }
        tokio::select! {
            Some(batch) = self.preparing.next(), if self.failed.is_none() => {
                self.take(batch);
                Step::Prepared
            }
            result = pending(&mut self.committing) => self.committed(result),
            result = pending(&mut self.syncing) => {
                self.syncing = None;
                match result {
                    Ok((position, restart_seq)) => Step::Durable { position, restart_seq },
                    Err(error) => Step::Failed(error),
                }
            }
        }
    }

    fn prepare(&mut self, applier: &Arc<Applier>, on_start: &OnStart, skips: &BTreeMap<Seq, String>) {
        while !self.alone && self.failed.is_none() && self.started < self.queue.len() {
            let mut batch = Vec::new();
            let mut bytes = 0;
            for item in self.queue.iter().skip(self.started) {
                let skip = skips.get(&item.header.seq).filter(|_| item.header.kind == RecordKind::Commit);
                if skip.is_some() || is_ddl(&item.payload) {
                    self.alone = batch.is_empty() && self.started == 0 && self.committing.is_none();
                    if let Some(reason) = skip.filter(|_| self.alone) {
                        self.skip = Some((item.header, item.payload.clone(), reason.clone()));
                        self.started = 1;
                        self.ready_items = 1;
                        return;
                    }
                    if self.alone {
                        batch.push((item.header, item.payload.clone()));
                    }
                    break;
                }
                bytes += item.payload.encoded_len();
                batch.push((item.header, item.payload.clone()));
                if bytes >= BATCH_BYTES || batch.len() >= BATCH_RECORDS {
                    break;
                }
            }
            if batch.is_empty() {
                return;
            }
            self.started += batch.len();
            let is_small = batch.len() <= INLINE_RECORDS && bytes <= INLINE_BYTES;
            if is_small && self.preparing.is_empty() {
                let user = self.user.clone();
                let prepare = |worker| prepare(applier, user.as_deref(), batch.clone(), worker, &**on_start);
                let here = self.workers.run_here(prepare);
                if let Some(batch) = here {
                    self.take(batch);
                    continue;
                }
            }
            let (workers, applier, on_start) = (self.workers.clone(), applier.clone(), on_start.clone());
            let user = self.user.clone();
            // Spawned, so that it runs whether or not somebody waits here.
            let work =
                tokio::spawn(workers.run(move |worker| prepare(&applier, user.as_deref(), batch, worker, &*on_start)));
            let work = async move {
                let stopped = || Batch { items: 0, prepared: Vec::new(), error: Some(EngineError::Closed) };
                work.await.ok().flatten().unwrap_or_else(stopped)
            };
            self.preparing.push_back(work.boxed());
        }
    }

    fn take(&mut self, batch: Batch) {
        self.ready_items += batch.items;
        self.ready.extend(batch.prepared.into_iter().flatten());
        self.failed = batch.error;
    }

    fn commit(&mut self, applier: &Arc<Applier>) {
        if self.committing.is_some() || self.ready_items == 0 {
            return;
        }
        self.in_commit = self.queue.drain(..self.ready_items).collect();
        self.started -= self.ready_items;
        self.ready_items = 0;
        self.commit_generation = self.generation;
        let run = std::mem::take(&mut self.ready);
        let skip = self.skip.take();
        let applier = applier.clone();
        self.committing = Some(
            async move {
                if let Some((header, payload, reason)) = skip {
                    return applier.skip(header, payload, reason).await;
                }
                if run.is_empty() {
                    return Ok(None);
                }
                applier.commit(run).await.map(Some)
            }
            .boxed(),
        );
    }

    fn committed(&mut self, result: Result<Option<Applied>, EngineError>) -> Step {
        self.committing = None;
        self.alone = false;
        let current = self.commit_generation == self.generation;
        let items = std::mem::take(&mut self.in_commit);
        match result {
            Ok(applied) => {
                self.unsynced |= applied.is_some();
                let chunks = if current { items.iter().filter(|item| item.ends_chunk).count() as u32 } else { 0 };
                Step::Applied { applied, chunks }
            }
            Err(error) => {
                if current {
                    items.into_iter().rev().for_each(|item| self.queue.push_front(item));
                }
                self.restart();
                Step::Failed(error)
            }
        }
    }
}

fn prepare(
    applier: &Applier,
    user: Option<&str>,
    records: Vec<(HistoryHeader, Payload)>,
    worker: u32,
    on_start: &(dyn Fn(Seq, Seq, u32) + Send + Sync),
) -> Batch {
    let mut commits =
        records.iter().filter(|(header, _)| header.kind == RecordKind::Commit).map(|(header, _)| header.seq);
    if let Some(first) = commits.next() {
        on_start(first, commits.last().unwrap_or(first), worker);
    }
    let mut prepared = Vec::with_capacity(records.len());
    for (header, payload) in records {
        let permitted = user.map_or(Ok(()), |user| applier.check_rights(user, &header, &payload));
        match permitted.and_then(|()| applier.prepare(header, payload)) {
            Ok(record) => prepared.push(record),
            Err(error) => return Batch { items: prepared.len(), prepared, error: Some(error) },
        }
    }
    Batch { items: prepared.len(), prepared, error: None }
}

/// Whether what follows must wait until this was committed: it may change what tables there are.
fn is_ddl(payload: &Payload) -> bool {
    payload.directory.parts.iter().any(|part| !OperationCode(part.operation).is_of_rows())
}

/// Waits for a future that may not be there.
async fn pending<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}
