//! Create, append, read, restart.

use tailrace_engine::{CommitOptions, Durability, Engine, EngineError, EngineSeams, Role};
use tailrace_wal::{LogError, Seq, SystemClock, SystemDisk};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_read_after_commit_and_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let receipt = insert(&engine, "bars", rows(0..100, 10)).await;
    assert_eq!((receipt.position.seq, receipt.rows), (Seq(3), 100));
    let version = engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    assert_eq!((table.rows(), table.partitions().count()), (100, 10));
    let before = contents(&engine, &version, "bars").await;
    assert_eq!(before.len(), 100);
    engine.shutdown().await.unwrap();
    drop(engine);

    // Replay only.
    let (engine, report) = open_with(config(dir.path())).await;
    assert_eq!(report.replayed, 3);
    assert_eq!(contents(&engine, &engine.version(), "bars").await, before);
    let database = engine.version().database("market").unwrap().clone();
    assert_eq!(database.position, receipt.position);
    assert_eq!(database.role, Role::Primary);

    // From datafiles only.
    engine.flush().await.unwrap();
    assert_eq!(contents(&engine, &engine.version(), "bars").await, before);
    assert_eq!(engine.memory().memtable_bytes, 0);
    engine.shutdown().await.unwrap();
    drop((engine, version, database));
    let (engine, report) = open_with(config(dir.path())).await;
    assert_eq!(report.replayed, 0);
    assert_eq!(contents(&engine, &engine.version(), "bars").await, before);
    assert_eq!(engine.version().database("market").unwrap().position, receipt.position);

    // From both, twice.
    let again = insert(&engine, "bars", rows(100..150, 20)).await;
    assert_eq!(again.position.seq, Seq(4));
    assert!(again.position.epoch.counter > receipt.position.epoch.counter);
    let all = contents(&engine, &engine.version(), "bars").await;
    assert_eq!(all.len(), 150);
    for _ in 0..2 {
        engine.shutdown().await.unwrap();
    }
    drop(engine);
    let (engine, report) = open_with(config(dir.path())).await;
    assert_eq!(report.replayed, 1);
    assert_eq!(contents(&engine, &engine.version(), "bars").await, all);
    let info = engine.history(again.position.history).unwrap();
    assert_eq!(info.epochs.len(), 2);
    assert_eq!(info.epochs[1].chain_before, receipt.position.chain);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_requests_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let taken = engine.create_database("market").await.unwrap_err();
    assert!(matches!(taken, EngineError::AlreadyExists { kind: "database", .. }), "{taken}");
    let taken = engine.create_table("market", bars("bars")).await.unwrap_err();
    assert!(matches!(taken, EngineError::AlreadyExists { kind: "table", .. }), "{taken}");
    assert!(matches!(engine.begin("nowhere"), Err(EngineError::NotFound { kind: "database", .. })));
    let mut transaction = engine.begin("market").unwrap();
    let missing = transaction.append("nothing", rows(0..1, 1)).await.unwrap_err();
    assert!(matches!(missing, EngineError::NotFound { kind: "table", .. }), "{missing}");
    let narrow = rows(0..1, 1).project(&[0, 1]).unwrap();
    let wrong = transaction.append("bars", narrow).await.unwrap_err();
    assert_eq!(wrong.to_string(), "table \"bars\" has 4 columns, the rows have 2");
    // It is still good for what is right.
    transaction.append("bars", rows(0..1, 1)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    assert_eq!(ids(&engine, "bars").await, [0]);
    let empty = engine.begin("market").unwrap().commit(CommitOptions::default()).await.unwrap();
    assert_eq!((empty.position.seq, empty.rows), (Seq(3), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_transaction_with_a_key_gets_the_first_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let options = || CommitOptions {
        durability: Some(Durability::Written),
        idempotency_key: Some(bytes::Bytes::from_static(b"load 7")),
    };
    let mut receipts = Vec::new();
    let commits: Vec<_> = (0..4)
        .map(|_| {
            let engine = engine.clone();
            let options = options();
            tokio::spawn(async move {
                let mut transaction = engine.begin("market").unwrap();
                transaction.append("bars", rows(0..10, 3)).await.unwrap();
                transaction.commit(options).await.unwrap()
            })
        })
        .collect();
    for commit in commits {
        receipts.push(commit.await.unwrap());
    }
    assert!(receipts.iter().all(|receipt| *receipt == receipts[0]));
    assert_eq!(ids(&engine, "bars").await.len(), 10);
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = open(dir.path()).await;
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", rows(0..10, 3)).await.unwrap();
    let again = transaction.commit(options()).await.unwrap();
    assert_eq!(again.position, receipts[0].position);
    assert_eq!(ids(&engine, "bars").await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_applied_yet_can_be_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let here = insert(&engine, "bars", rows(0..10, 1)).await.position;
    engine.applied(here.history, here.seq).await.unwrap();
    let (waiting, next) = (engine.clone(), here.seq.next());
    let waiter = tokio::spawn(async move {
        waiting.applied(here.history, next).await.unwrap();
        waiting.version().database("market").unwrap().position.seq
    });
    assert!(!waiter.is_finished());
    insert(&engine, "bars", rows(10..20, 1)).await;
    assert!(waiter.await.unwrap() >= next);
    // The end of a history that is over can be asked for, nothing after it.
    let end = engine.drop_database("market").await.unwrap().position;
    engine.applied(here.history, end.seq).await.unwrap();
    let error = engine.applied(here.history, end.seq.next()).await.unwrap_err();
    assert!(matches!(error, EngineError::NotFound { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_free_after_a_shutdown_whoever_holds_the_engine() {
    let dir = tempfile::tempdir().unwrap();
    let mut held = Vec::new();
    for round in 0..5_i64 {
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let (engine, _) = Engine::open(config(dir.path()), seams).await.unwrap();
        if round == 0 {
            market(&engine).await;
        }
        insert(&engine, "bars", rows(round * 10..round * 10 + 10, 2)).await;
        if round == 2 {
            engine.flush().await.unwrap();
        }
        let tail = engine.log().tail(engine.version().database("market").unwrap().id, Seq(0));
        engine.shutdown().await.unwrap();
        // What is closed takes nothing, and removes nothing of what may be another's now.
        assert!(matches!(engine.flush().await, Err(EngineError::Closed)));
        assert!(matches!(engine.log().truncate(engine.log().status().appended), Err(LogError::Closed)));
        held.push((engine, tail));
    }
    assert_eq!(ids(&open(dir.path()).await, "bars").await, (0..50).collect::<Vec<_>>());
    assert_eq!(held.len(), 5);
}
