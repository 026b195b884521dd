//! A seeded life of one log on a hostile disk: what is asked of it, what fails, when it dies and comes back.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::{
    CommitTime, FragmentNumber, Frame, HistoryEnd, HistoryId, Log, LogConfig, LogError, Lsn, Payload, PayloadHash,
    Persistence, Pin, PinKey, PinState, Position, Record, RecordKind, Recovery, Run, Seq, TransactionNumber,
    VerbatimRecord,
    simulation::{CallKind, Failure, FaultCounts, PlantedBug, SimulatedClock, SimulatedDisk, Stepper},
};

use super::{
    oracle::{Check, Facts, Oracle, ensure},
    peer::Peer,
};
use crate::support::{NODE, part, replay};

const OWN: [HistoryId; 2] = [HistoryId([1; 16]), HistoryId([2; 16])];
const PEER: HistoryId = HistoryId([3; 16]);
const STRANGER: HistoryId = HistoryId([9; 16]);
const SYNC_INTERVAL: Duration = Duration::from_millis(200);
const HEADER_BYTES: u64 = 192;

/// What a life is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Things that are done.
    pub(crate) actions: u32,
    /// How often, of 100 boundaries, an image is taken and recovered.
    pub(crate) images_percent: u32,
    /// Images at a boundary where one is taken.
    pub(crate) images: u32,
    /// Whether calls fail and bits flip. Power is lost in any case.
    pub(crate) faults: bool,
    /// The one call that fails, counted from when the log is open. Power is lost at the end only then.
    pub(crate) fails: Option<(u64, Failure)>,
    pub(crate) planted: Option<PlantedBug>,
    /// Whether the last calls are printed when it fails.
    pub(crate) is_told: bool,
}

/// What a life came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sums {
    pub(crate) records: u64,
    pub(crate) starts: u64,
    pub(crate) boundaries: u64,
    pub(crate) images: u64,
    pub(crate) damages_refused: u64,
    pub(crate) damages_cut: u64,
    pub(crate) truncations: u64,
    pub(crate) poisonings: u64,
    pub(crate) fulls: u64,
    /// The call that [`Plan::fails`] hit.
    pub(crate) fired: Option<CallKind>,
    pub(crate) counts: FaultCounts,
    pub(crate) trace_hash: u64,
}

impl Sums {
    pub(crate) fn add(&mut self, other: &Self) {
        self.records += other.records;
        self.starts += other.starts;
        self.boundaries += other.boundaries;
        self.images += other.images;
        self.damages_refused += other.damages_refused;
        self.damages_cut += other.damages_cut;
        self.truncations += other.truncations;
        self.poisonings += other.poisonings;
        self.fulls += other.fulls;
        self.counts.merge(&other.counts);
    }
}

/// What sees every changing call before it happens.
struct Watcher {
    oracle: Oracle,
    random: StdRng,
    plan: Plan,
    config: LogConfig,
    sums: Sums,
}

struct Live {
    log: Log,
    stepper: Stepper,
    /// Commands that are not answered, and the number of the submission that would have been next.
    commands: Vec<Command>,
    pins: BTreeMap<PinKey, (Pin, Seq)>,
    /// Set when the log was poisoned: things still tried before it is opened again.
    dies_in: Option<u32>,
}

struct Command {
    is_sync: bool,
    before: u64,
    answer: BoxFuture<'static, Result<Lsn, LogError>>,
}

/// A transaction in fragments that this node writes.
struct Large {
    history: HistoryId,
    number: TransactionNumber,
    fragments: Vec<PayloadHash>,
}

/// The life itself.
pub(crate) struct World {
    plan: Plan,
    random: StdRng,
    config: LogConfig,
    disk: SimulatedDisk,
    clock: SimulatedClock,
    watcher: Arc<Mutex<Watcher>>,
    live: Option<Live>,
    peer: Peer,
    sent: usize,
    /// What was sent since the peer's place was taken anew builds on itself.
    run: Run,
    /// A record may have been refused, and the feed has not heard of it.
    hears_late: bool,
    larges: Vec<Large>,
    next_id: u64,
    /// What is flushed stays so, over every start.
    flushed: Lsn,
    /// Whether a capacity is set.
    is_short: bool,
    /// Whether anything worse than a full disk was planned since the last start.
    is_harmed: bool,
}

