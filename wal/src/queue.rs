//! What waits for the writer, bounded in bytes, and whose turn it is to write.
//!
//! *A turn* is the right to use the writer. Its thread has it while it works off the queue; an appender can have it when
//! nobody does and nothing waits ([`Queue::try_enter`]). Whoever has the turn gives it back under the queue's lock.
//!
//! *No wake-up is lost.* The thread sleeps only after it has seen, under that lock, that there is nothing for it to do:
//! nothing waits, or someone else has the turn. Only these make something for it to do: a push, and the end of another's
//! turn (what was queued meanwhile, a sync that is due, the end of the log, the turn itself when the thread gave it away for
//! the time of a sync). Each looks, under the same lock and after its
//! change, whether the thread sleeps and has something to do now ([`State::must_wake`]), and wakes it. A push during
//! another's turn wakes nobody: the end of that turn does. Who has the turn always ends it, also by unwinding.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

use crate::{Clock, LogError, Lsn, Payload, Persistence, Record, Run, VerbatimRecord, Written, frame::HEADER_LEN};

/// A look takes about a microsecond.
const GATHER_LOOKS_MAX: u32 = 10_000;

/// How many records the thread takes one by one, each after it slept, before appenders take turns again, once appends
/// were seen to meet. Measured: without this, 256 records that were appended before the first was awaited took 1,000 µs in
/// place of 300; with 4 it was as with 16.
const CROWD_TURNS: u32 = 16;

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
    Sync(Reply),
    Roll(Reply),
    Close(Reply),
}

/// Who waits for a command, told the durable LSN.
pub(crate) type Reply = oneshot::Sender<Result<Lsn, LogError>>;

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
    /// [`CROWD_TURNS`]; a test may switch them off.
    crowd_turns: u32,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: u64,
    /// Why nothing is taken any more.
    closed: Option<LogError>,
    /// Someone has the turn.
    is_taken: bool,
    /// The writer is gone: its thread has nothing to do any more.
    is_over: bool,
    /// Monotonic time at which the writer has something to do though nothing comes.
    due: Option<Duration>,
    sleep: Sleep,
    /// The thread waits for the end of a turn to go on with its own: nobody takes another before it.
    is_awaited: bool,
    /// Appends met, and until this is 0 they are taken together by the thread: a turn of one of them makes the others
    /// wait for it and then for the thread to wake up.
    crowd: u32,
}

/// What the thread does between its turns.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    /// It is awake and will look at the state before it sleeps.
    #[default]
    Awake,
    /// It wakes up by itself at that monotonic time.
    Until(Duration),
    /// It has to be woken.
    Endless,
    /// It has to be woken when nobody has the turn.
    UntilFree,
}

