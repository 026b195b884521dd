//! Change feeds: what they give is what the table holds, once, in order; what they cannot give is named.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::Int64Type};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_engine::{
    ArchiveConfig, Changes, ChangesRequest, ColumnId, CommitOptions, Durability, Engine, EngineError, PartitionKey,
};
use tailrace_wal::{CommitTime, RecordKind, Seq};

use crate::support::*;

/// All columns of a table of `market`.
pub(crate) fn request(engine: &Engine, table: &str) -> ChangesRequest {
    let version = engine.version();
    let database = version.database("market").unwrap();
    let table = database.table(table).unwrap().table.clone();
    ChangesRequest {
        history: database.id,
        columns: table.columns.iter().map(|column| column.id).collect(),
        table,
        after: Seq::ZERO,
        restart: None,
        upto: Some(database.position.seq),
        from_time: None,
        upto_time: None,
        partitions: None,
    }
}

fn rows_of(batch: &RecordBatch) -> Vec<(Identity, Row)> {
    let number = |name: &str, row| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().value(row);
    let note = batch.column_by_name("note").unwrap().as_string::<i32>();
    let row = |row| {
        assert_eq!(batch.column_by_name("_op").unwrap().as_string::<i32>().value(row), "insert");
        let note = (!note.is_null(row)).then(|| note.value(row).to_owned());
        ((number("_seq", row) as u64, number("_ordinal", row) as u64), (number("id", row), note))
    };
    (0..batch.num_rows()).map(row).collect()
}

/// Everything up to the upper bound, in order; an identity that comes twice or out of order fails.
pub(crate) async fn read(engine: &Engine, request: ChangesRequest) -> Result<BTreeMap<Identity, Row>, EngineError> {
    let mut changes = engine.changes(request)?;
    let mut found = BTreeMap::new();
    while let Some(batch) = changes.next().await? {
        for (identity, row) in rows_of(&batch) {
            let last = found.last_key_value().map(|(identity, _)| *identity);
            assert!(last < Some(identity), "{identity:?} after {last:?}");
            found.insert(identity, row);
        }
    }
    assert!(changes.next().await?.is_none());
    Ok(found)
}

/// Everything that a table's feed gives.
pub(crate) async fn all(engine: &Engine, table: &str) -> BTreeMap<Identity, Row> {
    read(engine, request(engine, table)).await.unwrap()
}

