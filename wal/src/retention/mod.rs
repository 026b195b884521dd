//! Retention: which claims hold which records, which claims are lost, and what is removed.
//!
//! Whatever looks at the pins judges them first: a pin over its budget is lost at the next look, be it a reader of
//! `system.pins`, a truncation, or [`crate::Log::retain`], which the log's owner calls from time to time.

mod claim;
mod decide;

use std::{collections::BTreeMap, sync::Arc};

use claim::{Claim, Place, Stall};
use decide::{Extent, extends, removable};
pub(crate) use decide::{Held, overdrawn};

use crate::{
    HistoryId, LogError, Lsn, Pin, PinKey, PinState, PinStatus, SavedPin, Seq, TransactionNumber, config::planted,
    error::io_error, shared::Shared,
};

/// All claims, and how far the log could be truncated if nobody claimed anything.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    by_key: BTreeMap<PinKey, Claim>,
    generations: u64,
    /// What the last truncation was told to be flushed.
    flushed: Lsn,
}

/// What holds log, and how much of it: for `system.disk`. Holders overlap.
#[derive(Debug, Clone, Default)]
pub struct LogHolders {
    /// The last LSN that is known to be in datafiles.
    pub flushed: Lsn,
    /// Bytes behind it: what a start has to replay.
    pub unflushed_bytes: u64,
    /// Zeros written ahead of the end.
    pub preallocated_bytes: u64,
    /// Bytes kept until they are archived; `None` when there is no archive, or its claim is lost.
    pub archive_bytes: Option<u64>,
    /// Transactions with fragments and neither commit nor abort.
    pub transactions: Vec<OpenTransactionStatus>,
}

/// A transaction that holds log because its end has not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenTransactionStatus {
    /// Its history.
    pub history: HistoryId,
    /// Its number within its epoch.
    pub transaction: TransactionNumber,
    /// Its first fragment.
    pub first: Lsn,
    /// Fragments so far.
    pub fragments: u32,
    /// Bytes of log from there to the end.
    pub held_bytes: u64,
}

/// Claims.
impl Shared {
    /// See [`crate::Log::pin`].
    pub(crate) fn claim(self: &Arc<Self>, key: PinKey, acknowledged: Seq, restart: Seq) -> Result<Pin, LogError> {
        // Truncation takes the same lock: what is found retained here stays so.
        let mut claims = self.claims.lock();
        let start = self.reader_start(key.history, restart)?;
        let mut claim = Claim::new(claims.next_generation(), acknowledged, restart, self.clock.now());
        claim.place = Place::After(start);
        let pin =
            Pin { key: key.clone(), shared: self.clone(), generation: claim.generation, _attached: claim.attach() };
        claims.by_key.insert(key, claim);
        Ok(pin)
    }

    /// See [`crate::Log::restore_pin`].
    pub(crate) fn restore_claim(&self, saved: SavedPin) {
        let mut claims = self.claims.lock();
        let now = self.clock.now();
        let mut claim = Claim::new(claims.next_generation(), saved.acknowledged, saved.restart, saved.since);
        claim.applied = saved.applied;
        claim.stall = Stall::restored(saved.stalled);
        claim.state = saved.state;
        if !claim.state.is_lost() {
            match self.reader_start(saved.key.history, saved.restart) {
                Ok(start) => claim.place = Place::After(start),
                Err(error) => lose(&saved.key, &mut claim, format!("at this node's start: {error}"), now),
            }
        }
        claims.by_key.insert(saved.key, claim);
    }

    /// See [`Pin::advance`].
    pub(crate) fn advance_claim(&self, pin: &Pin, acknowledged: Seq, applied: Seq, restart: Seq) -> bool {
        let mut claims = self.claims.lock();
        let Some(claim) = claims.of(pin).filter(|claim| !claim.state.is_lost()) else { return false };
        claim.advance(acknowledged, applied, restart);
        true
    }

