//! Interleaved rounds: every contender once a round, in an order that turns, so that a slow minute of the machine hits
//! all of them alike. What counts is the ratio of medians.

use std::{collections::BTreeMap, time::Duration};

/// Measurements by contender, in seconds.
#[derive(Default)]
pub struct Rounds {
    measured: BTreeMap<&'static str, Vec<f64>>,
}

impl Rounds {
    /// Runs each contender `rounds` times, after one round that is not counted.
    pub fn run(rounds: usize, contenders: &mut [(&'static str, &mut dyn FnMut() -> Duration)]) -> Self {
        let mut all = Self::default();
        for round in 0..=rounds {
            for place in 0..contenders.len() {
                let at = (place + round) % contenders.len();
                let (name, contender) = &mut contenders[at];
                let took = contender().as_secs_f64();
                if round > 0 {
                    all.measured.entry(name).or_default().push(took);
                }
            }
        }
        all
    }

    /// Median, seconds.
    pub fn median(&self, name: &str) -> f64 {
        let mut measured = self.measured[name].clone();
        measured.sort_by(f64::total_cmp);
        measured[measured.len() / 2]
    }

    /// Smallest and largest, seconds.
    pub fn range(&self, name: &str) -> (f64, f64) {
        let measured = &self.measured[name];
        (measured.iter().copied().fold(f64::INFINITY, f64::min), measured.iter().copied().fold(0.0, f64::max))
    }
}

/// The value below which half of `values` lie.
pub fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}
