//! Everything is read in every way and compared.

use tailrace_wal::{LogError, Lsn, RecordKind, Seq};

use super::{
    super::oracle::{Check, ensure},
    OWN, PEER, World, replay_from,
};

impl World {
    /// Reads everything in every way and compares.
    pub(super) fn read(&mut self) -> Check {
        let Some(live) = &self.live else { return Ok(()) };
        // A call that is planned to fail would hit the readers.
        if self.disk.fired().is_none() && self.plan.faults && self.oracle(|oracle| oracle.may_refuse) && !self.is_short
        {
            return Ok(());
        }
        let log = &live.log;
        let watcher = self.watcher.lock();
        let oracle = &watcher.oracle;
        let frames = match replay_from(log, Lsn(oracle.first.0 - 1)) {
            Ok(frames) => frames,
            Err(LogError::Io { .. }) if self.disk.fired().is_some() => return Ok(()),
            Err(error) => return Err(format!("replay: {error}")),
        };
        let expected = oracle.retained().take_while(|(lsn, _)| *lsn <= oracle.durable);
        let expected: Vec<_> = expected.collect();
        ensure!(frames.len() == expected.len(), "{} frames are read, {} are durable", frames.len(), expected.len());
        for (frame, (lsn, entry)) in frames.iter().zip(&expected) {
            ensure!(frame.lsn == *lsn, "{} is read as {lsn}", frame.lsn);
            entry.check(frame)?;
        }
        for history in [OWN[0], OWN[1], PEER] {
            let retained_after = oracle.retained_after(history);
            let Some(fold) = oracle.folds.get(&history) else { continue };
            let end = fold.end.position;
            let said = log.retained_after(history);
            ensure!(said == Some(retained_after), "retained after {said:?}, {retained_after} is right");
            let said = log.history_end(history).map(|end| end.position);
            ensure!(said == Some(end), "history ends at {said:?}, {end} is right");
            if let Some(before) = retained_after.0.checked_sub(1) {
                let refused = log.tail(history, Seq(before));
                ensure!(matches!(refused, Err(LogError::Truncated { .. })), "a tail from before what is retained");
            }
            let after = Seq(retained_after.0 + (end.seq.0 - retained_after.0) * (oracle.next_number() % 4) / 4);
            let start = oracle.commit_lsn(history, after);
            let right: Vec<_> = expected
                .iter()
                .filter(|(lsn, entry)| entry.facts.history == history && *lsn > start)
                .map(|(lsn, _)| *lsn)
                .collect();
            let mut tail = match log.tail(history, after) {
                Ok(tail) => tail,
                Err(LogError::Io { .. }) if self.disk.fired().is_some() => return Ok(()),
                Err(error) => return Err(format!("tail after {after}: {error}")),
            };
            for lsn in right {
                match tail.try_next() {
                    Ok(Some(frame)) => ensure!(frame.lsn == lsn, "the tail gives {}, {lsn} is next", frame.lsn),
                    Ok(None) => return Err(format!("the tail ends before {lsn}")),
                    Err(LogError::Io { .. }) if self.disk.fired().is_some() => return Ok(()),
                    Err(error) => return Err(format!("tail: {error}")),
                }
            }
            let more = tail.try_next().map_err(|error| format!("tail: {error}"))?;
            ensure!(more.is_none(), "the tail gives {:?}, which is not durable", more.map(|frame| frame.lsn));
            for (_, entry) in oracle.of_history(history).filter(|(lsn, _)| lsn.0 % 3 == 0) {
                if entry.facts.kind == RecordKind::Commit {
                    let said = log.position_at(history, entry.position.seq);
                    if said.is_none() && self.disk.fired().is_some() {
                        return Ok(());
                    }
                    ensure!(said == Some(entry.position), "position {said:?}, {} is right", entry.position);
                }
            }
        }
        Ok(())
    }
}