    /// See [`Pin::renew`].
    pub(crate) fn renew_claim(&self, pin: &Pin, acknowledged: Seq, applied: Seq, restart: Seq) -> bool {
        let mut claims = self.claims.lock();
        let (now, bytes_max) = (self.clock.now(), self.config.pin_max_bytes);
        let Some(claim) = claims.of(pin).filter(|claim| claim.state.is_lost()) else { return false };
        let Ok(start) = self.reader_start(pin.key.history, restart) else { return false };
        let mut renewed = claim.clone();
        renewed.enter(PinState::Reserved, now);
        renewed.stall = Stall::default();
        renewed.advance(acknowledged, applied, restart);
        renewed.place = Place::After(start);
        let held = self.oldest_needed(&pin.key, &mut renewed).map_or(0, |lsn| self.held_from(&renewed, lsn));
        if held > bytes_max {
            return false;
        }
        tracing::info!("pin {} on history {} holds again from seq {restart} on", pin.key.feed, pin.key.history);
        *claim = renewed;
        true
    }

    /// See [`Pin::status`].
    pub(crate) fn claim_status(&self, pin: &Pin) -> PinStatus {
        let mut claims = self.claims.lock();
        let statuses = self.judge(&mut claims);
        let is_own = claims.of(pin).is_some();
        statuses.into_iter().find(|status| is_own && status.key == pin.key).unwrap_or_else(|| PinStatus {
            key: pin.key.clone(),
            acknowledged: Seq::ZERO,
            applied: Seq::ZERO,
            restart: Seq::ZERO,
            lsn: self.marks.appended().next(),
            held_bytes: 0,
            bytes_max: self.config.pin_max_bytes,
            stalled: std::time::Duration::ZERO,
            stalled_max: self.config.pin_max_age,
            state: PinState::Lost { reason: "it was forgotten or replaced".into() },
            since: self.clock.now(),
            attached: false,
        })
    }

    /// See [`Pin::release`].
    pub(crate) fn end_claim(&self, pin: &Pin) {
        let mut claims = self.claims.lock();
        if claims.of(pin).is_some() {
            claims.by_key.remove(&pin.key);
        }
    }

    /// See [`crate::Log::forget_pin`].
    pub(crate) fn forget_claim(&self, key: &PinKey) -> bool {
        self.claims.lock().by_key.remove(key).is_some()
    }

    /// See [`crate::Log::forget_detached_pins`].
    pub(crate) fn forget_detached(&self, keys: &[PinKey]) -> Result<(), PinKey> {
        let mut claims = self.claims.lock();
        if let Some(attached) = keys.iter().find(|key| claims.by_key.get(key).is_some_and(Claim::is_attached)) {
            return Err(attached.clone());
        }
        for key in keys {
            claims.by_key.remove(key);
        }
        Ok(())
    }

    /// All pins as they stand now.
    pub(crate) fn pin_statuses(&self) -> Vec<PinStatus> {
        self.judge(&mut self.claims.lock())
    }
}

/// Truncation.
impl Shared {
    /// See [`crate::Log::truncate`].
    pub(crate) fn truncate(&self, flushed: Lsn) -> Result<Lsn, LogError> {
        let mut claims = self.claims.lock();
        // What is still to be written is not flushed, whatever the caller says.
        claims.flushed = flushed.min(self.marks.appended());
        self.truncate_claimed(&mut claims, flushed)
    }

    /// See [`crate::Log::retain`].
    pub(crate) fn retain(&self) -> Result<Lsn, LogError> {
        let mut claims = self.claims.lock();
        let flushed = claims.flushed;
        self.truncate_claimed(&mut claims, flushed)
    }

    fn truncate_claimed(&self, claims: &mut Claims, flushed: Lsn) -> Result<Lsn, LogError> {
        // Of a closed log nothing is removed: its folder may be another's by now. One that failed keeps its folder.
        if let Some(closed @ LogError::Closed) = self.queue.closed() {
            return Err(closed);
        }
        let statuses = self.judge(claims);
        let mut needed: Vec<Lsn> =
            statuses.into_iter().filter(|status| !status.state.is_lost()).map(|status| status.lsn).collect();
        if planted!(self.config, TruncatesPinned) {
            needed.iter_mut().for_each(|lsn| *lsn = lsn.next());
        }
        let flushed = if planted!(self.config, TruncatesUnflushed) { flushed.next() } else { flushed };
        if !planted!(self.config, TruncatesOpen) {
            needed.extend(self.first_fragments());
        }
        needed.extend(self.needed_for_archive());
        let count = removable(&self.extents(), flushed, needed);
        self.remove_oldest(count)?;
        Ok(self.first())
    }

