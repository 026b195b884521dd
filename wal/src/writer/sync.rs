//! A sync without the turn. Where nobody waits for the next turn's sync (replicas acknowledge when it is done, asynchronous commits
//! do not wait at all), appenders write on while the disk works: a slow sync then delays acknowledgements, and those records alone
//! that are too large for an appender's turn or come behind something else that waits in the queue.
//!
//! What was written when it began is durable when it ends; what was written meanwhile is not, whether or not the disk took
//! it along. Meanwhile only appenders' turns happen (short records into zeros that are there), so the segment stays the same.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, atomic::Ordering},
};

use super::{Writer, unit::Unsynced};
use crate::{DiskFile, LogError, Lsn, config::planted, queue::Reply};

/// What a sync covers, and who waits for it.
#[derive(Debug)]
pub(crate) struct SyncBegun {
    file: Arc<dyn DiskFile>,
    covers: Lsn,
    bytes: u64,
    waiting: Vec<Unsynced>,
    replies: Vec<Reply>,
}

impl SyncBegun {
    /// fdatasync. To be done once. A panic counts as a failure: the writer is not here to see it.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let sync = panic::catch_unwind(AssertUnwindSafe(|| self.file.sync_data()));
        sync.unwrap_or_else(|_| Err(io::Error::other("the disk's sync panicked")))
    }

    /// The log has failed meanwhile.
    pub(crate) fn refuse(self, error: &LogError) {
        for Unsynced { durable, .. } in self.waiting {
            let _ = durable.send(Err(error.clone()));
        }
        for reply in self.replies {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

impl Writer {
    /// The sync that the turn has left to do: [`SyncBegun::sync`], then [`Writer::end_sync`], in the turn again.
    pub(crate) fn begun(&mut self) -> Option<SyncBegun> {
        self.begun.take()
    }

    /// Leaves the sync of all that is written to after the turn, and takes `replies` with it. `false` where appends wait for
    /// it: those are synced for in the turn.
    pub(super) fn begin_sync(&mut self, replies: &mut Vec<Reply>) -> bool {
        let config = &self.shared.config;
        let is_planted = planted!(config, SkipsSync)
            || planted!(config, RetriesFailedSync)
            || planted!(config, GoesOnAfterFailedSync);
        if self.syncing > 0 || is_planted {
            return false;
        }
        self.unsynced_since = None;
        self.begun = Some(SyncBegun {
            file: self.active.file(),
            covers: self.last.last,
            bytes: self.shared.marks.unsynced_bytes.load(Ordering::Relaxed),
            waiting: std::mem::take(&mut self.unsynced),
            replies: std::mem::take(replies),
        });
        true
    }

    /// The sync is over. `false` when it failed: that was the writer's last turn.
    pub(crate) fn end_sync(&mut self, begun: SyncBegun, result: io::Result<()>) -> bool {
        if let Err(error) = result {
            let error = self.active.sync_error(error);
            begun.refuse(&self.shared.poison.set(&error));
            self.fail(&error);
            return false;
        }
        let SyncBegun { covers, bytes, waiting, replies, .. } = begun;
        let covers = if planted!(self.shared.config, CoversLaterWrites) { self.last.last } else { covers };
        let marks = &self.shared.marks;
        marks.syncs.fetch_add(1, Ordering::Relaxed);
        marks.unsynced_bytes.fetch_sub(bytes, Ordering::Relaxed);
        marks.set_durable(covers);
        for Unsynced { written, durable } in waiting {
            let _ = durable.send(Ok(written));
        }
        for reply in replies {
            let _ = reply.send(Ok(covers));
        }
        marks.tell_durable();
        true
    }
}
