//! DDL beside writers; ends of tables and databases.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tailrace_engine::{CommitOptions, EngineError};
use tailrace_wal::Seq;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_and_go_beside_writers() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (engine, stop) = (engine.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut committed, mut refused, mut id) = (0u64, 0u64, writer * 1_000_000);
                while !stop.load(Ordering::Relaxed) {
                    let mut transaction = engine.begin("market").unwrap();
                    id += 1;
                    transaction.append("bars", rows(id..id + 1, 3)).await.unwrap();
                    let temporary = transaction.append("temporary", rows(id..id + 1, 3)).await.is_ok();
                    match transaction.commit(CommitOptions::default()).await {
                        Ok(_) => committed += 1,
                        Err(EngineError::Conflict(_)) if temporary => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (committed, refused)
            })
        })
        .collect();
    for _ in 0..25 {
        engine.create_table("market", bars("temporary")).await.unwrap();
        if engine.memory().flushes < 3 {
            engine.flush().await.unwrap();
        }
        engine.drop_table("market", "temporary").await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut committed = 0;
    for writer in writers {
        committed += writer.await.unwrap().0;
    }
    let version = engine.version();
    let database = version.database("market").unwrap();
    assert!(database.stopped.is_none());
    assert_eq!(database.position.seq, Seq(2 + 50 + committed));
    let before = contents(&engine, &version, "bars").await;
    assert_eq!(before.len() as u64, committed);
    engine.shutdown().await.unwrap();
    drop((engine, version));
    let engine = open(dir.path()).await;
    assert!(engine.version().database("market").unwrap().stopped.is_none());
    assert_eq!(contents(&engine, &engine.version(), "bars").await, before);
    // Ids are never used again.
    engine.create_table("market", bars("temporary")).await.unwrap();
    assert_eq!(engine.version().database("market").unwrap().table("temporary").unwrap().table.id.0, 27);
}

fn files(dir: &std::path::Path) -> usize {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            count += files(&entry.path());
        } else {
            count += 1;
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_is_gone_with_its_files_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..30, 3)).await;
    engine.flush().await.unwrap();
    assert_eq!(files(&store), 3);
    let first = engine.version().database("market").unwrap().id;
    let reader = engine.version();
    let open_transaction = {
        let mut transaction = engine.begin("market").unwrap();
        transaction.append("bars", rows(0..1, 1)).await.unwrap();
        transaction
    };
    let dropped = engine.drop_database("market").await.unwrap();
    let late = open_transaction.commit(CommitOptions::default()).await.unwrap_err();
    assert!(matches!(late, EngineError::Conflict(_)), "{late}");
    assert!(engine.version().database("market").is_none());
    let info = engine.history(first).unwrap();
    assert!(info.ended && info.name == "market");
    assert_eq!(info.position, dropped.position);

    market(&engine).await;
    insert(&engine, "bars", rows(100..110, 2)).await;
    let second = engine.version().database("market").unwrap().id;
    assert_ne!(first, second);
    engine.flush().await.unwrap();
    // A reader holds the old files; they go with it.
    assert_eq!(contents(&engine, &reader, "bars").await.len(), 30);
    drop(reader);
    engine.shutdown().await.unwrap();
    drop(engine);
    for _ in 0..2 {
        let engine = open(dir.path()).await;
        assert_eq!(files(&store), 2, "files of the dropped database are left");
        assert_eq!(ids(&engine, "bars").await, (100..110).collect::<Vec<_>>());
        assert!(engine.history(first).unwrap().ended);
        assert_eq!(engine.histories().len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_dropped_table_stay_until_the_manifest_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..30, 3)).await;
    engine.flush().await.unwrap();
    engine.drop_table("market", "bars").await.unwrap();
    assert_eq!(files(&dir.path().join("store")), 3);
    let killed = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), killed.path());
    engine.flush().await.unwrap();
    engine.shutdown().await.unwrap();
    drop(engine);
    for dir in [dir.path(), killed.path()] {
        let engine = open(dir).await;
        assert!(engine.version().database("market").unwrap().table("bars").is_none());
        engine.create_table("market", bars("bars")).await.unwrap();
        insert(&engine, "bars", rows(0..4, 2)).await;
        engine.flush().await.unwrap();
        engine.shutdown().await.unwrap();
        drop(engine);
        let engine = open(dir).await;
        assert_eq!(ids(&engine, "bars").await, [0, 1, 2, 3]);
        assert_eq!(files(&dir.join("store")), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_end_and_its_fact_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let id = engine.version().database("market").unwrap().id;
    // Folders as they are at every moment of the drop: some lie between the two records.
    let mut images = Vec::new();
    let dropping = {
        let engine = engine.clone();
        tokio::spawn(async move { engine.drop_database("market").await })
    };
    while !dropping.is_finished() {
        let image = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), image.path());
        images.push(image);
    }
    dropping.await.unwrap().unwrap();
    for image in images {
        for _ in 0..2 {
            let engine = open(image.path()).await;
            let live = engine.version().database("market").is_some();
            assert_ne!(live, engine.history(id).unwrap().ended);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_survive_flush_and_replay() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let mut changes = engine.watch_databases();
    changes.borrow_and_update();
    engine.set_database_replication("market", true).await.unwrap();
    assert!(changes.has_changed().unwrap());
    let mut switches = engine.replication_switches();
    assert!(switches.primary && switches.replica);
    switches.replica = false;
    engine.set_replication_switches(switches).await.unwrap();
    for flush in [false, true, true] {
        let image = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), image.path());
        let engine = open(image.path()).await;
        assert!(engine.version().database("market").unwrap().replicated);
        assert_eq!(engine.replication_switches(), switches);
        if flush {
            engine.flush().await.unwrap();
            engine.shutdown().await.unwrap();
            drop(engine);
            let engine = open(image.path()).await;
            assert!(engine.version().database("market").unwrap().replicated);
            assert_eq!(engine.replication_switches(), switches);
        }
    }
}
