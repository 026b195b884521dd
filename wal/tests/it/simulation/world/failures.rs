//! Failures that are planned and ended, and bits that flip.

use rand::Rng;
use tailrace_wal::{LogError, Lsn, Persistence, Run, simulation::Failure};

use super::{
    super::oracle::{Check, ensure},
    PEER, Watcher, World, open,
};

impl World {
    /// Plans a failure, or ends one.
    pub(super) fn arm(&mut self) -> Check {
        self.step()?;
        let after = self.random.random_range(0..6);
        let what = self.random.random_range(0..10);
        self.is_harmed |= what < 5;
        match what {
            0..2 => self.disk.fail_call(after, Failure::Broken),
            2..5 => self.disk.fail_call(after / 3, Failure::DropsPages),
            5..7 => {
                self.disk.fail_call(after / 3, Failure::Full);
                self.oracle(|oracle| oracle.may_refuse = true);
            }
            7 => {
                let more = self.random.random_range(0..30_000);
                self.disk.set_capacity(Some(self.disk.used_bytes() + more));
                self.oracle(|oracle| oracle.may_refuse = true);
                self.is_short = true;
            }
            _ => self.make_space()?,
        }
        Ok(())
    }

    /// There is space again: writes must resume.
    fn make_space(&mut self) -> Check {
        self.disk.heal();
        self.disk.set_capacity(None);
        self.step()?;
        self.settle()?;
        self.is_short = false;
        self.oracle(|oracle| {
            oracle.may_refuse = false;
            oracle.refused = 0;
        });
        // Transactions may have lost a fragment that was refused.
        self.resync();
        let is_poisoned = self.live.as_ref().is_some_and(|live| live.log.status().poisoned);
        if !is_poisoned {
            let before = self.oracle(|oracle| oracle.appended());
            self.append(Persistence::Sync)?;
            self.step()?;
            self.settle()?;
            ensure!(self.oracle(|oracle| oracle.durable > before), "writes do not resume");
        }
        Ok(())
    }

    /// Takes transactions and the peer's place from what was really written.
    pub(super) fn resync(&mut self) {
        let watcher = self.watcher.lock();
        let oracle = &watcher.oracle;
        self.larges.retain(|large| {
            let Some(fold) = oracle.folds.get(&large.history) else { return large.fragments.is_empty() };
            let open = fold.open.iter().find(|((_, number), _)| *number == large.number);
            open.map_or(0, |(_, open)| open.fragments as usize) == large.fragments.len()
        });
        drop(watcher);
        self.hears_late = self.random.random_bool(0.5);
        if !self.hears_late {
            self.resync_peer();
        }
    }

    /// The feed goes on from what is there.
    pub(super) fn resync_peer(&mut self) {
        self.run = Run::new();
        self.hears_late = false;
        let watcher = self.watcher.lock();
        let oracle = &watcher.oracle;
        let last = oracle.entries.iter().rev().find(|entry| entry.facts.history == PEER);
        let last = last.and_then(|entry| entry.facts.verbatim);
        let at = last.and_then(|last| self.peer.records.iter().rposition(|record| record.header == last));
        self.sent = at.map_or(0, |at| at + 1);
    }

    /// Flips a bit in a copy, as if the process had died and the disk had rotted, and opens it.
    pub(super) fn damage(&mut self) -> Check {
        let mut watcher = self.watcher.lock();
        let Watcher { oracle, config, sums, random, .. } = &mut *watcher;
        let copy = self.disk.fork();
        copy.set_capacity(None);
        let Some((path, _)) = copy.flip_any(random, |path| path.extension().is_some_and(|end| end == "wal")) else {
            return Ok(());
        };
        let floor = if random.random_bool(0.5) { oracle.durable } else { Lsn::ZERO };
        let named = |error: &LogError| match error {
            LogError::Corrupt { path: named, .. } | LogError::UnknownFormat { path: named, .. } => *named == path,
            LogError::EndsBefore { .. } => floor > Lsn::ZERO,
            LogError::UnknownRecordKind { .. } => true,
            _ => false,
        };
        sums.counts.merge(&copy.counts());
        let (log, _stepper, recovery) = match open(&copy, config, floor, random.random()) {
            Ok(opened) => opened,
            Err(error) => {
                ensure!(named(&error), "damage in {} is told as: {error}", path.display());
                sums.damages_refused += 1;
                return Ok(());
            }
        };
        if recovery.last < oracle.appended() {
            ensure!(recovery.last >= floor, "cut at {}, {floor} was known to be durable", recovery.last);
            ensure!(recovery.torn.is_some(), "records were cut and nothing was said");
            let damaged = recovery.last.next();
            let mut later = oracle.entries.iter().skip(damaged.0 as usize);
            ensure!(
                later.all(|entry| entry.stated < damaged),
                "{damaged} was cut, and later records state that it was durable"
            );
            sums.damages_cut += 1;
        }
        let mut tail = log.replay(Lsn(recovery.first.0.saturating_sub(1))).map_err(|error| error.to_string())?;
        let mut next = recovery.first;
        loop {
            match tail.try_next() {
                Ok(Some(frame)) => {
                    ensure!(frame.lsn == next, "{} is read as {next}", frame.lsn);
                    if let Some(entry) = oracle.entry(next) {
                        entry.check(&frame)?;
                    }
                    next = next.next();
                }
                Ok(None) => {
                    ensure!(next == recovery.last.next(), "reads end before {next}, the log at {}", recovery.last);
                    return Ok(());
                }
                Err(error) => {
                    ensure!(named(&error), "damage in {} is read as: {error}", path.display());
                    sums.damages_refused += 1;
                    return Ok(());
                }
            }
        }
    }
}
