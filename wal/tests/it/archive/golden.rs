//! An archive of format 1 in `testdata/golden/v1/archive/` is read for ever.
//!
//! `GOLDEN=write cargo test -p tailrace-wal --test it archive::golden` writes it anew.

use std::{path::PathBuf, sync::Arc, time::Duration};

use object_store::{ObjectStore, local::LocalFileSystem};
use tailrace_wal::{ArchiveEntry, Archiver, ArchiverConfig, LogError, Lsn, Seq};

use super::{archive_in, config, drain, drain_history, log_with, lsns};
use crate::support::{HISTORY, append_numbers, number, open_history_with};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden/v1/archive")
}

fn store() -> Arc<dyn ObjectStore> {
    Arc::new(LocalFileSystem::new_with_prefix(folder()).unwrap())
}

/// A gap, and two segments of ten records.
async fn write() {
    let _ = std::fs::remove_dir_all(folder());
    std::fs::create_dir_all(folder()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 1).await;
    log.truncate(Lsn(u64::MAX)).unwrap();
    append_numbers(&log, 12..20).await;
    log.roll().await.unwrap();
    append_numbers(&log, 20..30).await;
    log.roll().await.unwrap();
    let archive = archive_in(store(), Duration::from_secs(30));
    Archiver::new(&log, archive, ArchiverConfig::default()).catch_up().await.unwrap();
}

#[tokio::test]
async fn an_archive_of_format_1_is_read() {
    if std::env::var("GOLDEN").is_ok_and(|golden| golden == "write") {
        write().await;
    }
    let archive = archive_in(store(), Duration::from_secs(30));
    archive.refresh().await.unwrap();
    let frames = drain(archive.replay(None, Lsn(10))).await.unwrap();
    assert_eq!(lsns(&frames), (11..=30).collect::<Vec<_>>());
    assert_eq!(frames.iter().map(number).collect::<Vec<_>>(), (10..30).collect::<Vec<_>>());
    let of_one = drain_history(&archive, None, HISTORY, 15).await.unwrap();
    assert_eq!(lsns(&of_one), (16..=30).collect::<Vec<_>>());
    let error = archive.tail(None, HISTORY, Seq(4)).await.unwrap_err();
    assert!(matches!(error, LogError::ArchiveGap { from: Lsn(1), to: Lsn(10), .. }), "{error}");
    for entry in archive.entries() {
        if let ArchiveEntry::Segment(segment) = &*entry {
            archive.verify(segment).await.unwrap();
        }
    }
    // A log that this archive is not of.
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history_with(config(dir.path()));
    let error = Archiver::new(&log, archive, ArchiverConfig::default()).catch_up().await.unwrap_err();
    assert!(matches!(error, LogError::ArchiveConflict { .. }), "{error}");
}
