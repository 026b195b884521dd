//! Flushes beside commits, against an oracle.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tailrace_engine::{CommitOptions, Durability, Engine};
use tailrace_wal::{Lsn, PinKey, Seq};

use crate::support::*;

type Rows = BTreeMap<(u64, u64), i64>;

/// One writer's transactions. What it committed, by identity: a transaction's rows of one day follow each other, so
/// only the multiset of ids per seq is known here.
async fn write(engine: Arc<Engine>, seed: u64, next: Arc<AtomicU64>, commits: usize) -> Vec<(Seq, Vec<i64>)> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut done = Vec::new();
    for _ in 0..commits {
        let mut transaction = engine.begin("market").unwrap();
        let mut ids = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let rows_wanted = random.random_range(1..200);
            let first = next.fetch_add(rows_wanted, Ordering::Relaxed) as i64;
            let range = first..first + rows_wanted as i64;
            ids.extend(range.clone());
            transaction.append("bars", rows(range, random.random_range(1..6))).await.unwrap();
        }
        if random.random_bool(0.1) {
            drop(transaction);
            continue;
        }
        let durability = if random.random_bool(0.5) { Durability::Written } else { Durability::Durable };
        let options = CommitOptions { durability: Some(durability), ..CommitOptions::default() };
        let receipt = transaction.commit(options).await.unwrap();
        done.push((receipt.position.seq, ids));
    }
    done
}

fn by_seq(rows: &Rows) -> BTreeMap<u64, Vec<i64>> {
    let mut found: BTreeMap<u64, Vec<(u64, i64)>> = BTreeMap::new();
    for ((seq, ordinal), id) in rows {
        found.entry(*seq).or_default().push((*ordinal, *id));
    }
    found
        .into_iter()
        .map(|(seq, rows)| {
            assert!(rows.iter().map(|(ordinal, _)| *ordinal).eq(0..rows.len() as u64), "ordinals of {seq}");
            let mut ids: Vec<i64> = rows.into_iter().map(|(_, id)| id).collect();
            ids.sort_unstable();
            (seq, ids)
        })
        .collect()
}

