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
    RecordKind, SavedPin, Seq, SystemDisk,
};

use tailrace_wal::simulation::{CallKind, Failure, SimulatedDisk};

use crate::support::{
    HISTORY, NODE, abort, append, append_numbers, commit, copy_segments, fragment, open_history, open_with, part,
    payload, segments, start,
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
    assert_eq!((status.lsn, status.restart, status.state), (Lsn(3), Seq(2), PinState::Extended));
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

#[tokio::test]
async fn a_pin_is_extended_while_it_alone_holds_log_back() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let pin = log.pin(key("replica/a"), Seq(0), Seq(0)).unwrap();
    append_segments(&log, 3).await;
    assert_eq!(pin.status().state, PinState::Reserved, "nothing is flushed");
    log.truncate(Lsn(4)).unwrap();
    let status = pin.status();
    assert_eq!((status.state, status.lsn), (PinState::Extended, Lsn(1)));
    assert!(status.held_bytes > 6_000 && status.bytes_max == LogConfig::new("").pin_max_bytes);
    assert!(pin.advance(Seq(4), Seq(4), Seq(4)));
    assert_eq!(pin.status().state, PinState::Reserved, "what it needs is not flushed");
    assert_eq!(log.retain().unwrap(), Lsn(5));
}

#[tokio::test]
async fn a_dead_pin_is_lost_and_its_log_freed_without_a_reader_and_without_a_flush() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let config = LogConfig { pin_max_age: Duration::from_secs(100), ..LogConfig::new(dir.path()) };
    let (log, recovery) = Log::open(config, NODE, Lsn::ZERO, SystemDisk::shared(), clock.clone()).unwrap();
    start(&log, &recovery, HISTORY);
    drop(log.pin(key("replica/dead"), Seq(0), Seq(0)).unwrap());
    append_segments(&log, 4).await;
    assert_eq!(log.truncate(Lsn(8)).unwrap(), Lsn(1));
    clock.seconds.store(100, Ordering::SeqCst);
    assert_eq!(log.retain().unwrap(), Lsn(1));
    clock.seconds.store(101, Ordering::SeqCst);
    assert_eq!(log.retain().unwrap(), Lsn(9));
    assert_eq!(segments(dir.path()).len(), 1, "the records are really gone");
    clock.seconds.store(500, Ordering::SeqCst);
    let lost = log.pins().remove(0);
    assert_eq!(lost.state.reason(), Some("it has not moved for 101 s, its budget is 100 s"));
    assert_eq!(lost.since, CommitTime(101_000_000), "the time of the loss stays");
}

#[tokio::test]
async fn pins_come_back_after_a_restart_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::default());
    let config = LogConfig { pin_max_age: Duration::from_secs(100), ..LogConfig::new(dir.path()) };
    let open = || Log::open(config.clone(), NODE, Lsn::ZERO, SystemDisk::shared(), clock.clone()).unwrap();
    let (log, recovery) = open();
    start(&log, &recovery, HISTORY);
    for feed in ["slow", "dead", "late"] {
        drop(log.pin(key(feed), Seq(1), Seq(0)).unwrap());
    }
    append_segments(&log, 4).await;
    log.pins();
    clock.seconds.store(60, Ordering::SeqCst);
    let mut saved: Vec<SavedPin> = log.pins().into_iter().map(SavedPin::from).collect();
    assert!(saved.iter().all(|pin| pin.stalled == Duration::from_secs(60)));
    saved[0].state = PinState::Lost { reason: "too much".into() };
    saved[0].since = CommitTime(7);
    drop(log);
    // The node is down for long: that is not the feed's fault.
    clock.seconds.store(10_000, Ordering::SeqCst);
    let (log, recovery) = open();
    start(&log, &recovery, HISTORY);
    saved.into_iter().for_each(|pin| log.restore_pin(pin));
    let pins = log.pins();
    let (dead, late, slow) = (&pins[0], &pins[1], &pins[2]);
    assert_eq!((dead.state.reason(), dead.since), (Some("too much"), CommitTime(7)));
    for pin in [late, slow] {
        assert_eq!((&pin.state, pin.acknowledged, pin.stalled), (&PinState::Reserved, Seq(1), Duration::from_secs(60)));
        assert!(!pin.attached);
    }
    clock.seconds.store(10_040, Ordering::SeqCst);
    assert!(!log.pins()[2].state.is_lost());
    clock.seconds.store(10_041, Ordering::SeqCst);
    assert!(log.pins()[2].state.is_lost(), "both runs count");
    assert_eq!(log.truncate(Lsn(8)).unwrap(), Lsn(9));
    // Records that are gone when a pin is restored: lost, not forgotten.
    let gone = SavedPin { key: key("gone"), state: PinState::Reserved, ..SavedPin::from(log.pins().remove(2)) };
    log.restore_pin(gone);
    let pins = log.pins();
    let gone = pins.iter().find(|pin| pin.key.feed == "gone").unwrap();
    assert!(gone.state.reason().unwrap().contains("is retained after seq 8 only"), "{:?}", gone.state);
}

