//! Pauses after failures: doubling, with jitter, so that many who failed together do not try again together.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// See the module.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    rng: SmallRng,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max: max.max(min), failures: 0, rng: SmallRng::seed_from_u64(seed) }
    }

    /// The next pause: between half and all of `min` doubled as often as it failed, at most `max`.
    pub(crate) fn next(&mut self) -> Duration {
        let full = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// Something went well.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut backoff = Backoff::new(min, max, 1);
        for failures in 0..100 {
            let full = min.saturating_mul(1 << failures.min(20)).min(max);
            let pause = backoff.next();
            assert!(pause >= full / 2 && pause <= full, "{pause:?} after {failures} failures");
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
