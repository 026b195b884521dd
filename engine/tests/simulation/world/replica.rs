//! The replica: fed record by record, repaired, restarted, compared with the oracle.

use super::*;

impl World {
    /// The replica gets some of what it does not have, or all of it.
    pub(super) async fn feed(&mut self, all: bool) {
        self.calm();
        let known = self.known();
        let follow = known.histories.iter().rev().find(|history| history.name == "market" && history.id.is_some());
        let Some(history) = self.following.or(follow.and_then(|history| history.id)) else { return };
        if !known.histories.iter().any(|model| model.id == Some(history) && !model.commits.is_empty()) {
            return;
        }
        let (primary, replica) = (self.primary.engine(), self.replica.engine());
        if replica.history(history).is_some_and(|info| info.ended) {
            self.following = None;
            self.skipped.clear();
            self.replica_durable = Seq::ZERO;
            return;
        }
        if self.plan.faults && !all && self.random.random_bool(0.35) {
            let after = self.random.random_range(0..8);
            match self.random.random_range(0..5) {
                0 => self.replica.disk.fail_call(after, Failure::Broken),
                1 => self.replica.disk.fail_from(after, Failure::Full),
                _ => self.replica.disk.fail_call(after, Failure::Full),
            }
        }
        let applier = match replica.follow(history, "market", "site-a").await {
            Ok(applier) => applier,
            Err(error) => {
                // It may be followed all the same: the fact may be there after a start.
                drop((primary, replica));
                return self.replica_failed(error).await;
            }
        };
        self.following = Some(history);
        let (_, restart) = applier.position();
        let tail = match primary.log().tail(history, restart) {
            Ok(tail) => Some(tail),
            Err(LogError::Truncated { .. }) => None,
            Err(LogError::Poisoned { .. } | LogError::Closed) => return self.replica.disk.heal(),
            Err(error) => panic!("tail: {error}"),
        };
        let Some(tail) = tail else {
            self.replica.disk.heal();
            drop(applier);
            return self.repair(history).await;
        };
        let awaits = replica.version().database("market").is_some_and(|here| !here.awaited_tables().is_empty());
        if awaits && self.random.random_bool(0.5) {
            self.replica.disk.heal();
            drop(applier);
            return self.repair(history).await;
        }
        if self.plan.skips {
            self.replica.disk.heal();
            drop((primary, replica));
            let most = if all { usize::MAX } else { self.random.random_range(1..12) };
            return self.feed_skipping(applier, tail, most).await;
        }
        let fed = self.feed_from(&applier, tail, all).await;
        if let Err(error) = fed {
            drop((applier, primary, replica));
            return self.replica_failed(error).await;
        }
        self.replica.disk.heal();
        let durable = all || self.random.random_bool(0.6);
        if durable {
            let (position, restart) = applier.durable().await.unwrap();
            self.replica_durable = position.seq;
            // The pin of the primary's publisher.
            let key = PinKey { feed: "replica/b".into(), history };
            if self.random.random_bool(0.7) && primary.log().pin(key, position.seq, restart).is_err() {
                // It stands where it stood.
            }
        }
        drop(applier);
        self.check_replica().await;
    }

