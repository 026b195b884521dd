//! A repair moves the partitions that differ, and no others; what differs is found by digests at one position.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow_array::{Array as _, Float64Array, RecordBatch, cast::AsArray as _, types::Float64Type};
use tailrace_engine::{Applier, CommitOptions, ComparedPartition, Digest, Engine, PartitionKey, compare_digests};
use tailrace_wal::HistoryId;

use crate::support::*;

struct Pair {
    a: Arc<Engine>,
    b: Arc<Engine>,
    applier: Arc<Applier>,
    _dirs: [tempfile::TempDir; 2],
}

fn id(engine: &Engine) -> HistoryId {
    engine.version().database("market").unwrap().id
}

impl Pair {
    /// A primary with rows on so many days, and a replica that has all of it in files.
    async fn new(rows_of: i64, days: i64) -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (a, b) = (open(dirs[0].path()).await, open(dirs[1].path()).await);
        market(&a).await;
        insert(&a, "bars", rows(0..rows_of, days)).await;
        let applier = b.follow(id(&a), "market", "site-a").await.unwrap();
        let pair = Self { a, b, applier, _dirs: dirs };
        pair.catch_up().await;
        pair
    }

    async fn catch_up(&self) {
        self.a.log().sync().await.unwrap();
        let (_, restart) = self.applier.position();
        let mut tail = self.a.log().tail(self.applier.history(), restart).unwrap();
        while let Some(frame) = tail.try_next().unwrap() {
            if let Some(prepared) = self.applier.prepare(frame.header, frame.payload).unwrap() {
                self.applier.commit(vec![prepared]).await.unwrap();
            }
        }
        self.applier.durable().await.unwrap();
    }

    /// Compares both at a digest point.
    async fn verify(&self, from_files: bool) -> Vec<ComparedPartition> {
        let (point, position) = self.a.digest_point(id(&self.a)).await.unwrap();
        let there = self.a.point(id(&self.a), point).unwrap();
        // What comes after the point is not compared.
        insert(&self.a, "bars", rows(1_000_000..1_000_010, 2)).await;
        self.catch_up().await;
        let here = self.b.await_point(point, position).await.unwrap();
        assert_eq!((here.position, there.position), (position, position));
        self.a.forget_point(id(&self.a), point);
        assert!(self.a.point(id(&self.a), point).is_none());
        let theirs = self.a.database_digests(&there, from_files).await.unwrap();
        let theirs = serde_json::from_slice(&serde_json::to_vec(&theirs).unwrap()).unwrap();
        let ours = self.b.database_digests(&here, from_files).await.unwrap();
        let compared = compare_digests(&here, &ours, &theirs).unwrap();
        let now = self.b.clock().now();
        let found = compared.iter().filter_map(|compared| compared.to_difference(position.seq, now));
        self.b.note_differences(id(&self.a), found.collect(), from_files).await.unwrap();
        compared
    }

    /// Fetches what a repair wants; how many datafiles and bytes that were.
    async fn repair(&self) -> (usize, u64) {
        let source = self.a.repair_source(id(&self.a)).await.unwrap();
        let manifest = serde_json::from_slice(&serde_json::to_vec(&source.manifest).unwrap()).unwrap();
        let mut install = self.b.repair_install("site-a", manifest).await.unwrap();
        let wanted: Vec<(usize, u64)> = install.wanted().collect();
        for (index, bytes) in &wanted {
            install.write(*index, source.read(*index, 0, *bytes).await.unwrap()).await.unwrap();
        }
        install.install().await.unwrap();
        (wanted.len(), wanted.iter().map(|(_, bytes)| bytes).sum())
    }

    async fn assert_equal(&self) {
        let (left, right) = (self.a.version(), self.b.version());
        let (one, two) = (left.database("market").unwrap(), right.database("market").unwrap());
        assert_eq!(one.position, two.position);
        assert_eq!(contents(&self.a, &left, "bars").await, contents(&self.b, &right, "bars").await);
        assert_eq!(two.divergence(), None);
    }
}

