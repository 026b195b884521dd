//! A hostile disk beneath log and manifest, and records that cannot be applied.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
};

use tailrace_engine::{CommitOptions, Durability, Engine, EngineError, EngineSeams, Operation};
use tailrace_wal::{
    Disk, DiskFile, DiskLock, FragmentNumber, HistoryEnd, Log, LogConfig, LogError, Part, PartEntry, PartHash, Payload,
    Persistence, Record, RecordKind, Seq, SystemClock, SystemDisk,
};

use crate::support::*;

const WELL: u8 = 0;
const FULL: u8 = 1;
const SYNC_FAILS: u8 = 2;

/// The system's disk, which fails on request and remembers what was synced.
#[derive(Debug)]
struct HostileDisk {
    below: Arc<dyn Disk>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    mode: AtomicU8,
    /// What a power loss leaves of each file.
    synced: Mutex<BTreeMap<PathBuf, Vec<u8>>>,
}

#[derive(Debug)]
struct HostileFile {
    below: Arc<dyn DiskFile>,
    path: PathBuf,
    state: Arc<State>,
}

impl HostileDisk {
    fn shared() -> (Arc<dyn Disk>, Arc<State>) {
        let state = Arc::new(State::default());
        (Arc::new(Self { below: SystemDisk::shared(), state: state.clone() }), state)
    }

    fn wrap(&self, path: &Path, below: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(HostileFile { below, path: path.to_owned(), state: self.state.clone() })
    }
}

impl State {
    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    /// Log and manifest as a power loss leaves them; datafiles, whose store syncs by itself, as they are.
    fn power_loss(&self, dir: &Path, image: &Path) {
        // Before the store is copied: a file that is named must be there.
        let synced = self.synced.lock().unwrap().clone();
        copy_folder(&dir.join("store"), &image.join("store"));
        for (path, bytes) in synced {
            let target = image.join(path.strip_prefix(dir).unwrap());
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::write(target, bytes).unwrap();
        }
    }
}

impl Disk for HostileDisk {
    fn is_local(&self) -> bool {
        true
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        if self.state.mode.load(Ordering::SeqCst) == FULL {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(self.wrap(path, self.below.create(path)?))
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(path, self.below.open(path, write)?))
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.below.create_dir_all(path)
    }
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.below.create_dir(path)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.link(from, to)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.below.list(path)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.state.synced.lock().unwrap().remove(path);
        self.below.remove(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut synced = self.state.synced.lock().unwrap();
        if let Some(bytes) = synced.remove(from) {
            synced.insert(to.to_owned(), bytes);
        }
        self.below.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.below.sync_dir(path)
    }
    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.below.lock(path)
    }
}

impl HostileFile {
    fn synced(&self) -> io::Result<()> {
        if self.state.mode.load(Ordering::SeqCst) == SYNC_FAILS {
            return Err(io::Error::other("planted"));
        }
        let mut bytes = vec![0; self.below.len()? as usize];
        let mut at = 0;
        while at < bytes.len() {
            match self.below.read_at(&mut bytes[at..], at as u64)? {
                0 => break,
                read => at += read,
            }
        }
        // Segments are renamed after their first sync.
        if self.path.exists() {
            self.state.synced.lock().unwrap().insert(self.path.clone(), bytes);
        } else {
            let renamed = self.path.with_extension("");
            self.state.synced.lock().unwrap().insert(renamed, bytes);
        }
        Ok(())
    }
}

