//! Pins: a feed's claim on log retention.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    HistoryId, LogError, Lsn, Seq,
    config::planted,
    error::io_error,
    retention::{Extent, Held, overdrawn, removable},
    shared::Shared,
};

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
    key: PinKey,
    shared: Arc<Shared>,
    /// Tells this claim from a later one of the same key.
    generation: u64,
}

impl Pin {
    /// Moves the marks forward; a mark never goes back. Returns `false` when the pin is lost, forgotten, or was
    /// replaced by a newer claim of its key.
    pub fn advance(&self, acknowledged: Seq, applied: Seq, restart: Seq) -> bool {
        let now = self.shared.clock.monotonic();
        let mut pins = self.shared.pins.lock();
        let Some(claim) = pins.get_mut(&self.key).filter(|claim| claim.generation == self.generation) else {
            return false;
        };
        if claim.state != PinState::Reserved {
            return false;
        }
        claim.advance(acknowledged, applied, restart, now);
        true
    }

    /// How it stands.
    pub fn status(&self) -> PinStatus {
        let claims = self.shared.refresh_pins();
        let own =
            claims.into_iter().find(|(status, generation)| status.key == self.key && *generation == self.generation);
        own.map_or_else(
            || PinStatus {
                key: self.key.clone(),
                acknowledged: Seq::ZERO,
                applied: Seq::ZERO,
                restart: Seq::ZERO,
                lsn: self.shared.marks.appended().next(),
                held_bytes: 0,
                state: PinState::Lost { reason: "it was forgotten or replaced".into() },
            },
            |(status, _)| status,
        )
    }

    /// Ends the claim.
    pub fn release(self) {
        let mut pins = self.shared.pins.lock();
        if pins.get(&self.key).is_some_and(|claim| claim.generation == self.generation) {
            pins.remove(&self.key);
        }
    }
}

/// A pin as the log keeps it.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    generation: u64,
    acknowledged: Seq,
    applied: Seq,
    restart: Seq,
    state: PinState,
    /// The reader would start after this LSN; found when first needed.
    start: Option<Lsn>,
    /// Since when it has stood still with something to move on to.
    stalled_since: Option<Duration>,
}

impl Claim {
    fn advance(&mut self, acknowledged: Seq, applied: Seq, restart: Seq, now: Duration) {
        let marks = (self.acknowledged, self.applied, self.restart);
        self.acknowledged = self.acknowledged.max(acknowledged);
        self.applied = self.applied.max(applied);
        if restart > self.restart {
            self.restart = restart;
            self.start = None;
        }
        if marks != (self.acknowledged, self.applied, self.restart) && self.stalled_since.is_some() {
            self.stalled_since = Some(now);
        }
    }
}

impl Shared {
    /// See [`crate::Log::pin`].
    pub(crate) fn claim(self: &Arc<Self>, key: PinKey, acknowledged: Seq, restart: Seq) -> Result<Pin, LogError> {
        // Truncation takes the same lock: what is found retained here stays so.
        let mut pins = self.pins.lock();
        let start = self.reader_start(key.history, restart)?;
        let generation = pins.get(&key).map_or(0, |claim| claim.generation) + 1 + pins.len() as u64;
        let claim = Claim {
            generation,
            acknowledged,
            applied: Seq::ZERO,
            restart,
            state: PinState::Reserved,
            start: Some(start),
            stalled_since: None,
        };
        pins.insert(key.clone(), claim);
        Ok(Pin { key, shared: self.clone(), generation })
    }

    /// All pins as they stand now, with those over budget marked lost, and the number of each claim.
    pub(crate) fn refresh_pins(&self) -> Vec<(PinStatus, u64)> {
        self.refresh(&mut self.pins.lock())
    }

