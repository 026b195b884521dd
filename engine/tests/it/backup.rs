//! Backups in real folders, and back.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use age::secrecy::ExposeSecret as _;
use tailrace_engine::{
    BackupLocation, BackupRequest, BackupScope, BackupState, Engine, EngineError, Identities, PartitionChoice,
    PartitionPattern, PointInTime, PruneRequest, Recipients, RestoreMode, RestorePoint, RestoreReport, RestoreRequest,
    RestoreScope, RestoreTarget, SelectedSource,
};
use tailrace_wal::Seq;
use url::Url;

use crate::support::*;

pub(crate) fn create(folder: &Path) -> BackupLocation {
    BackupLocation::create(&Url::from_directory_path(folder).unwrap()).unwrap()
}

fn table(partitions: Option<&str>) -> BackupScope {
    BackupScope::Table {
        database: "market".into(),
        table: "bars".into(),
        partitions: partitions.map(ToOwned::to_owned),
        condition: None,
    }
}

pub(crate) fn restored_table(partitions: Option<&str>) -> RestoreScope {
    RestoreScope::Table {
        database: "market".into(),
        table: "bars".into(),
        partitions: partitions.map(|text| PartitionChoice::Pattern(PartitionPattern::new(text))).into_iter().collect(),
    }
}

pub(crate) fn into_database(name: &str) -> RestoreRequest {
    RestoreRequest {
        what: RestoreScope::Database("market".into()),
        into: Some(RestoreTarget::Database(name.into())),
        create: true,
        ..RestoreRequest::default()
    }
}

/// (id, note) of all rows of a table, sorted.
pub(crate) async fn rows_of(engine: &Arc<Engine>, database: &str, table: &str) -> Vec<Row> {
    let version = engine.version();
    let found = version.database(database).and_then(|database| database.table(table)).unwrap();
    let mut rows: Vec<Row> = table_contents(engine, found).await.into_values().collect();
    rows.sort();
    rows
}

/// All files below a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    files(folder).into_iter().filter(|path| path.to_string_lossy().contains(".parquet")).collect()
}

#[tokio::test]
async fn a_database_comes_back_under_another_name_and_on_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..1000, 7)).await;
    engine.flush().await.unwrap();
    insert(&engine, "bars", rows(1000..2000, 9)).await;
    let location = create(&dir.path().join("backups"));
    let report = engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    assert_eq!((report.partitions, report.rows, report.written_files), (9, 2000, report.files));
    assert_eq!(engine.backup_tasks()[0].state, BackupState::Finished);
    let listed = location.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    let facts = listed[0].facts.as_ref().unwrap();
    assert_eq!((facts.rows, facts.partitions, facts.tables), (2000, 9, 1));
    assert_eq!(engine.check_backup(&location, None).await.unwrap().faults, []);
    // Every file is plain Parquet in the folder of its partition.
    for file in parquet_files(&dir.path().join("backups")) {
        assert!(file.to_string_lossy().contains("/data/market/bars/at_day=1970-01-0"), "{}", file.display());
        let reader =
            parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(&file).unwrap());
        assert!(reader.unwrap().metadata().file_metadata().num_rows() > 0);
    }

    let expected = rows_of(&engine, "market", "bars").await;
    engine.restore(&location, into_database("copy")).await.unwrap();
    assert_eq!(rows_of(&engine, "copy", "bars").await, expected);
    let version = engine.version();
    let (original, copy) = (version.database("market").unwrap(), version.database("copy").unwrap());
    assert_eq!(original.position.seq, copy.position.seq);
    assert_ne!(original.id, copy.id);
    drop(version);
    // It is a database like any other.
    let mut transaction = engine.begin("copy").unwrap();
    transaction.append("bars", rows(2000..2100, 3)).await.unwrap();
    transaction.commit(Default::default()).await.unwrap();
    let grown = rows_of(&engine, "copy", "bars").await;
    assert_eq!(grown.len(), 2100);
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = open(&dir.path().join("a")).await;
    assert_eq!(rows_of(&engine, "copy", "bars").await, grown);
    engine.flush().await.unwrap();
    engine.drop_database("copy").await.unwrap();
    // Under the same name, where it is not taken.
    engine.drop_database("market").await.unwrap();
    let request = RestoreRequest { create: true, ..RestoreRequest::default() };
    engine.restore(&location, request.clone()).await.unwrap();
    assert_eq!(rows_of(&engine, "market", "bars").await, expected);
    let again = engine.restore(&location, request.clone()).await.unwrap();
    assert_eq!((again.partitions, again.skipped_partitions, again.rows), (0, 9, 0), "a rerun changes nothing");

    let other = open(&dir.path().join("b")).await;
    let refused = other.restore(&location, RestoreRequest::default()).await.unwrap_err().to_string();
    assert!(refused.contains("create => true"), "{refused}");
    let dry = RestoreRequest { dry_run: true, ..request.clone() };
    assert_eq!(other.restore(&location, dry).await.unwrap().partitions, 0);
    assert_eq!(other.version().databases().count(), 0);
    other.restore(&location, request).await.unwrap();
    assert_eq!(rows_of(&other, "market", "bars").await, expected);
}

