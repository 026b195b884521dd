//! A seeded life of one log on a hostile disk: what is asked of it, what fails, when it dies and comes back.
//!
//! | file | what |
//! |---|---|
//! | `appends` | commits, transactions in fragments, records of the peer, nonsense |
//! | `commands` | syncs, rolls, truncation, pins, time that passes |
//! | `reads` | everything is read in every way and compared |
//! | `failures` | failures that are planned and ended, bits that flip |
//! | `starts` | how a log ends and is opened again |
//! | `watcher` | sees every changing call and takes images of crashes |

mod appends;
mod commands;
mod failures;
mod reads;
mod starts;
mod watcher;

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
    Frame, HistoryId, Log, LogConfig, LogError, Lsn, PayloadHash, Persistence, Pin, PinKey, Recovery, Run, Seq,
    TransactionNumber,
    simulation::{CallKind, Failure, FaultCounts, PlantedBug, SimulatedClock, SimulatedDisk, Stepper},
};

use super::{
    oracle::{Check, Oracle, ensure},
    peer::Peer,
};
use crate::support::{NODE, replay};
use watcher::Watcher;

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
    /// Records written while a sync was under way.
    pub(crate) beside: u64,
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
        self.beside += other.beside;
        self.counts.merge(&other.counts);
    }
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
            53..57 => {
                self.command(true)?;
                if self.random.random_bool(0.5) {
                    self.step_beside()?;
                }
            }
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

    /// The same; when it comes to a sync during which others may write, they do.
    fn step_beside(&mut self) -> Check {
        let before = self.disk.fired();
        let Some(live) = &mut self.live else { return Ok(()) };
        if !live.stepper.begin() {
            return Ok(());
        }
        for _ in 0..self.random.random_range(1..4) {
            if self.random.random_bool(0.3)
                && let Some(live) = &mut self.live
            {
                live.stepper.sync_early();
            }
            let persistence = if self.random.random_bool(0.3) { Persistence::Sync } else { Persistence::Async };
            self.append(persistence)?;
            if let Some(live) = &mut self.live
                && live.stepper.write_beside()
            {
                self.sums(|sums| sums.beside += 1);
            }
        }
        if let Some(live) = &mut self.live {
            live.stepper.end_sync();
            // A synchronous one among them is due now.
            while live.stepper.step() || live.stepper.idle() {}
        }
        self.after_writer(before)
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
