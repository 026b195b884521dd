//! The log beside bare loops over the same kind of file, and beside raft-engine, in one run.
//!
//! `cargo run --release --bin wal-ratios -- [--rounds N] [--dir DIR] [PART …]`, parts `bulk`, `async`, `writers`,
//! `recovery`.

mod rounds;

use std::{
    fs::{File, OpenOptions},
    io::{IoSlice, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use clap::Parser;
use rounds::{Rounds, median};
use tailrace_wal::{
    CommitTime, FragmentNumber, HistoryEnd, HistoryId, Log, LogConfig, Lsn, NodeId, Part, PartEntry, PartHash, Payload,
    Persistence, Position, Record, RecordKind, SystemClock, SystemDisk,
};
use tokio::runtime::Runtime;

const NODE: NodeId = NodeId([7; 16]);
const MIB: usize = 1 << 20;

#[derive(Parser)]
struct Arguments {
    /// Rounds that count.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// On which file system; default: the system's folder for temporary files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Which; default: all.
    parts: Vec<String>,
}

fn main() {
    let arguments = Arguments::parse();
    let root = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let wants = |part: &str| arguments.parts.is_empty() || arguments.parts.iter().any(|wanted| wanted == part);
    let runtime = Runtime::new().unwrap();
    if wants("bulk") {
        bulk(&root, &runtime, arguments.rounds);
    }
    if wants("async") {
        asynchronous(&root, &runtime, arguments.rounds);
    }
    if wants("writers") {
        writers(&root, &runtime, arguments.rounds);
    }
    if wants("recovery") {
        recovery(&root, &runtime, arguments.rounds);
    }
}

/// 88 MiB in records of 4 MiB, durable at the end, beside the same bytes written and synced.
fn bulk(root: &Path, runtime: &Runtime, rounds: usize) {
    const RECORDS: usize = 22;
    let bytes = random(4 * MIB);
    let mut bare = || {
        let dir = folder(root);
        let mut file = create(&dir.path().join("f"));
        let start = Instant::now();
        for _ in 0..RECORDS {
            file.write_all(&bytes).unwrap();
        }
        file.sync_data().unwrap();
        start.elapsed()
    };
    let mut ours = || {
        let bed = Bed::new(root);
        // A producer hashes before it appends; that is not the log's part.
        let records: Vec<_> = (0..RECORDS).map(|_| bed.record(&bytes)).collect();
        let start = Instant::now();
        runtime.block_on(async {
            for record in records {
                bed.log.append(record, Persistence::Async).await.unwrap();
            }
            bed.log.sync().await.unwrap();
        });
        start.elapsed()
    };
    let measured = Rounds::run(rounds, &mut [("bare", &mut bare), ("ours", &mut ours)]);
    let mib = (RECORDS * 4) as f64;
    println!("bulk append, durable, {mib} MiB in records of 4 MiB");
    for name in ["bare", "ours"] {
        let (low, high) = measured.range(name);
        println!("  {name:5} {:7.0} MiB/s   ({:.0} to {:.0})", mib / measured.median(name), mib / high, mib / low);
    }
    println!("  ratio {:.2} (wanted: at least 0.9)", measured.median("bare") / measured.median("ours"));
}

/// Records of 64 KiB, acknowledged when written, beside vectored writes of the same pieces.
fn asynchronous(root: &Path, runtime: &Runtime, rounds: usize) {
    const RECORDS: usize = 1024;
    let bytes = random(64 << 10);
    let header = [1u8; 256];
    let mut bare = || {
        let dir = folder(root);
        let mut file = create(&dir.path().join("f"));
        let start = Instant::now();
        for _ in 0..RECORDS {
            let mut slices = [IoSlice::new(&header), IoSlice::new(&bytes)];
            let mut slices = &mut slices[..];
            while !slices.is_empty() {
                let count = file.write_vectored(slices).unwrap();
                IoSlice::advance_slices(&mut slices, count);
            }
        }
        let took = start.elapsed();
        file.sync_data().unwrap();
        took
    };
    let mut ours = || {
        // No sync is due within the measurement on either side.
        let bed = Bed::with(root, |config| {
            config.sync_interval = Duration::from_secs(3600);
            config.async_max_bytes = 1 << 30;
            config.segment_bytes = 256 << 20;
        });
        let records: Vec<_> = (0..RECORDS).map(|_| bed.record(&bytes)).collect();
        let start = Instant::now();
        runtime.block_on(async {
            let mut last = None;
            for record in records {
                last = Some(bed.log.append(record, Persistence::Async).await.unwrap());
            }
            last.unwrap().written().await.unwrap();
        });
        let took = start.elapsed();
        runtime.block_on(bed.log.sync()).unwrap();
        took
    };
    let measured = Rounds::run(rounds, &mut [("bare", &mut bare), ("ours", &mut ours)]);
    let mib = (RECORDS * 64) as f64 / 1024.0;
    println!("asynchronous append, {mib} MiB in records of 64 KiB");
    for name in ["bare", "ours"] {
        let (low, high) = measured.range(name);
        println!("  {name:5} {:7.0} MiB/s   ({:.0} to {:.0})", mib / measured.median(name), mib / high, mib / low);
    }
    println!("  ratio {:.2} (wanted: at least 0.8)", measured.median("bare") / measured.median("ours"));
}

/// 64 writers of 1 KiB that each wait for their commit, beside a bare fdatasync and raft-engine.
fn writers(root: &Path, runtime: &Runtime, rounds: usize) {
    const WRITERS: usize = 64;
    const COMMITS: usize = 100;
    let bytes = random(1 << 10);
    let latencies: Mutex<(Vec<Duration>, Vec<Duration>)> = Mutex::default();

    let mut syncs = Vec::new();
    let dir = folder(root);
    let mut file = create(&dir.path().join("f"));
    file.write_all(&vec![0; 16 * MIB]).unwrap();
    file.sync_all().unwrap();
    let mut offset = 0;
    let page = random(4096);
    let mut bare = || {
        let start = Instant::now();
        for _ in 0..200 {
            file.write_all_at(&page, offset).unwrap();
            let sync = Instant::now();
            file.sync_data().unwrap();
            syncs.push(sync.elapsed());
            offset = (offset + 4096) % (16 * MIB as u64);
        }
        start.elapsed() / 200
    };
    let mut ours = || {
        let bed = Bed::new(root);
        let start = Instant::now();
        let all = runtime.block_on(async {
            let tasks: Vec<_> = (0..WRITERS)
                .map(|_| {
                    let (log, record) = (bed.log.clone(), bed.record(&bytes));
                    tokio::spawn(async move {
                        let mut took = Vec::with_capacity(COMMITS);
                        for _ in 0..COMMITS {
                            let start = Instant::now();
                            let appending = log.append(record.clone(), Persistence::Sync).await.unwrap();
                            appending.durable().await.unwrap();
                            took.push(start.elapsed());
                        }
                        took
                    })
                })
                .collect();
            let mut all = Vec::new();
            for task in tasks {
                all.extend(task.await.unwrap());
            }
            all
        });
        let took = start.elapsed();

        latencies.lock().unwrap().0.extend(all);
        took
    };
    let mut raft = || {
        let dir = folder(root);
        let engine = raft_engine::Engine::open(raft_engine::Config {
            dir: dir.path().to_str().unwrap().to_owned(),
            ..raft_engine::Config::default()
        })
        .unwrap();
        let engine = Arc::new(engine);
        let value = bytes.to_vec();
        let start = Instant::now();
        let threads: Vec<_> = (0..WRITERS as u64)
            .map(|region| {
                let (engine, value) = (Arc::clone(&engine), value.clone());
                std::thread::spawn(move || {
                    let mut took = Vec::with_capacity(COMMITS);
                    for commit in 0..COMMITS as u64 {
                        let start = Instant::now();
                        let mut batch = raft_engine::LogBatch::default();
                        batch.put(region + 1, commit.to_le_bytes().to_vec(), value.clone()).unwrap();
                        engine.write(&mut batch, true).unwrap();
                        took.push(start.elapsed());
                    }
                    took
                })
            })
            .collect();
        let all: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        let took = start.elapsed();
        latencies.lock().unwrap().1.extend(all);
        took
    };
    let measured = Rounds::run(rounds, &mut [("bare", &mut bare), ("ours", &mut ours), ("raft-engine", &mut raft)]);
    let bare = measured.median("bare");
    let (ours, raft) = latencies.into_inner().unwrap();
    let (ours, raft) = (median(ours).as_secs_f64(), median(raft).as_secs_f64());
    let commits = (WRITERS * COMMITS) as f64;
    println!("64 writers of 1 KiB, each waits until its commit is durable");
    println!(
        "  bare write of 4 KiB + fdatasync, one after the other: {:.0} us (fdatasync alone {:.0} us p50)",
        bare * 1e6,
        median(syncs).as_secs_f64() * 1e6
    );
    println!("  ours        p50 {:5.0} us {:7.0} commits/s", ours * 1e6, commits / measured.median("ours"));
    println!("  raft-engine p50 {:5.0} us {:7.0} commits/s", raft * 1e6, commits / measured.median("raft-engine"));
    println!(
        "  p50 to a bare write + fdatasync {:.2} (wanted: at most 2.2); commits/s to raft-engine's {:.2} (wanted: above 1)",
        ours / bare,
        measured.median("raft-engine") / measured.median("ours")
    );
}

/// Opening a log that was not closed and reading all of it, beside reading the same bytes.
fn recovery(root: &Path, runtime: &Runtime, rounds: usize) {
    for (what, record, records) in [("4 MiB", 4 * MIB, 128), ("64 KiB", 64 << 10, 8_000), ("1 KiB", 1 << 10, 400_000)] {
        let bytes = random(record);
        let bed = Bed::with(root, |config| config.segment_bytes = 1 << 30);
        runtime.block_on(async {
            for _ in 0..records {
                bed.log.append(bed.record(&bytes), Persistence::Async).await.unwrap();
            }
            bed.log.sync().await.unwrap();
            // One more, which states that all before it is durable.
            bed.log.append(bed.record(&bytes), Persistence::Sync).await.unwrap().durable().await.unwrap();
        });
        let path = only_segment(bed.dir.path());
        let length = std::fs::metadata(&path).unwrap().len();
        // Each contender gets a folder with the segment as a crash leaves it. A copy is warm.
        let image = || {
            let dir = folder(root);
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            File::open(only_segment(dir.path())).unwrap().sync_all().unwrap();
            dir
        };
        let mut bare = || {
            let dir = image();
            let mut buffer = vec![0; 4 * MIB];
            let start = Instant::now();
            let mut file = File::open(only_segment(dir.path())).unwrap();
            while file.read(&mut buffer).unwrap() > 0 {}
            start.elapsed()
        };
        let mut open = || {
            let dir = image();
            let start = Instant::now();
            let opened =
                Log::open(LogConfig::new(dir.path()), NODE, Lsn::ZERO, SystemDisk::shared(), SystemClock::shared());
            let (_log, recovery) = opened.unwrap();
            let took = start.elapsed();
            assert_eq!(recovery.last.0, records as u64 + 1);
            took
        };
        let dir = image();
        let opened =
            Log::open(LogConfig::new(dir.path()), NODE, Lsn::ZERO, SystemDisk::shared(), SystemClock::shared());
        let (log, _) = opened.unwrap();
        let mut replay = || {
            let start = Instant::now();
            let mut tail = log.replay(Lsn::ZERO).unwrap();
            let mut count = 0;
            while tail.try_next().unwrap().is_some() {
                count += 1;
            }
            assert_eq!(count, records + 1);
            start.elapsed()
        };
        let measured = Rounds::run(rounds, &mut [("bare", &mut bare), ("open", &mut open), ("replay", &mut replay)]);
        let mib = length as f64 / MIB as f64;
        println!("recovery of {mib:.0} MiB in records of {what}, warm");
        for name in ["bare", "open", "replay"] {
            println!(
                "  {name:6} {:7.0} MiB/s   ratio {:.2}",
                mib / measured.median(name),
                measured.median("bare") / measured.median(name)
            );
        }
    }
    println!("  (wanted: at least 0.6 of reading the same bytes)");
}

struct Bed {
    log: Log,
    history: HistoryId,
    dir: tempfile::TempDir,
}

impl Bed {
    fn new(root: &Path) -> Self {
        Self::with(root, |_| {})
    }

    fn with(root: &Path, set: impl FnOnce(&mut LogConfig)) -> Self {
        let dir = folder(root);
        let mut config = LogConfig::new(dir.path());
        set(&mut config);
        let (log, _) = Log::open(config, NODE, Lsn::ZERO, SystemDisk::shared(), SystemClock::shared()).unwrap();
        let history = HistoryId::random();
        log.open_history(HistoryEnd { position: Position::start(history), commit_time: CommitTime(0) }).unwrap();
        Self { log, history, dir }
    }

    fn record(&self, bytes: &Bytes) -> Record {
        let entry = PartEntry {
            table: 1,
            schema_version: 1,
            operation: 1,
            first_ordinal: 0,
            rows: 1,
            length: 0,
            hash: PartHash(0),
            partition: Bytes::new(),
        };
        let part = Part::new(entry, vec![bytes.clone()]).unwrap();
        Record {
            history: self.history,
            kind: RecordKind::Commit,
            transaction: None,
            fragment: FragmentNumber(0),
            payload: Payload::new(vec![part], Vec::new(), None).unwrap(),
        }
    }
}

fn folder(root: &Path) -> tempfile::TempDir {
    tempfile::tempdir_in(root).unwrap()
}

fn only_segment(dir: &Path) -> PathBuf {
    let mut paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.find(|path| path.extension().is_some_and(|extension| extension == "wal")).unwrap()
}

fn create(path: &Path) -> File {
    OpenOptions::new().create_new(true).write(true).open(path).unwrap()
}

fn random(length: usize) -> Bytes {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes.into()
}
