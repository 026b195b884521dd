//! How far a followed database is behind its primary, and whether it moves.
//!
//! Ages are measured with this node's monotonic clock from the moment when a transaction was first heard of, so that two
//! sites whose clocks differ do not see lag where there is none. What is not known is `None`, never zero.

use std::{collections::VecDeque, time::Duration};

use tailrace_wal::Seq;

use crate::{
    ReplicationLag,
    rate::{Rate, catch_up},
};

/// A primary says how it stands once a second; unheard for longer, nothing is known of it.
pub(crate) const HEARD_MAX: Duration = Duration::from_secs(5);
/// Marks kept of what was heard of and is not applied. When there are more, the newest stands for all after it: what is
/// shown is the age of the oldest.
const MARKS_MAX: usize = 256;

/// Nothing is missing.
const NONE: ReplicationLag =
    ReplicationLag { tasks: 0, bytes: Some(0), age: Duration::ZERO, catch_up: Some(Duration::ZERO) };

/// See the module. All times are monotonic.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lag {
    /// When the primary last said how it stands.
    heard: Option<Duration>,
    primary: Seq,
    applied: Seq,
    behind_bytes: u64,
    /// Seqs not applied, and when each was first heard of.
    marks: VecDeque<(Seq, Duration)>,
    /// When it last moved, or had nothing to move on to.
    moved: Duration,
    produced: Rate,
    consumed: Rate,
}

impl Lag {
    /// At `applied`, nothing heard of the primary.
    pub(crate) fn new(applied: Seq, now: Duration) -> Self {
        Self { applied, moved: now, ..Self::default() }
    }

    /// The primary's history has come to `seq`; `behind_bytes` of its log are not acknowledged, if it says that.
    pub(crate) fn heard(&mut self, seq: Seq, behind_bytes: Option<u64>, now: Duration) {
        self.heard = Some(now);
        self.behind_bytes = behind_bytes.unwrap_or(self.behind_bytes);
        self.primary = seq;
        self.produced.sample(seq, now);
        if seq <= self.applied {
            return;
        }
        if self.marks.is_empty() {
            self.moved = now;
        }
        let is_full = self.marks.len() >= MARKS_MAX;
        match self.marks.back_mut() {
            Some((last, _)) if *last >= seq => {}
            Some((last, _)) if is_full => *last = seq,
            _ => self.marks.push_back((seq, now)),
        }
    }

    /// Everything up to `seq` is readable here. It goes back after a repair.
    pub(crate) fn applied(&mut self, seq: Seq, now: Duration) {
        if seq != self.applied {
            self.moved = now;
        }
        self.applied = seq;
        self.consumed.sample(seq, now);
        while self.marks.front().is_some_and(|(mark, _)| *mark <= seq) {
            self.marks.pop_front();
        }
    }

    /// The session is over: what the primary does is not known any more.
    pub(crate) fn lost_sight(&mut self) {
        self.heard = None;
    }

    /// For how long it has stood still with something to move on to.
    pub(crate) fn stuck(&self, now: Duration) -> Option<Duration> {
        (!self.marks.is_empty()).then(|| now.saturating_sub(self.moved))
    }

    /// As it is shown; `None` when nothing was heard of the primary lately.
    pub(crate) fn show(&self, now: Duration) -> Option<ReplicationLag> {
        self.heard.filter(|heard| now.saturating_sub(*heard) <= HEARD_MAX)?;
        let tasks = self.primary.0.saturating_sub(self.applied.0);
        if tasks == 0 {
            return Some(NONE);
        }
        Some(ReplicationLag {
            tasks,
            bytes: Some(self.behind_bytes),
            age: self.marks.front().map_or(Duration::ZERO, |(_, at)| now.saturating_sub(*at)),
            catch_up: catch_up(tasks, self.produced.per_second(now), self.consumed.per_second(now)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(1_000_000 + millis)
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let mut lag = Lag::new(Seq(5), at(0));
        assert_eq!(lag.show(at(0)), None);
        lag.heard(Seq(5), Some(0), at(10));
        assert_eq!(lag.show(at(20)), Some(NONE));
        assert_eq!(lag.show(at(20) + HEARD_MAX), None, "nothing heard for long");
        lag.heard(Seq(5), None, at(30_000));
        lag.lost_sight();
        assert_eq!(lag.show(at(30_001)), None);
    }

    #[test]
    fn the_age_is_that_of_the_oldest_transaction_that_is_not_applied() {
        let mut lag = Lag::new(Seq(0), at(0));
        lag.heard(Seq(10), Some(700), at(100));
        lag.heard(Seq(20), None, at(400));
        let shown = lag.show(at(500)).unwrap();
        assert_eq!((shown.tasks, shown.bytes, shown.age), (20, Some(700), Duration::from_millis(400)));
        lag.applied(Seq(10), at(500));
        assert_eq!(lag.show(at(600)).unwrap().age, Duration::from_millis(200));
        lag.applied(Seq(20), at(700));
        assert_eq!(lag.show(at(700)), Some(NONE));
        for seq in 21..2_000 {
            lag.heard(Seq(seq), None, at(1_000 + seq));
        }
        assert!(lag.marks.len() <= MARKS_MAX);
        assert_eq!(lag.show(at(4_000)).unwrap().age, at(4_000) - at(1_021));
        lag.applied(Seq(1_999), at(4_100));
        assert!(lag.marks.is_empty());
    }

    #[test]
    fn it_is_stuck_only_with_something_to_do() {
        let mut lag = Lag::new(Seq(3), at(0));
        assert_eq!(lag.stuck(at(60_000)), None);
        lag.heard(Seq(4), None, at(60_000));
        assert_eq!(lag.stuck(at(61_000)), Some(Duration::from_secs(1)));
        lag.applied(Seq(4), at(62_000));
        assert_eq!(lag.stuck(at(63_000)), None);
    }

    #[test]
    fn the_time_to_catch_up_follows_from_both_rates() {
        let mut lag = Lag::new(Seq(0), at(0));
        for second in 0..=10 {
            lag.heard(Seq(1_000 + second * 10), None, at(second * 1_000));
            lag.applied(Seq(second * 30), at(second * 1_000));
        }
        // 1,100 there, 300 here; 20 a second are gained.
        let left = lag.show(at(10_000)).unwrap().catch_up.unwrap();
        assert!(left > Duration::from_secs(39) && left < Duration::from_secs(41), "{left:?}");
    }
}