    /// Takes records from the primary's log in runs. What finds no space comes again: at once, or with the next feed.
    pub(super) async fn feed_from(&mut self, applier: &Applier, mut tail: Tail, all: bool) -> Result<(), EngineError> {
        let most = if all { usize::MAX } else { self.random.random_range(1..12) };
        let mut run = Vec::new();
        for _ in 0..most {
            let frame = match tail.try_next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(LogError::Io { .. }) => break,
                Err(error) => panic!("read: {error}"),
            };
            let mut parts = frame.payload.directory.parts.iter();
            let ddl = parts.any(|part| !OperationCode(part.operation).is_of_rows());
            if ddl && !self.commit_run(applier, &mut run).await? {
                return Ok(());
            }
            run.push(frame);
            if (ddl || self.random.random_bool(0.4)) && !self.commit_run(applier, &mut run).await? {
                return Ok(());
            }
        }
        self.commit_run(applier, &mut run).await.map(drop)
    }

    /// `false`: it found no space, and the feed begins anew.
    pub(super) async fn commit_run(&mut self, applier: &Applier, run: &mut Vec<Frame>) -> Result<bool, EngineError> {
        let frames = std::mem::take(run);
        loop {
            let again = frames.iter().map(|frame| (frame.header, frame.payload.clone()));
            let prepared = again.filter_map(|(header, payload)| applier.prepare(header, payload).unwrap());
            let prepared: Vec<_> = prepared.collect();
            if prepared.is_empty() {
                return Ok(true);
            }
            match applier.commit(prepared).await {
                Ok(_) => return Ok(true),
                Err(error) if error.is_full() => {
                    self.done.refused_runs += 1;
                    if self.random.random_bool(0.5) {
                        return Ok(false);
                    }
                    if self.random.random_bool(0.5) {
                        self.replica.disk.heal();
                    }
                    if self.replica.disk.fired().is_some() {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The replica did not get on: for want of space it goes on as it is, otherwise it starts anew.
    pub(super) async fn replica_failed(&mut self, error: EngineError) {
        assert!(is_dead(&error) || error.is_full(), "the replica: {error}");
        self.replica.disk.heal();
        if !error.is_full() {
            let end = if self.random.random_bool(0.5) { End::Kill } else { End::PowerLoss };
            return self.restart_replica(end).await;
        }
        self.check_replica().await;
    }

    pub(super) async fn repair(&mut self, history: HistoryId) {
        let (primary, replica) = (self.primary.engine(), self.replica.engine());
        let source = match primary.repair_source(history).await {
            Ok(source) => source,
            // It has ended, and its end is not retained.
            Err(EngineError::NotFound { .. }) => {
                replica.drop_followed(history).await.unwrap();
                self.following = None;
                self.skipped.clear();
                self.replica_durable = Seq::ZERO;
                return;
            }
            Err(_) => return,
        };
        let manifest: RepairManifest = serde_json::from_slice(&serde_json::to_vec(&source.manifest).unwrap()).unwrap();
        let mut install = replica.repair_install("site-a", manifest).await.unwrap();
        let awaited = replica.version().database("market").is_some_and(|here| !here.awaited_tables().is_empty());
        for (index, bytes) in install.wanted().collect::<Vec<_>>() {
            match source.read(index, 0, bytes).await {
                Ok(bytes) => install.write(index, bytes).await.unwrap(),
                Err(_) => return,
            }
        }
        let position = install.install().await.unwrap();
        self.oracle.lock().unwrap().acknowledge(primary.log().status().durable);
        self.replica_durable = position.seq;
        self.skipped.clear();
        self.done.repairs += 1;
        self.done.brought += u64::from(awaited);
        drop((source, primary, replica));
        self.check_replica().await;
    }

    /// The replica is a prefix of its primary with an equal chain.
    pub(super) async fn check_replica(&self) {
        let Some(history) = self.following else { return };
        let replica = self.replica.engine();
        let info = replica.history(history).unwrap();
        let known = self.known();
        let model = known.histories.iter().find(|model| model.id == Some(history)).unwrap();
        let seq = info.position.seq;
        assert!(seq >= self.replica_durable, "the replica lost what it had acknowledged");
        if seq == Seq::ZERO {
            return;
        }
        assert!(seq.0 as usize <= model.commits.len(), "the replica is ahead");
        assert_eq!(info.position, model.commits[seq.0 as usize - 1].position);
        if let Some(database) = replica.version().database("market").filter(|database| database.id == history) {
            assert_eq!(database.stopped, None);
            assert_eq!(
                contents_of(&replica, database).await,
                self.as_chosen(database, self.without_skipped(model, seq.0 as usize)),
                "the replica's rows"
            );
        }
    }

    pub(super) async fn restart_replica(&mut self, end: End) {
        let mut end = end;
        if end == End::Shutdown {
            let engine = self.replica.engine();
            if engine.shutdown().await.is_ok() {
                self.replica_durable = self
                    .following
                    .and_then(|id| engine.history(id))
                    .filter(|info| !info.ended)
                    .map_or(self.replica_durable, |info| info.position.seq);
            } else {
                end = End::PowerLoss;
            }
        }
        self.replica.end(end, &mut self.random).await;
        self.replica.open().await.unwrap();
        self.done.recoveries += 1;
        if let Some(history) = self.following
            && self.replica.engine().history(history).is_none()
        {
            // It was not followed durably.
            assert_eq!(self.replica_durable, Seq::ZERO);
            self.following = None;
        }
        self.skips_recovered();
        self.choice_recovered();
        self.check_replica().await;
    }
}
