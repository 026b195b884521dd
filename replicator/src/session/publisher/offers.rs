//! What may be opened, what has ended, and how far histories are.

use std::{collections::HashMap, time::Duration};

use tailrace_wal::{CommitTime, HistoryId, Seq};

use super::{Phase, PublisherAction, PublisherSession};
use crate::{
    session::Catalog,
    wire::{CloseCause, FeedNumber, Offer, PrimaryMessage},
};

/// Offers on one page of `histories`; names are at most 256 bytes, so a page is far below the limit of a message.
const OFFERS_PER_PAGE: usize = 1_000;
/// Histories in one `progress` or `ended`.
const HISTORIES_PER_MESSAGE: usize = 4_000;
/// Least time between two `progress` messages.
pub(super) const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Least time between two of them that tell of all feeds, moved or not: so that silence means something.
pub(super) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);

impl PublisherSession {
    /// What may be opened changed, or may have: `enabled` is the cluster's switch, `offers` the databases whose
    /// replication is on. Feeds of others end.
    pub(crate) fn handle_offers(&mut self, enabled: bool, mut offers: Vec<Offer>, catalog: &dyn Catalog) {
        if self.phase != Phase::Serving {
            return;
        }
        offers.extend(self.told_off.iter().filter_map(|&history| {
            let view = catalog.history(history).filter(|view| view.on && view.ended)?;
            Some(Offer { name: view.name, history, position: view.end })
        }));
        offers.retain(|offer| self.is_granted(&offer.name));
        let ended_here: Vec<FeedNumber> = self
            .feeds
            .iter()
            .filter(|(_, feed)| catalog.history(feed.history).is_none_or(|view| !view.on))
            .map(|(&feed, _)| feed)
            .collect();
        for feed in ended_here {
            self.end_feed(feed, CloseCause::Off, &off_reason(enabled));
        }
        let repairs: Vec<FeedNumber> = self
            .repairs
            .iter()
            .filter(|(_, repair)| catalog.history(repair.history).is_none_or(|view| !view.on))
            .map(|(&feed, _)| feed)
            .collect();
        for feed in repairs {
            self.repairs.remove(&feed);
            self.actions.push_back(PublisherAction::EndRepair { feed });
            self.send(PrimaryMessage::RepairFailed { feed, reason: off_reason(enabled) });
        }
        let names =
            |offers: &[Offer]| offers.iter().map(|offer| (offer.name.clone(), offer.history)).collect::<Vec<_>>();
        if let Some((was_enabled, was)) = &self.offered
            && *was_enabled == enabled
            && names(was) == names(&offers)
        {
            return;
        }
        let mut pages = offers.chunks(OFFERS_PER_PAGE).peekable();
        if pages.peek().is_none() {
            self.actions.push_back(PublisherAction::Send(PrimaryMessage::Histories {
                enabled,
                more: false,
                histories: Vec::new(),
            }));
        }
        while let Some(page) = pages.next() {
            let more = pages.peek().is_some();
            let message = PrimaryMessage::Histories { enabled, more, histories: page.to_vec() };
            self.actions.push_back(PublisherAction::Send(message));
        }
        self.offered = Some((enabled, offers));
    }

    /// Histories that have ended while log is held in them for this replica. It may have their ends, and its word of that
    /// was lost with an earlier connection: it is asked once.
    pub(crate) fn handle_ended(&mut self, held: impl IntoIterator<Item = HistoryId>) {
        if self.phase != Phase::Serving {
            return;
        }
        let (feeds, asked) = (&self.feeds, &mut self.asked);
        let is_open = |history| feeds.values().any(|feed| feed.history == history);
        let fresh: Vec<_> = held.into_iter().filter(|&history| !is_open(history) && asked.insert(history)).collect();
        for histories in fresh.chunks(HISTORIES_PER_MESSAGE) {
            self.send(PrimaryMessage::Ended { histories: histories.to_vec() });
        }
    }

    /// Histories moved: tells the replica how far, not too often.
    pub(crate) fn handle_progress(&mut self, now: Duration, catalog: &dyn Catalog) {
        if self.phase != Phase::Serving {
            return;
        }
        if self.progress_sent != Duration::ZERO && now < self.progress_sent + PROGRESS_INTERVAL {
            self.progress_due = true;
            return;
        }
        self.progress_due = false;
        let mut moved: Vec<(HistoryId, Seq, CommitTime)> = Vec::new();
        let ids =
            self.feeds.values().map(|feed| feed.history).chain(self.repairs.values().map(|repair| repair.history));
        for id in ids {
            let Some(view) = catalog.history(id) else { continue };
            if self.progress.insert(id, view.end.seq) != Some(view.end.seq) {
                moved.push((id, view.end.seq, view.commit_time));
            }
        }
        if !moved.is_empty() {
            self.progress_sent = now;
        }
        for histories in moved.chunks(HISTORIES_PER_MESSAGE) {
            self.send(PrimaryMessage::Progress { histories: histories.to_vec(), behind: Vec::new() });
        }
    }

    /// Whether [`PublisherSession::poll_timeout`] stands for progress: until then, nothing new has to be said of it.
    pub(crate) fn is_progress_due(&self) -> bool {
        self.progress_due
    }

    /// Tells of all feeds, moved or not.
    pub(super) fn heartbeat(&mut self, now: Duration, catalog: &dyn Catalog) {
        (self.heartbeat_sent, self.progress_sent, self.progress_due) = (now, now, false);
        let behind: HashMap<HistoryId, u64> = catalog.behind(&self.replica).into_iter().collect();
        let feeds: Vec<HistoryId> = self.feeds.values().map(|feed| feed.history).collect();
        for page in feeds.chunks(HISTORIES_PER_MESSAGE) {
            let mut histories = Vec::with_capacity(page.len());
            for id in page {
                let Some(view) = catalog.history(*id) else { continue };
                self.progress.insert(*id, view.end.seq);
                histories.push((*id, view.end.seq, view.commit_time));
            }
            let behind = page.iter().filter_map(|id| Some((*id, *behind.get(id)?))).collect();
            self.send(PrimaryMessage::Progress { histories, behind });
        }
    }
}

/// Why a feed does not run: the database's switch, or the cluster's.
pub(super) fn off_reason(enabled: bool) -> String {
    if enabled {
        "replication of the database is switched off at the primary".into()
    } else {
        "replication is stopped at the primary cluster".into()
    }
}
