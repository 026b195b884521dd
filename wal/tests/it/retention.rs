//! Pins and truncation.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tailrace_wal::{
    Clock, CommitTime, FragmentNumber, HistoryId, Log, LogConfig, LogError, Lsn, Payload, PinKey, PinState, Record,
    RecordKind, Seq, SystemDisk,
};

use tailrace_wal::simulation::{CallKind, Failure, SimulatedDisk};

use crate::support::{
    HISTORY, NODE, append, append_numbers, commit, copy_segments, fragment, open_history, open_with, part, payload,
    segments, start,
};

const OTHER: HistoryId = HistoryId([2; 16]);

#[derive(Debug, Default)]
struct ManualClock {
    seconds: AtomicU64,
}

impl Clock for ManualClock {
    fn now(&self) -> CommitTime {
        CommitTime(self.seconds.load(Ordering::SeqCst) as i64 * 1_000_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_secs(self.seconds.load(Ordering::SeqCst))
    }
}

fn key(feed: &str) -> PinKey {
    PinKey { feed: feed.into(), history: HISTORY }
}

/// `count` segments with two commits of 1000 bytes each.
async fn append_segments(log: &Log, count: u32) {
    for _ in 0..count {
        append(log, commit(HISTORY, &[1; 1000])).await.unwrap();
        append(log, commit(HISTORY, &[2; 1000])).await.unwrap();
        log.roll().await.unwrap();
    }
}

#[tokio::test]
async fn pins_hold_truncation() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_history(dir.path());
    start(&log, &recovery, OTHER);
    append_segments(&log, 5).await;
    assert_eq!(log.truncate(Lsn(1)).unwrap(), Lsn(1), "not flushed");
    let pin = log.pin(key("replica/a"), Seq(2), Seq(2)).unwrap();
    assert_eq!(log.truncate(Lsn(10)).unwrap(), Lsn(3));
    assert_eq!(segments(dir.path()).len(), 5);
    let status = pin.status();
    assert_eq!((status.lsn, status.restart, status.state), (Lsn(3), Seq(2), PinState::Reserved));
    assert!(status.held_bytes > 8 * 1000 && status.held_bytes <= log.status().bytes, "{}", status.held_bytes);
    assert!(pin.advance(Seq(5), Seq(4), Seq(5)));
    assert!(pin.advance(Seq(1), Seq(1), Seq(1)), "marks never go back");
    let status = pin.status();
    assert_eq!((status.acknowledged, status.applied, status.restart), (Seq(5), Seq(4), Seq(5)));
    assert_eq!(log.truncate(Lsn(10)).unwrap(), Lsn(5), "seq 6 is in the segment of LSN 5");
    let Err(LogError::Truncated { retained_after, .. }) = log.pin(key("replica/b"), Seq(1), Seq(1)) else {
        panic!("records 2 to 4 are gone")
    };
    assert_eq!(retained_after, Seq(4));
    drop(pin);
    assert_eq!(log.truncate(Lsn(10)).unwrap(), Lsn(5), "dropping a handle leaves the claim");
    assert_eq!(log.pins().len(), 1);
    assert!(log.forget_pin(&key("replica/a")));
    assert!(!log.forget_pin(&key("replica/a")));
    assert_eq!(log.truncate(Lsn(10)).unwrap(), Lsn(11));
    assert_eq!(log.retained_after(HISTORY), Some(Seq(10)));
    assert_eq!(log.status().segments, 1);
    append_numbers(&log, 0..1).await;
    assert_eq!(log.history_end(HISTORY).unwrap().position.seq, Seq(11));
}

#[tokio::test]
async fn a_pin_at_the_end_of_an_idle_history_holds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_history(dir.path());
    start(&log, &recovery, OTHER);
    append(&log, commit(OTHER, b"only one")).await.unwrap();
    append_segments(&log, 3).await;
    let idle = log.pin(PinKey { feed: "archive".into(), history: OTHER }, Seq(1), Seq(1)).unwrap();
    assert_eq!((idle.status().held_bytes, idle.status().lsn), (0, Lsn(8)));
    assert_eq!(log.truncate(Lsn(7)).unwrap(), Lsn(8));
    append(&log, commit(OTHER, b"second")).await.unwrap();
    assert_eq!(idle.status().lsn, Lsn(8));
    append_segments(&log, 2).await;
    assert_eq!(log.truncate(Lsn(100)).unwrap(), Lsn(8), "now it holds its next record");
    idle.release();
    assert_eq!(log.truncate(Lsn(100)).unwrap(), Lsn(13));
}

#[tokio::test]
async fn budgets_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { pin_max_bytes: 10_000, ..LogConfig::new(dir.path()) };
    let (log, _) = crate::support::open_history_with(config);
    let pin = log.pin(key("replica/dead"), Seq(0), Seq(0)).unwrap();
    append_segments(&log, 1).await;
    assert_eq!(pin.status().state, PinState::Reserved);
    append_segments(&log, 3).await;
    assert_eq!(log.truncate(Lsn(8)).unwrap(), Lsn(9), "a lost pin holds nothing");
    let PinState::Lost { reason } = pin.status().state else { panic!("not lost") };
    assert!(reason.contains("its budget is 10000"), "{reason}");
    assert!(!pin.advance(Seq(8), Seq(8), Seq(8)), "lost stays lost");
    let renewed = log.pin(key("replica/dead"), Seq(8), Seq(8)).unwrap();
    assert_eq!(renewed.status().state, PinState::Reserved);
    assert!(!pin.advance(Seq(8), Seq(8), Seq(8)), "replaced");
    assert!(renewed.advance(Seq(8), Seq(8), Seq(8)));
}

