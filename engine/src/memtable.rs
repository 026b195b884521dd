//! The memtable's size and age: when to flush, and when writers wait.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{EngineError, Result};

/// Bytes in chunks that are in no datafile yet. The chunks themselves are in the versions.
#[derive(Debug)]
pub(crate) struct Memtable {
    budget: u64,
    state: Mutex<State>,
    level: watch::Sender<Level>,
    /// Woken when the budget is reached.
    pub(crate) full: Arc<Notify>,
}

/// What writers wait for.
#[derive(Debug, Clone, Default)]
struct Level {
    bytes: u64,
    /// Why the last flush failed, until one succeeds.
    failing: Option<EngineError>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    frozen: u64,
    /// Monotonic time of the oldest transaction that is not flushed.
    oldest: Option<Duration>,
    oldest_frozen: Option<Duration>,
}

impl Memtable {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, state: Mutex::default(), level: watch::Sender::new(Level::default()), full: Arc::default() }
    }

    /// A transaction was applied.
    pub(crate) fn add(&self, bytes: u64, now: Duration) {
        let total = {
            let mut state = self.state.lock();
            state.bytes += bytes;
            state.oldest.get_or_insert(now);
            state.bytes
        };
        self.level.send_modify(|level| level.bytes = total);
        if total >= self.budget {
            self.full.notify_one();
        }
    }

    /// A flush takes everything that is applied now.
    pub(crate) fn freeze(&self) {
        let mut state = self.state.lock();
        state.frozen = state.bytes;
        state.oldest_frozen = state.oldest.take();
    }

    /// The flush is in the manifest.
    pub(crate) fn flushed(&self) {
        let total = {
            let mut state = self.state.lock();
            state.bytes -= state.frozen;
            state.frozen = 0;
            state.oldest_frozen = None;
            state.bytes
        };
        self.level.send_replace(Level { bytes: total, failing: None });
    }

    /// The flush failed: all is as it was.
    pub(crate) fn thaw(&self) {
        let mut state = self.state.lock();
        state.frozen = 0;
        state.oldest = state.oldest_frozen.take().or(state.oldest);
    }

    /// Why the last flush failed, until one succeeds.
    pub(crate) fn failure(&self) -> Option<String> {
        self.level.borrow().failing.as_ref().map(ToString::to_string)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }

    /// Whether a flush is due.
    pub(crate) fn due(&self, now: Duration, age: Duration) -> bool {
        let state = self.state.lock();
        state.bytes >= self.budget || state.oldest.is_some_and(|oldest| now.saturating_sub(oldest) >= age)
    }

    /// The flush failed for this reason; writers that would wait for room are told.
    pub(crate) fn failing(&self, error: EngineError) {
        self.level.send_modify(|level| level.failing = Some(error));
    }

    /// Waits while the memtable is at twice its budget. An error when flushes fail: nobody waits for ever.
    pub(crate) async fn room(&self) -> Result<()> {
        let limit = self.budget.saturating_mul(2);
        let mut level = self.level.subscribe();
        if level.borrow_and_update().bytes < limit {
            return Ok(());
        }
        self.full.notify_one();
        match level.wait_for(|level| level.bytes < limit || level.failing.is_some()).await {
            Ok(level) if level.bytes < limit => Ok(()),
            Ok(level) => Err(refusal(&level)),
            Err(_) => Err(EngineError::Closed),
        }
    }
}

/// Why nobody waits for room.
fn refusal(level: &Level) -> EngineError {
    let cause = level.failing.as_ref().map(ToString::to_string).unwrap_or_default();
    let reason = format!(
        "it holds {} bytes and cannot be flushed ({cause}); nothing was committed, put that right and run the \
         transaction again",
        level.bytes
    );
    let object = "the memtable".to_owned();
    match &level.failing {
        Some(error) if error.is_full() => EngineError::Full { object, reason },
        _ => EngineError::Storage { operation: "write to", object, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_during_a_flush_stays_counted() {
        let memtable = Memtable::new(100);
        memtable.add(60, Duration::from_secs(1));
        memtable.freeze();
        memtable.add(10, Duration::from_secs(2));
        memtable.flushed();
        assert_eq!(memtable.bytes(), 10);
        assert!(memtable.due(Duration::from_secs(12), Duration::from_secs(10)));
        assert!(!memtable.due(Duration::from_secs(11), Duration::from_secs(10)));
    }

    #[test]
    fn a_failed_flush_keeps_the_age() {
        let memtable = Memtable::new(100);
        memtable.add(60, Duration::from_secs(1));
        memtable.freeze();
        memtable.add(10, Duration::from_secs(2));
        memtable.thaw();
        assert_eq!(memtable.bytes(), 70);
        assert!(memtable.due(Duration::from_secs(11), Duration::from_secs(10)));
    }

    #[tokio::test]
    async fn writers_wait_at_twice_the_budget() {
        let memtable = Memtable::new(100);
        memtable.add(200, Duration::ZERO);
        let mut waiting = Box::pin(memtable.room());
        assert!(futures::poll!(&mut waiting).is_pending());
        memtable.freeze();
        memtable.flushed();
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_flushes_that_fail() {
        let memtable = Memtable::new(100);
        memtable.add(200, Duration::ZERO);
        let mut waiting = Box::pin(memtable.room());
        assert!(futures::poll!(&mut waiting).is_pending());
        let full = EngineError::Full { object: "a datafile".to_owned(), reason: "the disk is full".to_owned() };
        memtable.failing(full);
        let refused = waiting.await.unwrap_err();
        assert!(refused.is_full() && refused.to_string().contains("the disk is full"), "{refused}");
        memtable.freeze();
        memtable.flushed();
        memtable.add(150, Duration::ZERO);
        memtable.room().await.unwrap();
    }
}
