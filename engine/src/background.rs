//! Background work: flushes when they are due, idle transactions, pins, the archive, files that nothing names.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tailrace_wal::PinStatus;

use crate::{
    Engine, EngineError,
    garbage::{self, GarbageReceiver},
    manifest::{Edit, PinRecord},
};

/// How often ages are looked at and moved pins are written.
const TICK: Duration = Duration::from_secs(1);
/// First pause after a failed flush; it doubles up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Starts the tasks of an engine. They hold it weakly: an engine that is dropped without shutdown goes away.
pub(crate) fn start(engine: &Arc<Engine>, garbage: GarbageReceiver) {
    let spawn = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stopping = engine.stopping.clone();
        engine.background.spawn(async move { stopping.run_until_cancelled(work).await });
    };
    spawn(Box::pin(flush_when_due(Arc::downgrade(engine))));
    spawn(Box::pin(housekeeping(Arc::downgrade(engine))));
    if let Some(archiver) = engine.archiver.clone() {
        spawn(Box::pin(async move { archiver.run().await }));
    }
    spawn(Box::pin(garbage::collect(garbage, engine.store.clone())));
}

async fn flush_when_due(engine: Weak<Engine>) {
    let mut pause = RETRY;
    loop {
        let Some(strong) = engine.upgrade() else { return };
        let due = strong.memtable.due(strong.clock.monotonic(), strong.config.flush_age);
        if due {
            match strong.flush().await {
                Ok(_) => pause = RETRY,
                Err(EngineError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, retry_in = ?pause, "the flush failed; rows stay in memory and in the log");
                    drop(strong);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
            continue;
        }
        let full = strong.memtable.full.clone();
        drop(strong);
        tokio::select! {
            () = full.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn housekeeping(engine: Weak<Engine>) {
    loop {
        tokio::time::sleep(TICK).await;
        let Some(engine) = engine.upgrade() else { return };
        engine.keep_house().await;
    }
}

impl Engine {
    /// Aborts idle transactions and writes moved pins.
    pub(crate) async fn keep_house(&self) {
        for idle in self.open.doom_idle(self.clock.monotonic(), self.config.transaction_max_age) {
            tracing::info!(history = %idle.history, transaction = %idle.number, "aborted an idle transaction");
            self.abort_transaction(idle.history, idle.number).await;
        }
        self.write_pins().await;
    }

    /// Writes the pins' marks to the manifest where they have moved. They are hints: an older mark holds more log.
    pub(crate) async fn write_pins(&self) {
        let mut written = self.pins_written.lock().await;
        let pins: Vec<PinRecord> = self.log.pins().iter().map(pin_record).collect();
        if *written != pins {
            match self.manifest.append(Edit::Pins(pins.clone())).await {
                Ok(()) => *written = pins,
                Err(error) => tracing::warn!(%error, "moved pins were not written; they are tried again"),
            }
        }
    }
}

fn pin_record(pin: &PinStatus) -> PinRecord {
    PinRecord { key: pin.key.clone(), acknowledged: pin.acknowledged, applied: pin.applied, restart: pin.restart }
}