    /// See [`crate::Log::give_up_pin`].
    pub(crate) fn give_up(&self, why: &str) -> Option<PinStatus> {
        let mut claims = self.claims.lock();
        let statuses = self.judge(&mut claims);
        let extended = statuses.into_iter().filter(|status| status.state == PinState::Extended);
        let mut worst = extended.max_by_key(|status| status.held_bytes)?;
        let now = self.clock.now();
        let claim = claims.by_key.get_mut(&worst.key)?;
        let reason = format!("{why}, and it alone held log back ({} bytes to its end)", worst.held_bytes);
        lose(&worst.key, claim, reason, now);
        (worst.state, worst.since) = (claim.state.clone(), claim.since);
        Some(worst)
    }

    /// See [`crate::Log::give_up_claim`].
    pub(crate) fn give_up_claim(&self, why: &str) -> bool {
        let archive_bytes = {
            let claims = self.claims.lock();
            let needed = self.needed_for_archive();
            let holds = |lsn| extends(&self.extents(), claims.flushed, &self.first_fragments(), lsn);
            let held = self.archive_status().map_or(0, |claim| claim.held_bytes);
            needed.filter(|lsn| holds(*lsn)).map(|_| held)
        };
        let worst = |status: &PinStatus| if status.state == PinState::Extended { status.held_bytes } else { 0 };
        let pin_bytes = self.pin_statuses().iter().map(worst).max().unwrap_or(0);
        match archive_bytes {
            Some(bytes) if bytes >= pin_bytes => {
                self.lose_archive(format!("{why}, and it held log back ({bytes} bytes to its end)"));
                true
            }
            _ => self.give_up(why).is_some(),
        }
    }

    /// See [`crate::Log::holders`].
    pub(crate) fn holders(&self) -> LogHolders {
        let flushed = self.claims.lock().flushed;
        let open: Vec<_> = {
            let histories = self.histories.lock();
            let of = |(history, known): (&HistoryId, &crate::history::History)| {
                let history = *history;
                known.fold.open.values().map(move |open| (history, *open)).collect::<Vec<_>>()
            };
            histories.iter().flat_map(of).collect()
        };
        let transactions = open.into_iter().map(|(history, open)| OpenTransactionStatus {
            history,
            transaction: open.number,
            first: open.first_fragment,
            fragments: open.fragments,
            held_bytes: self.bytes_from(open.first_fragment),
        });
        let active = self.all_segments().into_iter().next_back();
        let preallocated_bytes = active.map_or(0, |active| {
            let written = active.state().bytes;
            let len = active
                .open(&*self.disk)
                .and_then(|open| open.file.len().map_err(|error| io_error("look at", &active.path, error)));
            len.map_or(0, |len| len.saturating_sub(written))
        });
        LogHolders {
            flushed,
            unflushed_bytes: if flushed < self.marks.appended() { self.bytes_from(flushed.next()) } else { 0 },
            preallocated_bytes,
            archive_bytes: self.archive_status().filter(|claim| claim.lost.is_none()).map(|claim| claim.held_bytes),
            transactions: transactions.collect(),
        }
    }

    fn extents(&self) -> Vec<Extent> {
        let segments = self.all_segments();
        let extent = |segment: &Arc<crate::segment::Segment>| {
            let state = segment.state();
            Extent { last: state.last, is_sealed: state.sealed }
        };
        segments.iter().map(extent).collect()
    }

