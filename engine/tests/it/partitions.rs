//! Partitions are dropped and replaced: at once for readers, through flushes, crashes, replicas and feeds.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arrow_array::{Array, cast::AsArray, types::Int64Type, types::TimestampMicrosecondType};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tailrace_engine::{
    ChangesRequest, CommitOptions, DROP_PARTITION, Engine, EngineError, PartitionFilter, PartitionKey, SeenPartition,
};
use tailrace_wal::{RecordKind, Seq};

use crate::{changes, replica::*, support::*};

/// The key of a day's partition of `bars`.
fn day(day: i64) -> PartitionKey {
    let mut key = vec![1];
    key.extend((day ^ i64::MIN).to_be_bytes());
    PartitionKey(key.into())
}

fn seen(engine: &Engine, key: &PartitionKey) -> SeenPartition {
    let version = engine.version();
    let database = version.database("market").unwrap();
    database.seen_partition(database.table("bars").unwrap(), key)
}

async fn drop_days(engine: &Arc<Engine>, days: impl IntoIterator<Item = i64>) -> Seq {
    let mut transaction = engine.begin("market").unwrap();
    for of in days {
        transaction.drop_partition("bars", day(of)).await.unwrap();
    }
    transaction.commit(CommitOptions::default()).await.unwrap().position.seq
}

fn parquet_files(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.is_dir() { parquet_files(&path) } else { usize::from(path.extension().is_some_and(|e| e == "parquet")) }
    };
    entries.map(count).sum()
}