#[tokio::test]
async fn a_lost_pin_whose_feed_went_on_holds_again_within_its_budget() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { pin_max_bytes: 10_000, ..LogConfig::new(dir.path()) };
    let (log, _) = crate::support::open_history_with(config);
    let pin = log.pin(key("replica/a"), Seq(0), Seq(0)).unwrap();
    append_segments(&log, 4).await;
    assert!(pin.status().state.is_lost());
    assert!(!pin.renew(Seq(1), Seq(1), Seq(1)), "still over its budget");
    assert!(pin.renew(Seq(6), Seq(6), Seq(6)));
    assert_eq!((pin.status().state, pin.status().acknowledged), (PinState::Reserved, Seq(6)));
    assert!(!pin.renew(Seq(7), Seq(7), Seq(7)), "it is not lost");
    append_segments(&log, 4).await;
    assert!(pin.status().state.is_lost());
    log.truncate(Lsn(16)).unwrap();
    assert!(!pin.renew(Seq(8), Seq(8), Seq(8)), "its records are gone");
}

#[tokio::test]
async fn the_pin_that_holds_most_is_given_up_when_there_is_no_space() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let (near, far) = (log.pin(key("near"), Seq(0), Seq(0)).unwrap(), log.pin(key("far"), Seq(0), Seq(0)).unwrap());
    append_segments(&log, 4).await;
    assert_eq!(log.give_up_pin("the disk is full"), None, "nothing is flushed: no pin is to blame");
    near.advance(Seq(4), Seq(4), Seq(4));
    log.truncate(Lsn(8)).unwrap();
    let given_up = log.give_up_pin("the disk is full").unwrap();
    assert_eq!(given_up.key.feed, "far");
    assert!(given_up.state.reason().unwrap().starts_with("the disk is full, and it alone held log back"));
    assert_eq!(log.retain().unwrap(), Lsn(5));
    assert_eq!(far.status().state, given_up.state);
    assert_eq!(log.give_up_pin("the disk is full").unwrap().key.feed, "near");
    assert_eq!(log.give_up_pin("the disk is full"), None);
    assert_eq!(log.retain().unwrap(), Lsn(9));
}

#[tokio::test]
async fn only_detached_pins_are_forgotten_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let held = log.pin(key("a"), Seq(0), Seq(0)).unwrap();
    drop(log.pin(key("b"), Seq(0), Seq(0)).unwrap());
    assert!(held.status().attached);
    assert_eq!(log.forget_detached_pins(&[key("b"), key("a")]), Err(key("a")));
    assert_eq!(log.pins().len(), 2, "all or none");
    drop(held);
    assert_eq!(log.forget_detached_pins(&[key("b"), key("a"), key("c")]), Ok(()));
    assert!(log.pins().is_empty());
}

#[tokio::test]
async fn open_transactions_and_what_is_not_flushed_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let number = log.begin_transaction(HISTORY).unwrap();
    append(&log, fragment(HISTORY, number, 0, &[1; 1000])).await.unwrap();
    append_segments(&log, 2).await;
    let holders = log.holders();
    assert_eq!((holders.transactions.len(), holders.flushed), (1, Lsn::ZERO));
    let open = holders.transactions[0];
    assert_eq!((open.history, open.transaction, open.first, open.fragments), (HISTORY, number, Lsn(1), 1));
    assert!(open.held_bytes > 5_000 && open.held_bytes == holders.unflushed_bytes, "{holders:?}");
    assert_eq!(log.truncate(Lsn(5)).unwrap(), Lsn(1), "the transaction holds its segment");
    append(&log, abort(HISTORY, number)).await.unwrap();
    let holders = log.holders();
    assert!(holders.transactions.is_empty() && holders.preallocated_bytes > 0);
    assert!(holders.unflushed_bytes < 1_000, "{holders:?}");
    assert_eq!(log.retain().unwrap(), Lsn(6));
}
