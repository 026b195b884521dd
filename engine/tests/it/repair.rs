//! A node's copy is replaced by its primary's, without a network.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use tailrace_engine::{Applier, CommitOptions, Engine, EngineError, RepairInstall, RepairManifest, RepairSource};
use tailrace_wal::{HistoryId, Position, Seq};

use crate::support::*;

fn market_id(engine: &Engine) -> HistoryId {
    engine.version().database("market").unwrap().id
}

fn position(engine: &Engine) -> Position {
    engine.version().database("market").unwrap().position
}

/// Everything that the primary has after the follower's position.
async fn catch_up(from: &Arc<Engine>, applier: &Applier) {
    from.log().sync().await.unwrap();
    let (_, restart) = applier.position();
    let mut tail = from.log().tail(applier.history(), restart).unwrap();
    while let Some(frame) = tail.try_next().unwrap() {
        if let Some(prepared) = applier.prepare(frame.header, frame.payload).unwrap() {
            applier.commit(vec![prepared]).await.unwrap();
        }
    }
    applier.durable().await.unwrap();
}

/// As a manifest travels.
fn sent(manifest: &RepairManifest) -> RepairManifest {
    serde_json::from_slice(&serde_json::to_vec(manifest).unwrap()).unwrap()
}

async fn fetch(source: &RepairSource, install: &mut RepairInstall, piece: u64) {
    for (index, bytes) in install.wanted().collect::<Vec<_>>() {
        let mut offset = 0;
        while offset < bytes {
            let length = piece.min(bytes - offset);
            install.write(index, source.read(index, offset, length).await.unwrap()).await.unwrap();
            offset += length;
        }
    }
}

async fn repair(from: &Arc<Engine>, to: &Arc<Engine>) -> Position {
    let source = from.repair_source(market_id(from)).await.unwrap();
    let mut install = to.repair_install("site-a", sent(&source.manifest)).await.unwrap();
    fetch(&source, &mut install, 1000).await;
    install.install().await.unwrap()
}

async fn assert_equal(a: &Arc<Engine>, b: &Arc<Engine>) {
    let (left, right) = (a.version(), b.version());
    let (one, two) = (left.database("market").unwrap(), right.database("market").unwrap());
    assert_eq!((one.position, one.commit_time, &one.epochs), (two.position, two.commit_time, &two.epochs));
    let rows = contents(a, &left, "bars").await;
    assert!(!rows.is_empty());
    assert_eq!(rows, contents(b, &right, "bars").await);
}

fn parquet_files(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.is_dir() { parquet_files(&path) } else { usize::from(path.extension().is_some_and(|e| e == "parquet")) }
    };
    entries.map(count).sum()
}

