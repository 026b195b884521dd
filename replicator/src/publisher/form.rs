//! Which form a replica's chunks get: raw, or compressed with zstd. Decided from what was measured, without I/O.

use std::{collections::VecDeque, time::Duration};

use super::figures::CompressionSpeed;
use crate::{CompressionPolicy, wire::Compression};

/// Compressed is begun when it promises to carry so much more …
const GAIN_ENTER: f64 = 1.4;
/// … and ended when it carries less than this.
const GAIN_LEAVE: f64 = 1.1;
/// A form is kept for so long at least.
const DWELL: Duration = Duration::from_secs(2);
/// What is known of compression is refreshed with one chunk, while raw is sent and the knowledge is older than this.
const PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// A link so many times faster than compression needs no probe.
const HOPELESS: f64 = 4.0;

/// Delivery of fewer bytes says nothing about a link.
const SAMPLE_BYTES_MIN: u64 = 256 << 10;
/// The fastest of so many deliveries counts: acknowledgements may come late, never early.
const SAMPLES: usize = 16;

/// How fast a connection delivers.
#[derive(Debug, Default)]
pub(crate) struct Gauge {
    delivered: u64,
    rates: VecDeque<f64>,
}

/// Something is on its way since then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Departure {
    at: Duration,
    delivered: u64,
}

impl Gauge {
    /// Something is sent.
    pub(crate) fn departs(&self, now: Duration) -> Departure {
        Departure { at: now, delivered: self.delivered }
    }

    /// The peer has acknowledged all of it, `bytes`.
    pub(crate) fn arrived(&mut self, departure: Departure, bytes: u64, now: Duration) {
        self.delivered += bytes;
        let meanwhile = self.delivered - departure.delivered;
        let seconds = now.saturating_sub(departure.at).as_secs_f64();
        if meanwhile < SAMPLE_BYTES_MIN || seconds <= 0.0 {
            return;
        }
        if self.rates.len() == SAMPLES {
            self.rates.pop_front();
        }
        self.rates.push_back(meanwhile as f64 / seconds);
    }

    /// Bytes per second that were acknowledged; `None` before anything of size was.
    pub(crate) fn bytes_per_second(&self) -> Option<f64> {
        self.rates.iter().copied().reduce(f64::max)
    }
}

/// A replica's form.
#[derive(Debug)]
pub(crate) struct Choice {
    policy: CompressionPolicy,
    form: Compression,
    since: Duration,
    probed: Duration,
}

impl Choice {
    pub(crate) fn new(policy: CompressionPolicy, now: Duration) -> Self {
        let form = match policy {
            CompressionPolicy::None => Compression::Raw,
            // Until something was measured: the slow link is the one on which a wrong guess costs.
            CompressionPolicy::Auto | CompressionPolicy::Zstd => Compression::Zstd,
        };
        Self { policy, form, since: now, probed: now }
    }

    /// The form that is chosen now.
    pub(crate) fn form(&self) -> Compression {
        self.form
    }

