//! A seeded workload on a primary and its replica, each on its own disk, checked against the oracle.

mod choices;
mod operations;
mod replica;
mod skips;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_engine::{
    Applier, CommitOptions, Durability, Engine, EngineError, OperationCode, Receipt, RepairManifest, TableChoice,
    Transaction, simulation::PlantedBug,
};
use tailrace_wal::{
    Frame, HistoryId, LogError, PinKey, Seq, Tail,
    simulation::{Call, Failure, FaultCounts},
};

use crate::{
    node::{End, Node, settle},
    oracle::{BLOCK, Change, Commit, DAYS, History, Oracle, Pending, Work, contents_of, day_of, days_of, partition_of},
    support::{Identity, Row, bars, rows, wide_rows},
};

/// What a run may do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) steps: usize,
    pub(crate) faults: bool,
    pub(crate) replica: bool,
    /// The replica's operator skips tasks.
    pub(crate) skips: bool,
    /// He changes his mind about its tables.
    pub(crate) chooses: bool,
    pub(crate) planted: Option<PlantedBug>,
}

/// What a run did.
#[derive(Debug, Clone, Default)]
pub(crate) struct Done {
    pub(crate) counts: FaultCounts,
    /// Every call of both disks.
    pub(crate) trace: Vec<Call>,
    pub(crate) operations: u64,
    pub(crate) recoveries: u64,
    pub(crate) repairs: u64,
    /// Runs of received records that found no space.
    pub(crate) refused_runs: u64,
    pub(crate) skips: u64,
    pub(crate) retries: u64,
    pub(crate) choices: u64,
    /// Repairs that brought tables which were chosen again.
    pub(crate) brought: u64,
    /// Transactions that dropped partitions, and those that met another's change of one.
    pub(crate) drops: u64,
    pub(crate) conflicts: u64,
}

/// A transaction that stays open over other steps.
struct Open {
    transaction: Transaction,
    history: usize,
    work: Work,
    /// Of partitions that are to be replaced: what was seen of them.
    seen: Vec<(String, i64, PartitionRows)>,
}

/// The rows of one partition.
type PartitionRows = BTreeMap<Identity, Row>;

pub(crate) struct World {
    random: StdRng,
    plan: Plan,
    pub(crate) primary: Node,
    pub(crate) oracle: Arc<Mutex<Oracle>>,
    replica: Node,
    /// Of the history that the replica follows: how far it is known to be durable there.
    replica_durable: Seq,
    following: Option<HistoryId>,
    /// Of it: what was skipped and not retried, and what a retry may have taken.
    skipped: BTreeSet<u64>,
    unsure: Option<u64>,
    /// What may have been skipped when the log failed.
    unsure_skip: Option<u64>,
    /// Which of its tables are chosen, and what may be.
    choice: Option<(HistoryId, TableChoice)>,
    unsure_choice: Option<TableChoice>,
    open: Vec<Open>,
    next_row: i64,
    next_key: u64,
    names: u64,
    /// A planned fault was met.
    fired: bool,
    pub(crate) done: Done,
}

/// What became of a call.
enum Outcome {
    Done(Receipt, Durability),
    Failed(EngineError),
}

/// What a table has on a day.
fn rows_on(model: &History, table: &str, day: i64) -> PartitionRows {
    let mut rows = model.contents(model.commits.len()).remove(table).unwrap_or_default();
    rows.retain(|_, (id, _)| day_of(*id) == day);
    rows
}

fn is_dead(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::Indeterminate { .. }
            | EngineError::Log(LogError::Poisoned { .. } | LogError::Closed)
            | EngineError::Closed
    )
}