#[tokio::test]
async fn only_what_changed_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..36_500, 365)).await;
    let folder = dir.path().join("backups");
    let location = create(&folder);
    let scope = BackupScope::Database("market".into());
    let first = engine.backup(&location, BackupRequest::new(scope.clone())).await.unwrap();
    assert_eq!((first.partitions, first.written_partitions), (365, 365));
    let same = engine.backup(&location, BackupRequest::new(scope.clone())).await.unwrap();
    assert_eq!((same.partitions, same.written_files, same.written_bytes), (365, 0, 0));
    // One row more, in one of them.
    insert(&engine, "bars", rows(36_500..36_501, 365)).await;
    let next = engine.backup(&location, BackupRequest::new(scope.clone())).await.unwrap();
    assert_eq!((next.partitions, next.written_partitions, next.written_files), (365, 1, 1));
    assert!(next.written_bytes < first.written_bytes / 100, "{next:?}");
    let before = parquet_files(&folder).len();
    let forced = BackupRequest { force: true, ..BackupRequest::new(scope) };
    let forced = engine.backup(&location, forced).await.unwrap();
    assert_eq!(forced.written_files, forced.files);
    assert_eq!(parquet_files(&folder).len() as u64, before as u64 + forced.files);
    assert_eq!(engine.check_backup(&location, None).await.unwrap().faults, []);
}

#[tokio::test]
async fn one_flipped_bit_is_found_and_named_and_not_restored() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..100, 3)).await;
    let folder = dir.path().join("backups");
    let location = create(&folder);
    let report = engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    let all: Vec<PathBuf> = files(&folder);
    assert_eq!(all.len(), 4, "three files and a manifest: {all:?}");
    for path in all {
        let whole = std::fs::read(&path).unwrap();
        for at in [0, whole.len() / 3, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(&path, &flipped).unwrap();
            let faults = engine.check_backup(&location, None).await.unwrap().faults;
            assert_eq!(faults.len(), 1, "{}", path.display());
            assert_eq!(faults[0].backup, report.id);
            match &faults[0].place {
                Some(place) => {
                    assert_eq!((faults[0].what, place.table.as_str()), ("hash", "bars"));
                    assert!(path.ends_with(place.file.as_ref().unwrap()));
                    assert!(place.partition.starts_with("at_day=1970-01-0"), "{}", place.partition);
                }
                None => assert_eq!(faults[0].what, "manifest"),
            }
            engine.restore(&location, into_database("copy")).await.unwrap_err();
            assert!(engine.version().database("copy").is_none());
        }
        std::fs::remove_file(&path).unwrap();
        if path.to_string_lossy().ends_with(".parquet") {
            let faults = engine.check_backup(&location, Some(&report.id)).await.unwrap().faults;
            assert_eq!(faults[0].what, "missing");
        }
        std::fs::write(&path, &whole).unwrap();
    }
    engine.restore(&location, into_database("copy")).await.unwrap();
}