/// Whether a feed has nothing now.
fn waits(changes: &mut Changes) -> bool {
    let mut next = std::pin::pin!(changes.next());
    matches!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

async fn next_ids(changes: &mut Changes) -> Vec<i64> {
    let batch = changes.next().await.unwrap().unwrap();
    rows_of(&batch).into_iter().map(|(_, (id, _))| id).collect()
}

/// Small and large transactions of two tables, open side by side, some aborted.
async fn write_at_random(engine: &Arc<Engine>, random: &mut StdRng, count: usize) {
    let mut open = VecDeque::new();
    for step in 0..count as i64 {
        let mut transaction = engine.begin("market").unwrap();
        for part in 0..random.random_range(1..4) {
            let table = if random.random_bool(0.7) { "bars" } else { "other" };
            let first = step * 10_000 + part * 1000;
            let rows = rows(first..first + random.random_range(1..60), random.random_range(1..6));
            transaction.append(table, rows).await.unwrap();
        }
        open.push_back(transaction);
        while open.len() > random.random_range(0..4) {
            let index = random.random_range(0..open.len());
            let transaction = open.remove(index).unwrap();
            if random.random_bool(0.15) {
                transaction.abort().await.unwrap();
            } else {
                let durability = if random.random_bool(0.5) { Durability::Written } else { Durability::Durable };
                let options = CommitOptions { durability: Some(durability), ..CommitOptions::default() };
                transaction.commit(options).await.unwrap();
            }
        }
        if random.random_bool(0.05) {
            engine.flush().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_the_tables_rows_once_in_order() {
    for seed in 0..6 {
        println!("seed {seed}: cargo test -p tailrace-engine --test it changes_are_the_tables_rows");
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut small = config(dir.path());
        small.fragment_bytes = 1500;
        let (mut engine, _) = open_with(small.clone()).await;
        market(&engine).await;
        engine.create_table("market", bars("other")).await.unwrap();
        // Flushes would truncate it.
        engine.create_subscription("holds the log", "market", "bars", Some(Seq(1))).await.unwrap();
        // A tail that is there from the beginning sees the same.
        let mut tail = engine.changes(ChangesRequest { upto: None, ..request(&engine, "bars") }).unwrap();
        for round in 0..2 {
            write_at_random(&engine, &mut random, 40).await;
            for table in ["bars", "other"] {
                let expected = contents(&engine, &engine.version(), table).await;
                let whole = request(&engine, table);
                assert_eq!(read(&engine, whole.clone()).await.unwrap(), expected, "round {round}");
                let end = whole.upto.unwrap().0;
                for _ in 0..10 {
                    let (after, upto) = (random.random_range(0..=end), random.random_range(0..=end));
                    let some = ChangesRequest { after: Seq(after), upto: Some(Seq(upto)), ..whole.clone() };
                    let expected: BTreeMap<_, _> = expected
                        .iter()
                        .filter(|((seq, _), _)| (after + 1..=upto.max(after)).contains(seq))
                        .map(|(identity, row)| (*identity, row.clone()))
                        .collect();
                    assert_eq!(read(&engine, some).await.unwrap(), expected, "after {after} up to {upto}");
                }
            }
            if round == 0 {
                let expected = contents(&engine, &engine.version(), "bars").await;
                let mut found = Vec::new();
                while found.len() < expected.len() {
                    found.extend(rows_of(&tail.next().await.unwrap().unwrap()));
                }
                assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
                assert!(waits(&mut tail));
                // A feed holds the log.
                drop((tail, engine));
                engine = open_with(small.clone()).await.0;
                tail = engine.changes(ChangesRequest { upto: None, ..request(&engine, "bars") }).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_gives_rows_when_they_are_durable_and_readable() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.wal.sync_interval = std::time::Duration::from_secs(3600);
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    let end = request(&engine, "bars").upto.unwrap();
    let mut tail = engine.changes(ChangesRequest { after: end, upto: None, ..request(&engine, "bars") }).unwrap();
    assert!(waits(&mut tail));
    insert(&engine, "bars", rows(0..3, 1)).await;
    assert_eq!(next_ids(&mut tail).await, [0, 1, 2]);
    assert!(waits(&mut tail));

    // Written and not durable: readable, but it may be lost.
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", rows(3..5, 1)).await.unwrap();
    let options = CommitOptions { durability: Some(Durability::Written), ..CommitOptions::default() };
    transaction.commit(options).await.unwrap();
    for _ in 0..100 {
        assert!(waits(&mut tail));
        tokio::task::yield_now().await;
    }
    engine.log().sync().await.unwrap();
    assert_eq!(next_ids(&mut tail).await, [3, 4]);
    // What is committed while nobody reads comes together.
    for id in 5..20 {
        insert(&engine, "bars", rows(id..id + 1, 3)).await;
    }
    let ids = next_ids(&mut tail).await;
    assert_eq!(ids, (5..20).collect::<Vec<_>>());
    // Another table's rows are nobody's here.
    engine.create_table("market", bars("other")).await.unwrap();
    insert(&engine, "other", rows(0..3, 1)).await;
    assert!(waits(&mut tail));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_times_and_partitions_are_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let mut times = Vec::new();
    for id in 0..5 {
        times.push(insert(&engine, "bars", rows(id * 10..id * 10 + 10, 2)).await.commit_time);
    }
    let whole = request(&engine, "bars");
    let one = ChangesRequest { columns: vec![ColumnId(4), ColumnId(1)], ..whole.clone() };
    let changes = engine.changes(one).unwrap();
    let names: Vec<_> = changes.schema().fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["_seq", "_ordinal", "_commit_time", "_op", "note", "id"]);
    let none = ChangesRequest { columns: Vec::new(), ..whole.clone() };
    assert_eq!(engine.changes(none).unwrap().next().await.unwrap().unwrap().num_rows(), 50);
    let between =
        ChangesRequest { from_time: Some(times[1]), upto_time: Some(CommitTime(times[4].0 - 1)), ..whole.clone() };
    let found: Vec<i64> = read(&engine, between).await.unwrap().values().map(|(id, _)| *id).collect();
    let mut sorted = found.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, (10..40).collect::<Vec<_>>());
    // Row `i` lies on day `i % 2`.
    let version = engine.version();
    let keys: Vec<PartitionKey> =
        version.database("market").unwrap().table("bars").unwrap().partitions().map(|(key, _)| key.clone()).collect();
    let wanted = keys[1].clone();
    let odd = ChangesRequest { partitions: Some(Arc::new(move |key| Ok(*key == wanted))), ..whole };
    assert!(read(&engine, odd).await.unwrap().values().map(|(id, _)| *id).eq((0..25).map(|half| half * 2 + 1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_comes_whole_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    const ROWS: i64 = 40_000;
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("bars", wide_rows(0..ROWS / 2, 5)).await.unwrap();
    // Begun before it and committed within it.
    insert(&engine, "bars", rows(90_000..90_001, 1)).await;
    let within = engine.version().database("market").unwrap().position.seq;
    transaction.append("bars", wide_rows(ROWS / 2..ROWS, 5)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    let expected = contents(&engine, &engine.version(), "bars").await;
    let whole = request(&engine, "bars");
    let mut tail = engine.log().tail(whole.history, Seq(2)).unwrap();
    let mut fragments = 0;
    while let Some(frame) = tail.try_next().unwrap() {
        fragments += usize::from(frame.header.kind == RecordKind::Fragment);
    }
    assert!(fragments > 1, "{fragments} fragments");
    assert_eq!(read(&engine, whole.clone()).await.unwrap(), expected);
    // Its first fragments lie before where the reader starts.
    let behind = ChangesRequest { after: within, ..whole };
    let mut changes = engine.changes(behind.clone()).unwrap();
    let mut batches = 0;
    while let Some(batch) = changes.next().await.unwrap() {
        assert!(batch.get_array_memory_size() < 32 << 20);
        batches += 1;
    }
    assert!(batches > fragments / 2, "{batches} batches of {fragments} fragments");
    assert_eq!(read(&engine, behind).await.unwrap().len() as i64, ROWS);
}

/// Flushes and truncates so that the log begins after what is there now.
async fn truncate_all(engine: &Arc<Engine>) {
    engine.flush().await.unwrap();
    engine.log().roll().await.unwrap();
    insert(engine, "bars", rows(1_000_000..1_000_001, 1)).await;
    engine.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_truncated_is_named_with_the_first_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    for id in 0..5 {
        insert(&engine, "bars", rows(id..id + 1, 1)).await;
    }
    let mut begun = engine.changes(ChangesRequest { upto: None, ..request(&engine, "bars") }).unwrap();
    truncate_all(&engine).await;
    let retained = engine.log().retained_after(request(&engine, "bars").history).unwrap();
    assert!(retained > Seq(2), "nothing was truncated");
    let whole = request(&engine, "bars");
    let is_gone = |error: EngineError, wanted: u64| match error {
        EngineError::ChangesGone { wanted: found, first, .. } => {
            assert_eq!((found.0, first), (wanted, retained.next()))
        }
        other => panic!("{other}"),
    };
    is_gone(read(&engine, whole.clone()).await.unwrap_err(), 1);
    is_gone(begun.next().await.unwrap_err(), 1);
    is_gone(read(&engine, ChangesRequest { after: Seq(3), ..whole.clone() }).await.unwrap_err(), 4);
    let rest = read(&engine, ChangesRequest { after: retained, ..whole.clone() }).await.unwrap();
    assert!(!rest.is_empty() && rest.keys().all(|(seq, _)| *seq > retained.0));
    let error = engine.create_subscription("late", "market", "bars", Some(Seq(3))).await.unwrap_err();
    is_gone(error, 3);
    assert!(engine.subscriptions().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_reads_through_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let archive = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.fragment_bytes = 1500;
    let url = format!("file://{}", archive.path().display()).parse().unwrap();
    let interval = std::time::Duration::from_millis(20);
    config.archive = Some(ArchiveConfig { interval, ..ArchiveConfig::new(url) });
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    engine.create_table("market", bars("other")).await.unwrap();
    write_at_random(&engine, &mut StdRng::seed_from_u64(7), 30).await;
    let mut begun = engine.changes(ChangesRequest { upto: None, ..request(&engine, "bars") }).unwrap();
    let history = request(&engine, "bars").history;
    // Sealed segments are archived by and by, and then the log goes.
    while engine.log().retained_after(history).unwrap() < Seq(5) {
        truncate_all(&engine).await;
    }
    let expected = contents(&engine, &engine.version(), "bars").await;
    let whole = request(&engine, "bars");
    assert_eq!(read(&engine, whole.clone()).await.unwrap(), expected);
    for after in [1, 3, 9, 20] {
        let some = read(&engine, ChangesRequest { after: Seq(after), ..whole.clone() }).await.unwrap();
        let expected: BTreeMap<_, _> = expected.clone().into_iter().filter(|((seq, _), _)| *seq > after).collect();
        assert_eq!(some, expected, "after {after}");
    }
    let mut found = Vec::new();
    while found.len() < expected.len() {
        found.extend(rows_of(&begun.next().await.unwrap().unwrap()));
    }
    assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feed_ends_with_its_table_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    engine.create_table("market", bars("other")).await.unwrap();
    let mut bars_tail = engine.changes(ChangesRequest { upto: None, ..request(&engine, "bars") }).unwrap();
    let mut other_tail = engine.changes(ChangesRequest { upto: None, ..request(&engine, "other") }).unwrap();
    insert(&engine, "bars", rows(0..2, 1)).await;
    insert(&engine, "other", rows(0..2, 1)).await;
    engine.drop_table("market", "bars").await.unwrap();
    // Its last rows come first.
    assert_eq!(next_ids(&mut bars_tail).await, [0, 1]);
    let error = bars_tail.next().await.unwrap_err();
    assert!(matches!(&error, EngineError::FeedEnded(why) if why.contains("market.bars")), "{error}");
    assert!(bars_tail.next().await.unwrap().is_none());
    // One of the same name is another table.
    engine.create_table("market", bars("bars")).await.unwrap();
    insert(&engine, "bars", rows(7..8, 1)).await;
    let again = read(&engine, request(&engine, "bars")).await.unwrap();
    assert_eq!(again.values().map(|(id, _)| *id).collect::<Vec<_>>(), [7]);
    assert_eq!(next_ids(&mut other_tail).await, [0, 1]);
    assert!(waits(&mut other_tail));
    engine.drop_database("market").await.unwrap();
    let error = other_tail.next().await.unwrap_err();
    assert!(matches!(&error, EngineError::FeedEnded(why) if why.contains("database")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_gives_the_same_changes() {
    let (dir_a, dir_b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut config_a = config(dir_a.path());
    config_a.fragment_bytes = 1500;
    let (a, _) = open_with(config_a).await;
    let b = open(dir_b.path()).await;
    market(&a).await;
    a.create_table("market", bars("other")).await.unwrap();
    write_at_random(&a, &mut StdRng::seed_from_u64(11), 30).await;
    let whole = request(&a, "bars");
    let applier = b.follow(whole.history, "market", "site-a").await.unwrap();
    a.log().sync().await.unwrap();
    let mut records = a.log().tail(whole.history, Seq::ZERO).unwrap();
    while let Some(frame) = records.try_next().unwrap() {
        if let Some(prepared) = applier.prepare(frame.header, frame.payload).unwrap() {
            applier.commit(vec![prepared]).await.unwrap();
        }
    }
    applier.durable().await.unwrap();
    let expected = read(&a, whole).await.unwrap();
    assert!(!expected.is_empty());
    assert_eq!(read(&b, request(&b, "bars")).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_holds_the_log_for_one_consumer_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    let first = insert(&engine, "bars", rows(0..2, 1)).await.position.seq;
    let created = engine.create_subscription("mine", "market", "bars", Some(first)).await.unwrap();
    assert_eq!(created.pin.acknowledged.next(), first);
    let error = engine.create_subscription("mine", "market", "bars", None).await.unwrap_err();
    assert!(matches!(error, EngineError::AlreadyExists { kind: "subscription", .. }), "{error}");
    let error = engine.create_subscription("other", "market", "bars", Some(Seq(99))).await.unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)), "{error}");
    insert(&engine, "bars", rows(2..4, 1)).await;
    truncate_all(&engine).await;
    assert!(engine.log().retained_after(created.pin.key.history).unwrap() < first, "its log was truncated");
    engine.shutdown().await.unwrap();
    drop(engine);

    let engine = open(dir.path()).await;
    truncate_all(&engine).await;
    let subscribed = engine.attach_subscription("mine").await.unwrap();
    let error = engine.attach_subscription("mine").await.unwrap_err();
    assert!(matches!(error, EngineError::InUse { .. }), "{error}");
    let error = engine.drop_subscription("mine").await.unwrap_err();
    assert!(matches!(error, EngineError::InUse { .. }), "{error}");
    assert_eq!(subscribed.acknowledged.next(), first);
    let whole = request(&engine, "bars");
    assert_eq!(subscribed.table, whole.table.id);
    let behind = ChangesRequest { after: subscribed.acknowledged, restart: Some(subscribed.restart), ..whole.clone() };
    let found = read(&engine, behind).await.unwrap();
    assert_eq!(found, contents(&engine, &engine.version(), "bars").await);
    // While it is read and when it is not, the mark goes forward only.
    let end = whole.upto.unwrap();
    assert_eq!(engine.advance_subscription("mine", first).await.unwrap(), first);
    drop(subscribed);
    assert_eq!(engine.advance_subscription("mine", Seq(1)).await.unwrap(), first);
    let error = engine.advance_subscription("mine", Seq(end.0 + 1)).await.unwrap_err();
    assert!(matches!(error, EngineError::Invalid(_)), "{error}");
    assert_eq!(engine.advance_subscription("mine", end).await.unwrap(), end);
    let status = engine.subscription("mine").unwrap();
    assert_eq!((status.pin.acknowledged, status.pin.attached), (end, false));
    truncate_all(&engine).await;
    assert!(engine.log().retained_after(whole.history).unwrap() >= first, "its log is held for nothing");

    // A crash keeps what was acknowledged.
    let killed = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), killed.path());
    let copy = open(killed.path()).await;
    assert_eq!(copy.subscription("mine").unwrap().pin.acknowledged, end);
    assert_eq!(copy.attach_subscription("mine").await.unwrap().acknowledged, end);
    copy.drop_subscription("mine").await.unwrap();
    assert!(copy.subscriptions().is_empty() && copy.log().pins().is_empty());
    let error = copy.attach_subscription("mine").await.unwrap_err();
    assert!(matches!(error, EngineError::NotFound { kind: "subscription", .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_over_its_budget_is_lost_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.wal.pin_max_bytes = 64 << 10;
    let (engine, _) = open_with(small).await;
    market(&engine).await;
    engine.create_subscription("slow", "market", "bars", None).await.unwrap();
    let acknowledged = request(&engine, "bars").upto.unwrap();
    insert(&engine, "bars", wide_rows(0..1000, 2)).await;
    truncate_all(&engine).await;
    let status = engine.subscription("slow").unwrap();
    assert!(status.pin.state.is_lost(), "{status:?}");
    for error in [
        engine.attach_subscription("slow").await.map(|_| ()).unwrap_err(),
        engine.advance_subscription("slow", Seq(acknowledged.0 + 1)).await.map(|_| ()).unwrap_err(),
    ] {
        match error {
            EngineError::SubscriptionLost { acknowledged: found, reason, .. } => {
                assert_eq!(found, acknowledged);
                assert!(reason.contains("bytes"), "{reason}");
            }
            other => panic!("{other}"),
        }
    }
    engine.drop_subscription("slow").await.unwrap();
    assert!(engine.subscriptions().is_empty());
}
