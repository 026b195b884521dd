//! Appends that are written by whoever appends, beside the log's thread: everyone is answered, in order, whatever happens.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::{
    Disk, DiskFile, DiskLock, DiskSpace, Log, LogConfig, LogError, Lsn, Persistence, SystemDisk, Written,
};
use tokio::runtime::{Builder, Runtime};

use crate::support::{HISTORY, commit, number, open_on, replay, start};

const TASKS: u32 = 12;
/// Share of the appends that appenders write themselves where they seldom ask for a sync, at least.
const OWN_TURNS: f64 = 0.2;

/// Longer than any of these tests takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn workers(count: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(count).enable_all().build().unwrap()
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The machine's disk, and which threads call it.
#[derive(Debug)]
struct Watched {
    disk: Arc<dyn Disk>,
    calls: Arc<Calls>,
}

#[derive(Debug, Default)]
struct Calls {
    /// Calls of appenders, not of the log's thread.
    writes: AtomicU64,
    syncs: AtomicU64,
    /// Syncs of the log's thread.
    thread_syncs: AtomicU64,
    /// What an appender's next write does.
    next_write_panics: AtomicBool,
    next_write_fails: AtomicBool,
    /// Tells that an appender's write has begun and waits until it may go on.
    gate: Mutex<Option<Gate<()>>>,
    /// The same for the thread's next sync, which ends as the test says.
    sync_gate: Mutex<Option<Gate<io::Result<()>>>>,
}

type Gate<T> = (mpsc::Sender<()>, mpsc::Receiver<T>);

fn is_appender() -> bool {
    thread::current().name() != Some("wal-writer")
}

