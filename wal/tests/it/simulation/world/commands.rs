//! What is asked of the log beside appends: syncs, rolls, truncation, pins; time that passes.

use std::{path::PathBuf, time::Duration};

use futures::FutureExt;
use rand::Rng;
use tailrace_wal::{CommitTime, LogError, Lsn, PinKey, PinState, Seq};

use super::{
    super::oracle::{Check, ensure},
    Command, OWN, PEER, World, segments,
};

impl World {
    pub(super) fn command(&mut self, is_sync: bool) -> Check {
        let before = self.oracle(|oracle| oracle.next_number());
        let Some(live) = &mut self.live else { return Ok(()) };
        let log = live.log.clone();
        let mut answer =
            async move { if is_sync { log.sync().await } else { log.roll().await.map(|()| Lsn::ZERO) } }.boxed();
        match (&mut answer).now_or_never() {
            None => live.commands.push(Command { is_sync, before, answer }),
            Some(Err(LogError::Poisoned { .. })) => {}
            Some(other) => return Err(format!("a command was answered at once: {other:?}")),
        }
        Ok(())
    }

    pub(super) fn pass_time(&mut self) {
        match self.random.random_range(0..5) {
            0 => self.clock.set_now(CommitTime(self.random.random_range(0..2_000_000_000_000_000))),
            _ => self.clock.advance(Duration::from_millis(self.random.random_range(1..900))),
        }
    }

    pub(super) fn truncate(&mut self) -> Check {
        let Some(live) = &self.live else { return Ok(()) };
        let (durable, first) = self.oracle(|oracle| (oracle.durable, oracle.first));
        let flushed = match self.random.random_range(0..3) {
            0 => durable,
            _ => Lsn(self.random.random_range(first.0 - 1..=durable.0.max(first.0 - 1))),
        };
        self.flushed = self.flushed.max(flushed);
        let flushed = self.flushed;
        let first_open = self.oracle(|oracle| oracle.first_needed().unwrap_or(Lsn(u64::MAX)));
        let mut limit = flushed.next().min(first_open);
        for status in live.log.pins() {
            if matches!(status.state, PinState::Lost { .. }) {
                continue;
            }
            let needed = self.oracle(|oracle| {
                let start = oracle.commit_lsn(status.key.history, status.restart);
                oracle.of_history(status.key.history).map(|(lsn, _)| lsn).find(|lsn| *lsn > start)
            });
            limit = limit.min(needed.unwrap_or(limit));
        }
        // Segments that lie below wholly, but never the one that is written.
        let firsts: Vec<_> = self.segments().into_iter().map(|(first, _)| first).collect();
        let expected = firsts.into_iter().filter(|start| *start <= limit).max().unwrap_or(first).max(first);
        self.oracle(|oracle| oracle.truncates_to = Some(expected));
        let result = live.log.truncate(flushed);
        match result {
            Ok(now) => {
                // A pin whose records cannot be looked up holds everything.
                let is_right = now == expected || (self.disk.fired().is_some() && now <= expected);
                ensure!(is_right, "truncated up to {now}, {expected} is right (flushed {flushed})");
                self.oracle(|oracle| {
                    oracle.first = now;
                    oracle.first_left = now;
                    oracle.truncates_to = None;
                });
                self.sums(|sums| sums.truncations += u64::from(now > first));
                self.larges_check()
            }
            Err(LogError::Io { .. }) => {
                ensure!(self.disk.fired().is_some(), "truncate failed without a failure");
                // How far it came is what is left.
                let now = live.log.status().first;
                ensure!(first <= now && now <= expected, "truncated up to {now}, {expected} is right");
                self.oracle(|oracle| {
                    oracle.first = now;
                    oracle.truncates_to = None;
                });
                Ok(())
            }
            Err(error) => Err(format!("truncate: {error}")),
        }
    }

    fn larges_check(&self) -> Check {
        let first = self.oracle(|oracle| oracle.first);
        ensure!(
            self.oracle(|oracle| oracle.first_needed()).is_none_or(|open| open >= first),
            "an open transaction was truncated"
        );
        Ok(())
    }

    /// Segments by their first LSN.
    fn segments(&self) -> Vec<(Lsn, PathBuf)> {
        segments(&self.disk)
    }

    pub(super) fn pin(&mut self) -> Check {
        let Some(live) = &mut self.live else { return Ok(()) };
        let history = [OWN[0], OWN[1], PEER][self.random.random_range(0..3)];
        let mut watcher = self.watcher.lock();
        let oracle = &mut watcher.oracle;
        let (from, to) = (
            oracle.retained_after(history),
            oracle.folds.get(&history).map_or(Seq::ZERO, |fold| fold.end.position.seq),
        );
        let restart = Seq(self.random.random_range(from.0..=to.0.max(from.0)));
        let key = PinKey { feed: format!("replica/{}", self.random.random_range(0..2)), history };
        match self.random.random_range(0..6) {
            0 | 1 => {
                let pin = live.log.pin(key.clone(), restart, restart).map_err(|error| format!("pin: {error}"));
                if self.disk.fired().is_some() && pin.is_err() {
                    return Ok(());
                }
                live.pins.insert(key, (pin?, restart));
            }
            2..5 => {
                if let Some((pin, at)) = live.pins.get_mut(&key) {
                    *at = restart.max(*at);
                    pin.advance(restart, restart, restart);
                }
            }
            _ => {
                live.pins.remove(&key);
                live.log.forget_pin(&key);
            }
        }
        Ok(())
    }
}
