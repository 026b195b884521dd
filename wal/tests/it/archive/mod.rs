//! The archive: what goes in, what comes out, and what happens when the store fails or its objects are damaged.

mod damage;
mod faults;
mod gaps;
mod golden;
mod property;
mod running;
mod s3;
mod store;

use std::{path::Path, sync::Arc, time::Duration};

use object_store::{ObjectStore, path::Path as ObjectPath};
use tailrace_wal::{
    Archive, ArchiveEntry, ArchiveTail, Archiver, ArchiverConfig, Frame, HistoryId, Log, LogConfig, LogError, Lsn, Seq,
};

use crate::support::{NODE, append_numbers, open_history_with};
use store::FaultyStore;

/// Room for few records per segment.
const SEGMENT_BYTES: u64 = 64 << 10;

fn config(dir: &Path) -> LogConfig {
    LogConfig { segment_bytes: SEGMENT_BYTES, ..LogConfig::new(dir) }
}

fn archive(store: &FaultyStore) -> Archive {
    archive_in(Arc::new(store.clone()), Duration::from_secs(30))
}

/// An archive in `store`, whose calls may take as long as `timeout`.
fn archive_in(store: Arc<dyn ObjectStore>, timeout: Duration) -> Archive {
    Archive::new(store, ObjectPath::from("node"), NODE, timeout)
}

fn archiver(log: &Log, store: &FaultyStore) -> Archiver {
    Archiver::new(log, archive(store), ArchiverConfig::default())
}

/// A log with `segments` sealed segments of ten records each, and two records in the next.
async fn log_with(dir: &Path, segments: u32) -> Log {
    let (log, _) = open_history_with(config(dir));
    for segment in 0..segments {
        append_numbers(&log, segment * 10..segment * 10 + 10).await;
        log.roll().await.unwrap();
    }
    append_numbers(&log, segments * 10..segments * 10 + 2).await;
    log
}

/// All that a reader has to give now.
async fn drain(mut tail: ArchiveTail) -> Result<Vec<Frame>, LogError> {
    let mut frames = Vec::new();
    while let Some(frame) = tail.try_next().await? {
        frames.push(frame);
    }
    Ok(frames)
}

async fn drain_history(
    archive: &Archive,
    log: Option<&Log>,
    id: HistoryId,
    after: u64,
) -> Result<Vec<Frame>, LogError> {
    drain(archive.tail(log, id, Seq(after)).await?).await
}

fn lsns(frames: &[Frame]) -> Vec<u64> {
    frames.iter().map(|frame| frame.lsn.0).collect()
}

/// Entries follow each other without holes or doubles.
fn assert_contiguous(archive: &Archive) {
    let mut next = archive.first().unwrap_or(Lsn(1));
    for entry in archive.entries() {
        assert_eq!(entry.first(), next);
        next = entry.last().next();
    }
    assert_eq!(next, archive.archived().next());
}

fn segments_of(archive: &Archive) -> usize {
    archive.entries().iter().filter(|entry| matches!(***entry, ArchiveEntry::Segment(_))).count()
}
