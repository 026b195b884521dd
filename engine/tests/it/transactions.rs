//! Transactions: atomic, concurrent, large, aborted.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tailrace_engine::{CommitOptions, Durability, EngineError};
use tailrace_wal::{RecordKind, Seq};

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_leave_no_hole_and_versions_are_prefixes() {
    const WRITERS: i64 = 8;
    const COMMITS: i64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    engine.create_table("market", bars("other")).await.unwrap();
    let first = engine.version().database("market").unwrap().position.seq;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let mut seqs = Vec::new();
                for commit in 0..COMMITS {
                    let id = writer * 1000 + commit;
                    let mut transaction = engine.begin("market").unwrap();
                    transaction.append("bars", rows(id..id + 1, 4)).await.unwrap();
                    transaction.append("other", rows(id..id + 1, 4)).await.unwrap();
                    let durability = if commit % 2 == 0 { Durability::Written } else { Durability::Durable };
                    let options = CommitOptions { durability: Some(durability), ..CommitOptions::default() };
                    seqs.push(transaction.commit(options).await.unwrap().position.seq);
                    let version = engine.version();
                    let database = version.database("market").unwrap();
                    assert!(database.position.seq >= seqs[seqs.len() - 1], "a commit cannot be read by its writer");
                }
                seqs
            })
        })
        .collect();
    // Readers see both tables alike, and exactly the transactions up to the version's position.
    let mut applied = engine.watch_applied();
    let total = (WRITERS * COMMITS) as u64;
    loop {
        let version = engine.version();
        let database = version.database("market").unwrap();
        let (one, two) = (contents(&engine, &version, "bars").await, contents(&engine, &version, "other").await);
        let seqs = |rows: &std::collections::BTreeMap<(u64, u64), _>| {
            rows.keys().map(|(seq, _)| *seq).collect::<BTreeSet<_>>()
        };
        let expected: BTreeSet<u64> = (first.0 + 1..=database.position.seq.0).collect();
        assert_eq!(seqs(&one), expected);
        assert_eq!(seqs(&two), expected);
        if expected.len() as u64 == total {
            break;
        }
        applied.changed().await.unwrap();
    }
    let mut seqs = BTreeSet::new();
    for writer in writers {
        let own = writer.await.unwrap();
        assert!(own.is_sorted());
        seqs.extend(own);
    }
    assert_eq!(seqs, (first.0 + 1..=first.0 + total).map(Seq).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_100_mb_is_fragments_and_one_commit() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let id = engine.version().database("market").unwrap().id;
    const ROWS: i64 = 200_000;
    let mut transaction = engine.begin("market").unwrap();
    for start in (0..ROWS).step_by(50_000) {
        transaction.append("bars", wide_rows(start..start + 50_000, 30)).await.unwrap();
        assert_eq!(engine.version().database("market").unwrap().table("bars").unwrap().rows(), 0);
    }
    let receipt = transaction.commit(CommitOptions::default()).await.unwrap();
    assert_eq!((receipt.position.seq, receipt.rows), (Seq(3), ROWS as u64));
    let mut tail = engine.log().tail(id, Seq(2)).unwrap();
    let (mut fragments, mut bytes) = (0, 0);
    while let Some(frame) = tail.try_next().unwrap() {
        bytes += frame.payload.encoded_len();
        fragments += usize::from(frame.header.kind == RecordKind::Fragment);
    }
    assert!(fragments > 10 && bytes > 80 << 20, "{fragments} fragments, {bytes} bytes");
    let before = contents(&engine, &engine.version(), "bars").await;
    assert_eq!(before.len() as i64, ROWS);
    assert!(before.keys().copied().eq((0..ROWS as u64).map(|ordinal| (3, ordinal))), "ordinals have holes");
    drop(engine);
    let engine = open(dir.path()).await;
    assert_eq!(contents(&engine, &engine.version(), "bars").await, before);
    engine.flush().await.unwrap();
    assert_eq!(contents(&engine, &engine.version(), "bars").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn aborted_dropped_and_interrupted_transactions_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.fragment_bytes = 500;
    let (engine, _) = open_with(small.clone()).await;
    market(&engine).await;
    let id = engine.version().database("market").unwrap().id;
    let fragments = |engine: &Arc<tailrace_engine::Engine>| {
        let engine = engine.clone();
        async move {
            let mut transaction = engine.begin("market").unwrap();
            transaction.append("bars", rows(0..100, 2)).await.unwrap();
            transaction
        }
    };
    fragments(&engine).await.abort().await.unwrap();
    drop(fragments(&engine).await);
    // Left open by the end of the process.
    let open_at_the_end = fragments(&engine).await;
    insert(&engine, "bars", rows(500..501, 1)).await;
    engine.log().sync().await.unwrap();
    let killed = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), killed.path());
    drop(open_at_the_end);
    let (engine, _) = open_with(config(killed.path())).await;
    assert_eq!(ids(&engine, "bars").await, [500]);
    engine.log().sync().await.unwrap();
    let mut tail = engine.log().tail(id, Seq(2)).unwrap();
    let (mut open, mut aborts) = (BTreeSet::new(), 0);
    while let Some(frame) = tail.try_next().unwrap() {
        let key = (frame.header.epoch, frame.header.transaction);
        match frame.header.kind {
            RecordKind::Fragment => drop(open.insert(key)),
            RecordKind::Abort => {
                assert!(open.remove(&key));
                aborts += 1;
            }
            RecordKind::Commit => drop(open.remove(&key)),
        }
    }
    assert_eq!((open.len(), aborts), (0, 3), "transactions stay open in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_transaction_and_one_too_large_are_aborted() {
    let dir = tempfile::tempdir().unwrap();
    let mut strict = config(dir.path());
    strict.fragment_bytes = 500;
    strict.transaction_max_age = Duration::from_millis(1);
    strict.transaction_max_bytes = 100_000;
    let (engine, _) = open_with(strict).await;
    market(&engine).await;
    let mut idle = engine.begin("market").unwrap();
    idle.append("bars", rows(0..100, 2)).await.unwrap();
    // The abort record tells when it has happened.
    let mut tail = engine.log().tail(engine.version().database("market").unwrap().id, Seq(2)).unwrap();
    while tail.next().await.unwrap().header.kind != RecordKind::Abort {}
    let gone = idle.append("bars", rows(0..1, 1)).await.unwrap_err();
    assert!(matches!(gone, EngineError::TransactionAborted(_)), "{gone}");
    assert!(matches!(idle.commit(CommitOptions::default()).await, Err(EngineError::TransactionAborted(_))));
    let mut large = engine.begin("market").unwrap();
    let refused = match large.append("bars", rows(0..10_000, 2)).await {
        Ok(()) => large.commit(CommitOptions::default()).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(refused, EngineError::TransactionAborted(_)), "{refused}");
    assert_eq!(ids(&engine, "bars").await, [0i64; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_caller_goes_away_runs_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    for round in 0..20 {
        let mut transaction = engine.begin("market").unwrap();
        transaction.append("bars", rows(round..round + 1, 1)).await.unwrap();
        let mut commit = Box::pin(transaction.commit(CommitOptions::default()));
        let _ = futures::poll!(&mut commit);
        drop(commit);
    }
    insert(&engine, "bars", rows(100..101, 1)).await;
    // No hole: the last one could only be applied after all that had been appended before it.
    let version = engine.version();
    let seqs: Vec<u64> = contents(&engine, &version, "bars").await.keys().map(|(seq, _)| *seq).collect();
    assert!(seqs.iter().copied().eq(3..3 + seqs.len() as u64));
    assert!(seqs.len() > 1);
}

/// The measure of bulk loading: the tutorial's 1.21 million rows from memory, durable. Prints, and asserts only that
/// all rows are there.
#[tokio::test(flavor = "multi_thread")]
async fn bulk_load_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    engine.create_database("market").await.unwrap();
    engine.create_table("market", tutorial_table()).await.unwrap();
    let batches = tutorial_rows();
    let rows: usize = batches.iter().map(arrow_array::RecordBatch::num_rows).sum();
    let start = std::time::Instant::now();
    let mut transaction = engine.begin("market").unwrap();
    for batch in batches {
        transaction.append("bars", batch).await.unwrap();
    }
    let appended = start.elapsed();
    let receipt = transaction.commit(CommitOptions::default()).await.unwrap();
    let committed = start.elapsed();
    assert_eq!(receipt.rows, rows as u64);
    assert_eq!(engine.version().database("market").unwrap().table("bars").unwrap().rows(), rows as u64);
    engine.flush().await.unwrap();
    let flushed = start.elapsed();
    println!(
        "{rows} rows: appended {appended:?}, durable {committed:?} ({:.2} M rows/s), {} log bytes; flushed after {:?}",
        rows as f64 / committed.as_secs_f64() / 1e6,
        engine.log().status().appended_bytes,
        flushed - committed
    );
}
