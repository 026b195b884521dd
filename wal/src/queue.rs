//! What waits for the writer, bounded in bytes.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, oneshot};

use crate::{Clock, LogError, Lsn, Payload, Persistence, Record, Run, VerbatimRecord, Written, frame::HEADER_LEN};

/// A look takes about a microsecond.
const GATHER_LOOKS_MAX: u32 = 10_000;

/// A record and those who wait for it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) record: Queued,
    pub(crate) persistence: Persistence,
    /// What it builds on, if it is of a feed.
    pub(crate) run: Option<Run>,
    pub(crate) written: oneshot::Sender<Result<Written, LogError>>,
    pub(crate) durable: oneshot::Sender<Result<Written, LogError>>,
}

#[derive(Debug)]
pub(crate) enum Queued {
    Own(Record),
    Verbatim(VerbatimRecord),
}

/// What the writer is asked to do, in order.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly every item is an append")]
pub(crate) enum Item {
    Append(Request),
    Sync(oneshot::Sender<Result<Lsn, LogError>>),
    Roll(oneshot::Sender<Result<Lsn, LogError>>),
    Close(oneshot::Sender<Result<Lsn, LogError>>),
}

/// What woke the writer.
#[derive(Debug)]
pub(crate) enum Woken {
    Items(VecDeque<Item>),
    /// Nothing came within the time given.
    Idle,
}

/// The queue between callers and the writer.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    /// How many items wait, to be looked at without the lock.
    len: AtomicUsize,
    filled: Condvar,
    emptied: Arc<Notify>,
    bytes_max: u64,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: u64,
    /// Why nothing is taken any more.
    closed: Option<LogError>,
    /// The writer waits; a push must wake it.
    is_waiting: bool,
}

impl Request {
    /// What it counts in the queue's budget: its frame.
    pub(crate) fn frame_len(&self) -> u64 {
        (HEADER_LEN + self.payload().encoded_len()) as u64
    }

    fn payload(&self) -> &Payload {
        match &self.record {
            Queued::Own(record) => &record.payload,
            Queued::Verbatim(record) => &record.payload,
        }
    }

    /// Tells both waiters. They may have gone, which is their right.
    pub(crate) fn refuse(self, error: &LogError) {
        if let Some(run) = &self.run {
            run.refuse(error);
        }
        let _ = self.written.send(Err(error.clone()));
        let _ = self.durable.send(Err(error.clone()));
    }
}

impl Item {
    /// Fails it.
    pub(crate) fn refuse(self, error: &LogError) {
        match self {
            Self::Append(request) => request.refuse(error),
            Self::Sync(reply) | Self::Roll(reply) | Self::Close(reply) => {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Append(request) => request.frame_len(),
            _ => 0,
        }
    }
}

impl Queue {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            state: Mutex::default(),
            len: AtomicUsize::new(0),
            filled: Condvar::new(),
            emptied: Arc::default(),
            bytes_max,
        }
    }

    /// Queues a record as soon as the budget allows. A record larger than the budget waits for an empty queue.
    pub(crate) async fn push_within_budget(&self, item: Item) -> Result<(), LogError> {
        let mut item = item;
        loop {
            let emptied = self.emptied.notified();
            tokio::pin!(emptied);
            // Registered before the look at the budget, so that no wake-up is missed.
            emptied.as_mut().enable();
            match self.try_push(item, self.bytes_max)? {
                None => return Ok(()),
                Some(back) => item = back,
            }
            emptied.await;
        }
    }

    /// Queues at once.
    pub(crate) fn push(&self, item: Item) -> Result<(), LogError> {
        self.try_push(item, u64::MAX).map(|_| ())
    }

    fn try_push(&self, item: Item, bytes_max: u64) -> Result<Option<Item>, LogError> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        let bytes = item.bytes();
        if state.bytes > 0 && state.bytes.saturating_add(bytes) > bytes_max {
            return Ok(Some(item));
        }
        state.bytes += bytes;
        state.items.push_back(item);
        self.len.store(state.items.len(), Ordering::Relaxed);
        if std::mem::take(&mut state.is_waiting) {
            drop(state);
            self.filled.notify_one();
        }
        Ok(None)
    }

    /// Gives `company` items at most `patience` to be there, without sleeping: waking up takes longer than they do.
    /// The writer's, before it takes.
    pub(crate) fn gather(&self, company: usize, patience: Duration, clock: &dyn Clock) {
        if company < 2 {
            return;
        }
        let start = clock.monotonic();
        // The number of looks bounds it where the clock stands still.
        for _ in 0..GATHER_LOOKS_MAX {
            if self.len() >= company || clock.monotonic().saturating_sub(start) >= patience {
                return;
            }
            std::thread::yield_now();
        }
    }

    /// Takes all that waits; the writer's. Waits at most `timeout`, or for ever.
    pub(crate) fn take(&self, timeout: Option<Duration>) -> Woken {
        let mut state = self.state.lock();
        while state.items.is_empty() {
            state.is_waiting = true;
            match timeout {
                None => self.filled.wait(&mut state),
                Some(timeout) => {
                    if self.filled.wait_for(&mut state, timeout).timed_out() && state.items.is_empty() {
                        state.is_waiting = false;
                        return Woken::Idle;
                    }
                }
            }
        }
        state.is_waiting = false;
        self.len.store(0, Ordering::Relaxed);
        let items = std::mem::take(&mut state.items);
        let was_full = std::mem::take(&mut state.bytes) > 0;
        drop(state);
        if was_full {
            self.emptied.notify_waiters();
        }
        Woken::Items(items)
    }

    /// How many items wait.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Takes nothing any more and fails what waits.
    pub(crate) fn close(&self, error: &LogError) {
        let items = {
            let mut state = self.state.lock();
            state.closed.get_or_insert_with(|| error.clone());
            state.bytes = 0;
            std::mem::take(&mut state.items)
        };
        items.into_iter().for_each(|item| item.refuse(error));
        self.emptied.notify_waiters();
    }

    /// Whether nothing waits.
    #[cfg(feature = "simulation")]
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().items.is_empty()
    }

    /// Why it takes nothing any more.
    pub(crate) fn closed(&self) -> Option<LogError> {
        self.state.lock().closed.clone()
    }
}
