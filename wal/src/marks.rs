//! The log's watermarks and counters.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Lsn;

/// Watermarks, written by the writer alone.
#[derive(Debug)]
pub(crate) struct Marks {
    appended: AtomicU64,
    durable: AtomicU64,
    /// `None` once the log is poisoned or closed, so that its followers see the end.
    senders: Mutex<Option<Senders>>,
    durable_receiver: watch::Receiver<Lsn>,
    ended_receiver: watch::Receiver<()>,
    pub(crate) unsynced_bytes: AtomicU64,
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

#[derive(Debug)]
struct Senders {
    durable: watch::Sender<Lsn>,
    /// Sends nothing. Whoever waits for the end alone must not be woken by every sync.
    _ended: watch::Sender<()>,
}

impl Marks {
    /// Everything up to `last` is durable.
    pub(crate) fn new(last: Lsn) -> Self {
        let (durable, durable_receiver) = watch::channel(last);
        let (ended, ended_receiver) = watch::channel(());
        Self {
            appended: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            senders: Mutex::new(Some(Senders { durable, _ended: ended })),
            durable_receiver,
            ended_receiver,
            unsynced_bytes: AtomicU64::new(0),
            appended_bytes: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        }
    }

    /// Last record handed to the operating system.
    pub(crate) fn appended(&self) -> Lsn {
        Lsn(self.appended.load(Ordering::Acquire))
    }

    /// Last record synced.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    /// Follows the durable mark.
    pub(crate) fn watch(&self) -> watch::Receiver<Lsn> {
        self.durable_receiver.clone()
    }

    /// Closes with [`Marks::end`]; nothing is ever sent.
    pub(crate) fn watch_end(&self) -> watch::Receiver<()> {
        self.ended_receiver.clone()
    }

    pub(crate) fn set_appended(&self, lsn: Lsn) {
        self.appended.store(lsn.0, Ordering::Release);
    }

    /// Moves the durable mark; who follows it hears of it by [`Marks::tell_durable`].
    pub(crate) fn set_durable(&self, lsn: Lsn) {
        debug_assert!(self.durable() <= lsn && lsn <= self.appended(), "durable never goes back nor passes appended");
        self.durable.store(lsn.0, Ordering::Release);
    }

    /// Wakes those who follow the durable mark. After those who wait for their commit: these go on first, and what they
    /// do is what the others wait for.
    pub(crate) fn tell_durable(&self) {
        let durable = self.durable();
        if let Some(senders) = &*self.senders.lock() {
            senders.durable.send_if_modified(|told| std::mem::replace(told, durable) != durable);
        }
    }

    /// Ends all that follow.
    pub(crate) fn end(&self) {
        self.senders.lock().take();
    }
}