    /// Looks at every claim: those over a budget are lost from here on.
    fn judge(&self, claims: &mut Claims) -> Vec<PinStatus> {
        if claims.by_key.is_empty() {
            return Vec::new();
        }
        let (monotonic, now) = (self.clock.monotonic(), self.clock.now());
        let (extents, needed) = (self.extents(), self.first_fragments());
        let config = &self.config;
        let mut statuses = Vec::with_capacity(claims.by_key.len());
        for (key, claim) in &mut claims.by_key {
            let lsn = self.oldest_needed(key, claim);
            let held_bytes = lsn.map_or(0, |lsn| self.held_from(claim, lsn));
            let lsn_or_end = lsn.unwrap_or(self.marks.appended().next());
            if !claim.state.is_lost() {
                let held = Held { bytes: held_bytes, stalled: claim.stall.observe(lsn.is_some(), monotonic) };
                match overdrawn(held, config.pin_max_bytes, config.pin_max_age) {
                    Some(reason) => lose(key, claim, reason, now),
                    None if extends(&extents, claims.flushed, &needed, lsn_or_end) => {
                        claim.enter(PinState::Extended, now);
                    }
                    None => claim.enter(PinState::Reserved, now),
                }
            }
            statuses.push(PinStatus {
                key: key.clone(),
                acknowledged: claim.acknowledged,
                applied: claim.applied,
                restart: claim.restart,
                lsn: lsn_or_end,
                held_bytes,
                bytes_max: config.pin_max_bytes,
                stalled: claim.stall.so_far(monotonic),
                stalled_max: config.pin_max_age,
                state: claim.state.clone(),
                since: claim.since,
                attached: claim.is_attached(),
            });
        }
        statuses
    }

    /// The oldest record that a claim needs; `None` when it needs none that is written.
    fn oldest_needed(&self, key: &PinKey, claim: &mut Claim) -> Option<Lsn> {
        let first = self.first();
        // A lost claim's records may have gone from under its place.
        if claim.state.is_lost() {
            claim.place = Place::Unknown;
        }
        let after = match claim.place {
            Place::At(lsn, _) => return Some(lsn),
            Place::After(after) => Ok(after),
            Place::Unknown => self.reader_start(key.history, claim.restart),
        };
        let found = after.and_then(|after| Ok((after, self.next_record(key.history, after)?)));
        match found {
            Ok((after, None)) => {
                claim.place = Place::After(after);
                None
            }
            Ok((_, Some(lsn))) => {
                claim.place = Place::At(lsn, self.offset_of(lsn));
                Some(lsn)
            }
            Err(LogError::Truncated { .. }) => Some(first),
            Err(error) => {
                tracing::warn!("pin {} on history {}: {error}", key.feed, key.history);
                Some(first)
            }
        }
    }

    /// Bytes of log from a claim's first record to the end.
    fn held_from(&self, claim: &Claim, lsn: Lsn) -> u64 {
        match claim.place {
            Place::At(at, offset) if at == lsn => self.bytes_behind(lsn, || offset),
            _ => self.bytes_from(lsn),
        }
    }

    /// Bytes of log from a record to the end.
    fn bytes_from(&self, lsn: Lsn) -> u64 {
        self.bytes_behind(lsn, || self.offset_of(lsn))
    }

    /// The same, with a way to find the record's place in its segment.
    fn bytes_behind(&self, lsn: Lsn, offset: impl FnOnce() -> u64) -> u64 {
        let segments = self.all_segments();
        let mut bytes = 0;
        for segment in segments.iter().rev() {
            let state_bytes = segment.state().bytes;
            if segment.header.first > lsn {
                bytes += state_bytes;
                continue;
            }
            return bytes + state_bytes.saturating_sub(offset());
        }
        bytes
    }

    /// Where in its segment a record begins; 0 when it is not there.
    fn offset_of(&self, lsn: Lsn) -> u64 {
        let Some(segment) = self.segment_of(lsn) else { return 0 };
        let place = (lsn.0 - segment.header.first.0) as usize;
        let open = segment.open(&*self.disk).ok();
        open.and_then(|open| open.records.read().entries.get(place).map(|entry| entry.offset)).unwrap_or(0)
    }
}

impl Claims {
    fn next_generation(&mut self) -> u64 {
        self.generations += 1;
        self.generations
    }

    /// The claim that a handle is of, unless it was forgotten or replaced.
    fn of(&mut self, pin: &Pin) -> Option<&mut Claim> {
        self.by_key.get_mut(&pin.key).filter(|claim| claim.generation == pin.generation)
    }
}

/// From here on the claim holds nothing. Told once: lost is left only by a new claim.
fn lose(key: &PinKey, claim: &mut Claim, reason: String, now: crate::CommitTime) {
    tracing::warn!(
        "pin {} on history {} is lost: {reason}; its log is released, and the feed has to repair itself",
        key.feed,
        key.history
    );
    claim.enter(PinState::Lost { reason }, now);
}
