//! Pins over restarts: the log keeps them in memory, the manifest remembers them.

use std::time::Duration;

use tailrace_wal::{HistoryId, PinKey, PinState, PinStatus, SavedPin};

use crate::{
    Engine, EngineError, Result,
    manifest::{Edit, ManifestState, PinRecord},
};

/// A pin that stands still is written again when its age has grown by this part of its budget: so much of it a crash
/// can give back.
const AGE_STEPS: u32 = 64;

impl Engine {
    /// Forgets the pins of a feed, of all histories or of one, durably: they do not come back at a restart. The log that
    /// they held is free when this returns. Returns how many there were. [`EngineError::Invalid`] while the feed is
    /// attached: it would only claim anew.
    pub async fn forget_pins(&self, feed: &str, history: Option<HistoryId>) -> Result<u64> {
        self.check_open()?;
        let pins = self.log.pins().into_iter().map(|pin| pin.key);
        let keys: Vec<PinKey> =
            pins.filter(|key| key.feed == feed && history.is_none_or(|history| history == key.history)).collect();
        self.log.forget_detached_pins(&keys).map_err(|attached| {
            EngineError::Invalid(format!("pin {:?} is in use: its feed is attached now", attached.feed))
        })?;
        keys.iter().for_each(|key| self.subscriptions.forget(key));
        self.save_pins().await?;
        self.truncate_retained().await;
        Ok(keys.len() as u64)
    }

    /// Writes the pins to the manifest where they have moved, and says so where that fails. They are hints: an older mark
    /// holds more log.
    pub(crate) async fn write_pins(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        match self.save_pins().await {
            Ok(()) => self.pins_failing.store(false, Relaxed),
            // Tried every second; told once.
            Err(error) if !self.pins_failing.swap(true, Relaxed) => {
                tracing::warn!(%error, "moved pins were not written; they are tried again");
            }
            Err(_) => {}
        }
    }

    /// Looks at the pins' budgets and frees the log that nobody needs any more.
    pub(crate) async fn retain_log(&self) {
        if self.log.pins().is_empty() {
            return;
        }
        self.truncate_retained().await;
    }

    async fn truncate_retained(&self) {
        let log = self.log.clone();
        match tokio::task::spawn_blocking(move || log.retain()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not truncated; it is tried again"),
            Err(error) => tracing::error!(%error, "the log was not truncated"),
        }
    }

    /// Puts the pins back as the manifest has them.
    pub(crate) async fn restore_pins(&self, state: &ManifestState) {
        self.pins_written.lock().await.clone_from(&state.pins);
        for pin in &state.pins {
            self.subscriptions.restore(pin);
            self.log.restore_pin(SavedPin {
                key: pin.key.clone(),
                acknowledged: pin.acknowledged,
                applied: pin.applied,
                restart: pin.restart,
                state: pin.lost.clone().map_or(PinState::Reserved, |reason| PinState::Lost { reason }),
                since: pin.since,
                stalled: Duration::from_secs(pin.stalled),
            });
        }
    }

    /// Writes the pins where they have changed; durable on return.
    pub(crate) async fn save_pins(&self) -> Result<()> {
        let mut written = self.pins_written.lock().await;
        let pins = self.log.pins();
        let changed = pins.len() != written.len()
            || pins.iter().zip(&*written).any(|(pin, written)| {
                is_worth_writing(pin, written) || self.subscriptions.table_of(&pin.key) != written.table
            });
        if changed {
            let record = |pin: PinStatus| PinRecord { table: self.subscriptions.table_of(&pin.key), ..record(pin) };
            let pins: Vec<PinRecord> = pins.into_iter().map(record).collect();
            self.manifest.append(Edit::Pins(pins.clone())).await?;
            *written = pins;
        }
        Ok(())
    }
}

/// Whether a pin has changed by more than the passing of a little time.
fn is_worth_writing(pin: &PinStatus, written: &PinRecord) -> bool {
    let now = record(pin.clone());
    let step = (pin.stalled_max / AGE_STEPS).as_secs().max(1);
    let aged = now.stalled < written.stalled || now.stalled >= written.stalled.saturating_add(step);
    // Whether it is reserved or extended is found out anew; the time goes with it.
    let same =
        PinRecord { stalled: written.stalled, since: written.since, table: written.table, ..now.clone() } == *written;
    aged || !same || (now.lost.is_some() && now.since != written.since)
}

fn record(pin: PinStatus) -> PinRecord {
    PinRecord {
        lost: pin.state.reason().map(ToOwned::to_owned),
        key: pin.key,
        acknowledged: pin.acknowledged,
        applied: pin.applied,
        restart: pin.restart,
        since: pin.since,
        stalled: pin.stalled.as_secs(),
        table: None,
    }
}

#[cfg(test)]
mod tests {
    use tailrace_wal::{CommitTime, Lsn, Seq};

    use super::*;

    #[test]
    fn what_moved_or_aged_or_was_lost_is_written_and_nothing_else() {
        let pin = PinStatus {
            key: PinKey { feed: "replica/b".into(), history: HistoryId([1; 16]) },
            acknowledged: Seq(3),
            applied: Seq(3),
            restart: Seq(3),
            lsn: Lsn(4),
            held_bytes: 10,
            bytes_max: 100,
            stalled: Duration::from_secs(10),
            stalled_max: Duration::from_secs(6400),
            state: PinState::Reserved,
            since: CommitTime(5),
            attached: true,
        };
        let written = record(pin.clone());
        let at = |stalled| PinStatus { stalled: Duration::from_secs(stalled), ..pin.clone() };
        assert!(!is_worth_writing(&pin, &written));
        assert!(!is_worth_writing(&at(109), &written));
        assert!(is_worth_writing(&at(110), &written));
        assert!(is_worth_writing(&at(0), &written), "it moved");
        assert!(!is_worth_writing(
            &PinStatus { state: PinState::Extended, since: CommitTime(9), ..pin.clone() },
            &written
        ));
        assert!(is_worth_writing(&PinStatus { acknowledged: Seq(4), ..pin.clone() }, &written));
        let lost = PinStatus { state: PinState::Lost { reason: "late".into() }, ..pin.clone() };
        assert!(is_worth_writing(&lost, &written));
        assert!(!is_worth_writing(&lost, &record(lost.clone())));
        let json = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<PinRecord>(&json).unwrap(), written);
        let old = r#"{"key":{"feed":"f","history":HISTORY},"acknowledged":1,"applied":1,"restart":1}"#;
        let old = old.replace("HISTORY", &serde_json::to_string(&HistoryId([1; 16])).unwrap());
        assert_eq!(serde_json::from_str::<PinRecord>(&old).unwrap().lost, None);
    }
}
