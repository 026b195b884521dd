//! A repair moves the partitions that differ, and no others; what differs is found by digests at one position.

use std::{path::Path, sync::Arc};

use arrow_array::{Array as _, Float64Array, RecordBatch, cast::AsArray as _, types::Float64Type};
use tailrace_engine::{Applier, ComparedPartition, Engine, PartitionKey, compare_digests};
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
