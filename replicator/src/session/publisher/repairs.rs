//! Repairs served: begun where replication is on, pieces within bounds.

use tailrace_wal::HistoryId;

use super::{PublisherAction, PublisherSession, Repair};
use crate::{
    session::Catalog,
    wire::{FeedNumber, PIECE_MAX, PrimaryMessage},
};

/// Most requests for pieces that a repair may have under way.
const PIECES_MAX: usize = 32;

impl PublisherSession {
    /// A repair cannot go on.
    pub(crate) fn repair_failed(&mut self, feed: FeedNumber, reason: &str) {
        if self.repairs.remove(&feed).is_some() {
            self.actions.push_back(PublisherAction::EndRepair { feed });
            self.send(PrimaryMessage::RepairFailed { feed, reason: reason.to_owned() });
        }
    }

    /// A piece was sent.
    pub(crate) fn handle_piece_sent(&mut self, feed: FeedNumber) {
        if let Some(repair) = self.repairs.get_mut(&feed) {
            repair.fetching = repair.fetching.saturating_sub(1);
        }
    }

    pub(super) fn repair_begin(
        &mut self,
        feed: FeedNumber,
        history: HistoryId,
        catalog: &dyn Catalog,
    ) -> Result<(), String> {
        self.take_number(feed)?;
        let reason = match catalog.history(history) {
            Some(view) if view.on && !view.ended && self.is_granted(&view.name) => {
                self.repairs.insert(feed, Repair { history, fetching: 0 });
                self.actions.push_back(PublisherAction::StartRepair { feed, history });
                return Ok(());
            }
            Some(view) => format!("database {:?} is not replicated now", view.name),
            None => format!("cluster {:?} has no history {history}", self.identity.cluster),
        };
        self.send(PrimaryMessage::RepairFailed { feed, reason });
        Ok(())
    }

    pub(super) fn repair_fetch(
        &mut self,
        feed: FeedNumber,
        datafile: u32,
        offset: u64,
        length: u32,
    ) -> Result<(), String> {
        self.check_seen(feed)?;
        let Some(repair) = self.repairs.get_mut(&feed) else { return Ok(()) };
        if length == 0 || length > PIECE_MAX {
            return Err(format!("it asked for a piece of {length} bytes, at most {PIECE_MAX} are allowed"));
        }
        if repair.fetching >= PIECES_MAX {
            return Err(format!("it asked for more than {PIECES_MAX} pieces at a time"));
        }
        repair.fetching += 1;
        self.actions.push_back(PublisherAction::Fetch { feed, datafile, offset, length });
        Ok(())
    }
}
