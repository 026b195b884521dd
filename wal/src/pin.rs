//! Pins: a feed's claim on log retention, as callers see it.

use std::{sync::Arc, time::Duration};

use crate::{CommitTime, HistoryId, Lsn, Seq, shared::Shared};

/// A pin is held per feed and history.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinKey {
    /// The feed: `replica/<name>`, `subscription/<name>`, `archive`.
    pub feed: String,
    /// The history it reads.
    pub history: HistoryId,
}

/// How a pin stands. The first two come and go as the feed moves; lost is for good, until the feed claims anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinState {
    /// Within its budgets; what it needs would be there without it, too.
    Reserved,
    /// Within its budgets; log is there for it that would otherwise have been truncated.
    Extended,
    /// Over a budget, or given up for want of space: it holds nothing any more. Its feed repairs itself.
    Lost {
        /// Which budget, and by how much.
        reason: String,
    },
}

impl PinState {
    /// As shown: `RESERVED`, `EXTENDED`, `LOST`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reserved => "RESERVED",
            Self::Extended => "EXTENDED",
            Self::Lost { .. } => "LOST",
        }
    }

    /// Whether it holds nothing any more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }

    /// Why it is lost.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Lost { reason } => Some(reason),
            Self::Reserved | Self::Extended => None,
        }
    }
}

/// A pin, for `system.pins`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinStatus {
    /// Whose.
    pub key: PinKey,
    /// The feed holds everything up to here durably.
    pub acknowledged: Seq,
    /// The feed has applied everything up to here.
    pub applied: Seq,
    /// The feed would start to read after this.
    pub restart: Seq,
    /// Oldest record kept for it.
    pub lsn: Lsn,
    /// Bytes of log from there to the end; of a lost pin, what the feed would have to read as far as it is there.
    pub held_bytes: u64,
    /// Most bytes it may hold.
    pub bytes_max: u64,
    /// How long it has stood still while there was something to move on to. Grows only while this node runs: a feed
    /// cannot move while its primary is down.
    pub stalled: Duration,
    /// Longest time it may do so.
    pub stalled_max: Duration,
    /// How it stands.
    pub state: PinState,
    /// Since when, by the wall clock.
    pub since: CommitTime,
    /// Whether its feed holds it now: a live [`Pin`] is somewhere.
    pub attached: bool,
}

/// What has to be remembered of a pin over a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPin {
    /// Whose.
    pub key: PinKey,
    /// As in [`PinStatus`].
    pub acknowledged: Seq,
    /// As in [`PinStatus`].
    pub applied: Seq,
    /// As in [`PinStatus`].
    pub restart: Seq,
    /// As in [`PinStatus`].
    pub state: PinState,
    /// As in [`PinStatus`].
    pub since: CommitTime,
    /// As in [`PinStatus`].
    pub stalled: Duration,
}

impl From<PinStatus> for SavedPin {
    fn from(status: PinStatus) -> Self {
        let PinStatus { key, acknowledged, applied, restart, state, since, stalled, .. } = status;
        Self { key, acknowledged, applied, restart, state, since, stalled }
    }
}

/// A live claim. Dropping it leaves the claim in place: only [`crate::Log::forget_pin`] or [`Pin::release`] ends it.
#[derive(Debug)]
pub struct Pin {
    pub(crate) key: PinKey,
    pub(crate) shared: Arc<Shared>,
    /// Tells this claim from a later one of the same key.
    pub(crate) generation: u64,
    /// While it lives, the claim's feed is attached.
    pub(crate) _attached: Arc<()>,
}

impl Pin {
    /// Moves the marks forward; a mark never goes back. Returns `false` when the pin is lost, forgotten, or was
    /// replaced by a newer claim of its key.
    pub fn advance(&self, acknowledged: Seq, applied: Seq, restart: Seq) -> bool {
        self.shared.advance_claim(self, acknowledged, applied, restart)
    }

    /// Claims anew what was lost: `true` when it was lost, the records after `restart` are all there, and they are
    /// within the byte budget. A feed that went on although its pin was lost comes back under protection so.
    pub fn renew(&self, acknowledged: Seq, applied: Seq, restart: Seq) -> bool {
        self.shared.renew_claim(self, acknowledged, applied, restart)
    }

    /// How it stands.
    pub fn status(&self) -> PinStatus {
        self.shared.claim_status(self)
    }

    /// Ends the claim.
    pub fn release(self) {
        self.shared.end_claim(&self);
    }
}