#[tokio::test]
async fn partitions_come_back_as_they_were_or_beside_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..100, 10)).await;
    let location = create(&dir.path().join("backups"));
    engine.backup(&location, BackupRequest::new(table(None))).await.unwrap();
    let expected = rows_of(&engine, "market", "bars").await;
    // Days 0 to 4 get more rows, twice the same.
    insert(&engine, "bars", rows(100..110, 5)).await;
    insert(&engine, "bars", rows(100..110, 5)).await;

    let restore = |what, mode| {
        let engine = engine.clone();
        let location = location.clone();
        async move { engine.restore(&location, RestoreRequest { what, mode, ..RestoreRequest::default() }).await }
    };
    let before = engine.version().database("market").unwrap().position;
    let conflicts = restore(restored_table(None), RestoreMode::Fail).await.unwrap_err().to_string();
    for day in 1..=5 {
        assert!(conflicts.contains(&format!("at_day=1970-01-0{day}")), "{conflicts}");
    }
    assert!(!conflicts.contains("at_day=1970-01-06"), "{conflicts}");
    assert_eq!(engine.version().database("market").unwrap().position, before, "nothing was changed");

    let merged = restore(restored_table(None), RestoreMode::Merge).await.unwrap();
    assert_eq!((merged.rows, merged.skipped_partitions), (0, 5), "nothing is missing");
    assert_eq!(rows_of(&engine, "market", "bars").await.len(), 120);

    let pattern = Some("1970-01-0?");
    let replaced = restore(restored_table(pattern), RestoreMode::Replace).await.unwrap();
    assert_eq!((replaced.partitions, replaced.rows, replaced.skipped_partitions), (5, 50, 4));
    assert_eq!(rows_of(&engine, "market", "bars").await, expected);
    let position = engine.version().database("market").unwrap().position;
    let again = restore(restored_table(None), RestoreMode::Replace).await.unwrap();
    assert_eq!((again.partitions, again.skipped_partitions), (0, 10));
    assert_eq!(engine.version().database("market").unwrap().position, position, "a rerun changes nothing");

    // A table that is not here; and rows that are missing are added.
    let elsewhere = RestoreRequest {
        what: restored_table(Some("1970-01-02")),
        into: Some(RestoreTarget::Table { database: "market".into(), table: "other".into() }),
        create: true,
        ..RestoreRequest::default()
    };
    let report = engine.restore(&location, elsewhere.clone()).await.unwrap();
    assert_eq!((report.rows, report.partitions), (10, 1));
    let mut transaction = engine.begin("market").unwrap();
    transaction.append("other", rows(1000..1001, 2)).await.unwrap();
    transaction.append("other", rows(1001..1002, 2)).await.unwrap();
    transaction.commit(Default::default()).await.unwrap();
    let all = RestoreRequest { what: restored_table(None), mode: RestoreMode::Merge, ..elsewhere };
    assert_eq!(engine.restore(&location, all.clone()).await.unwrap().rows, 90);
    assert_eq!(engine.restore(&location, all).await.unwrap().rows, 0);
    assert_eq!(rows_of(&engine, "market", "other").await.len(), 102);
    let nothing = restore(restored_table(Some("2050-%")), RestoreMode::Fail).await.unwrap_err().to_string();
    assert!(nothing.contains("2050-%"), "{nothing}");
}

#[tokio::test]
async fn a_point_in_time_is_the_backup_and_what_the_log_says_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&dir.path().join("a"));
    config.fragment_bytes = 64 << 10;
    let (engine, _) = open_with(config).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..100, 4)).await;
    let location = create(&dir.path().join("backups"));
    let first = engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    let held = engine.log().status().first;
    let mut states = vec![rows_of(&engine, "market", "bars").await];
    let mut times = vec![engine.version().database("market").unwrap().commit_time];
    for round in 1..6 {
        if round == 3 {
            // One in fragments.
            insert(&engine, "bars", wide_rows(10_000..12_000, 3)).await;
        } else {
            insert(&engine, "bars", rows(round * 100..round * 100 + 50, 5)).await;
        }
        states.push(rows_of(&engine, "market", "bars").await);
        times.push(engine.version().database("market").unwrap().commit_time);
    }
    assert_eq!(engine.log().status().first, held, "nothing was truncated");
    engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    let start = first.databases[0].1.seq;
    for (index, state) in states.iter().enumerate() {
        let by_seq = RestorePoint::Seq(Seq(start.0 + index as u64));
        for (name, target) in [("by_seq", by_seq), ("by_time", RestorePoint::Time(times[index]))] {
            let name = format!("{name}_{index}");
            let request = RestoreRequest {
                backup: Some(first.id.clone()),
                until: Some(PointInTime { target, archive: None }),
                ..into_database(&name)
            };
            engine.restore(&location, request).await.unwrap();
            assert_eq!(rows_of(&engine, &name, "bars").await, *state, "{name}");
        }
    }
    // Without a name, the newest backup that is not behind the point is taken.
    let chosen = RestoreRequest {
        until: Some(PointInTime { target: RestorePoint::Seq(start), archive: None }),
        ..into_database("chosen")
    };
    assert_eq!(engine.restore(&location, chosen).await.unwrap().backup, first.id);
    for (target, wanted) in [(start.0 + 100, "ends at seq"), (start.0 - 1, "before the oldest backup")] {
        let target = RestorePoint::Seq(Seq(target));
        let request = RestoreRequest { until: Some(PointInTime { target, archive: None }), ..into_database("beyond") };
        let error = engine.restore(&location, request).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(engine.version().database("beyond").is_none());
    }
}

