//! How a log ends and is opened again.

use std::{collections::BTreeMap, sync::Arc};

use futures::FutureExt;
use rand::Rng;
use tailrace_wal::{
    CommitTime, FragmentNumber, HistoryEnd, Log, LogError, Lsn, Payload, Persistence, Position, Record, RecordKind,
    Recovery,
    simulation::{Failure, Stepper},
};

use super::{
    super::oracle::{Check, ensure},
    Live, OWN, PEER, World, replay_all,
};
use crate::support::NODE;

impl World {
    /// Ends the log in some way and opens it again.
    pub(super) fn restart(&mut self) -> Check {
        match self.random.random_range(0..10) {
            0..3 => self.close()?,
            _ if self.plan.fails.is_some() => self.kill(),
            3..6 => self.kill(),
            _ => {
                self.crash()?;
                // Power that comes and goes.
                while self.random.random_bool(0.4) {
                    self.start()?;
                    for _ in 0..self.random.random_range(1..4) {
                        self.append(Persistence::Async)?;
                    }
                    self.step()?;
                    self.crash()?;
                }
            }
        }
        self.start()
    }

    pub(super) fn close(&mut self) -> Check {
        let Some(live) = &mut self.live else { return Ok(()) };
        let log = live.log.clone();
        let mut closing = async move { log.close().await }.boxed();
        let at_once = (&mut closing).now_or_never();
        self.step()?;
        self.settle()?;
        let is_poisoned = self.live.as_ref().is_some_and(|live| live.log.status().poisoned);
        match at_once.or_else(|| closing.now_or_never()) {
            Some(Ok(())) => {
                ensure!(!is_poisoned, "closed, and poisoned");
                let undone = self.oracle(|oracle| oracle.appended() > oracle.durable);
                ensure!(!undone, "closed with records that are not durable");
            }
            Some(Err(LogError::Poisoned { .. })) => ensure!(is_poisoned, "the status hides it"),
            Some(Err(error)) => return Err(format!("close: {error}")),
            None => return Err("close was not answered".into()),
        }
        self.kill();
        Ok(())
    }

    /// The process ends.
    fn kill(&mut self) {
        self.oracle(|oracle| {
            oracle.poll();
            oracle.ended();
        });
        let Some(live) = self.live.take() else { return };
        drop(live.commands);
        drop(live.stepper);
        drop(live.pins);
        drop(live.log);
        self.heal();
        self.disk.set_capacity(None);
        if self.random.random_bool(0.3) {
            self.disk.evict();
        }
    }

    /// The power goes.
    pub(super) fn crash(&mut self) -> Check {
        self.kill();
        self.disk.crash(&mut self.random);
        Ok(())
    }

    /// Opens the log, with failures on the way, until it is open.
    pub(super) fn start(&mut self) -> Check {
        for attempt in 0..4 {
            let fails = self.plan.faults && attempt < 3 && self.random.random_bool(0.3);
            if fails {
                let failure = [Failure::Broken, Failure::Full, Failure::DropsPages][self.random.random_range(0..3)];
                self.disk.fail_call(self.random.random_range(0..[20, 4, 3][failure as usize]), failure);
            }
            let floor = if self.random.random_bool(0.5) { self.oracle(|oracle| oracle.durable) } else { Lsn::ZERO };
            let opened =
                Log::open_stepped(self.config.clone(), NODE, floor, self.disk.shared(), Arc::new(self.clock.clone()));
            let has_failed = self.disk.fired().is_some();
            self.heal();
            if let Some(failure) = self.oracle(|oracle| oracle.failure.take()) {
                return Err(failure);
            }
            match opened {
                Ok((log, stepper, recovery)) => return self.started(log, stepper, recovery),
                Err(_) if has_failed => {
                    if self.random.random_bool(0.5) {
                        self.disk.crash(&mut self.random);
                    }
                }
                Err(error) => return Err(format!("refused to start: {error}")),
            }
        }
        Err("does not start".into())
    }

    /// Ends failures, except for the one that this life is about and that is still to come.
    fn heal(&self) {
        let fired = self.disk.fired();
        if self.plan.fails.is_none() || fired.is_some() {
            self.sums(|sums| sums.fired = sums.fired.or(fired));
            self.disk.heal();
        }
    }

    fn started(&mut self, log: Log, stepper: Stepper, recovery: Recovery) -> Check {
        let frames = replay_all(&log, &recovery);
        let frames = if frames.is_err() && self.disk.fired().is_some() {
            self.heal();
            replay_all(&log, &recovery)?
        } else {
            frames?
        };
        {
            let mut watcher = self.watcher.lock();
            let oracle = &mut watcher.oracle;
            let adopted = oracle.check_recovered(&recovery, &frames, oracle.durable)?;
            oracle.adopt(&recovery, adopted, log.durable())?;
            oracle.may_refuse = self.plan.fails.is_some();
            watcher.sums.records = watcher.oracle.entries.len() as u64;
            watcher.sums.starts += 1;
        }
        for history in [OWN[0], OWN[1], PEER] {
            let found = recovery.histories.iter().find(|found| found.end.position.history == history);
            // The manifest knows what was truncated.
            let known = self.oracle(|oracle| oracle.folds.get(&history).map(|fold| fold.end));
            let start = HistoryEnd { position: Position::start(history), commit_time: CommitTime(0) };
            let end = match found {
                Some(found) if known.is_none_or(|known| known.position.seq < found.end.position.seq) => found.end,
                _ => known.unwrap_or(start),
            };
            log.open_history(end).map_err(|error| format!("open history: {error}"))?;
        }
        self.live = Some(Live { log, stepper, commands: Vec::new(), pins: BTreeMap::new(), dies_in: None });
        self.is_short = false;
        self.is_harmed = self.plan.fails.is_some_and(|(_, failure)| failure != Failure::Full);
        self.larges.clear();
        self.resync();
        self.resync_peer();
        let found: Vec<_> = recovery
            .histories
            .iter()
            .filter(|found| OWN.contains(&found.end.position.history))
            .flat_map(|found| found.open.iter().map(|number| (found.end.position.history, *number)))
            .collect();
        for (history, number) in found {
            let record = Record {
                history,
                kind: RecordKind::Abort,
                transaction: Some(number),
                fragment: FragmentNumber(0),
                payload: Payload::empty(),
            };
            self.submit(record, true, Persistence::Async)?;
        }
        Ok(())
    }
}