/// Lives it. The error says what went wrong.
pub(crate) fn live(plan: Plan) -> Check<Sums> {
    let mut world = World::new(plan);
    if plan.is_told {
        world.disk.keep_trace();
    }
    let result = world.run();
    world.disk.observe(None);
    if result.is_err() && plan.is_told {
        for (index, entry) in world.watcher.lock().oracle.entries.iter().enumerate() {
            println!("{:6} {entry}", index + 1);
        }
        let trace = world.disk.trace();
        for call in trace.iter().skip(trace.len().saturating_sub(150)) {
            println!("{:6} {:?} {} {} {}", call.number, call.kind, call.path.display(), call.offset, call.len);
        }
    }
    result?;
    let watcher = world.watcher.lock();
    let mut sums = watcher.sums.clone();
    sums.counts.merge(&world.disk.counts());
    sums.trace_hash = world.disk.trace_hash();
    Ok(sums)
}

impl Watcher {
    fn sees(&mut self, disk: &SimulatedDisk) {
        self.oracle.poll();
        self.sums.boundaries += 1;
        if self.oracle.failure.is_none() && self.random.random_ratio(self.plan.images_percent, 100) {
            for _ in 0..self.plan.images {
                if let Err(failure) = self.image(disk) {
                    self.oracle.failure.get_or_insert(format!("an image of a crash: {failure}"));
                }
            }
        }
    }

    /// Takes an image of a crash now, recovers and checks it.
    fn image(&mut self, disk: &SimulatedDisk) -> Check {
        let image = disk.image(&mut self.random);
        if self.plan.is_told {
            println!("{:6} image of {:?}", disk.calls(), image.files());
        }
        self.sums.images += 1;
        let floor = if self.random.random_bool(0.3) { self.oracle.durable } else { Lsn::ZERO };
        let opened = open(&image, &self.config, floor, self.random.random());
        let (log, _stepper, recovery) = opened.map_err(|error| format!("refused: {error}"))?;
        if self.plan.is_told {
            println!("       {} to {}, torn: {:?}", recovery.first, recovery.last, recovery.torn);
        }
        let frames = replay_all(&log, &recovery)?;
        self.sums.counts.merge(&image.counts());
        self.oracle.check_recovered(&recovery, &frames, self.oracle.durable).map(|_| ())
    }
}

impl World {
    fn new(plan: Plan) -> Self {
        let mut random = StdRng::seed_from_u64(plan.seed);
        let config = LogConfig {
            segment_bytes: [12 << 10, 32 << 10, 128 << 10, 600 << 10][random.random_range(0..4)],
            sync_interval: SYNC_INTERVAL,
            async_max_bytes: [40_000, 200_000, 64 << 20][random.random_range(0..3)],
            pin_max_bytes: [50_000, 16 << 30][random.random_range(0..2)],
            pin_max_age: Duration::from_secs(3),
            planted: plan.planted,
            ..LogConfig::new("node/log")
        };
        let watcher = Watcher {
            oracle: Oracle::new(),
            random: StdRng::seed_from_u64(plan.seed ^ 0x5eed),
            plan,
            config: config.clone(),
            sums: Sums::default(),
        };
        Self {
            plan,
            config,
            disk: SimulatedDisk::new(plan.seed),
            clock: SimulatedClock::new(plan.seed),
            watcher: Arc::new(Mutex::new(watcher)),
            live: None,
            peer: Peer::new(PEER),
            sent: 0,
            run: Run::new(),
            hears_late: false,
            larges: Vec::new(),
            next_id: 0,
            flushed: Lsn::ZERO,
            is_short: false,
            is_harmed: false,
            random,
        }
    }

