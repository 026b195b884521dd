//! Feeds: opened where the replica is, sent as far as it gave credit, acknowledged.

use std::time::Duration;

use tailrace_wal::{HistoryId, Position, Seq};

use super::{Feed, PublisherAction, PublisherSession, offers::off_reason};
use crate::{
    ReplicationState,
    session::{
        Catalog, HistoryView,
        decide::{Decision, decide},
    },
    wire::{CloseCause, FeedNumber, PrimaryMessage},
};

/// Most credit that a feed may hold, chunks.
const CREDIT_MAX: u32 = 1_024;

impl PublisherSession {
    /// A chunk goes out. `false`: the feed is closed or without credit, and it must not.
    pub(crate) fn handle_sent(&mut self, feed: FeedNumber, last: Seq) -> bool {
        match self.feeds.get_mut(&feed) {
            Some(open) if open.credit > 0 => {
                open.credit -= 1;
                open.sent = open.sent.max(last);
                true
            }
            _ => false,
        }
    }

    /// Reading a feed failed: the replica is told, the pin stays.
    pub(crate) fn feed_failed(&mut self, feed: FeedNumber, reason: &str) {
        self.end_feed(feed, CloseCause::Failed, reason);
    }

    /// The records that a feed wanted were truncated meanwhile.
    pub(crate) fn feed_lost(&mut self, feed: FeedNumber, retained_after: Seq, reason: &str) {
        if let Some(open) = self.feeds.remove(&feed) {
            self.actions.push_back(PublisherAction::StopFeed { feed, history: open.history });
            self.send(PrimaryMessage::Lost { feed, retained_after, reason: reason.to_owned() });
        }
    }

    pub(super) fn open(
        &mut self,
        feed: FeedNumber,
        position: Position,
        restart: Seq,
        now: Duration,
        catalog: &dyn Catalog,
    ) -> Result<(), String> {
        self.take_number(feed)?;
        if restart > position.seq {
            return Err(format!("it opened at seq {} with restart seq {restart}", position.seq));
        }
        let history = position.history;
        if self.feeds.values().any(|open| open.history == history) {
            return Err(format!("it opened history {history} twice"));
        }
        let Some(view) = self.permitted(feed, history, catalog) else { return Ok(()) };
        let chain_here = catalog.position_at(history, position.seq);
        match decide(&view, chain_here, &position, restart) {
            Decision::Continue => {
                // What of that it has applied, it says itself: tasks may have been skipped there.
                let (durable, applied, sent) = (position.seq, Seq::ZERO, position.seq);
                self.feeds.insert(feed, Feed { history, credit: 0, sent, durable, applied });
                self.send(PrimaryMessage::Opened { feed, after: restart, position: view.end });
                self.progress.remove(&history);
                self.actions.push_back(PublisherAction::StartFeed {
                    feed,
                    history,
                    acknowledged: position.seq,
                    restart,
                });
                self.handle_progress(now, catalog);
            }
            Decision::Forked(reason) => {
                let state = ReplicationState::Forked;
                self.actions.push_back(PublisherAction::Trouble { history, state, reason: reason.clone() });
                self.send(PrimaryMessage::Forked { feed, reason });
            }
            Decision::Lost => {
                let retained_after = view.retained_after;
                let reason = format!(
                    "the log of database {:?} reaches back to seq {retained_after}, the replica needs {restart}",
                    view.name
                );
                let state = ReplicationState::Lost;
                self.actions.push_back(PublisherAction::Trouble { history, state, reason: reason.clone() });
                self.send(PrimaryMessage::Lost { feed, retained_after, reason });
            }
            Decision::Dropped => {
                self.actions.push_back(PublisherAction::Done { history });
                self.send(PrimaryMessage::Dropped { feed, end: view.end });
            }
        }
        Ok(())
    }

    /// The history, if this replica may have it now; otherwise it is told why not.
    fn permitted(&mut self, feed: FeedNumber, history: HistoryId, catalog: &dyn Catalog) -> Option<HistoryView> {
        let Some(view) = catalog.history(history) else {
            let reason = format!("cluster {:?} has no history {history}", self.identity.cluster);
            self.send(PrimaryMessage::FeedClosed { feed, cause: CloseCause::Unknown, reason });
            return None;
        };
        if !self.is_granted(&view.name) {
            let reason = format!(
                "replica {:?} may not pull database {:?}; see [replication.primary] replicas of cluster {:?}",
                self.replica, view.name, self.identity.cluster
            );
            self.send(PrimaryMessage::FeedClosed { feed, cause: CloseCause::NotGranted, reason });
            return None;
        }
        if !view.on {
            self.told_off.insert(history);
            let enabled = self.offered.as_ref().is_none_or(|(enabled, _)| *enabled);
            let reason = off_reason(enabled);
            self.send(PrimaryMessage::FeedClosed { feed, cause: CloseCause::Off, reason });
            return None;
        }
        self.told_off.remove(&history);
        Some(view)
    }

    pub(super) fn pull(&mut self, feed: FeedNumber, chunks: u32) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(open) = self.feeds.get_mut(&feed) else { return Ok(()) };
        open.credit = open.credit.saturating_add(chunks);
        if open.credit > CREDIT_MAX {
            return Err(format!(
                "it gave feed {feed} credit for {} chunks, at most {CREDIT_MAX} are allowed",
                open.credit
            ));
        }
        self.actions.push_back(PublisherAction::Credit { feed, chunks });
        Ok(())
    }

    pub(super) fn acknowledge(
        &mut self,
        feed: FeedNumber,
        durable: Seq,
        applied: Seq,
        restart: Seq,
    ) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(open) = self.feeds.get_mut(&feed) else { return Ok(()) };
        if durable > open.sent || applied > open.sent || restart > durable {
            return Err(format!(
                "it acknowledged seq {durable} (applied {applied}, restart {restart}) of feed {feed}, which was sent up to {}",
                open.sent
            ));
        }
        open.durable = open.durable.max(durable);
        open.applied = open.applied.max(applied);
        self.actions.push_back(PublisherAction::Acknowledge {
            history: open.history,
            durable: open.durable,
            applied: open.applied,
            restart,
        });
        Ok(())
    }

    pub(super) fn done(&mut self, histories: Vec<HistoryId>, catalog: &dyn Catalog) -> Result<(), String> {
        for history in histories {
            if !self.asked.contains(&history) {
                return Err(format!("it is done with history {history}, which it was not asked about"));
            }
            // A feed that was opened meanwhile says itself how far it is.
            let is_open = self.feeds.values().any(|feed| feed.history == history);
            if !is_open && catalog.history(history).is_some_and(|view| view.ended) {
                self.actions.push_back(PublisherAction::Done { history });
            }
        }
        Ok(())
    }

    pub(super) fn end_feed(&mut self, feed: FeedNumber, cause: CloseCause, reason: &str) {
        if let Some(open) = self.feeds.remove(&feed) {
            if cause == CloseCause::Off {
                self.told_off.insert(open.history);
            }
            self.actions.push_back(PublisherAction::StopFeed { feed, history: open.history });
            self.send(PrimaryMessage::FeedClosed { feed, cause, reason: reason.to_owned() });
        }
    }
}
