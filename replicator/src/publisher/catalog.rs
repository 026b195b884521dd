//! The engine's histories as sessions see them.

use std::sync::Arc;

use tailrace_engine::{Engine, HistoryInfo};
use tailrace_wal::{HistoryId, Position, Seq};

use super::replicas::pin_key;
use crate::{
    session::{Catalog, HistoryView},
    wire::Offer,
};

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct EngineCatalog {
    engine: Arc<Engine>,
}

impl EngineCatalog {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// The cluster's switch, and what may be opened.
    pub(crate) fn offers(&self) -> (bool, Vec<Offer>) {
        let enabled = self.engine.replication_switches().primary;
        let mut offers: Vec<Offer> = if enabled {
            let on = self.engine.histories().into_iter().filter(|info| info.replicated && !info.ended);
            on.map(|info| Offer { name: info.name, history: info.id, position: info.position }).collect()
        } else {
            Vec::new()
        };
        offers.sort_by(|a, b| a.name.cmp(&b.name));
        (enabled, offers)
    }

    /// Whether feeds of this history run.
    pub(crate) fn is_on(&self, history: HistoryId) -> bool {
        self.engine.replication_switches().primary
            && self.engine.history(history).is_some_and(|info| info.replicated || info.ended)
    }

    /// Where a history ends: nothing beyond was sent to anyone. Its written end, for a record may be sent as soon as it is
    /// durable, which may be before it is readable here.
    fn end(&self, info: &HistoryInfo) -> (Position, tailrace_wal::CommitTime) {
        match self.engine.log().history_end(info.id) {
            Some(end) if end.position.seq >= info.position.seq => (end.position, end.commit_time),
            _ => (info.position, tailrace_wal::CommitTime::default()),
        }
    }
}

impl Catalog for EngineCatalog {
    fn history(&self, id: HistoryId) -> Option<HistoryView> {
        let info = self.engine.history(id)?;
        let (end, commit_time) = self.end(&info);
        Some(HistoryView {
            // What led up to the end may be fetched by those who had been given it.
            on: (info.replicated || info.ended) && self.engine.replication_switches().primary,
            end,
            commit_time,
            retained_after: self.engine.log().retained_after(id).unwrap_or(info.retained_after),
            name: info.name,
            epochs: info.epochs,
            ended: info.ended,
        })
    }

    fn behind(&self, replica: &str) -> Vec<(HistoryId, u64)> {
        let pins = self.engine.log().pins().into_iter();
        pins.filter(|pin| pin.key == pin_key(replica, pin.key.history))
            .map(|pin| (pin.key.history, pin.held_bytes))
            .collect()
    }

    fn position_at(&self, id: HistoryId, seq: Seq) -> Option<Position> {
        self.engine.log().position_at(id, seq)
    }
}
