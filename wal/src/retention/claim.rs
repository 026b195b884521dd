//! A pin as the log keeps it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{CommitTime, Lsn, PinState, Seq};

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) generation: u64,
    pub(super) acknowledged: Seq,
    pub(super) applied: Seq,
    pub(super) restart: Seq,
    pub(super) state: PinState,
    pub(super) since: CommitTime,
    pub(super) place: Place,
    pub(super) stall: Stall,
    /// Alive while the feed holds its [`crate::Pin`].
    attached: Weak<()>,
}

/// Where in the log a claim's records begin, as far as known: each step costs reading an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Not looked up since the claim moved.
    Unknown,
    /// Its reader starts after this LSN; what comes next was not written when it was looked for.
    After(Lsn),
    /// Its first record and where that is in its segment.
    At(Lsn, u64),
}

/// For how long a claim has stood still with something to move on to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stall {
    /// Before `from`, of earlier runs of this node.
    before: Duration,
    /// Monotonic time since when; `None` while there is nothing to move on to.
    from: Option<Duration>,
}

impl Claim {
    pub(super) fn new(generation: u64, acknowledged: Seq, restart: Seq, now: CommitTime) -> Self {
        Self {
            generation,
            acknowledged,
            applied: Seq::ZERO,
            restart,
            state: PinState::Reserved,
            since: now,
            place: Place::Unknown,
            stall: Stall::default(),
            attached: Weak::new(),
        }
    }

    /// A handle for the feed.
    pub(super) fn attach(&mut self) -> Arc<()> {
        let handle = Arc::new(());
        self.attached = Arc::downgrade(&handle);
        handle
    }

    pub(super) fn is_attached(&self) -> bool {
        self.attached.strong_count() > 0
    }

    /// Moves the marks forward.
    pub(super) fn advance(&mut self, acknowledged: Seq, applied: Seq, restart: Seq) {
        let marks = (self.acknowledged, self.applied, self.restart);
        self.acknowledged = self.acknowledged.max(acknowledged);
        self.applied = self.applied.max(applied);
        if restart > self.restart {
            self.restart = restart;
            self.place = Place::Unknown;
        }
        if marks != (self.acknowledged, self.applied, self.restart) {
            self.stall = Stall::default();
        }
    }

    /// Enters a state, unless it is in it.
    pub(super) fn enter(&mut self, state: PinState, now: CommitTime) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}

impl Stall {
    /// One that has gone on for so long before this node's start.
    pub(super) fn restored(before: Duration) -> Self {
        Self { before, from: None }
    }

    /// Counts, or ends where there is nothing to move on to. Returns for how long.
    pub(super) fn observe(&mut self, has_more: bool, now: Duration) -> Duration {
        if !has_more {
            *self = Self::default();
            return Duration::ZERO;
        }
        let from = *self.from.get_or_insert(now);
        self.before.saturating_add(now.saturating_sub(from))
    }

    /// For how long, when it was last observed or is running.
    pub(super) fn so_far(&self, now: Duration) -> Duration {
        self.before.saturating_add(self.from.map_or(Duration::ZERO, |from| now.saturating_sub(from)))
    }
}
