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
    durable_sender: Mutex<Option<watch::Sender<Lsn>>>,
    durable_receiver: watch::Receiver<Lsn>,
    pub(crate) unsynced_bytes: AtomicU64,
    pub(crate) appended_bytes: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

impl Marks {
    /// Everything up to `last` is durable.
    pub(crate) fn new(last: Lsn) -> Self {
        let (sender, receiver) = watch::channel(last);
        Self {
            appended: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            durable_sender: Mutex::new(Some(sender)),
            durable_receiver: receiver,
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

    pub(crate) fn set_appended(&self, lsn: Lsn) {
        self.appended.store(lsn.0, Ordering::Release);
    }

    pub(crate) fn set_durable(&self, lsn: Lsn) {
        debug_assert!(self.durable() <= lsn && lsn <= self.appended(), "durable never goes back nor passes appended");
        if self.durable.swap(lsn.0, Ordering::AcqRel) != lsn.0
            && let Some(sender) = &*self.durable_sender.lock()
        {
            sender.send_replace(lsn);
        }
    }

    /// Ends all that follow.
    pub(crate) fn end(&self) {
        self.durable_sender.lock().take();
    }
}