async fn rows_now(engine: &Arc<Engine>) -> Rows {
    let version = engine.version();
    contents(engine, &version, "bars").await.into_iter().map(|(identity, (id, _))| (identity, id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_workload_with_flushes_and_kills_equals_its_oracle() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let root = tempfile::tempdir().unwrap();
    let mut dir = root.path().join("0");
    std::fs::create_dir(&dir).unwrap();
    let mut expected: BTreeMap<u64, Vec<i64>> = BTreeMap::new();
    let next = Arc::new(AtomicU64::new(0));
    let settings = |dir: &std::path::Path, random: &mut StdRng| {
        let mut config = config(dir);
        config.fragment_bytes = [2_000, 20_000, 4 << 20][random.random_range(0..3)];
        config.memtable_bytes = 400_000;
        config.wal.segment_bytes = 1 << 20;
        config
    };
    let (mut engine, _) = open_with(settings(&dir, &mut random)).await;
    market(&engine).await;
    for round in 1..=4 {
        let writers: Vec<_> =
            (0..4).map(|_| tokio::spawn(write(engine.clone(), random.random(), next.clone(), 40))).collect();
        while writers.iter().any(|writer| !writer.is_finished()) {
            engine.flush().await.unwrap();
            // A reader in the middle sees whole transactions, a prefix of them.
            let version = engine.version();
            let upto = version.database("market").unwrap().position.seq.0;
            let seen: Rows =
                contents(&engine, &version, "bars").await.into_iter().map(|(at, (id, _))| (at, id)).collect();
            assert!(by_seq(&seen).keys().copied().eq(3..=upto), "seed {seed}: a version is not a prefix");
        }
        for writer in writers {
            for (seq, mut ids) in writer.await.unwrap() {
                ids.sort_unstable();
                assert!(expected.insert(seq.0, ids).is_none());
            }
        }
        let now = rows_now(&engine).await;
        assert_eq!(by_seq(&now), expected, "seed {seed}");
        // Killed, or shut down; sometimes before and sometimes after a flush.
        if random.random_bool(0.5) {
            engine.flush().await.unwrap();
        }
        let image = root.path().join(round.to_string());
        if random.random_bool(0.5) {
            engine.log().sync().await.unwrap();
            copy_folder(&dir, &image);
            dir = image;
            drop(engine);
        } else {
            engine.shutdown().await.unwrap();
            drop(engine);
        }
        engine = open_with(settings(&dir, &mut random)).await.0;
        assert_eq!(rows_now(&engine).await, now, "seed {seed}: identities changed over a restart");
    }
    assert!(engine.log().status().first > Lsn(1), "the log was never truncated");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_flushes_and_writers_wait_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut small = config(dir.path());
    small.memtable_bytes = 200_000;
    let (engine, _) = open_with(small).await;
    market(&engine).await;
    for start in 0..60 {
        insert(&engine, "bars", rows(start * 1000..start * 1000 + 1000, 2)).await;
        assert!(engine.memory().memtable_bytes < 500_000, "writers did not wait");
    }
    assert!(engine.memory().flushes > 0);
    assert_eq!(ids(&engine, "bars").await.len(), 60_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_flushed_when_they_are_old() {
    let dir = tempfile::tempdir().unwrap();
    let mut young = config(dir.path());
    young.flush_age = Duration::from_millis(1);
    let (engine, _) = open_with(young).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..10, 1)).await;
    let flushed = async {
        while engine
            .version()
            .database("market")
            .unwrap()
            .table("bars")
            .unwrap()
            .partitions()
            .any(|(_, partition)| !partition.chunks.is_empty())
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), flushed).await.unwrap();
    assert_eq!(ids(&engine, "bars").await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn flushed_rows_stay_in_the_cache_within_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.cache_bytes = 100_000;
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    let cached = |engine: &Arc<Engine>| -> Vec<Option<usize>> {
        let version = engine.version();
        let table = version.database("market").unwrap().table("bars").unwrap();
        let files = table.partitions().flat_map(|(_, partition)| &partition.datafiles);
        files.map(|file| Some(file.cached()?.iter().map(|chunk| chunk.batch.num_rows()).sum())).collect()
    };
    insert(&engine, "bars", rows(0..100, 1)).await;
    engine.flush().await.unwrap();
    assert_eq!(cached(&engine), [Some(100)]);
    insert(&engine, "bars", rows(100..2000, 1)).await;
    engine.flush().await.unwrap();
    assert_eq!(cached(&engine), [Some(100), Some(1900)]);
    insert(&engine, "bars", rows(2000..3000, 1)).await;
    engine.flush().await.unwrap();
    assert_eq!(cached(&engine), [None, None, Some(1000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pins_are_restored_and_hold_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.wal.segment_bytes = 1 << 20;
    let (engine, _) = open_with(config.clone()).await;
    market(&engine).await;
    let history = engine.version().database("market").unwrap().id;
    let key = PinKey { feed: "replica/b".to_owned(), history };
    engine.log().sync().await.unwrap();
    let pin = engine.log().pin(key.clone(), Seq(2), Seq(2)).unwrap();
    assert!(pin.advance(Seq(2), Seq(1), Seq(2)));
    for start in 0..6 {
        insert(&engine, "bars", wide_rows(start * 1000..start * 1000 + 1000, 2)).await;
    }
    engine.flush().await.unwrap();
    assert_eq!(engine.log().retained_after(history).unwrap().0.min(2), engine.log().retained_after(history).unwrap().0);
    engine.shutdown().await.unwrap();
    drop(engine);
    let (engine, _) = open_with(config).await;
    let pins = engine.log().pins();
    assert_eq!(pins.len(), 1);
    assert_eq!((pins[0].key.clone(), pins[0].acknowledged, pins[0].applied), (key.clone(), Seq(2), Seq(1)));
    insert(&engine, "bars", rows(0..10, 1)).await;
    engine.flush().await.unwrap();
    assert!(engine.log().retained_after(history).unwrap() <= Seq(2));
    assert!(engine.log().forget_pin(&key));
    insert(&engine, "bars", rows(10..20, 1)).await;
    engine.flush().await.unwrap();
    assert!(engine.log().retained_after(history).unwrap() > Seq(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_pins_stay_lost_over_a_restart_and_forgotten_ones_stay_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.wal.segment_bytes = 64 << 10;
    config.wal.pin_max_bytes = 200_000;
    let (engine, _) = open_with(config.clone()).await;
    market(&engine).await;
    let history = engine.version().database("market").unwrap().id;
    let key = |feed: &str| PinKey { feed: feed.to_owned(), history };
    drop(engine.log().pin(key("replica/dead"), Seq(2), Seq(2)).unwrap());
    let attached = engine.log().pin(key("replica/here"), Seq(2), Seq(2)).unwrap();
    for start in 0..40 {
        insert(&engine, "bars", wide_rows(start * 100..start * 100 + 100, 2)).await;
    }
    let end = engine.version().database("market").unwrap().position.seq;
    assert!(engine.log().status().bytes > 400_000);
    engine.flush().await.unwrap();
    // Nobody looked: the flush itself found it over its budget.
    assert!(engine.log().status().bytes < 300_000, "{}", engine.log().status().bytes);
    let lost = engine.log().pins().into_iter().find(|pin| pin.key.feed == "replica/dead").unwrap();
    assert!(lost.state.reason().unwrap().contains("its budget is 200000"), "{:?}", lost.state);
    assert!(!attached.advance(end, end, end) && attached.renew(end, end, end));
    let refused = engine.forget_pins("replica/here", None).await.unwrap_err();
    assert!(refused.to_string().contains("attached"), "{refused}");
    engine.shutdown().await.unwrap();
    drop((attached, engine));
    let (engine, _) = open_with(config.clone()).await;
    let pins = engine.log().pins();
    assert_eq!(pins.len(), 2);
    assert_eq!((&pins[0].state, pins[0].since), (&lost.state, lost.since));
    assert!(!pins[1].state.is_lost() && pins[1].acknowledged == end);
    assert_eq!(engine.forget_pins("replica/dead", Some(history)).await.unwrap(), 1);
    assert_eq!(engine.forget_pins("replica/dead", None).await.unwrap(), 0);
    // Killed: what was forgotten was forgotten durably.
    let image = tempfile::tempdir().unwrap();
    copy_folder(dir.path(), image.path());
    drop(engine);
    (config.data_dir, config.wal.dir) = (image.path().to_owned(), image.path().join("wal"));
    let (engine, _) = open_with(config).await;
    let feeds: Vec<String> = engine.log().pins().into_iter().map(|pin| pin.key.feed).collect();
    assert_eq!(feeds, ["replica/here"]);
}
