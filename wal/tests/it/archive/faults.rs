//! A store that fails at every call in turn, and processes that end there.

use std::{sync::Arc, time::Duration};

use tailrace_wal::{Archiver, ArchiverConfig, LogError, Lsn};

use super::{
    archive, archive_in, archiver, assert_contiguous, config, drain, log_with, lsns, segments_of,
    store::{FAULTS, Fault, FaultyStore},
};
use crate::support::{HISTORY, open_with, start};

/// Archives two segments with one fault at call `at`, then as a fresh process without. Returns whether it struck.
async fn archive_with_fault(log: &tailrace_wal::Log, at: usize, fault: Fault) -> bool {
    let store = FaultyStore::default();
    store.fail_at(at, fault);
    let limited = archive_in(Arc::new(store.clone()), Duration::from_millis(5));
    let result = Archiver::new(log, limited, ArchiverConfig::default()).catch_up().await;
    let struck = store.clear() == 1;
    if struck && fault != Fault::Half {
        let error = result.expect_err("a fault is an error");
        assert!(matches!(error, LogError::Archive { .. }), "{fault:?} at call {at}: {error}");
    }
    let again = archiver(log, &store);
    again.catch_up().await.unwrap_or_else(|error| panic!("{fault:?} at call {at}: {error}"));
    assert_contiguous(again.archive());
    assert_eq!(segments_of(again.archive()), 2, "{fault:?} at call {at}");
    let alone = archive(&store);
    alone.refresh().await.unwrap();
    for entry in alone.entries() {
        if let tailrace_wal::ArchiveEntry::Segment(segment) = &*entry {
            alone.verify(segment).await.unwrap();
        }
    }
    let frames = drain(alone.replay(None, Lsn::ZERO)).await.unwrap();
    assert_eq!(lsns(&frames), (1..=20).collect::<Vec<_>>(), "{fault:?} at call {at}");
    struck
}

#[tokio::test]
async fn after_a_fault_at_any_call_nothing_is_missing_and_nothing_is_there_twice() {
    let dir = tempfile::tempdir().unwrap();
    let log = log_with(dir.path(), 2).await;
    for fault in FAULTS {
        let mut at = 0;
        while archive_with_fault(&log, at, fault).await {
            at += 1;
        }
        assert!(at >= 10, "{fault:?}: {at} calls");
    }
}

#[tokio::test]
async fn a_process_that_ends_in_an_upload_is_continued_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut at = 0;
    drop(log_with(dir.path(), 2).await);
    loop {
        let (log, recovery) = open_with(config(dir.path()), Lsn::ZERO).unwrap();
        start(&log, &recovery, HISTORY);
        let store = FaultyStore::default();
        store.fail_at(at, Fault::DoneAndHangs);
        {
            // The future is dropped where the call hangs: what is not in the store is lost.
            let archiver = archiver(&log, &store);
            let is_done = tokio::select! {
                done = archiver.catch_up() => done.map(|()| true).unwrap(),
                () = store.hangs() => false,
            };
            if is_done {
                break;
            }
        }
        drop(log);
        let (log, recovery) = open_with(config(dir.path()), Lsn::ZERO).unwrap();
        start(&log, &recovery, HISTORY);
        let next = archiver(&log, &store);
        next.catch_up().await.unwrap_or_else(|error| panic!("call {at}: {error}"));
        assert_contiguous(next.archive());
        let frames = drain(next.archive().replay(Some(&log), Lsn::ZERO)).await.unwrap();
        assert_eq!(lsns(&frames), (1..=22).collect::<Vec<_>>(), "call {at}");
        at += 1;
    }
    assert!(at >= 10, "{at} calls");
}
