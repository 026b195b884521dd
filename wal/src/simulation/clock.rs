//! Time that moves when it is told to.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{Clock, CommitTime};

/// A clock that stands still until it is moved, and whose random numbers follow from a seed. Clones share it.
#[derive(Debug, Clone)]
pub struct SimulatedClock {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    now: CommitTime,
    monotonic: Duration,
    random: StdRng,
}

impl SimulatedClock {
    /// A clock at 2023-01-08, 00:00 UTC.
    pub fn new(seed: u64) -> Self {
        let (now, monotonic, random) = (CommitTime(1_673_136_000_000_000), Duration::ZERO, StdRng::seed_from_u64(seed));
        Self { state: Arc::new(Mutex::new(State { now, monotonic, random })) }
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock();
        state.monotonic += by;
        state.now = CommitTime(state.now.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)));
    }

    /// The wall clock jumps; monotonic time does not.
    pub fn set_now(&self, now: CommitTime) {
        self.state.lock().now = now;
    }
}

impl Clock for SimulatedClock {
    fn now(&self) -> CommitTime {
        self.state.lock().now
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().monotonic
    }

    fn random(&self) -> u64 {
        self.state.lock().random.random()
    }
}
