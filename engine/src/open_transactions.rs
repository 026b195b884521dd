//! Transactions that have written fragments and are neither committed nor aborted.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tailrace_wal::{HistoryId, Lsn, TransactionNumber};

/// All of them on this node: replay has to start before the first fragment of the oldest.
#[derive(Debug, Default)]
pub(crate) struct OpenTransactions {
    /// First LSN that the transaction's first fragment can have.
    first: Mutex<HashMap<u64, Lsn>>,
    next: AtomicU64,
    local: Mutex<HashMap<u64, Arc<OpenTransaction>>>,
}

/// A registration. The transaction counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Arc<OpenTransactions>,
    id: u64,
}

/// An open transaction of a client of this node.
#[derive(Debug)]
pub(crate) struct OpenTransaction {
    pub(crate) history: HistoryId,
    pub(crate) number: TransactionNumber,
    /// Monotonic microseconds of its last call.
    active: AtomicU64,
    state: AtomicU8,
}

const IDLE: u8 = 0;
const BUSY: u8 = 1;
const ABORTED: u8 = 2;

impl OpenTransactions {
    /// Registers a transaction before its first fragment is appended; `first` is a lower bound of that one's LSN.
    pub(crate) fn register(self: &Arc<Self>, first: Lsn) -> Registration {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.first.lock().insert(id, first);
        Registration { registry: self.clone(), id }
    }

    /// The first LSN that replay needs for the transactions that are open now.
    pub(crate) fn first(&self) -> Option<Lsn> {
        self.first.lock().values().min().copied()
    }

    /// Transactions of clients that have been idle for `age`, marked aborted: their next call fails.
    pub(crate) fn doom_idle(&self, now: Duration, age: Duration) -> Vec<Arc<OpenTransaction>> {
        let local = self.local.lock();
        let idle = local.values().filter(|open| {
            let active = Duration::from_micros(open.active.load(Ordering::Acquire));
            now.saturating_sub(active) >= age
                && open.state.compare_exchange(IDLE, ABORTED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        });
        idle.cloned().collect()
    }
}

impl Registration {
    /// Lets the transaction be aborted when it is idle for too long.
    pub(crate) fn watch(&self, history: HistoryId, number: TransactionNumber, now: Duration) -> Arc<OpenTransaction> {
        let open = Arc::new(OpenTransaction {
            history,
            number,
            active: AtomicU64::new(micros(now)),
            state: AtomicU8::new(BUSY),
        });
        self.registry.local.lock().insert(self.id, open.clone());
        open
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.first.lock().remove(&self.id);
        self.registry.local.lock().remove(&self.id);
    }
}

impl OpenTransaction {
    /// The client calls. `false` when it was aborted meanwhile.
    pub(crate) fn enter(&self) -> bool {
        self.state.compare_exchange(IDLE, BUSY, Ordering::AcqRel, Ordering::Acquire) != Err(ABORTED)
    }

    /// The call is over.
    pub(crate) fn leave(&self, now: Duration) {
        self.active.store(micros(now), Ordering::Release);
        let _ = self.state.compare_exchange(BUSY, IDLE, Ordering::AcqRel, Ordering::Acquire);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
