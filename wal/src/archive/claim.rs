//! The archive's claim on log retention: a pin with a budget, in LSNs.

use std::time::Duration;

use crate::{
    Lsn,
    retention::{Held, overdrawn},
    shared::Shared,
};

/// Keeps segments until they are archived, within the budgets of a pin.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveClaim {
    /// Everything up to here is archived, or named as a gap.
    archived: Lsn,
    /// Why segments are no longer kept, if so.
    lost: Option<String>,
    /// Since when it has stood still with a sealed segment to move on to.
    stalled_since: Option<Duration>,
}

/// How the claim stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClaimStatus {
    /// Bytes of log that are not archived.
    pub(crate) held_bytes: u64,
    pub(crate) lost: Option<String>,
}

impl ArchiveClaim {
    fn lose(&mut self, reason: String) {
        tracing::warn!("the archive's claim on the log after LSN {} is lost: {reason}", self.archived);
        self.lost = Some(reason);
    }
}

impl Shared {
    /// Claims everything retained, from before the archive's manifest is read.
    pub(crate) fn claim_archive(&self) {
        // Truncation holds the claims' lock from its decision to its end.
        let _truncation = self.claims.lock();
        let archived = Lsn(self.first().0.saturating_sub(1));
        *self.archive.lock() = Some(ArchiveClaim { archived, lost: None, stalled_since: None });
    }

    /// Everything up to `archived` is archived or named as a gap: what follows is kept again, if the budget allows.
    pub(crate) fn advance_archive(&self, archived: Lsn) {
        let _truncation = self.claims.lock();
        if let Some(claim) = &mut *self.archive.lock()
            && archived > claim.archived
        {
            claim.archived = archived;
            claim.lost = None;
            claim.stalled_since = None;
        }
    }

    /// Nothing is kept for the archive from here on, until it has named what is missing.
    pub(crate) fn lose_archive(&self, reason: String) {
        let _truncation = self.claims.lock();
        if let Some(claim) = &mut *self.archive.lock()
            && claim.lost.is_none()
        {
            claim.lose(reason);
        }
    }

    /// How the claim stands now; lost when it is over a budget.
    pub(crate) fn archive_status(&self) -> Option<ClaimStatus> {
        let mut slot = self.archive.lock();
        let claim = slot.as_mut()?;
        let (mut held_bytes, mut has_sealed) = (0, false);
        for segment in self.all_segments() {
            let state = segment.state();
            if state.last > claim.archived {
                held_bytes += state.bytes;
                has_sealed |= state.sealed;
            }
        }
        let now = self.clock.monotonic();
        claim.stalled_since = has_sealed.then(|| claim.stalled_since.unwrap_or(now));
        let stalled = claim.stalled_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        if claim.lost.is_none()
            && has_sealed
            && let Some(reason) =
                overdrawn(Held { bytes: held_bytes, stalled }, self.config.pin_max_bytes, self.config.pin_max_age)
        {
            claim.lose(reason);
        }
        Some(ClaimStatus { held_bytes, lost: claim.lost.clone() })
    }

    /// The oldest record that truncation must keep for the archive; `None` when nothing is claimed or the claim is
    /// lost.
    pub(crate) fn needed_for_archive(&self) -> Option<Lsn> {
        let status = self.archive_status()?;
        let archived = self.archive.lock().as_ref()?.archived;
        status.lost.is_none().then(|| archived.next())
    }
}