/// As after a crash, and after a start in good order.
async fn same_after_starts(engine: &Arc<Engine>, dir: &Path) {
    let expected = contents(engine, &engine.version(), "bars").await;
    let crashed = tempfile::tempdir().unwrap();
    copy_folder(dir, crashed.path());
    let other = open(crashed.path()).await;
    assert_eq!(contents(&other, &other.version(), "bars").await, expected);
    other.flush().await.unwrap();
    other.shutdown().await.unwrap();
    drop(other);
    let other = open(crashed.path()).await;
    assert_eq!(contents(&other, &other.version(), "bars").await, expected);
    let version = other.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    let named: usize = table.partitions().map(|(_, partition)| partition.datafiles.len()).sum();
    assert_eq!(parquet_files(&crashed.path().join("store")), named);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_goes_with_everything_that_came_before() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..100, 5)).await;
    engine.flush().await.unwrap();
    insert(&engine, "bars", rows(100..200, 5)).await;
    let before = engine.version();
    drop_days(&engine, [3]).await;
    let without = |days: &[i64], upto: i64| (0..upto).filter(|id| !days.contains(&(id % 5))).collect::<Vec<_>>();
    assert_eq!(ids(&engine, "bars").await, without(&[3], 200));
    same_after_starts(&engine, dir.path()).await;
    // A version that was pinned before shows what it showed.
    assert_eq!(contents(&engine, &before, "bars").await.len(), 200);
    drop(before);

    // What is flushed is gone from the disk.
    engine.flush().await.unwrap();
    same_after_starts(&engine, dir.path()).await;
    drop_days(&engine, [0, 1]).await;
    engine.flush().await.unwrap();
    assert_eq!(ids(&engine, "bars").await, without(&[0, 1, 3], 200));
    same_after_starts(&engine, dir.path()).await;

    // What is not there can be dropped, and what is nobody's key cannot.
    drop_days(&engine, [3, 77]).await;
    let mut transaction = engine.begin("market").unwrap();
    let garbage = PartitionKey(bytes::Bytes::from_static(b"garbage"));
    let refused = transaction.drop_partition("bars", garbage).await.unwrap_err();
    assert!(refused.to_string().contains("no partition key"), "{refused}");
    let refused = transaction.drop_partition("other", day(1)).await.unwrap_err();
    assert!(matches!(refused, EngineError::NotFound { .. }), "{refused}");
    // Neither call did anything.
    transaction.append("bars", rows(300..301, 5)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    assert_eq!(ids(&engine, "bars").await.last(), Some(&300));
    // The partition is like a new one.
    insert(&engine, "bars", rows(303..304, 5)).await;
    assert_eq!(ids(&engine, "bars").await.iter().rev().take(2).copied().collect::<Vec<_>>(), [303, 300]);
    same_after_starts(&engine, dir.path()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn within_a_transaction_the_order_of_calls_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.fragment_bytes = 600;
    let (engine, _) = open_with(small).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..100, 2)).await;
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", rows(100..140, 2)).await.unwrap();
    transaction.drop_partition("bars", day(1)).await.unwrap();
    transaction.append("bars", rows(140..160, 2)).await.unwrap();
    assert_eq!(ids(&engine, "bars").await.len(), 100, "what is not committed was seen");
    let receipt = transaction.commit(CommitOptions::default()).await.unwrap();
    assert_eq!(receipt.rows, 60);
    let expected: Vec<i64> = (0..160).filter(|id| id % 2 == 0 || *id >= 140).collect();
    assert_eq!(ids(&engine, "bars").await, expected);
    same_after_starts(&engine, dir.path()).await;
    // An abort drops nothing.
    let mut transaction = engine.begin("market").unwrap();
    transaction.drop_partition("bars", day(1)).await.unwrap();
    transaction.append("bars", rows(200..260, 2)).await.unwrap();
    transaction.abort().await.unwrap();
    assert_eq!(ids(&engine, "bars").await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_inserted_meanwhile_is_not_replaced_unseen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..10, 2)).await;
    let replace = async |seen: SeenPartition, ids: std::ops::Range<i64>| {
        let mut transaction = engine.begin("market").unwrap();
        transaction.replace_partition("bars", seen).await.unwrap();
        transaction.append("bars", rows(ids, 1)).await.unwrap();
        transaction.commit(CommitOptions::default()).await
    };
    // A flush, and what happens to other partitions, are no changes.
    let saw = seen(&engine, &day(0));
    engine.flush().await.unwrap();
    insert(&engine, "bars", rows(11..12, 2)).await;
    replace(saw.clone(), 100..102).await.unwrap();
    assert_eq!(ids(&engine, "bars").await, [1, 3, 5, 7, 9, 11, 100, 101]);
    // Now it is another one.
    let refused = replace(saw, 200..201).await.unwrap_err();
    assert!(matches!(refused, EngineError::Conflict(_)), "{refused}");
    assert!(refused.to_string().contains("('1970-01-01')") && refused.to_string().contains("bars"), "{refused}");
    // One row more, or the partition is gone, or it came to be.
    let saw = seen(&engine, &day(0));
    insert(&engine, "bars", rows(110..111, 1)).await;
    replace(saw, 200..201).await.unwrap_err();
    let saw = seen(&engine, &day(0));
    drop_days(&engine, [0]).await;
    replace(saw, 200..201).await.unwrap_err();
    let saw = seen(&engine, &day(0));
    insert(&engine, "bars", rows(110..111, 1)).await;
    replace(saw, 200..201).await.unwrap_err();
    assert_eq!(ids(&engine, "bars").await, [1, 3, 5, 7, 9, 11, 110]);
    // Another table of that name is another one.
    let saw = seen(&engine, &day(0));
    engine.drop_table("market", "bars").await.unwrap();
    engine.create_table("market", bars("bars")).await.unwrap();
    let mut transaction = engine.begin("market").unwrap();
    let refused = transaction.replace_partition("bars", saw).await.unwrap_err();
    assert!(matches!(refused, EngineError::Conflict(_)), "{refused}");
}

/// Rows of generation `number` of a day: more than a fragment takes.
fn generation(of: i64, number: i64) -> arrow_array::RecordBatch {
    const DAYS: i64 = 4;
    let whole = rows(number * 1000..number * 1000 + DAYS * (5 + number % 7), DAYS);
    let wanted = |row: usize| whole.column(0).as_primitive::<Int64Type>().value(row) % DAYS == of;
    let mask: Vec<bool> = (0..whole.num_rows()).map(wanted).collect();
    arrow_select::filter::filter_record_batch(&whole, &mask.into()).unwrap()
}

