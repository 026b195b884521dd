//! A replica whose operator skips tasks, some because they fail, some at will, and retries or repairs later: what is
//! skipped is known through every end, and comes back with its own identities.

use std::{collections::BTreeSet, sync::Arc};

use rand::Rng as _;
use tailrace_engine::{Applier, EngineError, Operation};
use tailrace_wal::{Frame, LogError, PinKey, RecordKind, Seq, Tail, simulation::Failure};

use super::World;
use crate::{
    node::End,
    oracle::{Contents, History},
};

impl World {
    /// One step of the replica alone: records with skips, retries, repairs.
    pub(super) async fn operate_replica(&mut self) {
        match self.random.random_range(0..10) {
            0..=5 => self.feed(false).await,
            6..=7 => self.retry_letter().await,
            8 => drop(self.replica.engine().flush().await),
            _ => {
                let end = self.any_end();
                self.restart_replica(end).await;
            }
        }
    }

    /// As `feed`, one record after the other.
    pub(super) async fn feed_skipping(&mut self, applier: Arc<Applier>, mut tail: Tail, most: usize) {
        for _ in 0..most {
            let frame = match tail.try_next() {
                Ok(Some(frame)) => frame,
                Ok(None) | Err(LogError::Io { .. }) => break,
                Err(error) => panic!("read: {error}"),
            };
            let may = frame.header.kind == RecordKind::Commit
                && frame.header.seq > applier.position().0.seq
                && frame.header.seq > Seq(1)
                && !frame.payload.directory.parts.iter().any(|part| part.operation == Operation::DropDatabase.code());
            if may && self.random.random_bool(0.4) {
                if !self.skip(&applier, frame).await {
                    drop(applier);
                    return self.power_loss().await;
                }
                continue;
            }
            let taken = match applier.prepare(frame.header, frame.payload.clone()) {
                Ok(Some(prepared)) => applier.commit(vec![prepared]).await.map(drop),
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                // It needs what was skipped.
                assert!(may && !self.skipped.is_empty(), "{error}");
                if !self.skip(&applier, frame).await {
                    drop(applier);
                    return self.power_loss().await;
                }
            }
        }
        if self.random.random_bool(0.6) {
            let (position, restart) = applier.durable().await.unwrap();
            self.replica_durable = position.seq;
            let key = PinKey { feed: "replica/b".into(), history: position.history };
            if self.primary.engine().log().pin(key, position.seq, restart).is_err() {
                // It stands where it stood.
            }
        }
        drop(applier);
        if self.following.and_then(|id| self.replica.engine().history(id)).is_none_or(|info| info.ended) {
            self.skipped.clear();
        }
        self.check_replica().await;
    }

    /// Skips a transaction, perhaps on a disk that fails. `false`: the log is poisoned.
    async fn skip(&mut self, applier: &Applier, frame: Frame) -> bool {
        let seq = frame.header.seq;
        if self.plan.faults && self.random.random_bool(0.3) {
            let after = self.random.random_range(0..10);
            let failure = if self.random.random_bool(0.5) { Failure::Full } else { Failure::Broken };
            self.replica.disk.fail_call(after, failure);
        }
        let reason = || "the operator wants it so".to_owned();
        let first = applier.skip(frame.header, frame.payload.clone(), reason()).await;
        self.replica.disk.heal();
        if self.replica.engine().log().status().poisoned {
            // Its record may be there all the same, with its letter.
            self.unsure_skip = Some(seq.0);
            return false;
        }
        if first.is_err() {
            assert!(applier.position().0.seq < seq, "refused, and there all the same");
            applier.skip(frame.header, frame.payload, reason()).await.unwrap();
        }
        assert_eq!(applier.position().0.seq, seq);
        self.skipped.insert(seq.0);
        self.done.skips += 1;
        true
    }

    async fn power_loss(&mut self) {
        self.restart_replica(End::PowerLoss).await;
    }

    async fn retry_letter(&mut self) {
        let skipped: Vec<u64> = self.skipped.iter().copied().collect();
        if skipped.is_empty() {
            return;
        }
        let seq = skipped[self.random.random_range(0..skipped.len())];
        if self.plan.faults && self.random.random_bool(0.3) {
            let after = self.random.random_range(0..40);
            let failure = if self.random.random_bool(0.5) { Failure::Full } else { Failure::Broken };
            self.replica.disk.fail_call(after, failure);
        }
        let engine = self.replica.engine();
        let retried = engine.retry_dead_letter("market", Seq(seq)).await;
        self.replica.disk.heal();
        match retried {
            Ok(()) => {
                self.skipped.remove(&seq);
                self.done.retries += 1;
                // It is durable, with everything before it.
                self.replica_durable = self.following.and_then(|id| engine.history(id)).unwrap().position.seq;
            }
            // DDL, or a table that is not there.
            Err(EngineError::Invalid(_) | EngineError::Log(LogError::Invalid { .. })) => {}
            Err(EngineError::Full { .. } | EngineError::Storage { .. }) => {}
            Err(EngineError::Log(LogError::Full { .. })) => {}
            Err(_) => {
                // Whether it was done is for the start to say.
                drop(engine);
                self.unsure = Some(seq);
                return self.power_loss().await;
            }
        }
        drop(engine);
        self.check_replica().await;
    }

    /// After a start: what was not durable is not there, and was not skipped either.
    pub(super) fn skips_recovered(&mut self) {
        let unsure_skip = self.unsure_skip.take();
        let Some(history) = self.following else { return self.skipped.clear() };
        let engine = self.replica.engine();
        // With a history its letters end.
        let Some(info) = engine.history(history).filter(|info| !info.ended) else { return self.skipped.clear() };
        self.skipped.retain(|seq| *seq <= info.position.seq.0);
        if let Some(unsure) = self.unsure.take()
            && !self.letters().contains(&unsure)
        {
            self.skipped.remove(&unsure);
        }
        self.skipped.extend(unsure_skip.filter(|seq| self.letters().contains(seq)));
        // Letters that nothing names went with the start.
        assert_eq!(self.letter_files(), self.skipped.len());
    }

    fn letters(&self) -> BTreeSet<u64> {
        let version = self.replica.engine().version();
        let database = version.database("market").filter(|database| Some(database.id) == self.following);
        database.into_iter().flat_map(|database| database.dead_letters()).map(|letter| letter.seq.0).collect()
    }

    pub(super) fn letter_files(&self) -> usize {
        let files = self.replica.disk.files();
        files.iter().filter(|(path, _)| path.extension().is_some_and(|extension| extension == "letter")).count()
    }

    /// What the replica shows of a history whose first `count` transactions it has.
    pub(super) fn without_skipped(&self, model: &History, count: usize) -> Contents {
        let letters = self.letters();
        assert_eq!(letters, self.skipped, "what was skipped");
        let path = |seq: &u64| self.replica.engine().dead_letter_path(self.following.unwrap(), Seq(*seq));
        let files = self.replica.disk.files();
        assert!(letters.iter().all(|seq| files.iter().any(|(file, _)| *file == path(seq))), "a letter is not there");
        let version = self.replica.engine().version();
        let database = version.database("market").unwrap();
        assert_eq!(database.divergence().is_some(), !self.skipped.is_empty());
        model.contents_without(count, &self.skipped)
    }
}