impl State {
    /// Whether the thread sleeps and has something to do now, or earlier than it would wake up; it counts as awake from
    /// here on. To be asked after every change that may give it something to do, before the lock is released.
    fn must_wake(&mut self) -> bool {
        let is_early = match (self.sleep, self.due) {
            (Sleep::Awake, _) => return false,
            (Sleep::UntilFree, _) => !self.is_taken,
            (Sleep::Until(until), Some(due)) => due < until,
            (Sleep::Endless, Some(_)) => true,
            (_, None) => false,
        };
        let must = self.is_over || (!self.is_taken && (is_early || !self.items.is_empty()));
        if must {
            self.sleep = Sleep::Awake;
        }
        must
    }
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
    pub(crate) fn new(bytes_max: u64, gathers_crowds: bool) -> Self {
        Self {
            state: Mutex::default(),
            len: AtomicUsize::new(0),
            filled: Condvar::new(),
            emptied: Arc::default(),
            bytes_max,
            crowd_turns: if gathers_crowds { CROWD_TURNS } else { 0 },
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
        self.wake(state);
        Ok(None)
    }

    /// Wakes the thread if it has something to do.
    fn wake(&self, mut state: MutexGuard<'_, State>) {
        if state.must_wake() {
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Takes the turn for an appender: nobody has it, nothing waits (so what was appended before is written), and
    /// appends do not meet. `true`: [`Queue::leave`] or [`Queue::end`] must follow.
    pub(crate) fn try_enter(&self) -> bool {
        let mut state = self.state.lock();
        let is_free = !state.is_taken
            && !state.is_awaited
            && state.items.is_empty()
            && state.crowd == 0
            && state.closed.is_none();
        state.is_taken |= is_free;
        is_free
    }

    /// Takes the turn for the thread whatever waits, as soon as nobody has it; `false` once the writer is gone.
    pub(crate) fn enter(&self) -> bool {
        let mut state = self.state.lock();
        while state.is_taken && !state.is_over {
            (state.is_awaited, state.sleep) = (true, Sleep::UntilFree);
            self.filled.wait(&mut state);
            state.sleep = Sleep::Awake;
        }
        state.is_awaited = false;
        state.is_taken |= !state.is_over;
        !state.is_over
    }

    /// Ends a turn; `due`: when the writer has something to do though nothing comes. `was_long`: appends go to the thread
    /// for a while, as they do when something was queued meanwhile.
    pub(crate) fn leave(&self, due: Option<Duration>, was_long: bool) {
        let mut state = self.state.lock();
        state.is_taken = false;
        state.due = due;
        if was_long || !state.items.is_empty() {
            state.crowd = self.crowd_turns;
        }
        self.wake(state);
    }

    /// Ends the last turn: the writer is gone.
    pub(crate) fn end(&self) {
        let mut state = self.state.lock();
        state.is_taken = false;
        state.is_over = true;
        self.wake(state);
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

    /// Takes the turn for the thread as soon as there is something to do; `None` once the writer is gone.
    pub(crate) fn wait(&self, clock: &dyn Clock) -> Option<Woken> {
        let mut state = self.state.lock();
        let mut slept = false;
        // What it slept for to the end. A clock may stand still.
        let mut reached = None;
        while !state.is_over {
            if !state.is_taken && !state.items.is_empty() {
                state.is_taken = true;
                let met = state.items.len() > 1 || !slept;
                state.crowd = if met { self.crowd_turns } else { state.crowd.saturating_sub(1) };
                return Some(Woken::Items(self.drain(state)));
            }
            // In another's turn, what is due may change; its end wakes this thread.
            let due = state.due.filter(|_| !state.is_taken);
            let rest = due.map(|due| (due, due.saturating_sub(clock.monotonic())));
            slept = true;
            match rest {
                Some((due, rest)) if reached == Some(due) || rest.is_zero() => {
                    state.is_taken = true;
                    return Some(Woken::Idle);
                }
                Some((due, rest)) => {
                    state.sleep = Sleep::Until(due);
                    if self.filled.wait_for(&mut state, rest).timed_out() {
                        reached = Some(due);
                    }
                }
                None => {
                    state.sleep = Sleep::Endless;
                    self.filled.wait(&mut state);
                }
            }
            state.sleep = Sleep::Awake;
        }
        None
    }

    /// The thread's, in its turn: takes what came meanwhile.
    pub(crate) fn take_more(&self) -> Option<Woken> {
        let mut state = self.state.lock();
        if state.items.is_empty() {
            return None;
        }
        state.crowd = self.crowd_turns;
        Some(Woken::Items(self.drain(state)))
    }

    /// Takes what waits, if anything does; for a writer that is stepped by hand.
    #[cfg(feature = "simulation")]
    pub(crate) fn take_waiting(&self) -> Option<Woken> {
        let state = self.state.lock();
        (!state.items.is_empty()).then(|| Woken::Items(self.drain(state)))
    }

    /// Takes what waits first, if it is a record of a length for which `fits` is true.
    #[cfg(feature = "simulation")]
    pub(crate) fn take_append_if(&self, fits: impl FnOnce(u64) -> bool) -> Option<Request> {
        let mut state = self.state.lock();
        match state.items.pop_front() {
            Some(Item::Append(request)) if fits(request.frame_len()) => {
                state.bytes -= request.frame_len();
                self.len.store(state.items.len(), Ordering::Relaxed);
                self.emptied.notify_waiters();
                Some(request)
            }
            first => {
                first.into_iter().for_each(|item| state.items.push_front(item));
                None
            }
        }
    }

    fn drain(&self, mut state: MutexGuard<'_, State>) -> VecDeque<Item> {
        self.len.store(0, Ordering::Relaxed);
        let items = std::mem::take(&mut state.items);
        let was_full = std::mem::take(&mut state.bytes) > 0;
        drop(state);
        if was_full {
            self.emptied.notify_waiters();
        }
        items
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
