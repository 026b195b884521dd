//! A disk that is really full: a small file system of its own. Skipped, with a word, where mounting is not permitted.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tailrace_engine::{CommitOptions, Engine, EngineConfig, EngineError, PartitionKey};
use tailrace_wal::{ArchiveState, PinKey, PinState, Seq, SystemDisk};

use crate::support::*;

const DISK_BYTES: u64 = 8 << 20;
const RESERVE_BYTES: u64 = 512 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted file system; unmounted when it is dropped.
struct SmallDisk {
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    fn tmpfs() -> Option<Self> {
        let options = format!("size={DISK_BYTES}");
        Self::mount(|root, _| Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(root).output())
    }

    fn ext4() -> Option<Self> {
        Self::mount(|root, image| {
            std::fs::File::create(image)?.set_len(2 * DISK_BYTES)?;
            // Without blocks that are root's alone.
            let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(image).output()?;
            if !made.status.success() {
                return Ok(made);
            }
            Command::new("mount").args(["-o", "loop"]).arg(image).arg(root).output()
        })
    }

    fn mount(mount: impl FnOnce(&Path, &Path) -> std::io::Result<std::process::Output>) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("disk");
        std::fs::create_dir(&root).unwrap();
        match mount(&root, &dir.path().join("image")) {
            Ok(output) if output.status.success() => Some(Self { root, _dir: dir }),
            Ok(output) => {
                println!("skipped: cannot mount a small disk: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: cannot mount a small disk: {error}");
                None
            }
        }
    }

    fn config(&self) -> EngineConfig {
        let mut config = config(&self.root.join("node"));
        config.wal.segment_bytes = 64 << 10;
        config.wal.reserve_bytes = RESERVE_BYTES;
        config.memtable_bytes = 1 << 20;
        config.fragment_bytes = 16 << 10;
        config
    }

    /// Takes every byte that is left.
    fn fill(&self) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.ballast());
        let Ok(mut file) = file else { return };
        for size in [64 << 10, 4096, 512, 1] {
            while file.write_all(&vec![0xA5; size]).is_ok() {}
        }
        let _ = file.sync_all();
    }

    fn clear(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }

    /// `ro` or `rw`.
    fn remount(&self, mode: &str) {
        let options = format!("remount,{mode}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.root).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn ballast(&self) -> PathBuf {
        self.root.join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.root).output();
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn try_insert(engine: &Arc<Engine>, from: i64) -> Result<(), EngineError> {
    let mut transaction = engine.begin("market")?;
    transaction.append("bars", wide_rows(from..from + 100, 2)).await?;
    transaction.commit(CommitOptions::default()).await.map(drop)
}

async fn reserve_is_there(engine: &Arc<Engine>) {
    until("the reserve", async || engine.reserves().iter().all(|reserve| reserve.held_bytes > 0)).await;
}

/// Inserts until there is no space, and returns how many rows are there.
async fn insert_until_refused(engine: &Arc<Engine>, mut there: i64) -> i64 {
    loop {
        match try_insert(engine, there).await {
            Ok(()) => there += 100,
            Err(error) => {
                assert!(error.is_full(), "{error}");
                return there;
            }
        }
    }
}

async fn shows(engine: &Arc<Engine>, rows: i64) {
    assert_eq!(ids(engine, "bars").await, (0..rows).collect::<Vec<_>>());
}

/// Lets go of an engine without a word, and waits until its folder is free.
async fn drop_engine(engine: Arc<Engine>) {
    let config = engine.config().clone();
    drop(engine);
    // Its log and manifest are closed when their locks are free: closing gives back what was written ahead.
    let locks = [config.wal.dir.join("LOCK"), config.data_dir.join("manifest").join("LOCK")];
    until("the folder to be free", async || locks.iter().all(|path| SystemDisk::shared().lock(path).is_ok())).await;
}

async fn fills_while_the_node_runs(disk: &SmallDisk) {
    let (engine, _) = open_with(disk.config()).await;
    market(&engine).await;
    reserve_is_there(&engine).await;
    disk.fill();
    let mut there = insert_until_refused(&engine, 0).await;
    shows(&engine, there).await;
    // The refused write itself starts what leads out of it: rows become datafiles, the log is truncated.
    until("a flush", async || engine.memory().flushes > 0 && engine.log().status().first.0 > 1).await;
    shows(&engine, there).await;
    assert_eq!(engine.memory().memtable_bytes, 0);
    until("the reserve to be released", async || {
        disk.fill();
        there = insert_until_refused(&engine, there).await;
        engine.reserves()[0].released.is_some()
    })
    .await;
    shows(&engine, there).await;
    // What makes space is taken.
    engine.create_table("market", bars("more")).await.unwrap_err();
    disk.clear();
    until("writes", async || try_insert(&engine, there).await.is_ok()).await;
    reserve_is_there(&engine).await;
    assert!(engine.reserves()[0].released.is_none());
    shows(&engine, there + 100).await;
    engine.shutdown().await.unwrap();
    drop_engine(engine).await;
    let (engine, _) = open_with(disk.config()).await;
    shows(&engine, there + 100).await;
    engine.shutdown().await.unwrap();
}

async fn is_full_when_the_node_starts(disk: &SmallDisk) {
    let (engine, _) = open_with(disk.config()).await;
    market(&engine).await;
    reserve_is_there(&engine).await;
    // So few that a flush frees less than the node asks for before it takes writes again.
    for round in 0..3 {
        try_insert(&engine, round * 100).await.unwrap();
    }
    drop_engine(engine).await;
    disk.fill();
    // No start needs space; the first write that finds none gives the reserve back.
    for _ in 0..3 {
        let (engine, report) = open_with(disk.config()).await;
        assert!(report.stopped.is_empty(), "{:?}", report.stopped);
        shows(&engine, 300).await;
        assert!(try_insert(&engine, 300).await.unwrap_err().is_full());
        assert!(engine.reserves()[0].released.is_some());
        engine.flush().await.unwrap();
        shows(&engine, 300).await;
        drop_engine(engine).await;
    }
    disk.clear();
    let (engine, _) = open_with(disk.config()).await;
    until("writes", async || try_insert(&engine, 300).await.is_ok()).await;
    shows(&engine, 400).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tmpfs() {
    if let Some(disk) = SmallDisk::tmpfs() {
        fills_while_the_node_runs(&disk).await;
    }
    if let Some(disk) = SmallDisk::tmpfs() {
        is_full_when_the_node_starts(&disk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ext4() {
    if let Some(disk) = SmallDisk::ext4() {
        fills_while_the_node_runs(&disk).await;
    }
    if let Some(disk) = SmallDisk::ext4() {
        is_full_when_the_node_starts(&disk).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_are_told_when_the_memtable_is_full_and_cannot_be_flushed() {
    let Some(disk) = SmallDisk::tmpfs() else { return };
    let mut config = disk.config();
    // The log has a disk of its own; the datafiles have no space, and there is no reserve.
    let log = tempfile::tempdir().unwrap();
    config.wal.dir = log.path().to_owned();
    config.wal.reserve_bytes = 0;
    let (engine, _) = open_with(config.clone()).await;
    market(&engine).await;
    disk.fill();
    let there = tokio::time::timeout(PATIENCE, insert_until_refused(&engine, 0)).await.unwrap();
    let refused = try_insert(&engine, there).await.unwrap_err();
    assert!(refused.to_string().contains("the memtable"), "{refused}");
    assert!(engine.memory().memtable_bytes < 3 * config.memtable_bytes, "{}", engine.memory().memtable_bytes);
    shows(&engine, there).await;
    disk.clear();
    until("writes", async || try_insert(&engine, there).await.is_ok()).await;
    shows(&engine, there + 100).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_feed_within_its_budget_does_not_fill_the_disk() {
    let Some(disk) = SmallDisk::tmpfs() else { return };
    let (engine, _) = open_with(disk.config()).await;
    market(&engine).await;
    reserve_is_there(&engine).await;
    let history = engine.version().database("market").unwrap().id;
    let key = PinKey { feed: "replica/dead".to_owned(), history };
    drop(engine.log().pin(key, Seq(2), Seq(2)).unwrap());
    let mut there = 0;
    let state = |engine: &Arc<Engine>| engine.log().pins()[0].state.clone();
    until("the pin to be given up", async || {
        let lost = state(&engine).is_lost();
        if !lost && try_insert(&engine, there).await.is_ok() {
            there += 100;
        }
        lost
    })
    .await;
    let PinState::Lost { reason } = state(&engine) else { panic!("not lost") };
    assert!(reason.starts_with("the disk is full"), "{reason}");
    until("writes", async || try_insert(&engine, there).await.is_ok()).await;
    shows(&engine, there + 100).await;
    assert!(engine.log().status().bytes < DISK_BYTES / 2, "{}", engine.log().status().bytes);
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reserve_a_full_disk_stops_no_start() {
    let Some(disk) = SmallDisk::tmpfs() else { return };
    let mut config = disk.config();
    config.wal.reserve_bytes = 0;
    let (engine, _) = open_with(config.clone()).await;
    market(&engine).await;
    for round in 0..3 {
        try_insert(&engine, round * 100).await.unwrap();
    }
    drop_engine(engine).await;
    disk.fill();
    for _ in 0..3 {
        let (engine, report) = open_with(config.clone()).await;
        assert!(report.stopped.is_empty(), "{:?}", report.stopped);
        shows(&engine, 300).await;
        let refused = try_insert(&engine, 300).await.unwrap_err();
        assert!(refused.is_full(), "{refused}");
        shows(&engine, 300).await;
        drop_engine(engine).await;
    }
    let (engine, _) = open_with(config.clone()).await;
    disk.clear();
    until("writes", async || try_insert(&engine, 300).await.is_ok()).await;
    shows(&engine, 400).await;
    engine.shutdown().await.unwrap();
    drop_engine(engine).await;
    let (engine, _) = open_with(config).await;
    shows(&engine, 400).await;
    engine.shutdown().await.unwrap();
}

/// What is dropped to make space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Database,
    Table,
    /// The second day of two.
    Partition,
    /// Both, one of them as it was seen.
    Partitions,
}

impl Dropped {
    async fn drop(self, engine: &Arc<Engine>) {
        let day = |day: i64| PartitionKey([&[1][..], &(day ^ i64::MIN).to_be_bytes()].concat().into());
        match self {
            Self::Database => drop(engine.drop_database("market").await.unwrap()),
            Self::Table => drop(engine.drop_table("market", "bars").await.unwrap()),
            Self::Partition | Self::Partitions => {
                let mut transaction = engine.begin("market").unwrap();
                transaction.drop_partition("bars", day(1)).await.unwrap();
                if self == Self::Partitions {
                    let version = engine.version();
                    let database = version.database("market").unwrap();
                    let seen = database.seen_partition(database.table("bars").unwrap(), &day(0));
                    transaction.replace_partition("bars", seen).await.unwrap();
                }
                transaction.commit(CommitOptions::default()).await.unwrap();
            }
        }
    }

    /// It is gone, and nothing else, of so many rows.
    async fn is_gone(self, engine: &Arc<Engine>, there: i64) {
        let version = engine.version();
        let market = version.database("market");
        assert_eq!(market.is_some(), self != Self::Database);
        let bars = market.and_then(|market| market.table("bars"));
        assert_eq!(bars.is_some(), matches!(self, Self::Partition | Self::Partitions));
        if bars.is_some() {
            let left = (0..there).filter(|id| self == Self::Partition && id % 2 == 0);
            assert_eq!(ids(engine, "bars").await, left.collect::<Vec<_>>());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_makes_space_on_a_full_disk() {
    for dropped in [Dropped::Table, Dropped::Database, Dropped::Partition, Dropped::Partitions] {
        let Some(disk) = SmallDisk::tmpfs() else { return };
        let (engine, _) = open_with(disk.config()).await;
        market(&engine).await;
        engine.create_database("other").await.unwrap();
        engine.create_table("other", bars("bars")).await.unwrap();
        reserve_is_there(&engine).await;
        let mut there = insert_until_refused(&engine, 0).await;
        let is_released = || engine.reserves()[0].released.is_some();
        until("the reserve to be released", async || {
            disk.fill();
            if is_released() {
                // Meanwhile, and it may be the ballast's now: once more.
                disk.clear();
                reserve_is_there(&engine).await;
                return false;
            }
            match try_insert(&engine, there).await {
                Ok(()) => there += 100,
                Err(error) => assert!(error.is_full(), "{error}"),
            }
            is_released()
        })
        .await;
        shows(&engine, there).await;
        dropped.drop(&engine).await;
        dropped.is_gone(&engine, there).await;
        // The ballast stays: what was dropped is the space.
        until("writes", async || {
            let mut transaction = engine.begin("other").unwrap();
            let written = async {
                transaction.append("bars", wide_rows(0..100, 2)).await?;
                transaction.commit(CommitOptions::default()).await
            };
            written.await.inspect_err(|error| assert!(error.is_full(), "{error}")).is_ok()
        })
        .await;
        dropped.is_gone(&engine, there).await;
        engine.shutdown().await.unwrap();
        drop_engine(engine).await;
        let (engine, report) = open_with(disk.config()).await;
        assert!(report.stopped.is_empty(), "{:?}", report.stopped);
        dropped.is_gone(&engine, there).await;
        assert!(engine.version().database("other").unwrap().table("bars").unwrap().rows() >= 100);
        engine.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_reserve_a_dead_feed_gives_way_though_no_client_asks() {
    let Some(disk) = SmallDisk::tmpfs() else { return };
    let mut config = disk.config();
    config.wal.reserve_bytes = 0;
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    let history = engine.version().database("market").unwrap().id;
    let key = PinKey { feed: "replica/dead".to_owned(), history };
    drop(engine.log().pin(key, Seq(2), Seq(2)).unwrap());
    let there = insert_until_refused(&engine, 0).await;
    until("the pin to be given up", async || engine.log().pins()[0].state.is_lost()).await;
    until("the log to be freed", async || engine.log().status().bytes < DISK_BYTES / 2).await;
    try_insert(&engine, there).await.unwrap();
    shows(&engine, there + 100).await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_away_neither_stops_the_start_nor_fills_the_disk() {
    let Some(disk) = SmallDisk::tmpfs() else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    // Where the archive's disk should be mounted, something else is in the way.
    let folder = elsewhere.path().join("archive");
    std::fs::write(&folder, "in the way").unwrap();
    let mut config = disk.config();
    let url = url::Url::from_file_path(&folder).unwrap();
    config.archive = Some(tailrace_engine::ArchiveConfig::new(url));
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    reserve_is_there(&engine).await;
    let status = async || {
        let engine = engine.clone();
        tokio::task::spawn_blocking(move || engine.archive_status().unwrap()).await.unwrap()
    };
    until("the archive to be failing", async || status().await.state == ArchiveState::Failing).await;
    let reason = status().await.reason.unwrap();
    assert!(reason.contains("archive"), "{reason}");
    let mut there = 0;
    assert!(engine.log().holders().archive_bytes.is_some());
    until("the archive's claim to be given up", async || {
        if try_insert(&engine, there).await.is_ok() {
            there += 100;
        }
        engine.log().holders().archive_bytes.is_none()
    })
    .await;
    let lost = status().await.lost.unwrap();
    assert!(lost.starts_with("the disk is full"), "{lost}");
    until("writes", async || try_insert(&engine, there).await.is_ok()).await;
    shows(&engine, there + 100).await;
    // It is there again: what is missing is named, and the rest is archived.
    std::fs::remove_file(&folder).unwrap();
    until("a gap and what follows it", async || {
        let status = status().await;
        status.state == ArchiveState::Running && !status.gaps.is_empty() && status.lost.is_none()
    })
    .await;
    engine.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn datafiles_on_a_read_only_disk_are_no_silent_stop() {
    let Some(disk) = SmallDisk::ext4() else { return };
    // Log and manifest have a disk of their own, where all is well.
    let dir = tempfile::tempdir().unwrap();
    let mut config = disk.config();
    config.data_dir = dir.path().to_owned();
    config.wal.dir = dir.path().join("wal");
    config.storage_url = Some(url::Url::from_directory_path(disk.root.join("store")).unwrap());
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    try_insert(&engine, 0).await.unwrap();
    disk.remount("ro");
    let failed = engine.flush().await.unwrap_err();
    assert!(failed.to_string().contains("Read-only file system"), "{failed}");
    let shown = engine.memory().flush_failure.unwrap();
    assert!(shown.contains("Read-only file system"), "{shown}");
    // Writes go on while there is memory for them, then they are told.
    let mut there = 100;
    let refused = loop {
        match tokio::time::timeout(PATIENCE, try_insert(&engine, there)).await.unwrap() {
            Ok(()) => there += 100,
            Err(refused) => break refused,
        }
    };
    assert!(refused.to_string().contains("cannot be flushed"), "{refused}");
    shows(&engine, there).await;
    disk.remount("rw");
    until("writes", async || try_insert(&engine, there).await.is_ok()).await;
    engine.flush().await.unwrap();
    assert_eq!(engine.memory().flush_failure, None);
    shows(&engine, there + 100).await;
    engine.shutdown().await.unwrap();
}