#[tokio::test]
async fn budgets_in_age() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let config = LogConfig { pin_max_age: Duration::from_secs(100), ..LogConfig::new(dir.path()) };
    let (log, recovery) = Log::open(config, NODE, Lsn::ZERO, SystemDisk::shared(), clock.clone()).unwrap();
    start(&log, &recovery, HISTORY);
    let (slow, dead) =
        (log.pin(key("replica/slow"), Seq(0), Seq(0)).unwrap(), log.pin(key("replica/dead"), Seq(0), Seq(0)).unwrap());
    clock.seconds.fetch_add(1000, Ordering::SeqCst);
    assert_eq!(dead.status().state, PinState::Reserved, "nothing to move on to");
    append_segments(&log, 2).await;
    assert!(log.pins().iter().all(|pin| pin.state == PinState::Reserved));
    clock.seconds.fetch_add(90, Ordering::SeqCst);
    assert!(slow.advance(Seq(1), Seq(1), Seq(1)));
    clock.seconds.fetch_add(90, Ordering::SeqCst);
    assert_eq!(log.truncate(Lsn(4)).unwrap(), Lsn(1), "the slow one still holds seq 2");
    let PinState::Lost { reason } = dead.status().state else { panic!("not lost") };
    assert!(reason.contains("180 s"), "{reason}");
    assert!(slow.advance(Seq(4), Seq(4), Seq(4)));
    assert_eq!(log.truncate(Lsn(4)).unwrap(), Lsn(5));
}

#[tokio::test]
async fn truncated_logs_start_again() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    append_segments(&log, 3).await;
    log.truncate(Lsn(6)).unwrap();
    let end = log.history_end(HISTORY).unwrap();
    drop(log);
    let (log, recovery) = crate::support::open(dir.path());
    assert_eq!((recovery.first, recovery.last), (Lsn(7), Lsn(6)));
    assert!(recovery.histories.is_empty());
    log.open_history(end).unwrap();
    assert_eq!(log.retained_after(HISTORY), Some(Seq(6)));
    append_numbers(&log, 0..1).await;
    assert_eq!(log.read(Lsn(7)).unwrap().header.seq, Seq(7));
    assert!(matches!(log.replay(Lsn(5)), Err(LogError::ReplayTruncated { first: Lsn(7), wanted: Lsn(6) })));
}

#[tokio::test]
async fn readers_cannot_start_before_a_transaction_whose_first_fragment_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    append(&log, commit(HISTORY, b"one")).await.unwrap();
    let number = log.begin_transaction(HISTORY).unwrap();
    append(&log, fragment(HISTORY, number, 0, b"first")).await.unwrap();
    log.roll().await.unwrap();
    append(&log, fragment(HISTORY, number, 1, b"second")).await.unwrap();
    let hashes = [&b"first"[..], b"second"].map(|bytes| payload(bytes).hash);
    let last = Record {
        kind: RecordKind::Commit,
        transaction: Some(number),
        fragment: FragmentNumber(2),
        payload: Payload::new(vec![part(b"last")], hashes.to_vec(), None).unwrap(),
        ..commit(HISTORY, b"")
    };
    let written = append(&log, last).await.unwrap();
    log.truncate(written.lsn).unwrap();
    assert_eq!(log.retained_after(HISTORY), Some(Seq(2)));
    // A start that has to scan sees only what is left of the transaction.
    let copy = copy_segments(dir.path());
    let (log, recovery) = open_with(LogConfig::new(copy.path()), Lsn::ZERO).unwrap();
    start(&log, &recovery, HISTORY);
    assert_eq!(log.retained_after(HISTORY), Some(Seq(2)));
    assert!(matches!(log.tail(HISTORY, Seq(1)), Err(LogError::Truncated { .. })));
}

#[tokio::test]
async fn a_segment_that_cannot_be_removed_stays_the_oldest() {
    let disk = SimulatedDisk::new(1);
    let config = LogConfig::new("/log");
    let open = || {
        let (log, recovery) =
            Log::open(config.clone(), NODE, Lsn::ZERO, disk.shared(), Arc::new(ManualClock::default())).unwrap();
        start(&log, &recovery, HISTORY);
        log
    };
    let log = open();
    append_segments(&log, 4).await;
    disk.fail_call(0, Failure::Broken);
    assert!(matches!(log.truncate(Lsn(8)), Err(LogError::Io { .. })));
    assert_eq!((disk.fired(), log.status().first), (Some(CallKind::Remove), Lsn(1)));
    assert_eq!(log.truncate(Lsn(4)).unwrap(), Lsn(5));
    drop(log);
    assert_eq!(open().status().first, Lsn(5));
}
