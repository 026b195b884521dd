//! Failing calls at every place, and loss of power.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::FutureExt;
use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::{
    Log, LogConfig, LogError, Lsn, Persistence,
    simulation::{CallKind, Failure, SimulatedClock, SimulatedDisk, Stepper},
};

use crate::support::{HISTORY, NODE, append, append_numbers, commit, number, open_on, replay, start};

/// What a run was told.
#[derive(Debug, Default)]
struct Told {
    /// LSN and number of records that are durable by their acknowledgement.
    durable: BTreeMap<Lsn, u32>,
    /// Records of which it was said that they are not there.
    refused: Vec<u32>,
    poisoned: bool,
    opened: bool,
}

fn config() -> LogConfig {
    LogConfig { segment_bytes: 64 << 10, sync_interval: Duration::from_secs(3600), ..LogConfig::new("log") }
}

/// Opens a log and appends small and large, synchronous and asynchronous records over several segments.
async fn run(disk: &SimulatedDisk, first: u32) -> Told {
    let mut told = Told::default();
    let Ok((log, recovery)) = open_on(config(), Lsn::ZERO, Arc::new(disk.clone())) else { return told };
    told.opened = true;
    start(&log, &recovery, HISTORY);
    for number in first..first + 14 {
        let size = [40, 3000, 20_000, 70_000][number as usize % 4];
        let mut bytes = vec![number as u8; size];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        let persistence = if number % 3 == 2 { Persistence::Async } else { Persistence::Sync };
        let Ok(mut appending) = log.append(commit(HISTORY, &bytes), persistence).await else {
            assert!(told.poisoned, "refused at the door without being poisoned");
            continue;
        };
        let result = match persistence {
            Persistence::Sync => appending.durable().await,
            Persistence::Async => appending.written().await,
        };
        match result {
            Ok(written) => {
                assert!(!told.poisoned, "acknowledged after the failure");
                if persistence == Persistence::Sync {
                    told.durable.insert(written.lsn, number);
                }
            }
            Err(LogError::Full { .. }) => told.refused.push(number),
            Err(LogError::Poisoned { .. }) => told.poisoned = true,
            Err(error) => panic!("{error}"),
        }
        if number == first + 6 {
            match log.roll().await {
                Ok(()) | Err(LogError::Full { .. }) => {}
                Err(_) => told.poisoned = true,
            }
        }
    }
    assert_eq!(log.status().poisoned, told.poisoned);
    if log.sync().await.and(log.close().await).is_err() {
        told.poisoned = true;
    }
    told
}

/// What the log holds after a restart without failures: LSNs without a gap, with their numbers.
fn recovered(disk: &SimulatedDisk) -> Vec<u32> {
    let (log, recovery) = open_on(config(), Lsn::ZERO, Arc::new(disk.clone())).unwrap();
    let frames = replay(&log, Lsn::ZERO).unwrap();
    assert_eq!(frames.len() as u64, recovery.last.0);
    assert!(frames.iter().enumerate().all(|(index, frame)| frame.lsn == Lsn(index as u64 + 1)));
    let position = frames.last().map(|frame| frame.header.position());
    assert_eq!(recovery.histories.first().map(|history| history.end.position), position);
    frames.iter().map(first_number).collect()
}

fn first_number(frame: &tailrace_wal::Frame) -> u32 {
    let bytes = frame.payload.part_bytes(0);
    if bytes.len() == 4 { number(frame) } else { u32::from_le_bytes(bytes[..4].try_into().unwrap()) }
}

fn check(told: &Told, numbers: &[u32], what: &str) {
    for (lsn, number) in &told.durable {
        assert_eq!(numbers.get(lsn.0 as usize - 1), Some(number), "{what}: {lsn} was acknowledged; {numbers:?}");
    }
    for refused in &told.refused {
        assert!(!numbers.contains(refused), "{what}: {refused} was refused and is there");
    }
}

/// Fails each call in turn; `crashes`: with loss of power, or only the process restarts.
async fn fail_everywhere(failure: Failure, crashes: bool) -> BTreeMap<CallKind, usize> {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut fired = BTreeMap::new();
    for at in 0.. {
        let disk = SimulatedDisk::new(seed);
        let before = run(&disk, 100).await;
        assert!(!before.poisoned);
        disk.fail_call(at, failure);
        let told = run(&disk, 200).await;
        let Some(call) = disk.fired() else { break };
        *fired.entry(call).or_insert(0) += 1;
        let what = format!("call {at}, {call:?}, seed {seed}");
        match failure {
            Failure::Full => assert!(!told.poisoned, "{what}"),
            _ => assert!(told.poisoned || !told.opened || call == CallKind::Remove, "{what}: {told:?}"),
        }
        if crashes {
            disk.crash(&mut random);
        }
        disk.heal();
        let numbers = recovered(&disk);
        check(&before, &numbers, &what);
        check(&told, &numbers, &what);
        let after = run(&disk, 300).await;
        assert!(!after.poisoned && after.refused.is_empty(), "{what}: works after the restart");
        check(&after, &recovered(&disk), &what);
    }
    println!("{fired:?}");
    fired
}

#[tokio::test]
async fn every_call_fails() {
    let fired = fail_everywhere(Failure::Broken, false).await;
    for call in [
        CallKind::Create,
        CallKind::Write,
        CallKind::SyncData,
        CallKind::SyncAll,
        CallKind::Rename,
        CallKind::SyncDir,
        CallKind::SetLen,
        CallKind::Open,
        CallKind::Read,
    ] {
        assert!(fired.get(&call).is_some_and(|count| *count > 0), "{call:?} never failed");
    }
}

#[tokio::test]
async fn every_call_fails_and_power_is_lost() {
    fail_everywhere(Failure::Broken, true).await;
}