#[tokio::test]
async fn old_backups_go_with_the_files_that_they_alone_need() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    let folder = dir.path().join("backups");
    let location = create(&folder);
    let mut ids = Vec::new();
    for round in 0..5 {
        insert(&engine, "bars", rows(round * 10..round * 10 + 10, 2)).await;
        let forced = BackupRequest { force: true, ..BackupRequest::new(BackupScope::Cluster) };
        ids.push(engine.backup(&location, forced).await.unwrap().id);
    }
    std::fs::write(folder.join("data/market/stray.parquet"), "left behind").unwrap();
    let request = |keep, dry_run| PruneRequest { keep, older_than: None, dry_run };
    let before = files(&folder);
    let dry = engine.prune_backups(&location, request(2, true)).await.unwrap();
    assert_eq!((dry.removed.as_slice(), files(&folder)), (&ids[..3], before));
    let pruned = engine.prune_backups(&location, request(2, false)).await.unwrap();
    assert_eq!((&pruned.removed, pruned.kept, pruned.files), (&dry.removed, 2, dry.files));
    assert_eq!(location.backups().await.unwrap(), ids[3..]);
    assert_eq!(engine.check_backup(&location, None).await.unwrap().faults, []);
    let needed: BTreeSet<PathBuf> = {
        let mut needed = BTreeSet::new();
        for id in &ids[3..] {
            let manifest = location.manifest(id).await.unwrap();
            needed.extend(manifest.files().map(|(.., file)| folder.join(&file.name)));
        }
        needed
    };
    assert_eq!(parquet_files(&folder).into_iter().collect::<BTreeSet<_>>(), needed);
    engine.prune_backups(&location, request(0, false)).await.unwrap_err();
    // A backup that another node makes there now stands against it.
    let node = "ab".repeat(16);
    std::fs::write(folder.join(format!("running/backup_20230108T000000.000000Z-00000007_{node}_0")), "{}").unwrap();
    let error = engine.prune_backups(&location, request(1, false)).await.unwrap_err();
    assert!(matches!(&error, EngineError::Conflict(reason) if reason.contains(&node)), "{error}");
    assert_eq!(location.backups().await.unwrap().len(), 2);
}

#[tokio::test]
async fn an_encrypted_backup_needs_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..1000, 3)).await;
    let folder = dir.path().join("backups");
    let location = create(&folder);
    let key = age::x25519::Identity::generate();
    let recipients = Recipients::parse(&key.to_public().to_string()).unwrap();
    let request =
        BackupRequest { recipients: Some(recipients), ..BackupRequest::new(BackupScope::Database("market".into())) };
    engine.backup(&location, request.clone()).await.unwrap();
    let again = engine.backup(&location, request).await.unwrap();
    assert_eq!(again.written_files, 0, "unchanged partitions are shared without the secret key");
    assert!(parquet_files(&folder).iter().all(|path| path.to_string_lossy().ends_with(".parquet.age")));
    for path in files(&folder) {
        let bytes = std::fs::read(&path).unwrap();
        let holds = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(!holds("note 99") && !holds("note 1"), "{}", path.display());
    }
    assert_eq!(engine.check_backup(&location, None).await.unwrap().faults, []);
    let expected = rows_of(&engine, "market", "bars").await;
    let error = engine.restore(&location, into_database("copy")).await.unwrap_err().to_string();
    assert!(error.contains("encrypted"), "{error}");
    let identities = Some(Identities::parse(key.to_string().expose_secret()).unwrap());
    let request = RestoreRequest { identities: identities.clone(), ..into_database("copy") };
    engine.restore(&location, request).await.unwrap();
    assert_eq!(rows_of(&engine, "copy", "bars").await, expected);
    // And through a transaction.
    let request = RestoreRequest {
        what: restored_table(None),
        into: Some(RestoreTarget::Table { database: "copy".into(), table: "again".into() }),
        create: true,
        identities,
        ..RestoreRequest::default()
    };
    engine.restore(&location, request).await.unwrap();
    assert_eq!(rows_of(&engine, "copy", "again").await, expected);
}

#[tokio::test]
async fn rows_of_a_query_are_backed_up_by_partition() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("a")).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..1000, 4)).await;
    let folder = dir.path().join("backups");
    let location = create(&folder);
    let version = engine.version();
    let database = version.database("market").unwrap().clone();
    let bars = database.table("bars").unwrap().clone();
    let batch = rows(0..500, 4).project(&[0, 1]).unwrap();
    let source = SelectedSource { database, table: bars, schema: batch.schema() };
    let request = BackupRequest::new(BackupScope::Query("SELECT id, at FROM market.bars WHERE id < 500".into()));
    let batches = (0..5).map(|part| Ok(batch.slice(part * 100, 100))).collect::<Vec<_>>();
    let report = engine.backup_rows(&location, request, source, futures::stream::iter(batches)).await.unwrap();
    assert_eq!((report.partitions, report.rows, report.files), (4, 500, 4));
    assert_eq!(engine.check_backup(&location, None).await.unwrap().faults, []);
    let request = RestoreRequest {
        what: restored_table(None),
        into: Some(RestoreTarget::Table { database: "market".into(), table: "ids".into() }),
        create: true,
        ..RestoreRequest::default()
    };
    let restored: RestoreReport = engine.restore(&location, request.clone()).await.unwrap();
    assert_eq!((restored.rows, restored.partitions), (500, 4));
    let again = engine.restore(&location, request).await.unwrap();
    assert_eq!((again.rows, again.skipped_partitions), (0, 4));
}