    /// The form of the next chunk. `link`: bytes per second that the connection delivers.
    pub(crate) fn next(&mut self, link: Option<f64>, speed: Option<CompressionSpeed>, now: Duration) -> Compression {
        let (CompressionPolicy::Auto, Some(link), Some(speed)) = (self.policy, link, speed) else { return self.form };
        // Raw carries what the link does; compressed, what is compressed in that time, at most what the link carries of it.
        let gain = (speed.bytes_per_second / link).min(speed.ratio);
        let wanted = match self.form {
            Compression::Raw if gain > GAIN_ENTER => Compression::Zstd,
            Compression::Zstd if gain < GAIN_LEAVE => Compression::Raw,
            form => form,
        };
        if wanted != self.form && now.saturating_sub(self.since) >= DWELL {
            (self.form, self.since) = (wanted, now);
        }
        let is_stale = now.saturating_sub(speed.measured.max(self.probed)) >= PROBE_INTERVAL;
        if self.form == Compression::Raw && is_stale && link < speed.bytes_per_second * HOPELESS {
            self.probed = now;
            return Compression::Zstd;
        }
        self.form
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    fn speed(bytes_per_second: f64, ratio: f64, seconds: u64) -> Option<CompressionSpeed> {
        Some(CompressionSpeed { bytes_per_second, ratio, measured: Duration::from_secs(seconds) })
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_set_is_kept() {
        for (policy, form) in
            [(CompressionPolicy::None, Compression::Raw), (CompressionPolicy::Zstd, Compression::Zstd)]
        {
            let mut choice = Choice::new(policy, at(0));
            for (second, link) in [(1, 1.0), (10, 1e12), (1_000, 1.0)] {
                assert_eq!(choice.next(Some(link), speed(300.0 * MB, 4.0, second), at(second)), form);
            }
        }
    }

    #[test]
    fn a_slow_link_gets_zstd_and_a_fast_one_raw() {
        let mut choice = Choice::new(CompressionPolicy::Auto, at(0));
        assert_eq!(choice.next(None, None, at(1)), Compression::Zstd, "nothing is known");
        assert_eq!(choice.next(Some(12.0 * MB), speed(300.0 * MB, 4.0, 2), at(3)), Compression::Zstd);
        assert_eq!(choice.next(Some(900.0 * MB), speed(300.0 * MB, 4.0, 4), at(4)), Compression::Raw);
        assert_eq!(choice.next(Some(12.0 * MB), speed(300.0 * MB, 4.0, 4), at(10)), Compression::Zstd);
        // Nothing is gained where nothing is compressible.
        assert_eq!(choice.next(Some(12.0 * MB), speed(300.0 * MB, 1.0, 12), at(13)), Compression::Raw);
    }

    #[test]
    fn it_does_not_flap() {
        let mut choice = Choice::new(CompressionPolicy::Auto, at(0));
        let mut changes = 0;
        for second in 1..1_000 {
            // Around the speed of compression, by a tenth either way.
            let link = if second % 2 == 0 { 235.0 } else { 265.0 } * MB;
            let before = choice.form();
            choice.next(Some(link), speed(300.0 * MB, 4.0, second), at(second));
            changes += u32::from(choice.form() != before);
        }
        assert!(changes <= 1, "{changes} changes");
        // And never twice within the least time.
        let mut choice = Choice::new(CompressionPolicy::Auto, at(0));
        assert_eq!(choice.next(Some(900.0 * MB), speed(300.0 * MB, 4.0, 5), at(5)), Compression::Raw);
        assert_eq!(choice.next(Some(1.0 * MB), speed(300.0 * MB, 4.0, 6), at(6)), Compression::Raw);
        assert_eq!(choice.next(Some(1.0 * MB), speed(300.0 * MB, 4.0, 7), at(7)), Compression::Zstd);
    }

    #[test]
    fn raw_is_questioned_once_a_minute_by_one_chunk() {
        let mut choice = Choice::new(CompressionPolicy::Auto, at(0));
        let slow = speed(100.0 * MB, 4.0, 4);
        assert_eq!(choice.next(Some(300.0 * MB), slow, at(5)), Compression::Raw);
        assert_eq!(choice.next(Some(300.0 * MB), slow, at(40)), Compression::Raw);
        assert_eq!(choice.next(Some(300.0 * MB), slow, at(65)), Compression::Zstd);
        assert_eq!(choice.next(Some(300.0 * MB), slow, at(66)), Compression::Raw);
        assert_eq!(choice.form(), Compression::Raw);
        // This link is so fast that it would be in vain.
        assert_eq!(choice.next(Some(500.0 * MB), slow, at(600)), Compression::Raw);
    }

    #[test]
    fn the_fastest_delivery_counts_and_small_ones_do_not() {
        let mut gauge = Gauge::default();
        let departure = gauge.departs(at(1));
        gauge.arrived(departure, 1_000, at(2));
        assert_eq!(gauge.bytes_per_second(), None);
        // Two that overlap: each saw what arrived while it was under way.
        let (first, second) = (gauge.departs(at(10)), gauge.departs(at(10)));
        gauge.arrived(first, 1 << 20, at(11));
        gauge.arrived(second, 1 << 20, at(12));
        assert_eq!(gauge.bytes_per_second(), Some(f64::from(1 << 20)));
        for step in 0..SAMPLES as u64 {
            let departure = gauge.departs(at(20 + step * 10));
            gauge.arrived(departure, 1 << 20, at(22 + step * 10));
        }
        assert_eq!(gauge.bytes_per_second(), Some(f64::from(1 << 19)), "it has become slower");
    }
}
