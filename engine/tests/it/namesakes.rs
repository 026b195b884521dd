//! A name goes from a database that is dropped to another, and stays with that over a start that replays the end of the first.

use std::{collections::BTreeMap, sync::Arc};

use tailrace_engine::{
    BackupLocation, BackupRequest, BackupScope, CommitOptions, Engine, RestoreRequest, RestoreScope,
};
use tailrace_wal::HistoryId;
use url::Url;

use crate::support::*;

/// Which of two namesakes a start finds first in the manifest is chance: the order of their random ids. All of so many in
/// one order are one run in 2^12.
const PAIRS: usize = 12;

async fn create(engine: &Arc<Engine>, name: &str, ids: std::ops::Range<i64>) {
    engine.create_database(name).await.unwrap();
    engine.create_table(name, bars("bars")).await.unwrap();
    let mut transaction = engine.begin(name).unwrap();
    transaction.append("bars", rows(ids, 2)).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
}

/// Who has which name, with how many rows.
fn holders(engine: &Engine) -> BTreeMap<String, (HistoryId, u64)> {
    let version = engine.version();
    let rows = |database: &tailrace_engine::DatabaseVersion| database.tables().map(|table| table.rows()).sum();
    version.databases().map(|database| (database.name.clone(), (database.id, rows(database)))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_keeps_the_name_of_one_that_was_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(&dir.path().join("node")).await;
    let names: Vec<String> = (0..PAIRS).map(|pair| format!("pair_{pair}")).collect();
    for name in &names {
        create(&engine, name, 0..10).await;
    }
    create(&engine, "created", 0..10).await;
    create(&engine, "gone", 0..10).await;
    let folder = Url::from_directory_path(dir.path().join("backups")).unwrap();
    let location = BackupLocation::create(&folder).unwrap();
    engine.backup(&location, BackupRequest::new(BackupScope::Cluster)).await.unwrap();
    engine.flush().await.unwrap();
    let before = holders(&engine);

    let flushes = engine.memory().flushes;
    for name in &names {
        engine.drop_database(name).await.unwrap();
        let request =
            RestoreRequest { what: RestoreScope::Database(name.clone()), create: true, ..RestoreRequest::default() };
        engine.restore(&location, request).await.unwrap();
    }
    engine.drop_database("created").await.unwrap();
    create(&engine, "created", 0..30).await;
    engine.drop_database("gone").await.unwrap();
    let after = holders(&engine);
    assert!(names.iter().all(|name| after[name].0 != before[name].0 && after[name].1 == 10));
    assert_eq!((after["created"].1, after.contains_key("gone")), (30, false));
    assert_eq!(engine.memory().flushes, flushes, "the manifest still has those that were dropped");

    // The process ends here; then it starts, twice.
    let copied = dir.path().join("copied");
    copy_folder(&dir.path().join("node"), &copied);
    let (again, report) = open_with(config(&copied)).await;
    assert!(report.replayed >= PAIRS as u64 && report.stopped.is_empty(), "{report:?}");
    assert_eq!(holders(&again), after);
    for name in &names {
        let mut transaction = again.begin(name).unwrap();
        transaction.append("bars", rows(10..15, 2)).await.unwrap();
        transaction.commit(CommitOptions::default()).await.unwrap();
    }
    let grown = holders(&again);
    assert!(names.iter().all(|name| grown[name] == (after[name].0, 15)));
    again.flush().await.unwrap();
    again.shutdown().await.unwrap();
    drop(again);
    let again = open(&copied).await;
    assert_eq!(holders(&again), grown);
}
