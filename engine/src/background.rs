//! Background work: flushes when they are due, idle transactions, pins, the archive, files that nothing names.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    Engine, EngineError,
    garbage::{self, GarbageReceiver},
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
        let due = strong.memtable.due(strong.clock.monotonic(), strong.config.flush_age) || strong.space.is_pressed();
        if due {
            match strong.flush().await {
                Ok(_) => pause = RETRY,
                Err(EngineError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, retry_in = ?pause, "the flush failed; rows stay in memory and in the log");
                    let freed = strong.space.freed.clone();
                    drop(strong);
                    tokio::select! {
                        // There may be space again.
                        () = freed.notified() => {}
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
            continue;
        }
        // Nothing of the engine is held while this waits.
        let (full, changed) = (strong.memtable.full.clone(), strong.space.changed.clone());
        drop(strong);
        tokio::select! {
            () = full.notified() => {}
            () = changed.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

async fn housekeeping(engine: Weak<Engine>) {
    loop {
        // The first round makes the reserve of a new node.
        if let Some(engine) = engine.upgrade() {
            engine.mind_space().await;
        }
        tokio::time::sleep(TICK).await;
        let Some(engine) = engine.upgrade() else { return };
        engine.keep_house().await;
    }
}

impl Engine {
    /// Ends what could not be ended for want of space, aborts idle transactions, frees log that dead feeds hold, and writes moved pins.
    pub(crate) async fn keep_house(&self) {
        self.retry_aborts().await;
        if let Err(error) = self.record_ends().await {
            tracing::error!(%error, "the end of a database was not recorded");
        }
        for idle in self.open.doom_idle(self.clock.monotonic(), self.config.transaction_max_age) {
            tracing::info!(history = %idle.history, transaction = %idle.number, "aborted an idle transaction");
            self.abort_transaction(idle.history, idle.number).await;
        }
        // A dead feed calls nothing by itself: its budgets are looked at here.
        self.retain_log().await;
        self.forget_points();
        self.paused_repairs.age(self.clock.monotonic());
        self.write_pins().await;
    }
}