    fn refresh(&self, pins: &mut BTreeMap<PinKey, Claim>) -> Vec<(PinStatus, u64)> {
        let now = self.clock.monotonic();
        let mut statuses = Vec::with_capacity(pins.len());
        for (key, claim) in pins {
            let lsn = self.oldest_needed(key, claim);
            let held_bytes = lsn.map_or(0, |lsn| self.bytes_from(lsn));
            if claim.state == PinState::Reserved {
                claim.stalled_since = lsn.map(|_| claim.stalled_since.unwrap_or(now));
                let stalled = claim.stalled_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
                let held = Held { bytes: held_bytes, stalled };
                if let Some(reason) = overdrawn(held, self.config.pin_max_bytes, self.config.pin_max_age) {
                    tracing::warn!("pin {} on history {} is lost: {reason}", key.feed, key.history);
                    claim.state = PinState::Lost { reason };
                }
            }
            let status = PinStatus {
                key: key.clone(),
                acknowledged: claim.acknowledged,
                applied: claim.applied,
                restart: claim.restart,
                lsn: lsn.unwrap_or(self.marks.appended().next()),
                held_bytes,
                state: claim.state.clone(),
            };
            statuses.push((status, claim.generation));
        }
        statuses
    }

    /// The oldest record that a pin needs; `None` when it needs none that is written.
    fn oldest_needed(&self, key: &PinKey, claim: &mut Claim) -> Option<Lsn> {
        let first = self.first();
        let found = (|| {
            let start = match claim.start {
                Some(start) => start,
                None => *claim.start.insert(self.reader_start(key.history, claim.restart)?),
            };
            self.next_record(key.history, start)
        })();
        match found {
            Ok(lsn) => lsn,
            // A lost pin's records may be gone.
            Err(LogError::Truncated { .. }) => Some(first),
            Err(error) => {
                tracing::warn!("pin {} on history {}: {error}", key.feed, key.history);
                Some(first)
            }
        }
    }

    /// Bytes of log from a record to the end.
    fn bytes_from(&self, lsn: Lsn) -> u64 {
        let segments = self.all_segments();
        let mut bytes = 0;
        for segment in segments.iter().rev() {
            let state_bytes = segment.state().bytes;
            if segment.header.first > lsn {
                bytes += state_bytes;
                continue;
            }
            let place = (lsn.0 - segment.header.first.0) as usize;
            let offset = segment
                .open(&*self.disk)
                .ok()
                .and_then(|open| open.records.read().entries.get(place).map(|entry| entry.offset));
            return bytes + state_bytes.saturating_sub(offset.unwrap_or(0));
        }
        bytes
    }

    /// See [`crate::Log::truncate`].
    pub(crate) fn truncate(&self, flushed: Lsn) -> Result<Lsn, LogError> {
        let mut pins = self.pins.lock();
        let statuses = self.refresh(&mut pins);
        let pinned = statuses.into_iter().filter(|(status, _)| status.state == PinState::Reserved);
        let mut needed: Vec<Lsn> = pinned.map(|(status, _)| status.lsn).collect();
        if planted!(self.config, TruncatesPinned) {
            needed.iter_mut().for_each(|lsn| *lsn = lsn.next());
        }
        let flushed = if planted!(self.config, TruncatesUnflushed) { flushed.next() } else { flushed };
        if !planted!(self.config, TruncatesOpen) {
            let histories = self.histories.lock();
            let open = histories.values().flat_map(|history| history.fold.open.values());
            needed.extend(open.map(|open| open.first_fragment));
        }
        needed.extend(self.needed_for_archive());
        let segments = self.all_segments();
        let extents: Vec<Extent> = segments
            .iter()
            .map(|segment| {
                let state = segment.state();
                Extent { last: state.last, is_sealed: state.sealed }
            })
            .collect();
        let count = removable(&extents, flushed, needed);
        for segment in segments.iter().take(count) {
            // Oldest first, each durably gone before the next: a crash in between leaves a log without a gap.
            self.segments.write().remove(&segment.header.first);
            match self.disk.remove(&segment.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    // It is still the oldest: without it in the list, the next would go before it.
                    self.segments.write().insert(segment.header.first, segment.clone());
                    return Err(io_error("remove", &segment.path, error));
                }
                _ => {}
            }
            let dir = &self.config.dir;
            self.disk.sync_dir(dir).map_err(|error| io_error("sync", dir, error))?;
        }
        Ok(self.first())
    }
}