    fn run(&mut self) -> Check {
        let watcher = self.watcher.clone();
        self.disk.observe(Some(Arc::new(move |disk, _| watcher.lock().sees(disk))));
        self.start()?;
        if let Some((after, failure)) = self.plan.fails {
            self.disk.fail_call(after, failure);
            self.is_harmed = failure != Failure::Full;
            self.oracle(|oracle| oracle.may_refuse = true);
        }
        for action in 0..self.plan.actions {
            if self.plan.is_told {
                println!("{:6} action {action}", self.disk.calls());
            }
            self.act().map_err(|failure| format!("action {action}: {failure}"))?;
            self.settle().map_err(|failure| format!("after action {action}: {failure}"))?;
        }
        // The end: everything works again, and nothing is lost.
        let fired = self.disk.fired();
        self.sums(|sums| sums.fired = sums.fired.or(fired));
        self.plan.fails = None;
        self.disk.heal();
        self.disk.set_capacity(None);
        self.crash()?;
        self.start()?;
        self.read()?;
        for _ in 0..3 {
            self.append(Persistence::Sync)?;
        }
        self.step()?;
        self.settle()?;
        ensure!(self.oracle(|oracle| oracle.durable == oracle.appended()), "what was appended last is not durable");
        self.close()?;
        self.start()?;
        self.read()
    }

    fn oracle<R>(&self, look: impl FnOnce(&mut Oracle) -> R) -> R {
        look(&mut self.watcher.lock().oracle)
    }

    fn sums(&self, change: impl FnOnce(&mut Sums)) {
        change(&mut self.watcher.lock().sums);
    }

    fn act(&mut self) -> Check {
        let is_dying = match self.live.as_mut().and_then(|live| live.dies_in.as_mut()) {
            Some(0) => return self.restart(),
            Some(left) => {
                *left -= 1;
                true
            }
            None => false,
        };
        let persistence = if self.random.random_bool(0.6) { Persistence::Sync } else { Persistence::Async };
        match self.random.random_range(0..100) {
            0..28 => self.append(persistence)?,
            28..40 => self.large(persistence)?,
            40..50 => self.verbatim(persistence)?,
            50..53 => self.nonsense(persistence)?,
            53..57 => self.command(true)?,
            57..61 => self.command(false)?,
            61..66 => {
                self.step()?;
                self.idle()?;
            }
            66..69 => self.pass_time(),
            69..74 => self.truncate()?,
            74..79 => self.pin()?,
            79..85 => self.read()?,
            85..92 if self.plan.faults && !is_dying => self.arm()?,
            85..92 => {}
            92..94 if self.plan.faults => self.damage()?,
            92..94 => {}
            _ => return self.restart(),
        }
        if self.random.random_bool(0.5) {
            self.step()?;
        }
        Ok(())
    }

