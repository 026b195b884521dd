//! Verifications served: of databases whose replication is on, few at a time.

use tailrace_engine::PointId;
use tailrace_wal::{HistoryId, Position};

use super::{PublisherAction, PublisherSession};
use crate::{
    session::Catalog,
    wire::{FeedNumber, PrimaryMessage},
};

/// Most verifications of one replica at a time: each reads all digests of a database, or all of its files.
const VERIFICATIONS_MAX: usize = 2;

impl PublisherSession {
    /// The digest point of a verification is written.
    pub(crate) fn handle_point(&mut self, feed: FeedNumber, point: PointId, position: Position) {
        if self.verifications.contains(&feed) {
            self.send(PrimaryMessage::VerifyPoint { feed, point, position });
        }
    }

    /// The digests of a verification were sent.
    pub(crate) fn handle_verified(&mut self, feed: FeedNumber) {
        self.verifications.remove(&feed);
    }

    /// A verification cannot go on.
    pub(crate) fn verify_failed(&mut self, feed: FeedNumber, reason: &str) {
        if self.verifications.remove(&feed) {
            self.send(PrimaryMessage::VerifyFailed { feed, reason: reason.to_owned() });
        }
    }

    pub(super) fn verify_begin(
        &mut self,
        feed: FeedNumber,
        history: HistoryId,
        from_files: bool,
        catalog: &dyn Catalog,
    ) -> Result<(), String> {
        self.take_number(feed)?;
        let reason = match catalog.history(history) {
            Some(view) if view.on && !view.ended && self.is_granted(&view.name) => {
                if self.verifications.len() < VERIFICATIONS_MAX {
                    self.verifications.insert(feed);
                    self.actions.push_back(PublisherAction::StartVerify { feed, history, from_files });
                    return Ok(());
                }
                format!("{VERIFICATIONS_MAX} verifications of this replica are under way; try again when one is over")
            }
            Some(view) => format!("database {:?} is not replicated now", view.name),
            None => format!("cluster {:?} has no history {history}", self.identity.cluster),
        };
        self.send(PrimaryMessage::VerifyFailed { feed, reason });
        Ok(())
    }

    pub(super) fn verify_end(&mut self, feed: FeedNumber) -> Result<(), String> {
        self.check_seen(feed)?;
        if self.verifications.remove(&feed) {
            self.actions.push_back(PublisherAction::EndVerify { feed });
        }
        Ok(())
    }
}