impl Disk for Watched {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(WatchedFile { file: self.disk.create(path)?, calls: self.calls.clone() }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(WatchedFile { file: self.disk.open(path, write)?, calls: self.calls.clone() }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.disk.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(path)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.disk.lock(path)
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        self.disk.space(folder)
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn DiskFile>,
    calls: Arc<Calls>,
}

impl DiskFile for WatchedFile {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        if is_appender() {
            let calls = &self.calls;
            calls.writes.fetch_add(1, Ordering::Relaxed);
            assert!(!calls.next_write_panics.swap(false, Ordering::Relaxed), "a bug, planted by a test");
            if calls.next_write_fails.swap(false, Ordering::Relaxed) {
                return Err(io::Error::other("a disk that fails, planted by a test"));
            }
            let gate = calls.gate.lock().take();
            if let Some((begun, go_on)) = gate {
                begun.send(()).unwrap();
                go_on.recv().unwrap();
            }
        }
        self.file.write_all_vectored_at(slices, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        let count = if is_appender() { &self.calls.syncs } else { &self.calls.thread_syncs };
        count.fetch_add(1, Ordering::Relaxed);
        let gate = self.calls.sync_gate.lock().take();
        if let Some((begun, end)) = gate {
            begun.send(()).unwrap();
            end.recv().unwrap()?;
        }
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

struct Bed {
    log: Log,
    calls: Arc<Calls>,
    config: LogConfig,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new(change: impl FnOnce(&mut LogConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = LogConfig::new(dir.path());
        // A thread that was slow to end its turn has met the next append: that is not to send the rest to it.
        config.crowds_take_turns = true;
        change(&mut config);
        let calls = Arc::new(Calls::default());
        let disk = Watched { disk: SystemDisk::shared(), calls: calls.clone() };
        let (log, recovery) = open_on(config.clone(), Lsn::ZERO, Arc::new(disk)).unwrap();
        start(&log, &recovery, HISTORY);
        // Opening is nobody's turn.
        calls.writes.store(0, Ordering::Relaxed);
        calls.syncs.store(0, Ordering::Relaxed);
        Self { log, calls, config, _dir: dir }
    }

    async fn append(&self, number: u32, persistence: Persistence) -> Result<Written, LogError> {
        append(&self.log, number, persistence).await
    }
}

async fn append(log: &Log, number: u32, persistence: Persistence) -> Result<Written, LogError> {
    let mut appending = log.append(commit(HISTORY, &number.to_le_bytes()), persistence).await?;
    match persistence {
        Persistence::Sync => appending.durable().await,
        Persistence::Async => appending.written().await,
    }
}

/// What tasks do at random.
#[derive(Debug, Clone, Copy)]
struct Mix {
    crowds_take_turns: bool,
    sync_interval: Duration,
    /// Share of the appends that ask for a sync, and of those that wait for one.
    synced: f64,
    /// One of so many is followed by a sync of all, one by a new segment.
    commands: u32,
    /// One of so many is too large for an appender's turn.
    large: u32,
    /// Share of the appends that appenders write themselves, at least.
    own_turns: f64,
}

/// A task's part: appends of both kinds, awaited at once or later or not at all, syncs and new segments.
async fn any_appends(log: Log, task: u32, count: u32, seed: u64, mix: Mix) -> Vec<(u32, Written)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut answered = Vec::new();
    let mut under_way = Vec::new();
    for index in 0..count {
        let number = task * count + index;
        let persistence = if random.random_bool(mix.synced) { Persistence::Sync } else { Persistence::Async };
        let mut record = number.to_le_bytes().to_vec();
        if random.random_ratio(1, mix.large) {
            record.resize(100_000, 7);
        }
        let mut appending = log.append(commit(HISTORY, &record), persistence).await.unwrap();
        match (random.random_bool(mix.synced), random.random_bool(0.5)) {
            (true, true) => under_way.push((number, appending)),
            (true, false) => answered.push((number, appending.durable().await.unwrap())),
            (false, _) => answered.push((number, appending.written().await.unwrap())),
        }
        match random.random_range(0..mix.commands) {
            0 => drop(log.sync().await.unwrap()),
            1 => log.roll().await.unwrap(),
            _ if random.random_ratio(1, 7) => tokio::task::yield_now().await,
            _ => {}
        }
        if under_way.len() > 8 {
            for (number, appending) in under_way.drain(..) {
                answered.push((number, appending.durable().await.unwrap()));
            }
        }
    }
    for (number, appending) in under_way {
        answered.push((number, appending.durable().await.unwrap()));
    }
    answered
}

/// `TAILRACE_TURNS=3000` runs it for longer: so many appends of each task. `TAILRACE_TURNS_SEED` repeats a run, as far as
/// threads can be repeated.
#[test]
fn every_append_is_answered_in_order() {
    let variable = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let count = variable("TAILRACE_TURNS").map_or(400, |count| count as u32);
    let seed = variable("TAILRACE_TURNS_SEED").unwrap_or_else(rand::random);
    println!("TAILRACE_TURNS={count} TAILRACE_TURNS_SEED={seed}");
    let often = Mix {
        crowds_take_turns: false,
        sync_interval: Duration::from_millis(5),
        synced: 0.5,
        commands: 200,
        large: 50,
        own_turns: 0.0,
    };
    // Whoever comes in a crowd goes to the thread; where that is switched off, turns of all follow each other closely. While the
    // thread syncs, all wait for it: where they seldom ask for that, the turns are theirs.
    let closely = Mix { crowds_take_turns: true, ..often };
    let sync_interval = Duration::from_millis(100);
    let seldom = Mix { sync_interval, synced: 0.002, commands: 2_000, large: 500, own_turns: OWN_TURNS, ..closely };
    for mix in [often, closely, seldom] {
        answers_everyone(mix, count, seed);
    }
}

fn answers_everyone(mix: Mix, count: u32, seed: u64) {
    let bed = Bed::new(|config| {
        config.sync_interval = mix.sync_interval;
        config.segment_bytes = 4 << 20;
        config.crowds_take_turns = mix.crowds_take_turns;
    });
    // Two runtimes, of which one cannot block, and more threads than processors.
    let (many, one) = (workers(4), one_thread());
    let tasks: Vec<_> = (0..TASKS - 1)
        .map(|task| many.spawn(any_appends(bed.log.clone(), task, count, seed.wrapping_add(u64::from(task)), mix)))
        .collect();
    let mut answered =
        one.block_on(any_appends(bed.log.clone(), TASKS - 1, count, seed.wrapping_add(u64::from(TASKS)), mix));
    let mut durable = bed.log.durable();
    many.block_on(async {
        for task in tasks {
            answered.extend(
                tokio::time::timeout(PATIENCE + Duration::from_millis(u64::from(count)), task)
                    .await
                    .expect("everyone is answered")
                    .unwrap(),
            );
        }
        // Nobody asks for a sync any more; the thread does what is due.
        let last = Lsn(u64::from(TASKS * count));
        tokio::time::timeout(PATIENCE, durable.wait_for(|now| *now == last))
            .await
            .expect("all become durable")
            .unwrap();
    });
    let calls = &bed.calls;
    let own_turns = calls.writes.load(Ordering::Relaxed);
    println!(
        "{} appends; of appenders {own_turns} writes, of the thread {} syncs",
        answered.len(),
        calls.thread_syncs.load(Ordering::Relaxed)
    );
    let wanted = (f64::from(TASKS * count) * mix.own_turns) as u64;
    assert!(own_turns >= wanted, "{own_turns} appends of {} were written by who appended them", answered.len());
    assert_eq!(calls.syncs.load(Ordering::Relaxed), 0, "an appender never syncs");
    let answered: BTreeMap<Lsn, u32> = answered.into_iter().map(|(number, written)| (written.lsn, number)).collect();
    assert_eq!(answered.len() as u32, TASKS * count, "an LSN each");
    let frames = replay(&bed.log, Lsn::ZERO).unwrap();
    assert_eq!(frames.len(), answered.len());
    let mut last = vec![None; TASKS as usize];
    for frame in &frames {
        let bytes = frame.payload.part_bytes(0);
        let number = u32::from_le_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(answered.get(&frame.lsn), Some(&number));
        let before = last[(number / count) as usize].replace(number);
        assert!(before < Some(number), "a task's records are in the order of its appends");
    }
}

#[test]
fn a_lone_appender_writes_for_itself() {
    let bed = Bed::new(|_| {});
    let mut first = 0;
    for runtime in [workers(2), one_thread()] {
        let writes = bed.calls.writes.load(Ordering::Relaxed);
        runtime.block_on(async {
            for number in first..first + 300 {
                let persistence = if number % 2 == 0 { Persistence::Sync } else { Persistence::Async };
                bed.append(number, persistence).await.unwrap();
            }
            bed.log.sync().await.unwrap();
        });
        first += 300;
        assert!(bed.calls.writes.load(Ordering::Relaxed) > writes);
    }
    assert_eq!(bed.calls.syncs.load(Ordering::Relaxed), 0, "it never waits for a sync");
    let numbers: Vec<u32> = replay(&bed.log, Lsn::ZERO).unwrap().iter().map(number).collect();
    assert_eq!(numbers, (0..first).collect::<Vec<_>>());
}

#[test]
fn what_is_large_is_the_threads() {
    let bed = Bed::new(|_| {});
    one_thread().block_on(async {
        for _ in 0..100 {
            let mut appending = bed.log.append(commit(HISTORY, &[7; 100_000]), Persistence::Async).await.unwrap();
            appending.written().await.unwrap();
        }
    });
    assert_eq!(bed.calls.writes.load(Ordering::Relaxed), 0);
}

#[test]
fn the_thread_syncs_what_an_appender_wrote() {
    let bed = Bed::new(|config| config.sync_interval = Duration::from_millis(2));
    let mut durable = bed.log.durable();
    one_thread().block_on(async {
        // The thread sleeps for ever before each of them, or until a mark is due.
        for number in 0..100 {
            let written = bed.append(number, Persistence::Async).await.unwrap();
            let synced = durable.wait_for(|now| *now >= written.lsn);
            tokio::time::timeout(PATIENCE, synced).await.expect("it is synced without being asked").unwrap();
            if number % 10 == 0 {
                tokio::time::sleep(bed.config.sync_interval * 3).await;
            }
        }
    });
    assert!(bed.calls.writes.load(Ordering::Relaxed) > 0);
}

#[test]
fn an_appenders_failed_write_poisons() {
    let bed = Bed::new(|config| config.sync_interval = Duration::from_secs(3600));
    one_thread().block_on(async {
        let mut unsynced = bed.log.append(commit(HISTORY, &[1; 4]), Persistence::Async).await.unwrap();
        unsynced.written().await.unwrap();
        bed.calls.next_write_fails.store(true, Ordering::Relaxed);
        let mut number = 0;
        let error = loop {
            number += 1;
            match bed.append(number, Persistence::Async).await {
                Ok(_) => assert!(number < 100_000, "no append was written by its appender"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, LogError::Poisoned { .. }), "{error}");
        let waited = tokio::time::timeout(PATIENCE, unsynced.durable()).await.expect("who waits for a sync is told");
        assert!(matches!(waited, Err(LogError::Poisoned { .. })), "{waited:?}");
        assert!(bed.log.status().poisoned);
        assert!(matches!(bed.append(0, Persistence::Sync).await, Err(LogError::Poisoned { .. })));
        assert!(matches!(bed.log.close().await, Err(LogError::Poisoned { .. })));
        assert!(bed.log.durable().changed().await.is_err(), "followers see the end");
    });
    let durable = bed.log.status().durable;
    let dir = bed.config.clone();
    // The thread has ended too, or this would wait for it for ever.
    let Bed { log, _dir, .. } = bed;
    drop(log);
    let (_log, recovery) = open_on(dir, Lsn::ZERO, SystemDisk::shared()).unwrap();
    assert!(recovery.last >= durable);
}

#[test]
fn an_appender_that_panics_leaves_nobody_waiting() {
    let bed = Bed::new(|_| {});
    workers(2).block_on(async {
        bed.append(0, Persistence::Async).await.unwrap();
        let mut under_way = Vec::new();
        bed.calls.next_write_panics.store(true, Ordering::Relaxed);
        let mut panicked = false;
        for number in 0..100_000 {
            let log = bed.log.clone();
            let task = tokio::spawn(async move {
                log.append(commit(HISTORY, &u32::to_le_bytes(number)), Persistence::Async).await
            });
            match task.await {
                Ok(appending) => under_way.push(appending.unwrap()),
                Err(error) => {
                    panicked = error.is_panic();
                    break;
                }
            }
        }
        assert!(panicked);
        let mut refused = 0;
        for appending in under_way {
            refused += u32::from(matches!(appending.durable().await, Err(LogError::Poisoned { .. })));
        }
        let error = bed.append(1, Persistence::Async).await.unwrap_err();
        assert!(matches!(error, LogError::Poisoned { .. }), "{error}; {refused} before it");
    });
}

/// An appender's write hangs. What is queued meanwhile waits for the end of its turn, and all are answered.
#[test]
fn close_waits_for_the_turn_of_an_appender() {
    let bed = Bed::new(|_| {});
    let (begun, has_begun) = mpsc::channel();
    let (let_go, go_on) = mpsc::channel();
    *bed.calls.gate.lock() = Some((begun, go_on));
    let appender = thread::spawn({
        let log = bed.log.clone();
        // Without a runtime.
        move || {
            futures::executor::block_on(async {
                let mut answers = Vec::new();
                for number in 0..100_000 {
                    match append(&log, number, Persistence::Sync).await {
                        Ok(written) => answers.push(written),
                        Err(error) => return (answers, error),
                    }
                }
                panic!("no append was written by its appender");
            })
        }
    });
    has_begun.recv_timeout(PATIENCE).unwrap();
    let last = one_thread().block_on(async {
        let before = bed.log.append(commit(HISTORY, &[1; 4]), Persistence::Async).await.unwrap();
        let mut closing = std::pin::pin!(bed.log.close());
        assert!(futures::poll!(closing.as_mut()).is_pending());
        let after = bed.log.append(commit(HISTORY, &[2; 4]), Persistence::Async).await.unwrap();
        let_go.send(()).unwrap();
        tokio::time::timeout(PATIENCE, closing).await.expect("the log is closed").unwrap();
        assert!(matches!(after.durable().await, Err(LogError::Closed)), "queued behind the close");
        before.durable().await.unwrap().lsn
    });
    let (answers, error) = appender.join().unwrap();
    assert!(matches!(error, LogError::Closed), "{error}");
    assert_eq!(last, Lsn(answers.len() as u64 + 1), "the appender's record first, then what was queued");
    let config = bed.config.clone();
    let Bed { log, _dir, .. } = bed;
    drop(log);
    let (_log, recovery) = open_on(config, Lsn::ZERO, SystemDisk::shared()).unwrap();
    assert_eq!(recovery.last, last);
}

/// Appends while a sync of the thread hangs, then lets it end. Returns what was written before and beside it, the answer to
/// whoever asked for the sync, and the log.
fn beside_a_sync(end: io::Result<()>) -> (Bed, [tailrace_wal::Appending; 2], Result<Lsn, LogError>) {
    let bed = Bed::new(|config| config.sync_interval = Duration::from_secs(3600));
    let (begun, has_begun) = mpsc::channel();
    let (let_go, go_on) = mpsc::channel();
    let (before, beside, answer) = one_thread().block_on(async {
        // The first write makes zeros for the next ones.
        bed.append(0, Persistence::Sync).await.unwrap();
        let mut before = bed.log.append(commit(HISTORY, &[1; 4]), Persistence::Async).await.unwrap();
        before.written().await.unwrap();
        *bed.calls.sync_gate.lock() = Some((begun, go_on));
        let mut syncing = std::pin::pin!(bed.log.sync());
        assert!(futures::poll!(syncing.as_mut()).is_pending());
        has_begun.recv_timeout(PATIENCE).unwrap();
        let mut beside = bed.log.append(commit(HISTORY, &[2; 4]), Persistence::Async).await.unwrap();
        let written = tokio::time::timeout(PATIENCE, beside.written()).await.expect("a sync holds nobody up").unwrap();
        assert_eq!((written.lsn, bed.log.status().durable), (Lsn(3), Lsn(1)));
        let_go.send(end).unwrap();
        let answer = tokio::time::timeout(PATIENCE, syncing).await.expect("the sync is answered");
        (before, beside, answer)
    });
    (bed, [before, beside], answer)
}

#[test]
fn what_is_written_beside_a_sync_waits_for_the_next_one() {
    let (bed, [before, mut beside], answer) = beside_a_sync(Ok(()));
    assert_eq!(answer.unwrap(), Lsn(2));
    let status = bed.log.status();
    assert_eq!((status.appended, status.durable), (Lsn(3), Lsn(2)));
    assert!(status.unsynced_bytes > 0);
    one_thread().block_on(async {
        assert_eq!(before.durable().await.unwrap().lsn, Lsn(2));
        assert_eq!(beside.written().await.unwrap().lsn, Lsn(3));
        let mut durable = Box::pin(beside.durable());
        assert!(futures::poll!(&mut durable).is_pending());
        assert_eq!(bed.log.sync().await.unwrap(), Lsn(3));
        assert_eq!(durable.await.unwrap().lsn, Lsn(3));
    });
    assert_eq!(bed.log.status().unsynced_bytes, 0);
}

#[test]
fn a_sync_that_fails_fails_what_was_written_beside_it() {
    let (bed, waiting, answer) = beside_a_sync(Err(io::Error::other("a disk that fails, planted by a test")));
    assert!(matches!(answer, Err(LogError::Poisoned { .. })), "{answer:?}");
    one_thread().block_on(async {
        for appending in waiting {
            let answer = tokio::time::timeout(PATIENCE, appending.durable()).await.expect("it is told");
            assert!(matches!(answer, Err(LogError::Poisoned { .. })), "{answer:?}");
        }
        assert!(matches!(bed.append(9, Persistence::Async).await, Err(LogError::Poisoned { .. })));
    });
    assert_eq!(bed.log.status().durable, Lsn(1));
}

/// The sync after one beside which others wrote is for all of them.
#[test]
fn the_next_sync_is_for_what_was_written_beside_one() {
    let (bed, waiting, answer) = beside_a_sync(Ok(()));
    answer.unwrap();
    one_thread().block_on(async {
        let appended = tokio::time::timeout(PATIENCE, bed.append(3, Persistence::Sync)).await.expect("it is synced");
        assert_eq!(appended.unwrap().lsn, Lsn(4));
        for appending in waiting {
            appending.durable().await.unwrap();
        }
    });
}