    /// Looks at all that was answered, and at what must always hold.
    fn settle(&mut self) -> Check {
        let mut watcher = self.watcher.lock();
        watcher.oracle.poll();
        if let Some(failure) = watcher.oracle.failure.take() {
            return Err(failure);
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        let status = live.log.status();
        let oracle = &mut watcher.oracle;
        let here = (oracle.first, oracle.appended(), oracle.durable);
        ensure!((status.first, status.appended, status.durable) == here, "status {status:?}, {here:?} is right");
        let unsynced = oracle.unsynced_bytes();
        ensure!(
            unsynced <= status.unsynced_bytes,
            "{unsynced} bytes could be lost, the status says {}",
            status.unsynced_bytes
        );
        ensure!(
            status.unsynced_bytes <= self.config.async_max_bytes.max(largest(oracle)),
            "{} bytes are not synced",
            status.unsynced_bytes
        );
        if status.poisoned && !oracle.is_poisoned {
            oracle.is_poisoned = true;
            live.dies_in = Some(self.random.random_range(0..4));
            watcher.sums.poisonings += 1;
        }
        Ok(())
    }

    /// Lets the writer take all that waits.
    fn step(&mut self) -> Check {
        let before = self.disk.fired();
        let Some(live) = &mut self.live else { return Ok(()) };
        let stepped = live.stepper.step();
        if stepped {
            self.after_writer(before)?;
        }
        Ok(())
    }

    fn idle(&mut self) -> Check {
        let before = self.disk.fired();
        let Some(live) = &mut self.live else { return Ok(()) };
        self.clock.advance(SYNC_INTERVAL);
        if live.stepper.idle() {
            self.after_writer(before)?;
            let Some(live) = &self.live else { return Ok(()) };
            let status = live.log.status();
            ensure!(
                status.poisoned || status.durable == status.appended,
                "{} is not synced after the interval",
                status.appended
            );
        }
        Ok(())
    }

    /// What must hold when the writer has done what it could.
    fn after_writer(&mut self, fired_before: Option<CallKind>) -> Check {
        let fired = self.disk.fired().filter(|_| fired_before.is_none());
        let mut watcher = self.watcher.lock();
        let oracle = &mut watcher.oracle;
        oracle.poll();
        if let Some(failure) = oracle.failure.take() {
            return Err(failure);
        }
        let Some(live) = &mut self.live else { return Ok(()) };
        let is_poisoned = live.log.status().poisoned;
        if let Some(call) = fired
            && call.changes()
            && call != CallKind::Remove
            && !oracle.may_refuse
        {
            ensure!(is_poisoned, "{call:?} failed and the log is not poisoned");
        }
        if !is_poisoned && let Some(lsn) = oracle.waits_for_sync() {
            return Err(format!("{lsn} was to be synced and still waits"));
        }
        ensure!(!is_poisoned || self.is_harmed, "poisoned by a full disk");
        for mut command in std::mem::take(&mut live.commands) {
            match (&mut command.answer).now_or_never() {
                None => return Err("a command was not answered".into()),
                Some(Ok(lsn)) if command.is_sync => {
                    ensure!(lsn <= oracle.durable, "{lsn} is called durable, {} is", oracle.durable);
                    oracle.check_settled(command.before)?;
                }
                Some(Ok(_)) => {}
                Some(Err(LogError::Full { .. })) => ensure!(oracle.may_refuse, "a command found no space"),
                Some(Err(LogError::Poisoned { .. })) => ensure!(is_poisoned, "poisoned, and the status hides it"),
                Some(Err(error)) => return Err(format!("a command failed: {error}")),
            }
        }
        let (fulls, oracle) = (oracle.refused, oracle);
        oracle.refused = 0;
        if !self.is_short && self.disk.fired().is_some() {
            oracle.may_refuse = false;
        }
        watcher.sums.fulls += fulls;
        if fulls > 0 {
            // What was refused must not come back.
            for _ in 0..self.plan.images.min(self.plan.images_percent) * 8 {
                watcher.image(&self.disk).map_err(|failure| format!("an image of a crash: {failure}"))?;
            }
        }
        drop(watcher);
        if fulls > 0 {
            self.resync();
        }
        Ok(())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let id = self.next_id;
        self.next_id += 1;
        let len = match self.random.random_range(0..100) {
            0..60 => self.random.random_range(0..300),
            60..88 => self.random.random_range(300..6000),
            88..97 => self.random.random_range(6000..40_000),
            _ => self.random.random_range(260_000..300_000),
        };
        let mut bytes = vec![(id % 251) as u8; 8 + len];
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes
    }

    fn append(&mut self, persistence: Persistence) -> Check {
        let history = OWN[self.random.random_range(0..2)];
        let payload = Payload::new(vec![part(&self.bytes())], vec![], None).unwrap();
        let record =
            Record { history, kind: RecordKind::Commit, transaction: None, fragment: FragmentNumber(0), payload };
        self.submit(record, true, persistence)
    }

    /// Goes on with a transaction in fragments, or begins one.
    fn large(&mut self, persistence: Persistence) -> Check {
        let Some(live) = &self.live else { return Ok(()) };
        if self.larges.len() < 3 && self.random.random_bool(0.4) {
            let history = OWN[self.random.random_range(0..2)];
            match live.log.begin_transaction(history) {
                Ok(number) => self.larges.push(Large { history, number, fragments: Vec::new() }),
                Err(LogError::Poisoned { .. }) => return Ok(()),
                Err(error) => return Err(format!("begin: {error}")),
            }
        }
        if self.larges.is_empty() {
            return Ok(());
        }
        let at = self.random.random_range(0..self.larges.len());
        let has_fragments = !self.larges[at].fragments.is_empty();
        let kind = match self.random.random_range(0..10) {
            0..6 => RecordKind::Fragment,
            6..8 if has_fragments => RecordKind::Commit,
            8..10 if has_fragments => RecordKind::Abort,
            _ => RecordKind::Fragment,
        };
        let bytes = self.bytes();
        let large = &mut self.larges[at];
        let fragments = if kind == RecordKind::Commit { large.fragments.clone() } else { vec![] };
        let count = if kind == RecordKind::Abort { 0 } else { large.fragments.len() as u32 };
        let payload = match kind {
            RecordKind::Abort => Payload::empty(),
            _ => Payload::new(vec![part(&bytes)], fragments, None).unwrap(),
        };
        let record = Record {
            history: large.history,
            kind,
            transaction: Some(large.number),
            fragment: FragmentNumber(count),
            payload,
        };
        if kind == RecordKind::Fragment {
            large.fragments.push(record.payload.hash);
        } else {
            self.larges.swap_remove(at);
        }
        self.submit(record, true, persistence)
    }

    fn verbatim(&mut self, persistence: Persistence) -> Check {
        let may_refuse = self.oracle(|oracle| oracle.may_refuse);
        // A feed hears late of a refusal: what it had sent until then is on its way.
        if self.hears_late && self.random.random_bool(0.4) {
            // What is on its way is answered first.
            self.step()?;
            self.resync_peer();
        }
        let count = if may_refuse { self.random.random_range(1..4) } else { 1 };
        for _ in 0..count {
            let bytes = self.bytes();
            let record = self.peer.record(self.sent, &mut self.random, &bytes);
            self.sent += 1;
            self.submit_verbatim(record, Some(self.run.clone()), persistence)?;
            if may_refuse && self.random.random_bool(0.5) {
                self.step()?;
            }
        }
        Ok(())
    }

    /// Asks for what must be refused.
    fn nonsense(&mut self, persistence: Persistence) -> Check {
        let bytes = self.bytes();
        let commit = |history, transaction, fragment| Record {
            history,
            kind: RecordKind::Commit,
            transaction,
            fragment: FragmentNumber(fragment),
            payload: Payload::new(vec![part(&bytes)], vec![], None).unwrap(),
        };
        match self.random.random_range(0..5) {
            0 => self.submit(commit(STRANGER, None, 0), false, persistence),
            1 => self.submit(commit(OWN[0], Some(TransactionNumber(1 << 40)), 0), false, persistence),
            2 => self.submit(commit(OWN[1], None, 3), false, persistence),
            3 if !self.hears_late
                && self.sent > 0
                && self.peer.records[self.sent - 1].header.kind == RecordKind::Commit =>
            {
                let again = self.peer.records[self.sent - 1].clone();
                self.submit_verbatim(again, None, persistence)
            }
            _ => {
                let mut forked = self.peer.record(self.sent, &mut self.random, &bytes);
                if forked.header.kind != RecordKind::Commit {
                    return Ok(());
                }
                forked.header.chain.0 ^= 1;
                self.submit_verbatim(forked, None, persistence)
            }
        }
    }

    fn submit(&mut self, record: Record, is_valid: bool, persistence: Persistence) -> Check {
        let facts = Facts {
            history: record.history,
            kind: record.kind,
            transaction: record.transaction,
            fragment: record.fragment.0,
            payload: record.payload.hash,
            frame_len: HEADER_BYTES + record.payload.encoded_len() as u64,
            skipped: false,
            verbatim: None,
        };
        let Some(live) = &self.live else { return Ok(()) };
        let appending = live.log.append(record, persistence).now_or_never();
        self.submitted(facts, is_valid, persistence, appending)
    }

    /// A record of the peer: in a run, or alone and not to be taken.
    fn submit_verbatim(&mut self, record: VerbatimRecord, run: Option<Run>, persistence: Persistence) -> Check {
        // Nothing is taken behind what was refused.
        let is_valid = run.as_ref().is_some_and(|run| run.refused().is_none());
        let facts = Facts {
            history: record.header.history,
            kind: record.header.kind,
            transaction: Some(record.header.transaction),
            fragment: record.header.fragment.0,
            payload: record.payload.hash,
            frame_len: HEADER_BYTES + record.payload.encoded_len() as u64,
            skipped: record.skipped,
            verbatim: Some(record.header),
        };
        let Some(live) = &self.live else { return Ok(()) };
        let appending = match run {
            Some(run) => live.log.append_in_run(&run, record, persistence).now_or_never(),
            None => live.log.append_verbatim(record, persistence).now_or_never(),
        };
        self.submitted(facts, is_valid, persistence, appending)
    }

    fn submitted(
        &mut self,
        facts: Facts,
        is_valid: bool,
        persistence: Persistence,
        appending: Option<Result<tailrace_wal::Appending, LogError>>,
    ) -> Check {
        match appending {
            Some(Ok(appending)) => {
                self.oracle(|oracle| oracle.submit(facts, is_valid, persistence, appending));
                Ok(())
            }
            Some(Err(LogError::Poisoned { .. })) => {
                let is_poisoned = self.live.as_ref().is_some_and(|live| live.log.status().poisoned);
                ensure!(is_poisoned, "refused as poisoned, and the status hides it");
                Ok(())
            }
            Some(Err(error)) => Err(format!("append: {error}")),
            None => Err("append waits for the queue".into()),
        }
    }

    fn command(&mut self, is_sync: bool) -> Check {
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

    fn pass_time(&mut self) {
        match self.random.random_range(0..5) {
            0 => self.clock.set_now(CommitTime(self.random.random_range(0..2_000_000_000_000_000))),
            _ => self.clock.advance(Duration::from_millis(self.random.random_range(1..900))),
        }
    }

    fn truncate(&mut self) -> Check {
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

    fn pin(&mut self) -> Check {
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

    /// Reads everything in every way and compares.
    fn read(&mut self) -> Check {
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

    /// Plans a failure, or ends one.
    fn arm(&mut self) -> Check {
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
    fn resync(&mut self) {
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
    fn resync_peer(&mut self) {
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
    fn damage(&mut self) -> Check {
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

    /// Ends the log in some way and opens it again.
    fn restart(&mut self) -> Check {
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

    fn close(&mut self) -> Check {
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
    fn crash(&mut self) -> Check {
        self.kill();
        self.disk.crash(&mut self.random);
        Ok(())
    }

    /// Opens the log, with failures on the way, until it is open.
    fn start(&mut self) -> Check {
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

fn largest(oracle: &Oracle) -> u64 {
    oracle.entries.iter().map(|entry| entry.facts.frame_len).max().unwrap_or(0)
}

/// Opens a copy.
fn open(disk: &SimulatedDisk, config: &LogConfig, floor: Lsn, seed: u64) -> Result<(Log, Stepper, Recovery), LogError> {
    let clock = Arc::new(SimulatedClock::new(seed));
    Log::open_stepped(config.clone(), NODE, floor, disk.shared(), clock)
}

fn replay_all(log: &Log, recovery: &Recovery) -> Check<Vec<Frame>> {
    replay_from(log, Lsn(recovery.first.0.saturating_sub(1))).map_err(|error| format!("read after a start: {error}"))
}

fn replay_from(log: &Log, after: Lsn) -> Result<Vec<Frame>, LogError> {
    replay(log, after)
}

/// Segments of a disk by their first LSN.
fn segments(disk: &SimulatedDisk) -> Vec<(Lsn, PathBuf)> {
    let is_segment = |path: &Path| path.extension().is_some_and(|end| end == "wal");
    let found = disk.files().into_iter().filter(|(path, _)| is_segment(path));
    let mut found: Vec<_> =
        found.filter_map(|(path, _)| Some((Lsn(path.file_stem()?.to_str()?.parse().ok()?), path))).collect();
    found.sort();
    found
}