#[tokio::test]
async fn no_space_at_every_call() {
    let fired = fail_everywhere(Failure::Full, false).await;
    assert!(fired[&CallKind::Write] > 10 && fired[&CallKind::Create] > 0, "{fired:?}");
}

#[tokio::test]
async fn no_space_at_every_call_and_power_is_lost() {
    fail_everywhere(Failure::Full, true).await;
}

#[tokio::test]
async fn power_is_lost_again_and_again() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..15 {
        let disk = SimulatedDisk::new(1);
        let mut all = Told::default();
        for round in 0..4 {
            disk.fail_call(random.random_range(3..80), Failure::Broken);
            let told = run(&disk, round * 100).await;
            all.durable.extend(told.durable);
            disk.crash(&mut random);
            // Also while recovering.
            disk.fail_call(random.random_range(0..12), Failure::Broken);
            let _ = open_on(config(), Lsn::ZERO, Arc::new(disk.clone()));
            disk.crash(&mut random);
            check(&all, &recovered(&disk), &format!("round {round}, seed {seed}"));
        }
    }
}

#[tokio::test]
async fn readers_see_the_end_of_a_poisoned_log() {
    let disk = SimulatedDisk::new(1);
    let (log, recovery) = open_on(config(), Lsn::ZERO, Arc::new(disk.clone())).unwrap();
    start(&log, &recovery, HISTORY);
    append(&log, commit(HISTORY, &1_u32.to_le_bytes())).await.unwrap();
    let mut durable = log.durable();
    let mut tail = log.tail(HISTORY, tailrace_wal::Seq::ZERO).unwrap();
    disk.fail_call(1, Failure::Broken);
    assert!(matches!(append(&log, commit(HISTORY, b"lost")).await, Err(LogError::Poisoned { .. })));
    assert_eq!(disk.fired(), Some(CallKind::SyncData));
    assert_eq!(number(&tail.next().await.unwrap()), 1);
    assert!(matches!(tail.next().await, Err(LogError::Poisoned { .. })), "written, but never durable");
    durable.borrow_and_update();
    assert!(durable.changed().await.is_err(), "the channel is closed");
    assert!(matches!(append(&log, commit(HISTORY, b"later")).await, Err(LogError::Poisoned { .. })));
    assert!(matches!(log.close().await, Err(LogError::Poisoned { .. })));
    assert!(log.status().poisoned);
}

/// How a log goes on that has refused a record.
#[derive(Debug, Clone, Copy)]
enum GoesOn {
    Writes,
    Rolls,
    Closes,
    /// The process is killed and started again.
    Starts,
}

/// Lets the writer do all that `work` asks for.
fn stepped<T>(work: impl Future<Output = T>, stepper: &mut Stepper) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        if let Some(done) = work.as_mut().now_or_never() {
            return done;
        }
        assert!(stepper.step(), "it waits for nothing");
    }
}

/// The refused record's bytes lie in free space, where the footer of its segment goes: a crash may show them there.
#[test]
fn what_was_refused_stays_away_when_its_segment_ends() {
    let mut images = 0;
    let ways = [GoesOn::Writes, GoesOn::Rolls, GoesOn::Closes, GoesOn::Starts];
    for (seed, how) in (0..30).flat_map(|seed| ways.map(|how| (seed, how))) {
        let mut disk = SimulatedDisk::new(seed);
        let clock = Arc::new(SimulatedClock::new(seed));
        let opened = Log::open_stepped(config(), NODE, Lsn::ZERO, disk.shared(), clock);
        let (log, mut stepper, recovery) = opened.unwrap();
        start(&log, &recovery, HISTORY);
        // They end where a block of the disk does, and their footer is longer than a record.
        stepped(append_numbers(&log, 0..20), &mut stepper);
        let durable = log.status().durable;
        disk.fail_from(0, Failure::Full);
        // The write stops somewhere, mostly behind the first of them.
        let batch = [20_u32.to_le_bytes().to_vec(), vec![0; 30_000]];
        let queued = batch.map(|bytes| log.append(commit(HISTORY, &bytes), Persistence::Async).now_or_never());
        stepper.step();
        for queued in queued {
            let refused = queued.unwrap().unwrap().written().now_or_never();
            assert!(matches!(refused, Some(Err(LogError::Full { .. }))), "{refused:?}");
        }
        disk.heal();
        let mut running = Some((log, stepper));
        if matches!(how, GoesOn::Starts) {
            let left = disk.fork();
            running = None;
            disk = left;
        }
        let crashed = Arc::new(Mutex::new((StdRng::seed_from_u64(seed), Vec::new())));
        let seen = crashed.clone();
        disk.observe(Some(Arc::new(move |disk, _| {
            let (random, images) = &mut *seen.lock();
            images.extend((0..12).map(|_| disk.image(random)));
        })));
        match (how, &mut running) {
            (GoesOn::Writes, Some((log, stepper))) => stepped(append_numbers(log, 21..22), stepper),
            (GoesOn::Rolls, Some((log, stepper))) => stepped(log.roll(), stepper).unwrap(),
            (GoesOn::Closes, Some((log, stepper))) => stepped(log.clone().close(), stepper).unwrap(),
            _ => drop(open_on(config(), durable, disk.shared()).unwrap()),
        }
        disk.observe(None);
        drop(running);
        let crashed = std::mem::take(&mut crashed.lock().1);
        for image in crashed.iter().chain([&disk.fork()]) {
            images += 1;
            let numbers = recovered(image);
            assert!(numbers[..20].iter().copied().eq(0..20), "seed {seed}, {how:?}: {numbers:?}");
            assert!([&[][..], &[21]].contains(&&numbers[20..]), "seed {seed}, {how:?}: {numbers:?}");
        }
    }
    assert!(images > 5000, "{images}");
}
