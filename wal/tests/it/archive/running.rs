//! Archiving while the log is written, and reading across the seam.

use std::{sync::Arc, time::Duration};

use tailrace_wal::{ArchiveState, Archiver, ArchiverConfig, LogError, Lsn, Seq};

use super::{
    archive, archiver, assert_contiguous, drain, drain_history, log_with, lsns, segments_of, store::FaultyStore,
};
use crate::support::{HISTORY, append_numbers, number, open_with};

#[tokio::test]
async fn sealed_segments_are_archived_and_read_without_a_seam() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 3).await;
    let store = FaultyStore::default();
    let archiver = archiver(&log, &store);
    assert_eq!(log.truncate(Lsn(u64::MAX)).unwrap(), Lsn(1), "nothing goes before it is archived");
    archiver.catch_up().await.unwrap();
    assert_eq!(archiver.archive().archived(), Lsn(30));
    assert_eq!(log.truncate(Lsn(u64::MAX)).unwrap(), Lsn(31));
    assert_contiguous(archiver.archive());

    let all = drain(archiver.archive().replay(Some(&log), Lsn::ZERO)).await.unwrap();
    assert_eq!(lsns(&all), (1..=32).collect::<Vec<_>>());
    assert_eq!(all.iter().map(number).collect::<Vec<_>>(), (0..32).collect::<Vec<_>>());
    for after in 0..32 {
        let frames = drain_history(archiver.archive(), Some(&log), HISTORY, after).await.unwrap();
        assert_eq!(lsns(&frames), (after + 1..=32).collect::<Vec<_>>(), "after seq {after}");
    }

    // Another process sees the archive alone.
    let alone = archive(&store);
    alone.refresh().await.unwrap();
    let frames = drain(alone.replay(None, Lsn(5))).await.unwrap();
    assert_eq!(lsns(&frames), (6..=30).collect::<Vec<_>>());
    let mut tail = alone.tail(None, HISTORY, Seq(29)).await.unwrap();
    assert_eq!(tail.next().await.unwrap().lsn, Lsn(30));
    assert!(tail.next().await.unwrap_err().to_string().contains("the archive ends at LSN 30"));

    let status = archiver.status();
    assert_eq!((status.state, status.segments, status.lag_records), (ArchiveState::Running, 3, 2));
    assert!(status.raw_bytes > status.stored_bytes && status.gaps.is_empty() && status.lost.is_none());
}

#[tokio::test]
async fn a_reader_that_is_overtaken_by_truncation_goes_on_in_the_archive() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 4).await;
    let archiver = archiver(&log, &FaultyStore::default());
    archiver.catch_up().await.unwrap();
    let mut of_all = archiver.archive().replay(Some(&log), Lsn::ZERO);
    let mut of_one = archiver.archive().tail(Some(&log), HISTORY, Seq(0)).await.unwrap();
    for lsn in 1..=3 {
        assert_eq!(of_all.next().await.unwrap().lsn, Lsn(lsn));
        assert_eq!(of_one.next().await.unwrap().lsn, Lsn(lsn));
    }
    assert_eq!(log.truncate(Lsn(u64::MAX)).unwrap(), Lsn(41));
    for lsn in 4..=42 {
        assert_eq!(of_all.next().await.unwrap().lsn, Lsn(lsn));
        assert_eq!(of_one.next().await.unwrap().lsn, Lsn(lsn));
    }
    // And it waits for what is still to come.
    let (next, ()) = tokio::join!(of_one.next(), append_numbers(&log, 42..43));
    assert_eq!(next.unwrap().lsn, Lsn(43));
}

#[tokio::test]
async fn an_idle_segment_is_sealed_and_archived_after_the_interval() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 0).await;
    let config = ArchiverConfig { interval: Duration::from_millis(20), ..ArchiverConfig::default() };
    let archiver = Arc::new(Archiver::new(&log, archive(&FaultyStore::default()), config));
    let running = tokio::spawn({
        let archiver = archiver.clone();
        async move { archiver.run().await }
    });
    // Nothing rolls the log but the archiver; the reader without a log sees the archive alone.
    let wait_for = async |lsn| {
        while archiver.archive().archived() < lsn {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    wait_for(Lsn(2)).await;
    append_numbers(&log, 2..3).await;
    wait_for(Lsn(3)).await;
    assert_eq!(archiver.status().lag_records, 0);
    log.close().await.unwrap();
    running.await.unwrap();
    assert_eq!(segments_of(archiver.archive()), 2);
}

#[tokio::test]
async fn a_failing_store_is_shown_and_never_stops_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 2).await;
    let store = FaultyStore::default();
    store.set_down(true);
    let retry = Duration::from_millis(1);
    let config = ArchiverConfig { retry_min: retry, retry_max: retry, ..ArchiverConfig::default() };
    let archiver = Arc::new(Archiver::new(&log, archive(&store), config));
    let running = tokio::spawn({
        let archiver = archiver.clone();
        async move { archiver.run().await }
    });
    let wait_for = async |state| {
        while archiver.status().state != state {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    wait_for(ArchiveState::Failing).await;
    assert!(archiver.status().reason.unwrap().contains("injected"));
    append_numbers(&log, 22..30).await;
    store.set_down(false);
    wait_for(ArchiveState::Running).await;
    while archiver.archive().archived() < Lsn(20) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(archiver.status().reason, None);
    running.abort();
}

#[tokio::test]
async fn another_life_of_a_node_is_a_conflict_and_nothing_is_written() {
    let store = FaultyStore::default();
    let first = tempfile::tempdir().unwrap();
    let log = log_with(first.path(), 2).await;
    archiver(&log, &store).catch_up().await.unwrap();
    let second = tempfile::tempdir().unwrap();
    for segments in [1, 2, 4] {
        let dir = second.path().join(segments.to_string());
        let log = log_with(&dir, segments).await;
        let other = archiver(&log, &store);
        let error = other.catch_up().await.unwrap_err();
        assert!(matches!(error, LogError::ArchiveConflict { .. }), "{segments}: {error}");
        other.run().await;
        let status = other.status();
        assert_eq!(status.state, ArchiveState::Stopped);
        assert!(status.reason.unwrap().contains("wal.archive"));
    }
    // The first life goes on.
    log.roll().await.unwrap();
    log.close().await.unwrap();
    drop(log);
    let (log, _) = open_with(super::config(first.path()), Lsn::ZERO).unwrap();
    let again = archiver(&log, &store);
    again.catch_up().await.unwrap();
    assert_eq!(again.archive().archived(), Lsn(22));
}