impl World {
    pub(crate) fn new(seed: u64, plan: Plan) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            plan,
            primary: Node::new(seed ^ 0xa, plan.planted),
            oracle: Arc::default(),
            replica: Node::new(seed ^ 0xb, plan.planted),
            replica_durable: Seq::ZERO,
            following: None,
            skipped: BTreeSet::new(),
            unsure: None,
            unsure_skip: None,
            choice: None,
            unsure_choice: None,
            open: Vec::new(),
            next_row: 0,
            next_key: 0,
            names: 0,
            fired: false,
            done: Done::default(),
        }
    }

    /// The whole run.
    pub(crate) async fn run(mut self) -> Done {
        self.start().await;
        for _ in 0..self.plan.steps {
            self.step().await;
        }
        self.finish().await
    }

    pub(crate) async fn start(&mut self) {
        self.primary.open().await.unwrap();
        if self.plan.replica {
            self.replica.open().await.unwrap();
        }
    }

    /// All is well again: a flush, a start in good order, and everything is still there.
    pub(crate) async fn finish(mut self) -> Done {
        self.primary.disk.heal();
        self.replica.disk.heal();
        self.abandon().await;
        if self.primary.engine().log().status().poisoned || self.primary.engine().flush().await.is_err() {
            self.restart(End::PowerLoss).await;
            self.primary.engine().flush().await.unwrap();
        }
        self.check_store(true).await;
        self.restart(End::Shutdown).await;
        self.check_store(false).await;
        if self.plan.replica {
            self.feed(true).await;
            self.restart_replica(End::PowerLoss).await;
            self.feed(true).await;
            if self.plan.skips {
                if let (Some(history), false) = (self.following, self.skipped.is_empty()) {
                    self.repair(history).await;
                }
                assert_eq!(self.letter_files(), 0);
            }
        }
        self.primary.end(End::PowerLoss, &mut self.random).await;
        self.replica.end(End::PowerLoss, &mut self.random).await;
        let mut counts = self.primary.all_counts();
        counts.merge(&self.replica.all_counts());
        self.done.counts = counts;
        self.done.trace = std::mem::take(&mut self.primary.trace);
        self.done.trace.append(&mut self.replica.trace);
        self.done
    }

    pub(crate) async fn step(&mut self) {
        self.done.operations += 1;
        self.primary.clock.advance(Duration::from_millis(self.random.random_range(0..50)));
        let armed = self.plan.faults && self.random.random_bool(0.12);
        // A flush has more calls than anything else.
        let flushes = armed && self.random.random_bool(0.4);
        if armed {
            let after = self.random.random_range(0..if flushes { 60 } else { 14 });
            match self.random.random_range(0..6) {
                0 => self.primary.disk.fail_call(after, Failure::Broken),
                1 => self.primary.disk.fail_call(after, Failure::Full),
                2 => self.primary.disk.fail_call(after / 4, Failure::DropsPages),
                3 => self.primary.disk.fail_from(after / 3, Failure::Full),
                _ => self.primary.disk.fail_from(after, Failure::Broken),
            }
        }
        self.fired = false;
        if flushes {
            self.flush().await
        } else {
            self.operate().await
        }
        self.calm();
        self.after_step().await;
    }

    /// After a fault, readers see what they saw; after a failure of the log, nothing is acknowledged.
    async fn after_step(&mut self) {
        let poisoned = self.primary.engine().log().status().poisoned;
        let known = self.known();
        if self.fired && !poisoned && known.pending.is_none() {
            known.check_live(&self.primary.engine()).await;
        }
        if poisoned {
            self.refuses().await;
        }
        if poisoned || known.pending.is_some() {
            let end = if self.random.random_bool(0.5) { End::Kill } else { End::PowerLoss };
            self.restart(end).await;
        }
    }

    async fn refuses(&mut self) {
        let known = self.known();
        let Some(history) = known.live().first().copied() else { return };
        let Some(table) = known.histories[history].tables().first().cloned() else { return };
        for durability in [Durability::Durable, Durability::Written] {
            // A drop whose answer failed may have come to be.
            let Ok(mut transaction) = self.primary.engine().begin(&known.histories[history].name) else { return };
            if transaction.append(&table, rows(0..1, 1)).await.is_err() {
                return;
            }
            let options = CommitOptions { durability: Some(durability), idempotency_key: None };
            let refused = transaction.commit(options).await.unwrap_err();
            assert!(is_dead(&refused) || matches!(refused, EngineError::Conflict(_)), "{refused}");
        }
    }

    /// No planned fault is left: what is looked at now is to be seen.
    fn calm(&mut self) {
        self.fired |= self.primary.disk.fired().is_some();
        self.primary.disk.heal();
    }

    async fn operate(&mut self) {
        if self.plan.skips && self.random.random_bool(0.25) {
            return self.operate_replica().await;
        }
        if self.plan.chooses && self.random.random_bool(0.15) {
            return self.choose().await;
        }
        let live = self.known().live();
        if live.is_empty() {
            return self.create_database().await;
        }
        let history = live[self.random.random_range(0..live.len())];
        match self.random.random_range(0..100) {
            0..=34 => self.insert(history).await,
            35..=42 => self.begin_large(history).await,
            43..=50 => self.go_on().await,
            51..=53 => self.retry_key(history).await,
            54..=58 => self.create_table(history).await,
            59..=60 => self.drop_table(history).await,
            61 => self.create_database().await,
            62 => self.drop_database(history).await,
            63..=72 => self.flush().await,
            73..=75 => self.primary.engine().work_by_hand().await,
            76..=78 => self.sync().await,
            79..=80 => drop(self.primary.engine().log().roll().await),
            81..=82 => self.switch(history).await,
            83..=91 if self.plan.replica => self.feed(false).await,
            92 if self.plan.replica => drop(self.replica.engine().flush().await),
            93 if self.plan.replica => {
                let end = self.any_end();
                self.restart_replica(end).await;
            }
            94 if self.plan.faults => self.restart(End::Shutdown).await,
            95..=96 if self.plan.faults => self.restart(End::Kill).await,
            97..=99 if self.plan.faults => self.restart(End::PowerLoss).await,
            _ => self.insert(history).await,
        }
    }

    fn any_end(&mut self) -> End {
        [End::Shutdown, End::Kill, End::PowerLoss][self.random.random_range(0..3)]
    }

    pub(crate) fn known(&self) -> Oracle {
        self.oracle.lock().unwrap().clone()
    }

    fn expect(&self, history: usize, change: Change, key: Option<Bytes>) {
        self.oracle.lock().unwrap().pending = Some(Pending { history, change, key });
    }

    /// Takes down what became of the call that was expected.
    async fn settle_call(&mut self, outcome: Outcome) {
        self.calm();
        let engine = self.primary.engine();
        match outcome {
            Outcome::Done(receipt, durability) => {
                // The log goes on while the rows are looked at, and so may a power loss.
                let mut oracle = self.known();
                oracle.adopt(&engine, receipt.lsn);
                let history = oracle.histories.iter().rev().find_map(|history| {
                    history.commits.last().filter(|last| last.lsn == receipt.lsn).map(|last| last.position)
                });
                assert_eq!(history, Some(receipt.position));
                if durability == Durability::Durable {
                    oracle.acknowledge(receipt.lsn);
                }
                *self.oracle.lock().unwrap() = oracle;
            }
            Outcome::Failed(error) if is_dead(&error) => {}
            Outcome::Failed(error) => {
                let refused = matches!(
                    error,
                    EngineError::Log(LogError::Full { .. }) | EngineError::Full { .. } | EngineError::Conflict(_)
                );
                assert!(refused, "{error}");
                // A drop may have been committed before what follows it failed.
                let pending = self.known().pending.unwrap();
                let model = &self.known().histories[pending.history];
                let gone = model.id.is_some_and(|id| engine.history(id).is_some_and(|info| info.ended));
                if matches!(pending.change, Change::End) && gone {
                    let mut oracle = self.known();
                    oracle.adopt(&engine, engine.log().status().appended);
                    *self.oracle.lock().unwrap() = oracle;
                } else {
                    self.oracle.lock().unwrap().pending = None;
                }
            }
        }
    }

    pub(crate) async fn restart(&mut self, end: End) {
        self.calm();
        let engine = self.primary.engine();
        let mut end = end;
        if end == End::Shutdown {
            self.abandon().await;
            if engine.shutdown().await.is_ok() {
                let appended = engine.log().status().appended;
                self.oracle.lock().unwrap().acknowledge(appended);
            } else {
                end = End::PowerLoss;
            }
        }
        // Whatever the log says is durable is.
        self.oracle.lock().unwrap().acknowledge(engine.log().status().durable);
        let evicts = end == End::Kill && self.random.random_bool(0.3);
        let broken = engine.log().status().poisoned;
        drop(engine);
        if end == End::Shutdown {
            self.primary.end(end, &mut self.random).await;
        } else {
            let open = std::mem::take(&mut self.open);
            self.primary.end_with(end, &mut self.random, move || drop(open)).await;
        }
        if evicts {
            self.primary.disk.evict();
        }
        let mut whole = end != End::PowerLoss && !evicts && !broken;
        if self.plan.faults && self.random.random_bool(0.2) {
            // The start itself fails.
            let after = self.random.random_range(0..40);
            match self.random.random_range(0..3) {
                0 => self.primary.disk.fail_call(after, Failure::Full),
                1 => self.primary.disk.fail_call(after, Failure::Broken),
                _ => self.primary.disk.fail_from(after, Failure::Broken),
            }
            if self.primary.open().await.is_ok() {
                self.primary.disk.heal();
                if !self.primary.engine().log().status().poisoned {
                    return self.recovered(whole).await;
                }
            }
            let end = if self.random.random_bool(0.5) { End::Kill } else { End::PowerLoss };
            whole &= end == End::Kill;
            self.primary.disk.heal();
            self.primary.end(end, &mut self.random).await;
        }
        self.primary.open().await.unwrap();
        self.recovered(whole).await;
    }

    async fn recovered(&mut self, whole: bool) {
        self.done.recoveries += 1;
        let engine = self.primary.engine();
        let mut oracle = self.known();
        oracle.recovered(&engine, whole).await;
        *self.oracle.lock().unwrap() = oracle;
        self.check_history(&engine).await;
    }

    /// What feeds read is what was committed.
    async fn check_history(&self, engine: &Arc<Engine>) {
        for model in self.known().histories {
            let Some(id) = model.id.filter(|_| !model.commits.is_empty()) else { continue };
            let retained = engine.log().retained_after(id).unwrap();
            let mut tail = engine.log().tail(id, retained).unwrap();
            let mut seq = retained;
            while let Some(frame) = tail.try_next().unwrap() {
                if frame.header.kind == tailrace_wal::RecordKind::Commit {
                    seq = seq.next();
                    assert_eq!(frame.header.position(), model.commits[seq.0 as usize - 1].position);
                }
            }
            assert_eq!(seq.0 as usize, model.commits.len(), "the log of {} ends early", model.name);
        }
    }

    /// Every datafile that is named is there, and nothing else.
    async fn check_store(&mut self, live: bool) {
        let engine = self.primary.engine();
        if !live {
            engine.flush().await.unwrap();
        }
        engine.work_by_hand().await;
        engine.flush().await.unwrap();
        settle().await;
        engine.work_by_hand().await;
        let version = engine.version();
        let mut named: Vec<String> = Vec::new();
        for database in version.databases() {
            for table in database.tables() {
                for (_, partition) in table.partitions() {
                    named.extend(partition.datafiles.iter().map(|file| format!("/node/store/{}", file.path().0)));
                }
            }
        }
        named.sort();
        let files = self.primary.disk.files().into_iter().map(|(path, _)| path.to_string_lossy().into_owned());
        let mut there: Vec<String> = files.filter(|path| path.starts_with("/node/store/")).collect();
        there.sort();
        if live {
            // What could not be removed goes at the next start.
            there.retain(|path| named.contains(path));
        }
        let (missing, strange): (Vec<_>, Vec<_>) = (
            named.iter().filter(|path| !there.contains(path)).collect(),
            there.iter().filter(|path| !named.contains(path)).collect(),
        );
        assert!(missing.is_empty() && strange.is_empty(), "datafiles missing: {missing:?}, not named: {strange:?}");
    }
}