async fn digests(engine: &Engine) -> Vec<(PartitionKey, Digest)> {
    let version = engine.version();
    engine.partition_digests(version.database("market").unwrap().table("bars").unwrap()).await.unwrap()
}

fn keys(engine: &Engine) -> Vec<PartitionKey> {
    let version = engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    table.partitions().map(|(key, _)| key.clone()).collect()
}

/// The same rows, one price another.
fn other_price(batch: &RecordBatch) -> RecordBatch {
    let prices = batch.column(2).as_primitive::<Float64Type>();
    let changed = prices.iter().enumerate().map(|(row, price)| if row == 0 { Some(-1.25) } else { price });
    let mut columns = batch.columns().to_vec();
    columns[2] = Arc::new(Float64Array::from_iter(changed));
    assert_ne!(columns[2].to_data(), prices.to_data());
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

fn bytes_of(engine: &Engine, key: Option<&PartitionKey>) -> u64 {
    let version = engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    let partitions = table.partitions().filter(|(of, _)| key.is_none_or(|key| key == *of));
    partitions.flat_map(|(_, partition)| &partition.datafiles).map(|file| file.meta.bytes).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_365_partitions_differs_and_one_is_fetched() {
    let pair = Pair::new(7_300, 365).await;
    let keys = keys(&pair.b);
    assert_eq!(keys.len(), 365);
    let key = keys[200].clone();
    pair.b.tamper("market", "bars", &key, other_price).unwrap();
    pair.b.flush().await.unwrap();
    // Nobody has verified anything: the digests of the files alone say it.
    let (files, bytes) = pair.repair().await;
    pair.assert_equal().await;
    println!("{files} datafile of {bytes} bytes fetched, of {} in {}", bytes_of(&pair.a, None), keys.len());
    assert_eq!((files, bytes), (1, bytes_of(&pair.a, Some(&key))));
    assert_eq!(pair.repair().await, (0, 0));
    // A replica that is behind fetches what it lacks.
    insert(&pair.a, "bars", rows(10_000..10_001, 365)).await;
    pair.a.flush().await.unwrap();
    let (files, _) = pair.repair().await;
    assert_eq!(files, 2, "both files of one partition");
    pair.assert_equal().await;
    // The files that were kept outlive the copy that they came from, and a restart.
    pair.catch_up().await;
    insert(&pair.a, "bars", rows(20_000..20_100, 3)).await;
    pair.catch_up().await;
    pair.assert_equal().await;
    let Pair { a, b, applier, _dirs } = pair;
    b.shutdown().await.unwrap();
    drop((b, applier));
    let b = open(_dirs[1].path()).await;
    let (left, right) = (a.version(), b.version());
    assert_eq!(contents(&a, &left, "bars").await, contents(&b, &right, "bars").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_differs_is_found_at_a_point_and_repaired() {
    let pair = Pair::new(500, 5).await;
    let equal = pair.verify(false).await;
    assert_eq!(equal.len(), 5);
    assert!(equal.iter().all(|compared| compared.difference.is_none() && compared.rows_here == compared.rows_there));
    let key = keys(&pair.b)[3].clone();
    pair.b.tamper("market", "bars", &key, other_price).unwrap();
    let found = pair.verify(false).await;
    let different: Vec<_> = found.iter().filter(|compared| compared.difference.is_some()).collect();
    assert_eq!(different.len(), 1);
    assert_eq!((&different[0].partition, different[0].partition_name.as_deref()), (&key, Some("at_day=1970-01-04")));
    assert_eq!(different[0].difference.as_deref(), Some("100 rows on both sides, with other values"));
    let divergence = pair.b.version().database("market").unwrap().divergence().unwrap();
    assert!(divergence.reason.contains("table \"bars\", partition at_day=1970-01-04"), "{}", divergence.reason);
    assert_eq!(divergence.remedy, "CALL repair_database('market')");
    assert!(pair.b.repair_source(id(&pair.a)).await.is_err(), "a DIVERGED database serves no repair");

    // It is known over a restart.
    let copied = tempfile::tempdir().unwrap();
    copy_folder(pair._dirs[1].path(), copied.path());
    let again = open(copied.path()).await;
    assert_eq!(again.version().database("market").unwrap().divergence(), Some(divergence));
    drop(again);

    let (files, _) = pair.repair().await;
    let in_it =
        pair.a.version().database("market").unwrap().table("bars").unwrap().partition(&key).unwrap().datafiles.len();
    assert_eq!(files, in_it);
    pair.assert_equal().await;
    assert!(pair.verify(true).await.iter().all(|compared| compared.difference.is_none()));
}

impl Pair {
    /// All rows of the replica are others than the primary's: a repair wants everything.
    async fn all_different(rows_of: i64, days: i64) -> Self {
        let pair = Self::new(rows_of, days).await;
        for key in keys(&pair.b) {
            pair.b.tamper("market", "bars", &key, other_price).unwrap();
        }
        pair
    }

    fn store(&self) -> PathBuf {
        self._dirs[1].path().join("store")
    }

    /// Begins a repair, fetches so many of its datafiles and half of the next, and is interrupted. Returns how many were
    /// wanted.
    async fn interrupted(&self, fetched: usize) -> usize {
        let source = self.a.repair_source(id(&self.a)).await.unwrap();
        let mut install = self.b.repair_install("site-a", source.manifest.clone()).await.unwrap();
        let wanted: Vec<(usize, u64)> = install.wanted().collect();
        for (index, bytes) in &wanted[..fetched] {
            install.write(*index, source.read(*index, 0, *bytes).await.unwrap()).await.unwrap();
        }
        if let Some((index, bytes)) = wanted.get(fetched) {
            install.write(*index, source.read(*index, 0, bytes / 2).await.unwrap()).await.unwrap();
        }
        install.pause();
        wanted.len()
    }

    /// What the replica shows.
    async fn rows_here(&self) -> Vec<(PartitionKey, Digest)> {
        digests(&self.b).await
    }

    /// Waits until the replica's store has so many datafiles.
    async fn holds(&self, files: usize) {
        let store = self.store();
        for _ in 0..1000 {
            if parquet_files(&store).len() == files {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{files} datafiles were expected, there are {:?}", parquet_files(&store));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_repair_goes_on_with_what_it_has() {
    let pair = Pair::all_different(500, 5).await;
    pair.b.flush().await.unwrap();
    let before = pair.rows_here().await;
    let own = parquet_files(&pair.store()).len();
    for (fetched, left) in [(2, 5), (1, 3), (0, 2)] {
        assert_eq!(pair.interrupted(fetched).await, left);
    }
    // Nothing of it can be seen.
    assert_eq!(pair.rows_here().await, before);
    assert_eq!(parquet_files(&pair.store()).len(), own + 3);
    assert_eq!(pair.repair().await.0, 2);
    pair.assert_equal().await;
    assert_ne!(pair.rows_here().await, before);
    assert_eq!(pair.rows_here().await, digests(&pair.a).await);
    pair.holds(5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_repair_had_is_used_if_it_is_what_is_wanted_now() {
    let pair = Pair::all_different(500, 5).await;
    pair.b.flush().await.unwrap();
    let own = parquet_files(&pair.store());
    assert_eq!(pair.interrupted(5).await, 5);
    let kept: Vec<_> = parquet_files(&pair.store()).into_iter().filter(|file| !own.contains(file)).collect();
    assert_eq!(kept.len(), 5);
    // One of them has rotted, one is of a partition that has gone since, one got another beside it.
    let mut bytes = std::fs::read(&kept[3]).unwrap();
    bytes[200] ^= 4;
    std::fs::write(&kept[3], &bytes).unwrap();
    let mut transaction = pair.a.begin("market").unwrap();
    transaction.drop_partition("bars", keys(&pair.a)[0].clone()).await.unwrap();
    transaction.append("bars", rows(10_001..10_002, 5)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    let (files, fetched) = pair.repair().await;
    assert_eq!(files, 2, "{fetched} bytes");
    pair.assert_equal().await;
    pair.holds(5).await;
    assert!(pair.verify(true).await.iter().all(|compared| compared.difference.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_abandoned_repair_had_is_removed() {
    let pair = Pair::all_different(500, 5).await;
    pair.b.flush().await.unwrap();
    let own = parquet_files(&pair.store());
    pair.interrupted(4).await;
    assert_eq!(parquet_files(&pair.store()).len(), own.len() + 4);
    // By a start.
    let copied = tempfile::tempdir().unwrap();
    copy_folder(pair._dirs[1].path(), copied.path());
    let again = open(copied.path()).await;
    assert_eq!(parquet_files(&copied.path().join("store")).len(), own.len());
    again.shutdown().await.unwrap();
    // By the end of the history.
    pair.b.drop_followed(id(&pair.a)).await.unwrap();
    pair.b.flush().await.unwrap();
    pair.holds(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datafile_of_another_digest_than_the_primary_states_is_refused() {
    let pair = Pair::all_different(500, 5).await;
    let before = pair.rows_here().await;
    let source = pair.a.repair_source(id(&pair.a)).await.unwrap();
    let mut manifest = source.manifest.clone();
    let stated = &mut manifest.tables[0].datafiles[2].1;
    let (right, path) = (stated.digest.unwrap(), stated.path.0.clone());
    let wrong = Digest { identity: right.identity ^ 1, ..right };
    stated.digest = Some(wrong);
    let mut install = pair.b.repair_install("site-a", manifest).await.unwrap();
    let wanted: Vec<(usize, u64)> = install.wanted().collect();
    let mut refused = Vec::new();
    for (index, bytes) in wanted {
        let written = install.write(index, source.read(index, 0, bytes).await.unwrap()).await;
        refused.extend(written.err().map(|error| (index, error.to_string())));
    }
    let [(2, reason)] = &refused[..] else { panic!("{refused:?}") };
    for words in [path, right.to_string(), wrong.to_string()] {
        assert!(reason.contains(&words), "{reason}: {words}");
    }
    let refused = install.install().await.unwrap_err().to_string();
    assert!(refused.contains("1 of its 5 datafiles"), "{refused}");
    assert_eq!(pair.rows_here().await, before);
    pair.repair().await;
    pair.assert_equal().await;
    assert_eq!(pair.rows_here().await, digests(&pair.a).await);
}

/// The datafiles in a folder.
fn parquet_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(parquet_files(&path)),
            false => found.extend(Some(path).filter(|path| path.extension().is_some_and(|e| e == "parquet"))),
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_on_disk_is_found_by_a_scrub_and_repaired() {
    let pair = Pair::new(500, 5).await;
    pair.b.flush().await.unwrap();
    pair.a.flush().await.unwrap();
    let file = parquet_files(&pair._dirs[1].path().join("store"))[2].clone();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200] ^= 4;
    std::fs::write(&file, &bytes).unwrap();
    // What was kept when it was written knows nothing of it.
    assert!(pair.verify(false).await.iter().all(|compared| compared.difference.is_none()));
    let found = pair.verify(true).await;
    let different: Vec<_> = found.iter().filter_map(|compared| compared.difference.as_deref()).collect();
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(different.len() == 1 && different[0].contains(name), "{different:?}");
    // Verifying what is kept does not lift what was found in the files.
    pair.verify(false).await;
    assert!(pair.b.version().database("market").unwrap().divergence().is_some());
    pair.a.flush().await.unwrap();
    pair.repair().await;
    pair.assert_equal().await;
    assert!(pair.verify(true).await.iter().all(|compared| compared.difference.is_none()));

    // Damage at the primary is not the replica's.
    pair.a.flush().await.unwrap();
    let file = parquet_files(&pair._dirs[0].path().join("store"))[1].clone();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[200] ^= 4;
    std::fs::write(&file, &bytes).unwrap();
    let found = pair.verify(true).await;
    let different: Vec<_> = found.iter().filter_map(|compared| compared.difference.as_deref()).collect();
    assert!(different.len() == 1 && different[0].contains("damaged at the primary"), "{different:?}");
    assert_eq!(pair.b.version().database("market").unwrap().divergence(), None);
}
