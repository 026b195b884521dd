//! A token bucket: so many bytes per second, in the mean.

use std::time::Duration;

/// What may be sent at once after a pause.
const BURST: Duration = Duration::from_millis(100);
/// At least so much: what is taken at a time must fit.
const BURST_BYTES_MIN: f64 = (TAKE_BYTES_MAX * 2) as f64;
/// Most bytes that are taken at a time.
pub(crate) const TAKE_BYTES_MAX: usize = 32 << 10;

/// See the module. Times are monotonic.
#[derive(Debug)]
pub(crate) struct Bucket {
    bytes_per_second: f64,
    burst: f64,
    tokens: f64,
    at: Duration,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(bytes_per_second: u64, now: Duration) -> Self {
        let bytes_per_second = bytes_per_second.max(1) as f64;
        let burst = (bytes_per_second * BURST.as_secs_f64()).max(BURST_BYTES_MIN);
        Self { bytes_per_second, burst, tokens: burst, at: now }
    }

    /// Takes so many bytes, at most [`TAKE_BYTES_MAX`]; an error says how long to wait before trying again.
    pub(crate) fn take(&mut self, bytes: usize, now: Duration) -> Result<(), Duration> {
        let gained = now.saturating_sub(self.at).as_secs_f64() * self.bytes_per_second;
        self.tokens = (self.tokens + gained).min(self.burst);
        self.at = self.at.max(now);
        let lacking = bytes as f64 - self.tokens;
        if lacking > 0.0 {
            return Err(Duration::from_secs_f64(lacking / self.bytes_per_second).max(Duration::from_millis(1)));
        }
        self.tokens -= bytes as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_rate_and_one_burst_in_any_time() {
        for rate in [1 << 16, 1_000_000, 1 << 30] {
            let mut now = Duration::from_secs(7);
            let mut bucket = Bucket::new(rate, now);
            let (began, mut sent) = (now, 0u64);
            for step in 0..10_000usize {
                let bytes = 1 + step * 7_919 % TAKE_BYTES_MAX;
                while let Err(wait) = bucket.take(bytes, now) {
                    now += wait;
                }
                sent += bytes as u64;
                let allowed = (now - began).as_secs_f64() * rate as f64 + (rate as f64 / 10.0).max(BURST_BYTES_MIN);
                assert!(sent as f64 <= allowed + 1.0, "{sent} of {allowed} at {rate}");
            }
            // Nor much less: a millisecond is the least that is waited.
            let seconds = (now - began).as_secs_f64();
            assert!(sent as f64 + rate as f64 * 0.11 >= seconds * rate as f64, "{sent} in {seconds} s at {rate}");
        }
    }

    #[test]
    fn a_pause_gives_one_burst() {
        let mut bucket = Bucket::new(1_000_000, Duration::ZERO);
        let later = Duration::from_secs(3_600);
        let mut taken = 0;
        while bucket.take(1_000, later).is_ok() {
            taken += 1_000;
        }
        assert_eq!(taken, 100_000);
    }
}