/// Waits until the folder holds so many datafiles: they are removed in the background.
async fn wait_for_files(dir: &Path, count: usize) {
    for _ in 0..1000 {
        if parquet_files(dir) == count {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} datafiles instead of {count}", parquet_files(dir));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_replica_is_repaired_and_goes_on() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    for start in 0..4 {
        insert(&a, "bars", rows(start * 100..start * 100 + 100, 3)).await;
        a.flush().await.unwrap();
    }
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();

    let source = a.repair_source(id).await.unwrap();
    // What comes after the source was taken is not in it.
    insert(&a, "bars", rows(1000..1100, 3)).await;
    let mut install = b.repair_install("site-a", sent(&source.manifest)).await.unwrap();
    fetch(&source, &mut install, 777).await;
    assert_eq!(position(&b).seq, Seq::ZERO, "readers saw the repair before it was complete");
    let installed = install.install().await.unwrap();
    assert_eq!(installed, source.manifest.position);
    assert_eq!(applier.position(), (installed, source.manifest.restart_seq));
    assert_eq!(ids(&b, "bars").await, (0..400).collect::<Vec<_>>());
    assert_eq!(b.history(id).unwrap().retained_after, installed.seq);

    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
    insert(&a, "bars", rows(2000..2100, 3)).await;
    catch_up(&a, &applier).await;

    // All of it outlives restarts, with and without a flush in between.
    b.shutdown().await.unwrap();
    drop((applier, b));
    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
    b.flush().await.unwrap();
    b.shutdown().await.unwrap();
    drop(b);
    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_is_replaced_with_all_its_files_and_records() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    a.create_table("market", bars("gone")).await.unwrap();
    insert(&a, "bars", rows(0..300, 3)).await;
    insert(&a, "gone", rows(0..300, 3)).await;
    let applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    b.flush().await.unwrap();
    // More in memory, in files and in the log of the copy, all of which the repair replaces.
    insert(&a, "bars", rows(300..400, 3)).await;
    catch_up(&a, &applier).await;
    a.drop_table("market", "gone").await.unwrap();
    insert(&a, "bars", rows(400..500, 3)).await;

    assert_eq!(repair(&a, &b).await, position(&a));
    assert_equal(&a, &b).await;
    assert!(b.version().database("market").unwrap().table("gone").is_none());
    let files = b.version().database("market").unwrap().table("bars").unwrap().partitions().count();
    wait_for_files(&dir_b.path().join("store"), files).await;

    insert(&a, "bars", rows(500..600, 3)).await;
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
    let tasks = b.tasks(market_id(&a), Seq::ZERO);
    assert_eq!(tasks.iter().map(|task| task.seq).collect::<Vec<_>>(), [position(&a).seq]);
    b.shutdown().await.unwrap();
    drop((applier, b));

    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
    // Repaired once more, to the position where it is.
    let applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
    repair(&a, &b).await;
    assert_equal(&a, &b).await;
    insert(&a, "bars", rows(600..700, 3)).await;
    catch_up(&a, &applier).await;
    // A crash: the folder as it is now, opened elsewhere.
    assert_equal(&a, &b).await;
    let dir_c = tempfile::tempdir().unwrap();
    copy(dir_b.path(), dir_c.path());
    let c = open(dir_c.path()).await;
    assert_equal(&a, &c).await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_open_at_the_position_are_completed_after_it() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 1000;
    let (a, _) = open_with(small).await;
    let b = open(dir_b.path()).await;
    market(&a).await;
    let mut long = a.begin("market").unwrap();
    for start in 0..4 {
        long.append("bars", rows(start * 50..start * 50 + 50, 3)).await.unwrap();
    }
    insert(&a, "bars", rows(1000..1100, 3)).await;
    let applier = b.follow(market_id(&a), "market", "site-a").await.unwrap();
    let installed = repair(&a, &b).await;
    assert!(applier.position().1 < installed.seq, "the open transaction began before the position");
    catch_up(&a, &applier).await;
    long.append("bars", rows(500..600, 3)).await.unwrap();
    long.commit(CommitOptions::default()).await.unwrap();
    insert(&a, "bars", rows(2000..2100, 3)).await;
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
    b.shutdown().await.unwrap();
    drop((applier, b));
    let b = open(dir_b.path()).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_holds_its_files_against_drop_table() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(0..300, 3)).await;
    let id = market_id(&a);
    b.follow(id, "market", "site-a").await.unwrap();
    let source = a.repair_source(id).await.unwrap();
    a.drop_table("market", "bars").await.unwrap();
    a.flush().await.unwrap();
    let mut install = b.repair_install("site-a", sent(&source.manifest)).await.unwrap();
    fetch(&source, &mut install, 1 << 20).await;
    install.install().await.unwrap();
    assert_eq!(ids(&b, "bars").await, (0..300).collect::<Vec<_>>());
    drop(source);
    wait_for_files(&dir_a.path().join("store"), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_and_greed_are_refused_and_leave_nothing() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(0..300, 3)).await;
    let id = market_id(&a);
    let source = a.repair_source(id).await.unwrap();
    let meta = source.manifest.tables[0].datafiles[0].1.clone();
    let store = dir_b.path().join("store");

    // Not followed; from another primary; over a database that is written here.
    let refused = b.repair_install("site-a", sent(&source.manifest)).await.unwrap_err();
    assert!(matches!(refused, EngineError::NotFound { .. }), "{refused}");
    a.repair_install("site-a", sent(&source.manifest)).await.unwrap_err();
    b.follow(id, "market", "site-a").await.unwrap();
    b.repair_install("site-b", sent(&source.manifest)).await.unwrap_err();

    // Beyond the source.
    source.read(99, 0, 1).await.unwrap_err();
    source.read(0, meta.bytes, 1).await.unwrap_err();
    source.read(0, u64::MAX, 2).await.unwrap_err();

    // A flipped byte, too many bytes, too few files.
    let whole = source.read(0, 0, meta.bytes).await.unwrap();
    let mut flipped = whole.to_vec();
    flipped[100] ^= 1;
    let begin = || async { b.repair_install("site-a", sent(&source.manifest)).await.unwrap() };
    let mut install = begin().await;
    install.write(0, flipped.into()).await.unwrap_err();
    install.write(0, whole.clone()).await.unwrap_err();
    let mut install = begin().await;
    install.write(0, Bytes::from([whole.as_ref(), b"x"].concat())).await.unwrap_err();
    install.write(99, whole.clone()).await.unwrap_err();
    let mut install = begin().await;
    install.write(0, whole.clone()).await.unwrap();
    assert_eq!(parquet_files(&store), 1);
    install.install().await.unwrap_err();
    wait_for_files(&store, 0).await;

    // A file that is what its manifest says, but of another table.
    let mut manifest = sent(&source.manifest);
    manifest.tables[0].table.columns[3].name = "remark".into();
    let mut install = b.repair_install("site-a", manifest).await.unwrap();
    let refused = install.write(0, whole.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("columns"), "{refused}");
    drop(install);
    wait_for_files(&store, 0).await;

    // Manifests that contradict themselves.
    let contradictions: [fn(&mut RepairManifest); 12] = [
        |m| m.name = "other".into(),
        |m| m.position.seq = Seq::ZERO,
        |m| m.restart_seq = Seq(u64::MAX),
        |m| m.epochs.clear(),
        |m| m.next_table.0 = 1,
        |m| m.tables.push(m.tables[0].clone()),
        |m| m.tables[0].table.columns[0].name = "_seq".into(),
        |m| m.tables[0].datafiles[0].0.0 = Bytes::from_static(b"xyz"),
        |m| m.tables[0].datafiles[0].1.hash = "../x".into(),
        |m| m.tables[0].datafiles[0].1.seqs.1 = Seq(99),
        |m| m.tables[0].datafiles[0].1.rows = 0,
        |m| m.tables[0].datafiles[0].1.statistics.swap(0, 1),
    ];
    for (number, contradict) in contradictions.iter().enumerate() {
        let mut manifest = sent(&source.manifest);
        contradict(&mut manifest);
        let refused = b.repair_install("site-a", manifest).await;
        assert!(refused.is_err(), "contradiction {number}");
    }
    assert_eq!(position(&b).seq, Seq::ZERO);
    repair(&a, &b).await;
    assert_equal(&a, &b).await;
}
