//! Pins: a feed's claim on log retention.

use crate::{HistoryId, Lsn, Seq};

/// A pin is held per feed and history.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct PinKey {
    /// The feed: `replica/<name>`, `subscription/<name>`, `archive`.
    pub feed: String,
    /// The history it reads.
    pub history: HistoryId,
}

/// How a pin stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PinState {
    /// Its records are kept.
    Reserved,
    /// Over its budget: records may be gone, the feed repairs itself.
    Lost {
        /// Which budget, and by how much.
        reason: String,
    },
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
    /// Bytes of log from there to the end.
    pub held_bytes: u64,
    /// How it stands.
    pub state: PinState,
}

/// A live claim. Dropping it leaves the claim in place: only [`crate::Log::forget_pin`] or [`Pin::release`] ends it.
#[derive(Debug)]
pub struct Pin {
    _private: (),
}

impl Pin {
    /// Moves the marks forward; a mark never goes back. Returns `false` when the pin is lost.
    pub fn advance(&self, _acknowledged: Seq, _applied: Seq, _restart: Seq) -> bool {
        todo!()
    }

    /// How it stands.
    pub fn status(&self) -> PinStatus {
        todo!()
    }

    /// Ends the claim.
    pub fn release(self) {}
}
