//! How fast a history moves, on either side.

use std::{collections::VecDeque, time::Duration};

use tailrace_wal::Seq;

/// Over how long rates are taken.
const WINDOW: Duration = Duration::from_secs(10);
/// Least time between two samples.
const SAMPLE: Duration = Duration::from_millis(250);

/// A seq that grows, over the last [`WINDOW`]. Times are monotonic.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rate {
    samples: VecDeque<(Duration, Seq)>,
}

impl Rate {
    /// It is at `seq` now.
    pub(crate) fn sample(&mut self, seq: Seq, now: Duration) {
        match self.samples.back() {
            // After a repair it may begin anew, further back.
            Some((_, last)) if seq < *last => self.samples.clear(),
            Some((at, _)) if now.saturating_sub(*at) < SAMPLE => return,
            _ => {}
        }
        self.samples.push_back((now, seq));
        while self.samples.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Transactions per second since the oldest sample.
    pub(crate) fn per_second(&self, now: Duration) -> f64 {
        let (Some((from, first)), Some((_, last))) = (self.samples.front(), self.samples.back()) else { return 0.0 };
        let seconds = now.saturating_sub(*from).as_secs_f64();
        if seconds > 0.0 { last.0.saturating_sub(first.0) as f64 / seconds } else { 0.0 }
    }
}

/// Time until `tasks` are done when so many come and go per second; `None` when that would never be.
pub(crate) fn catch_up(tasks: u64, produced: f64, consumed: f64) -> Option<Duration> {
    if tasks == 0 {
        return Some(Duration::ZERO);
    }
    let gained = consumed - produced;
    (gained > 0.0).then(|| Duration::try_from_secs_f64(tasks as f64 / gained).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let at = |millis| Duration::from_millis(1_000_000 + millis);
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(at(0)), 0.0);
        for step in 0..=400 {
            rate.sample(Seq(step * 5), at(step * 50));
        }
        // 5 every 50 ms.
        let measured = rate.per_second(at(20_000));
        assert!(measured > 95.0 && measured < 105.0, "{measured}");
        assert!(rate.samples.len() <= 41);
        rate.sample(Seq(7), at(20_100));
        assert_eq!(rate.per_second(at(21_000)), 0.0, "begun anew");
    }

    #[test]
    fn the_time_to_catch_up_follows_from_both_rates() {
        assert_eq!(catch_up(100, 10.0, 20.0), Some(Duration::from_secs(10)));
        assert_eq!(catch_up(100, 20.0, 20.0), None);
        assert_eq!(catch_up(0, 20.0, 0.0), Some(Duration::ZERO));
    }
}
