//! `wal_append`: the log's writer beside a loop of write and fdatasync over a plain file.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};
use tailrace_wal::{
    CommitTime, FragmentNumber, HistoryEnd, HistoryId, Log, LogConfig, Lsn, NodeId, Part, PartEntry, PartHash, Payload,
    Persistence, Position, Record, RecordKind, SystemClock, SystemDisk,
};
use tokio::runtime::Runtime;

const BULK_RECORD: usize = 4 << 20;
const BULK_RECORDS: usize = 22;
const SMALL_RECORD: usize = 1 << 10;
const WRITERS: usize = 64;
const COMMITS_PER_WRITER: usize = 16;

pub(crate) fn group(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    bulk(criterion, &runtime);
    small(criterion, &runtime);
    writers(criterion, &runtime);
}

/// 88 MiB in records of 4 MiB, then durable.
fn bulk(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("wal_append/bulk");
    group.throughput(Throughput::Bytes((BULK_RECORD * BULK_RECORDS) as u64));
    group.measurement_time(Duration::from_secs(8));
    let bytes = Bytes::from(random(BULK_RECORD));

    group.bench_function("baseline_write_fdatasync", |bencher| {
        let dir = tempfile::tempdir().unwrap();
        let mut round = 0;
        bencher.iter(|| {
            round += 1;
            let mut file = create(&dir.path().join(format!("{round}")));
            for _ in 0..BULK_RECORDS {
                file.write_all(&bytes).unwrap();
            }
            file.sync_data().unwrap();
        });
    });
    for (name, persistence) in [("sync", Persistence::Sync), ("async", Persistence::Async)] {
        group.bench_function(name, |bencher| {
            let bed = Bed::new();
            bencher.iter(|| {
                runtime.block_on(async {
                    let mut last = None;
                    for _ in 0..BULK_RECORDS {
                        last = Some(bed.log.append(bed.record(&bytes), Persistence::Async).await.unwrap());
                    }
                    match persistence {
                        Persistence::Sync => drop(bed.log.sync().await.unwrap()),
                        Persistence::Async => drop(last.unwrap().written().await.unwrap()),
                    }
                });
                bed.truncate();
            });
        });
    }
    group.finish();
}

/// One commit of 1 KiB at a time.
fn small(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("wal_append/one_writer_1KiB");
    group.throughput(Throughput::Elements(1));
    let bytes = Bytes::from(random(SMALL_RECORD));

    group.bench_function("baseline_overwrite_fdatasync", |bencher| {
        use std::os::unix::fs::FileExt;
        let dir = tempfile::tempdir().unwrap();
        let mut file = create(&dir.path().join("f"));
        let length = 8u64 << 20;
        file.write_all(&vec![0; usize::try_from(length).unwrap()]).unwrap();
        file.sync_all().unwrap();
        let mut offset = 0;
        bencher.iter(|| {
            file.write_all_at(&bytes, offset).unwrap();
            file.sync_data().unwrap();
            offset = (offset + SMALL_RECORD as u64) % length;
        });
    });
    for (name, persistence) in [("sync", Persistence::Sync), ("async", Persistence::Async)] {
        group.bench_function(name, |bencher| {
            let bed = Bed::new();
            bencher.iter(|| {
                runtime.block_on(async {
                    let mut appending = bed.log.append(bed.record(&bytes), persistence).await.unwrap();
                    match persistence {
                        Persistence::Sync => appending.durable().await.unwrap(),
                        Persistence::Async => appending.written().await.unwrap(),
                    }
                })
            });
        });
    }
    group.finish();
}

/// 64 tasks that each wait for their own commit of 1 KiB.
fn writers(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("wal_append/64_writers_1KiB");
    group.throughput(Throughput::Elements((WRITERS * COMMITS_PER_WRITER) as u64));
    let bytes = Bytes::from(random(SMALL_RECORD));
    for (name, persistence) in [("sync", Persistence::Sync), ("async", Persistence::Async)] {
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let bed = Bed::new();
            bencher.iter(|| {
                runtime.block_on(async {
                    let tasks = (0..WRITERS).map(|_| {
                        let (log, record) = (bed.log.clone(), bed.record(&bytes));
                        tokio::spawn(async move {
                            for _ in 0..COMMITS_PER_WRITER {
                                let mut appending = log.append(record.clone(), persistence).await.unwrap();
                                match persistence {
                                    Persistence::Sync => appending.durable().await.unwrap(),
                                    Persistence::Async => appending.written().await.unwrap(),
                                };
                            }
                        })
                    });
                    for task in tasks.collect::<Vec<_>>() {
                        task.await.unwrap();
                    }
                })
            });
        });
    }
    group.finish();
}

struct Bed {
    log: Log,
    history: HistoryId,
    _dir: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig::new(dir.path());
        let (log, _) =
            Log::open(config, NodeId::random(), Lsn::ZERO, SystemDisk::shared(), SystemClock::shared()).unwrap();
        let history = HistoryId::random();
        log.open_history(HistoryEnd { position: Position::start(history), commit_time: CommitTime(0) }).unwrap();
        Self { log, history, _dir: dir }
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

    /// Keeps the disk from filling while criterion repeats.
    fn truncate(&self) {
        self.log.truncate(self.log.status().durable).unwrap();
    }
}

fn create(path: &Path) -> File {
    OpenOptions::new().create_new(true).write(true).open(path).unwrap()
}

fn random(length: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(7).fill_bytes(&mut bytes);
    bytes
}