/// By day the one generation that it has, whole.
async fn generations(engine: &Arc<Engine>, version: &tailrace_engine::Version) -> BTreeMap<i64, i64> {
    let mut found: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for (id, _) in contents(engine, version, "bars").await.into_values() {
        found.entry(id % 4).or_default().push(id);
    }
    let one = |(of, mut ids): (i64, Vec<i64>)| {
        ids.sort_unstable();
        let number = ids[0] / 1000;
        let whole = generation(of, number);
        let expected = whole.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(ids, expected, "day {of} mixes generations or lacks rows");
        (of, number)
    };
    found.into_iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn replacements_beside_flushes_are_whole_for_readers_and_after_kills() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let root = tempfile::tempdir().unwrap();
    let mut dir = root.path().join("0");
    std::fs::create_dir(&dir).unwrap();
    let settings = |dir: &Path, random: &mut StdRng| {
        let mut config = config(dir);
        config.fragment_bytes = [600, 20_000][random.random_range(0..2)];
        config
    };
    let (mut engine, _) = open_with(settings(&dir, &mut random)).await;
    market(&engine).await;
    let mut first = 1;
    for round in 1..=4 {
        let done = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (0..4)
            .map(|of| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    for number in first..first + 60 {
                        let mut transaction = engine.begin("market").unwrap();
                        if number % 2 == 0 {
                            transaction.drop_partition("bars", day(of)).await.unwrap();
                        } else {
                            transaction.replace_partition("bars", seen(&engine, &day(of))).await.unwrap();
                        }
                        transaction.append("bars", generation(of, number)).await.unwrap();
                        transaction.commit(CommitOptions::default()).await.unwrap();
                    }
                })
            })
            .collect();
        let flusher = {
            let (engine, done) = (engine.clone(), done.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    engine.flush().await.unwrap();
                }
            })
        };
        let image = root.path().join(round.to_string());
        let mut copied = false;
        while writers.iter().any(|writer| !writer.is_finished()) {
            let version = engine.version();
            generations(&engine, &version).await;
            if !copied && round % 2 == 0 && random.random_bool(0.2) {
                // Killed in the middle: what is there is whole all the same.
                let middle = root.path().join(format!("{round}-middle"));
                engine.log().sync().await.unwrap();
                copy_folder(&dir, &middle);
                copied = true;
                let other = open(&middle).await;
                let version = other.version();
                generations(&other, &version).await;
            }
        }
        for writer in writers {
            writer.await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
        flusher.await.unwrap();
        first += 60;
        let expected: BTreeMap<i64, i64> = (0..4).map(|of| (of, first - 1)).collect();
        assert_eq!(generations(&engine, &engine.version()).await, expected, "seed {seed}");
        engine.log().sync().await.unwrap();
        copy_folder(&dir, &image);
        drop(engine);
        dir = image;
        engine = open_with(settings(&dir, &mut random)).await.0;
        assert_eq!(generations(&engine, &engine.version()).await, expected, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_drops_and_replaces_the_same() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut small = config(dir_a.path());
    small.fragment_bytes = 600;
    let ((a, _), b) = (open_with(small).await, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(0..30, 3)).await;
    let id = market_id(&a);
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    catch_up(&a, &applier).await;
    b.flush().await.unwrap();
    drop_days(&a, [0]).await;
    let mut transaction = a.begin("market").unwrap();
    transaction.replace_partition("bars", seen(&a, &day(1))).await.unwrap();
    transaction.append("bars", rows(1000..1060, 3)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
    assert_eq!(a.tasks(id, Seq(0)), b.tasks(id, Seq(0)));
    let tasks = a.tasks(id, Seq(3));
    let shown: Vec<_> = tasks.iter().map(|task| (task.operation.name(), task.rows)).collect();
    assert_eq!(shown, [("DROP_PARTITION".into(), 0), ("DROP_PARTITION".into(), 60)]);
    assert!(tasks.iter().all(|task| task.tables.iter().any(|(_, name)| name == "bars")));
    applier.durable().await.unwrap();
    drop(applier);
    same_after_starts(&b, dir_b.path()).await;

    // A record that says what cannot be is refused.
    drop_days(&a, [2]).await;
    let applier = b.follow(id, "market", "site-a").await.unwrap();
    let frame = records(&a, id, applier.position().0.seq).await.pop().unwrap();
    let mut entry = frame.payload.directory.parts[0].clone();
    entry.partition = bytes::Bytes::from_static(b"garbage");
    let parts = vec![tailrace_wal::Part::new(entry, Vec::new()).unwrap()];
    let forged = tailrace_wal::Payload::new(parts, Vec::new(), None).unwrap();
    let header = tailrace_wal::HistoryHeader { payload_hash: forged.hash, ..frame.header };
    let refused = applier.prepare(header, forged).unwrap_err();
    assert!(refused.to_string().contains("no partition key"), "{refused}");
    catch_up(&a, &applier).await;
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_task_does_not_bring_back_what_was_dropped_after_it() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, mut b) = (open(dir_a.path()).await, open(dir_b.path()).await);
    market(&a).await;
    insert(&a, "bars", rows(0..30, 3)).await;
    insert(&a, "bars", rows(30..60, 3)).await;
    drop_days(&a, [1]).await;
    insert(&a, "bars", rows(60..90, 3)).await;
    drop_days(&a, [2]).await;
    let id = market_id(&a);
    let feed_but = async |b: &Arc<Engine>, skipped: &[u64]| {
        let applier = b.follow(id, "market", "site-a").await.unwrap();
        for frame in records(&a, id, applier.position().1).await {
            if frame.header.kind == RecordKind::Commit && skipped.contains(&frame.header.seq.0) {
                applier.skip(frame.header, frame.payload, "no such luck".to_owned()).await.unwrap();
            } else {
                feed(&applier, &[frame]).await;
            }
        }
        applier.durable().await.unwrap();
    };
    feed_but(&b, &[4]).await;
    assert_eq!(ids(&b, "bars").await.len(), 10 + 20);
    // It is remembered through a replay and through a flush.
    for flushes in [false, true] {
        if flushes {
            b.flush().await.unwrap();
        }
        b.shutdown().await.unwrap();
        drop(b);
        b = open(dir_b.path()).await;
        let version = b.version();
        let letters: Vec<_> = version.database("market").unwrap().dead_letters().collect();
        assert_eq!(letters[0].dropped.iter().map(|(_, key)| key.clone()).collect::<Vec<_>>(), [day(1), day(2)]);
    }
    b.retry_dead_letter("market", Seq(4)).await.unwrap();
    assert_equal(&a, &b).await;
    same_after_starts(&b, dir_b.path()).await;

    // A drop that was skipped cannot be made good behind what followed.
    drop_days(&a, [0]).await;
    insert(&a, "bars", rows(90..120, 3)).await;
    feed_but(&b, &[8]).await;
    let refused = b.retry_dead_letter("market", Seq(8)).await.unwrap_err().to_string();
    assert!(refused.contains("drops a partition") && refused.contains("repair_database('market')"), "{refused}");
    let source = a.repair_source(id).await.unwrap();
    let mut install = b.repair_install("site-a", source.manifest.clone()).await.unwrap();
    for (index, bytes) in install.wanted().collect::<Vec<_>>() {
        install.write(index, source.read(index, 0, bytes).await.unwrap()).await.unwrap();
    }
    install.install().await.unwrap();
    assert_equal(&a, &b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_tells_which_partition_went() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..4, 2)).await;
    let mut transaction = engine.begin("market").unwrap();
    transaction.drop_partition("bars", day(1)).await.unwrap();
    transaction.append("bars", rows(5..6, 2)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    let read = async |request: ChangesRequest| {
        let mut feed = engine.changes(request).unwrap();
        let mut shown = Vec::new();
        while let Some(batch) = feed.next().await.unwrap() {
            let id = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
            let at = batch.column_by_name("at").unwrap().as_primitive::<TimestampMicrosecondType>();
            let operations = batch.column_by_name("_op").unwrap().as_string::<i32>();
            let ordinals = batch.column_by_name("_ordinal").unwrap().as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                if operations.value(row) == DROP_PARTITION {
                    assert!(id.is_null(row) && batch.column_by_name("note").unwrap().is_null(row));
                    shown.push((operations.value(row).to_owned(), at.value(row) / DAY, ordinals.value(row)));
                } else {
                    shown.push((operations.value(row).to_owned(), id.value(row), ordinals.value(row)));
                }
            }
        }
        shown
    };
    let insert = |id, ordinal| ("insert".to_owned(), id, ordinal);
    let dropped = ("drop_partition".to_owned(), 1, 0);
    let all = changes::request(&engine, "bars");
    let first = [insert(0, 0), insert(2, 1), insert(1, 2), insert(3, 3)];
    assert_eq!(read(all.clone()).await, [&first[..], &[dropped.clone(), insert(5, 0)]].concat());
    // Those who want other partitions only do not hear of it.
    let only = |wanted: PartitionKey| -> Option<PartitionFilter> { Some(Arc::new(move |key| Ok(*key == wanted))) };
    let other = ChangesRequest { partitions: only(day(0)), ..all.clone() };
    assert_eq!(read(other).await, [insert(0, 0), insert(2, 1)]);
    let same = ChangesRequest { partitions: only(day(1)), after: Seq(3), ..all };
    assert_eq!(read(same).await, [dropped, insert(5, 0)]);
}
