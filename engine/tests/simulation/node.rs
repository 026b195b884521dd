//! A node on a simulated disk.

use std::{path::Path, sync::Arc, time::Duration};

use rand::rngs::StdRng;
use tailrace_engine::{
    Engine, EngineConfig, EngineError, EngineSeams,
    simulation::{PlantedBug, Simulation},
};
use tailrace_wal::simulation::{Call, FaultCounts, SimulatedClock, SimulatedDisk};

/// How a node goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// In good order.
    Shutdown,
    /// The process alone ends.
    Kill,
    /// What is not synced may be lost.
    PowerLoss,
}

pub(crate) struct Node {
    pub(crate) disk: SimulatedDisk,
    pub(crate) clock: SimulatedClock,
    pub(crate) planted: Option<PlantedBug>,
    engine: Option<Arc<Engine>>,
    /// Of disks that are no more.
    pub(crate) counts: FaultCounts,
    /// Their calls.
    pub(crate) trace: Vec<Call>,
}

pub(crate) fn config(planted: Option<PlantedBug>) -> EngineConfig {
    let mut config = EngineConfig::new(Path::new("/node"));
    config.wal.segment_bytes = 16 << 10;
    config.wal.sync_interval = Duration::from_secs(3600);
    config.flush_age = Duration::from_secs(3600);
    config.fragment_bytes = 2_000;
    config.simulation = Simulation { planted, by_hand: true, small_manifest: true };
    config
}

pub(crate) async fn open_on(
    disk: &SimulatedDisk,
    clock: &SimulatedClock,
    planted: Option<PlantedBug>,
) -> Result<Arc<Engine>, EngineError> {
    let seams = EngineSeams { disk: disk.shared(), clock: Arc::new(clock.clone()) };
    Ok(Engine::open(config(planted), seams).await?.0)
}

impl Node {
    pub(crate) fn new(seed: u64, planted: Option<PlantedBug>) -> Self {
        let disk = SimulatedDisk::new(seed);
        disk.keep_trace();
        Self {
            disk,
            clock: SimulatedClock::new(seed),
            planted,
            engine: None,
            counts: FaultCounts::default(),
            trace: Vec::new(),
        }
    }

    pub(crate) fn engine(&self) -> Arc<Engine> {
        self.engine.clone().unwrap()
    }

    pub(crate) async fn open(&mut self) -> Result<(), EngineError> {
        match open_on(&self.disk, &self.clock, self.planted).await {
            Ok(engine) => {
                self.engine = Some(engine);
                Ok(())
            }
            Err(error) => {
                settle().await;
                Err(error)
            }
        }
    }

    /// The engine ends; the disk is what the end leaves of it. After [`End::Shutdown`] the caller has shut it down.
    pub(crate) async fn end(&mut self, end: End, random: &mut StdRng) {
        self.end_with(end, random, || ()).await;
    }

    /// The same, with what else ends between.
    pub(crate) async fn end_with(&mut self, end: End, random: &mut StdRng, clients: impl FnOnce()) {
        // What is left of the process after this is no part of it.
        let trace = self.disk.trace();
        let next = match end {
            End::Shutdown => None,
            End::Kill => Some(self.disk.fork()),
            End::PowerLoss => Some(self.disk.image(random)),
        };
        if next.is_some() {
            self.disk.power_off();
        }
        clients();
        if let Some(engine) = self.engine.take() {
            // What is under way ends by itself: every call of the disk fails.
            for _ in 0..10_000 {
                if Arc::strong_count(&engine) == 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(Arc::strong_count(&engine), 1, "something holds the engine");
            drop(engine);
        }
        settle().await;
        if let Some(next) = next {
            self.counts.merge(&self.disk.counts());
            self.trace.extend(trace);
            self.disk = next;
        }
    }

    pub(crate) fn all_counts(&self) -> FaultCounts {
        let mut counts = self.counts.clone();
        counts.merge(&self.disk.counts());
        counts
    }
}

/// Lets tasks that were left behind end.
pub(crate) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}