impl DiskFile for HostileFile {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        if self.state.mode.load(Ordering::SeqCst) == FULL {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.below.write_all_vectored_at(slices, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.below.read_at(buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.synced()?;
        self.below.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.synced()?;
        self.below.sync_all()
    }
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.state.mode.load(Ordering::SeqCst) == FULL && len > self.below.len()? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.below.set_len(len)
    }
}

async fn hostile(dir: &Path) -> (Arc<Engine>, Arc<State>) {
    let (disk, state) = HostileDisk::shared();
    let mut config = config(dir);
    config.wal.segment_bytes = 256 << 10;
    config.fragment_bytes = 4_000;
    let (engine, _) = Engine::open(config, EngineSeams { disk, clock: SystemClock::shared() }).await.unwrap();
    (engine, state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_cleanly_and_writes_go_on_when_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, disk) = hostile(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..10, 2)).await;
    disk.set(FULL);
    // Space that is reserved already may take some more; then there is none.
    let mut there = 10;
    let refused = loop {
        let mut transaction = engine.begin("market").unwrap();
        let outcome = match transaction.append("bars", rows(there..there + 10, 2)).await {
            Ok(()) => transaction.commit(CommitOptions::default()).await.map(drop),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => there += 10,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, EngineError::Log(LogError::Full { .. })), "{refused}");
    assert_eq!(ids(&engine, "bars").await, (0..there).collect::<Vec<_>>());
    disk.set(WELL);
    insert(&engine, "bars", rows(there..there + 10, 2)).await;
    assert_eq!(ids(&engine, "bars").await, (0..there + 10).collect::<Vec<_>>());
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = open(dir.path()).await;
    assert_eq!(ids(&engine, "bars").await, (0..there + 10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_sync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, disk) = hostile(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..10, 2)).await;
    disk.set(SYNC_FAILS);
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", rows(10..11, 1)).await.unwrap();
    let unknown = transaction.commit(CommitOptions::default()).await.unwrap_err();
    assert!(
        matches!(unknown, EngineError::Indeterminate { .. } | EngineError::Log(LogError::Poisoned { .. })),
        "{unknown}"
    );
    disk.set(WELL);
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", rows(11..12, 1)).await.unwrap();
    let options = CommitOptions { durability: Some(Durability::Written), ..CommitOptions::default() };
    let refused = transaction.commit(options).await.unwrap_err();
    assert!(matches!(refused, EngineError::Log(LogError::Poisoned { .. })), "{refused}");
    assert!(engine.flush().await.is_err());
    drop(engine);
    let engine = open(dir.path()).await;
    let ids = ids(&engine, "bars").await;
    assert!(ids == (0..10).collect::<Vec<_>>() || ids == (0..11).collect::<Vec<_>>(), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_loss_takes_no_acknowledged_row() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, disk) = hostile(dir.path()).await;
    market(&engine).await;
    let durable = Arc::new(Mutex::new(Vec::new()));
    let writers: Vec<_> = (0..4i64)
        .map(|writer| {
            let (engine, durable) = (engine.clone(), durable.clone());
            tokio::spawn(async move {
                for commit in 0..40 {
                    let first = writer * 100_000 + commit * 100;
                    let mut transaction = engine.begin("market").unwrap();
                    transaction.append("bars", rows(first..first + 100, 3)).await.unwrap();
                    let durability = if commit % 4 == 0 { Durability::Durable } else { Durability::Written };
                    let options = CommitOptions { durability: Some(durability), ..CommitOptions::default() };
                    let receipt = transaction.commit(options).await.unwrap();
                    if durability == Durability::Durable {
                        durable.lock().unwrap().push((receipt.position.seq, first));
                    }
                }
            })
        })
        .collect();
    let mut images = Vec::new();
    while writers.iter().any(|writer| !writer.is_finished()) && images.len() < 12 {
        let acknowledged = durable.lock().unwrap().clone();
        let image = tempfile::tempdir().unwrap();
        disk.power_loss(dir.path(), image.path());
        images.push((acknowledged, image));
        if images.len() % 4 == 0 {
            engine.flush().await.unwrap();
        }
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for (acknowledged, image) in images {
        let engine = open(image.path()).await;
        let version = engine.version();
        let database = version.database("market").unwrap();
        assert!(database.stopped.is_none(), "{:?}", database.stopped);
        let rows = contents(&engine, &version, "bars").await;
        let mut seqs: Vec<u64> = rows.keys().map(|(seq, _)| *seq).collect();
        seqs.dedup();
        assert!(seqs.iter().copied().eq(3..=database.position.seq.0), "what is left is no prefix");
        assert_eq!(rows.len(), 100 * seqs.len(), "a transaction is there in part");
        for (seq, first) in acknowledged {
            assert!(seq <= database.position.seq, "acknowledged transaction {seq} is lost");
            assert_eq!(rows[&(seq.0, 0)].0 / 100, first / 100);
        }
    }
}

/// Appends a record to `market` that no version of this program has written.
async fn plant(dir: &Path, node: tailrace_wal::NodeId, end: HistoryEnd) {
    let (log, _) = Log::open(
        LogConfig::new(dir.join("wal")),
        node,
        tailrace_wal::Lsn(0),
        SystemDisk::shared(),
        SystemClock::shared(),
    )
    .unwrap();
    log.open_history(end).unwrap();
    let entry = PartEntry {
        table: 1,
        schema_version: 1,
        operation: 999,
        first_ordinal: 0,
        rows: 0,
        length: 0,
        hash: PartHash(0),
        partition: bytes::Bytes::new(),
    };
    assert!(Operation::from_code(entry.operation).is_none());
    let record = Record {
        history: end.position.history,
        kind: RecordKind::Commit,
        transaction: None,
        fragment: FragmentNumber(0),
        payload: Payload::new(vec![Part::new(entry, Vec::new()).unwrap()], Vec::new(), None).unwrap(),
    };
    log.append(record, Persistence::Sync).await.unwrap().durable().await.unwrap();
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_replayed_stops_alone() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..10, 2)).await;
    engine.create_database("other").await.unwrap();
    engine.create_table("other", bars("bars")).await.unwrap();
    let database = engine.version().database("market").unwrap().clone();
    let node = engine.node();
    engine.shutdown().await.unwrap();
    drop(engine);
    plant(dir.path(), node, HistoryEnd { position: database.position, commit_time: database.commit_time }).await;

    for round in 0..3 {
        let (engine, report) = open_with(config(dir.path())).await;
        assert_eq!(report.stopped.len(), 1, "round {round}");
        assert!(report.stopped[0].1.contains("operation 999"), "{}", report.stopped[0].1);
        let stopped = engine.version().database("market").unwrap().clone();
        assert_eq!(stopped.position.seq, Seq(3));
        assert_eq!(ids(&engine, "bars").await, (0..10).collect::<Vec<_>>());
        let refused = engine.begin("market").unwrap_err();
        assert!(matches!(refused, EngineError::DatabaseStopped { .. }), "{refused}");
        let mut transaction = engine.begin("other").unwrap();
        transaction.append("bars", rows(round..round + 1, 1)).await.unwrap();
        transaction.commit(CommitOptions::default()).await.unwrap();
        // A flush does not take away what a newer version could still replay.
        engine.flush().await.unwrap();
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_ends_before_the_manifest_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..10, 2)).await;
    engine.flush().await.unwrap();
    engine.shutdown().await.unwrap();
    drop(engine);
    std::fs::remove_dir_all(dir.path().join("wal")).unwrap();
    let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
    let refused = Engine::open(config(dir.path()), seams).await.unwrap_err();
    assert!(matches!(refused, EngineError::Log(LogError::EndsBefore { .. })), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_leaves_all_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.memtable_bytes = 50_000;
    let (engine, _) = open_with(small).await;
    market(&engine).await;
    // A file where the table's folder has to be.
    let folder = dir.path().join("store").join("market");
    std::fs::write(&folder, b"in the way").unwrap();
    let mut there = 0;
    let refused = loop {
        let mut transaction = engine.begin("market").unwrap();
        transaction.append("bars", rows(there..there + 500, 3)).await.unwrap();
        match transaction.commit(CommitOptions::default()).await {
            Ok(_) => there += 500,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, EngineError::Storage { .. }), "{refused}");
    assert!(refused.to_string().contains("nothing was committed"), "{refused}");
    assert!(engine.flush().await.is_err());
    assert_eq!(ids(&engine, "bars").await, (0..there).collect::<Vec<_>>());
    std::fs::remove_file(&folder).unwrap();
    engine.flush().await.unwrap();
    assert_eq!(engine.memory().memtable_bytes, 0);
    insert(&engine, "bars", rows(there..there + 500, 3)).await;
    assert_eq!(ids(&engine, "bars").await, (0..there + 500).collect::<Vec<_>>());
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = open(dir.path()).await;
    assert_eq!(ids(&engine, "bars").await, (0..there + 500).collect::<Vec<_>>());
}
