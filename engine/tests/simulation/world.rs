//! A seeded workload on a primary and its replica, each on its own disk, checked against the oracle.

mod choices;
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

    async fn create_database(&mut self) {
        if self.known().live().len() >= 3 {
            return;
        }
        let known = self.known();
        let name = if known.live().iter().all(|live| known.histories[*live].name != "market") {
            "market".to_owned()
        } else {
            self.names += 1;
            format!("side{}", self.names)
        };
        let history = {
            let mut oracle = self.oracle.lock().unwrap();
            let history =
                crate::oracle::History { name: name.clone(), id: None, commits: Vec::new(), replicated: false };
            oracle.histories.push(history);
            oracle.histories.len() - 1
        };
        self.expect(history, Change::Begin, None);
        let outcome = match self.primary.engine().create_database(&name).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
        if self.known().pending.is_none() {
            self.create_table(history).await;
        }
    }

    async fn drop_database(&mut self, history: usize) {
        let name = self.known().histories[history].name.clone();
        self.expect(history, Change::End, None);
        let outcome = match self.primary.engine().drop_database(&name).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
    }

    async fn create_table(&mut self, history: usize) {
        let model = self.known().histories[history].clone();
        if model.commits.is_empty() || model.tables().len() >= 4 {
            return;
        }
        let table = ["bars", "ticks", "quotes", "notes"]
            .into_iter()
            .find(|name| !model.tables().iter().any(|table| table == name))
            .unwrap()
            .to_owned();
        self.expect(history, Change::CreateTable(table.clone()), None);
        let outcome = match self.primary.engine().create_table(&model.name, bars(&table)).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
    }

    async fn drop_table(&mut self, history: usize) {
        let model = self.known().histories[history].clone();
        let Some(table) = self.any_table(history) else { return };
        self.expect(history, Change::DropTable(table.clone()), None);
        let outcome = match self.primary.engine().drop_table(&model.name, &table).await {
            Ok(receipt) => Outcome::Done(receipt, Durability::Durable),
            Err(error) => Outcome::Failed(error),
        };
        self.settle_call(outcome).await;
    }

    fn any_table(&mut self, history: usize) -> Option<String> {
        let tables = self.known().histories[history].tables();
        (!tables.is_empty()).then(|| tables[self.random.random_range(0..tables.len())].clone())
    }

    /// Adds rows to a transaction, and to what is known of it.
    async fn fill(
        &mut self,
        transaction: &mut Transaction,
        into: &mut Work,
        table: &str,
        wide: bool,
    ) -> Result<(), EngineError> {
        let count = self.random.random_range(1..if wide { 12 } else { 20 });
        let days = self.random.random_range(1..=DAYS);
        let first = (self.next_row / (BLOCK * DAYS) + 1) * BLOCK * DAYS + (days - 1) * BLOCK;
        let ids = first..first + count;
        self.next_row = ids.end;
        assert_eq!(days_of(first), days);
        let batch = if wide { wide_rows(ids.clone(), days) } else { rows(ids.clone(), days) };
        let note =
            |id: i64| if wide { Some(format!("{id:0500}")) } else { (id % 5 != 0).then(|| format!("note {id}")) };
        transaction.append(table, batch).await?;
        into.rows.entry(table.to_owned()).or_default().extend(ids.map(|id| (id, note(id))));
        Ok(())
    }

    async fn insert(&mut self, history: usize) {
        let Some(table) = self.any_table(history) else { return self.create_table(history).await };
        let name = self.known().histories[history].name.clone();
        let transaction = self.primary.engine().begin(&name).unwrap();
        let mut open = Open { transaction, history, work: Work::default(), seen: Vec::new() };
        if self.random.random_bool(0.2) && self.drop_partitions(&mut open, &table).await.is_err() {
            let _ = open.transaction.abort().await;
            return;
        }
        for _ in 0..self.random.random_range(if open.work.drops.is_empty() { 1..4 } else { 0..3 }) {
            let table = if self.random.random_bool(0.3) { self.any_table(history).unwrap() } else { table.clone() };
            let wide = self.random.random_bool(0.15);
            if self.fill(&mut open.transaction, &mut open.work, &table, wide).await.is_err() {
                let _ = open.transaction.abort().await;
                return;
            }
        }
        self.commit(open).await;
    }

    /// Takes away some days of a table: whatever is there at the commit, or what is there now.
    async fn drop_partitions(&mut self, open: &mut Open, table: &str) -> Result<(), EngineError> {
        let model = self.known().histories[open.history].clone();
        for day in 0..DAYS {
            if !self.random.random_bool(0.4) {
                continue;
            }
            let key = partition_of(day);
            if self.random.random_bool(0.5) {
                open.transaction.drop_partition(table, key).await?;
            } else {
                let version = self.primary.engine().version();
                let Some(database) = version.database(&model.name) else { return Ok(()) };
                let Some(found) = database.table(table) else { return Ok(()) };
                let seen = database.seen_partition(found, &key);
                open.transaction.replace_partition(table, seen).await?;
                open.seen.push((table.to_owned(), day, rows_on(&model, table, day)));
            }
            open.work.drops.insert((table.to_owned(), day));
        }
        Ok(())
    }

    async fn commit(&mut self, open: Open) {
        let Open { transaction, history, work, seen } = open;
        let durability = if self.random.random_bool(0.5) { Durability::Durable } else { Durability::Written };
        let key = self.random.random_bool(0.2).then(|| {
            self.next_key += 1;
            Bytes::from(format!("key {}", self.next_key))
        });
        let any = !work.rows.is_empty() || !work.drops.is_empty();
        let drops = !work.drops.is_empty();
        let model = self.known().histories[history].clone();
        let changed = seen.iter().any(|(table, day, rows)| rows_on(&model, table, *day) != *rows);
        if any {
            self.expect(history, Change::Rows(work), key.clone());
        }
        let options = CommitOptions { durability: Some(durability), idempotency_key: key };
        let outcome = match transaction.commit(options).await {
            Ok(receipt) => {
                assert!(!changed, "a partition that somebody else had changed was replaced");
                self.done.drops += u64::from(drops);
                Outcome::Done(receipt, durability)
            }
            Err(error) => {
                self.done.conflicts += u64::from(changed && matches!(error, EngineError::Conflict(_)));
                Outcome::Failed(error)
            }
        };
        if any {
            self.settle_call(outcome).await;
        }
    }

    async fn begin_large(&mut self, history: usize) {
        if self.open.len() >= 2 {
            return self.go_on().await;
        }
        let Some(table) = self.any_table(history) else { return };
        let name = self.known().histories[history].name.clone();
        let transaction = self.primary.engine().begin(&name).unwrap();
        let mut open = Open { transaction, history, work: Work::default(), seen: Vec::new() };
        if self.random.random_bool(0.3) && self.drop_partitions(&mut open, &table).await.is_err() {
            let _ = open.transaction.abort().await;
            return;
        }
        for _ in 0..self.random.random_range(1..4) {
            if self.fill(&mut open.transaction, &mut open.work, &table, true).await.is_err() {
                let _ = open.transaction.abort().await;
                return;
            }
        }
        self.open.push(open);
    }

    async fn go_on(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let index = self.random.random_range(0..self.open.len());
        let mut open = self.open.swap_remove(index);
        match self.random.random_range(0..5) {
            0 => drop(open.transaction.abort().await),
            1 | 2 => {
                let tables: Vec<String> = open.work.rows.keys().cloned().collect();
                let table = tables[self.random.random_range(0..tables.len())].clone();
                match self.fill(&mut open.transaction, &mut open.work, &table, true).await {
                    Ok(()) => self.open.push(open),
                    Err(_) => drop(open.transaction.abort().await),
                }
            }
            _ => self.commit(open).await,
        }
    }

    /// A client that did not hear the answer asks again.
    async fn retry_key(&mut self, history: usize) {
        let model = self.known().histories[history].clone();
        let keyed: Vec<&Commit> = model.commits.iter().filter(|commit| commit.key.is_some()).collect();
        if keyed.is_empty() {
            return;
        }
        let commit = keyed[self.random.random_range(0..keyed.len())];
        let Some(table) = self.any_table(history) else { return };
        let mut transaction = self.primary.engine().begin(&model.name).unwrap();
        if self.fill(&mut transaction, &mut Work::default(), &table, false).await.is_err() {
            return;
        }
        let options = CommitOptions { durability: Some(Durability::Durable), idempotency_key: commit.key.clone() };
        match transaction.commit(options).await {
            Ok(receipt) => {
                assert_eq!(receipt.position, commit.position, "a key was applied twice");
                self.oracle.lock().unwrap().acknowledge(receipt.lsn);
            }
            Err(error) => {
                assert!(is_dead(&error) || matches!(error, EngineError::Log(_) | EngineError::Full { .. }), "{error}")
            }
        }
    }

    async fn flush(&mut self) {
        let flushed = self.primary.engine().flush().await;
        match flushed {
            Ok(_) => {}
            Err(EngineError::Log(LogError::Poisoned { .. } | LogError::Closed)) => {
                // Its background goes on for a while.
                self.calm();
                self.primary.engine().work_by_hand().await;
                let end = if self.random.random_bool(0.5) { End::Kill } else { End::PowerLoss };
                self.restart(end).await;
            }
            Err(error) => assert!(
                matches!(
                    error,
                    EngineError::Log(LogError::Full { .. }) | EngineError::Storage { .. } | EngineError::Full { .. }
                ),
                "{error}"
            ),
        }
    }

    async fn sync(&mut self) {
        if let Ok(durable) = self.primary.engine().log().sync().await {
            self.oracle.lock().unwrap().acknowledge(durable);
        }
    }

    async fn switch(&mut self, history: usize) {
        let (name, on) = {
            let mut oracle = self.oracle.lock().unwrap();
            let on = !oracle.histories[history].replicated;
            oracle.switching = Some((history, on));
            (oracle.histories[history].name.clone(), on)
        };
        match self.primary.engine().set_database_replication(&name, on).await {
            Ok(()) => {
                let mut oracle = self.oracle.lock().unwrap();
                oracle.histories[history].replicated = on;
                oracle.switching = None;
            }
            Err(error) if is_dead(&error) => {}
            Err(_) => self.oracle.lock().unwrap().switching = None,
        }
    }

    /// Open transactions end with their client.
    async fn abandon(&mut self) {
        for open in std::mem::take(&mut self.open) {
            let _ = open.transaction.abort().await;
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

    /// The replica gets some of what it does not have, or all of it.
    async fn feed(&mut self, all: bool) {
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
    async fn feed_from(&mut self, applier: &Applier, mut tail: Tail, all: bool) -> Result<(), EngineError> {
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
    async fn commit_run(&mut self, applier: &Applier, run: &mut Vec<Frame>) -> Result<bool, EngineError> {
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
    async fn replica_failed(&mut self, error: EngineError) {
        assert!(is_dead(&error) || error.is_full(), "the replica: {error}");
        self.replica.disk.heal();
        if !error.is_full() {
            let end = if self.random.random_bool(0.5) { End::Kill } else { End::PowerLoss };
            return self.restart_replica(end).await;
        }
        self.check_replica().await;
    }

    async fn repair(&mut self, history: HistoryId) {
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
    async fn check_replica(&self) {
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

    async fn restart_replica(&mut self, end: End) {
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
