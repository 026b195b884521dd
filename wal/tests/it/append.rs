//! Writing: round trips, group commit, persistence, histories.

use std::time::Duration;

use tailrace_wal::{
    Epoch, FRAME_BYTES_MAX, HistoryId, LogConfig, LogError, Lsn, Persistence, Position, RecordKind, Seq,
};

use crate::support::{
    HISTORY, append, append_numbers, commit, number, open, open_history, open_history_with, replay, segments, start,
};

#[tokio::test]
async fn round_trip_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = [0, 1, 63, 64, 65, 1000, 100_000, 3 << 20, FRAME_BYTES_MAX - 1024];
    let bytes = |size: usize| (0..size).map(|at| (at * 31 + size) as u8).collect::<Vec<_>>();
    let (log, _) = open_history(dir.path());
    let mut position = Position::start(HISTORY);
    for size in sizes {
        let written = append(&log, commit(HISTORY, &bytes(size))).await.unwrap();
        let frame = log.read(written.lsn).unwrap();
        position = position.follow(written.position.epoch, RecordKind::Commit, written.commit_time, frame.payload.hash);
        assert_eq!(written.position, position);
        assert_eq!(written.restart_seq, position.seq);
    }
    assert_eq!(position.seq, Seq(sizes.len() as u64));
    let check = |frames: Vec<tailrace_wal::Frame>| {
        assert_eq!(frames.len(), sizes.len());
        for ((index, size), frame) in sizes.into_iter().enumerate().zip(frames) {
            assert_eq!(frame.lsn, Lsn(index as u64 + 1));
            assert_eq!(frame.payload.part_bytes(0), bytes(size));
            assert_eq!(frame.payload.part_bytes(0).as_ptr().align_offset(64), 0, "parts are aligned");
            assert!(!frame.skipped);
        }
    };
    check(replay(&log, Lsn::ZERO).unwrap());
    log.close().await.unwrap();
    drop(log);
    let (log, recovery) = open(dir.path());
    assert_eq!((recovery.first, recovery.last), (Lsn(1), Lsn(sizes.len() as u64)));
    assert_eq!(recovery.torn, None);
    assert_eq!(recovery.histories[0].end.position, position);
    check(replay(&log, Lsn::ZERO).unwrap());
}

#[tokio::test]
async fn every_start_begins_an_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut epochs: Vec<Epoch> = Vec::new();
    for round in 0..3 {
        let (log, recovery) = open_history(dir.path());
        assert_eq!(recovery.last, Lsn(round * 2));
        append_numbers(&log, 0..2).await;
        let frames = replay(&log, Lsn(round * 2)).unwrap();
        assert_eq!(frames[0].header.epoch, frames[1].header.epoch);
        assert_eq!((frames[0].header.transaction.0, frames[1].header.transaction.0), (1, 2));
        epochs.push(frames[0].header.epoch);
    }
    assert_eq!(epochs.iter().map(|epoch| epoch.counter).collect::<Vec<_>>(), [1, 2, 3]);
    let (log, _) = open(dir.path());
    let times: Vec<_> = replay(&log, Lsn::ZERO).unwrap().iter().map(|frame| frame.header.commit_time).collect();
    assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn group_commit_of_many_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_history_with(LogConfig { segment_bytes: 256 << 10, ..LogConfig::new(dir.path()) });
    let histories: Vec<_> = (0..4).map(|id| HistoryId([id + 10; 16])).collect();
    histories.iter().for_each(|history| start(&log, &recovery, *history));
    let mut tasks = Vec::new();
    for task in 0..32_usize {
        let (log, history) = (log.clone(), histories[task % histories.len()]);
        tasks.push(tokio::spawn(async move {
            let mut written = Vec::new();
            for _ in 0..50 {
                written.push(append(&log, commit(history, &[task as u8; 500])).await.unwrap());
            }
            written
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        let written = task.await.unwrap();
        assert!(written.is_sorted_by(|a, b| a.lsn < b.lsn && a.position.seq < b.position.seq));
        all.extend(written);
    }
    all.sort_by_key(|written| written.lsn);
    assert!(all.iter().enumerate().all(|(index, written)| written.lsn == Lsn(index as u64 + 1)), "no gaps");
    let status = log.status();
    assert_eq!((status.appended, status.durable), (Lsn(1600), Lsn(1600)));
    assert!(status.syncs < 1600, "{} syncs", status.syncs);
    assert!(segments(dir.path()).len() > 2);
    let frames = replay(&log, Lsn::ZERO).unwrap();
    for (frame, written) in frames.iter().zip(&all) {
        assert_eq!((frame.lsn, frame.header.position()), (written.lsn, written.position));
    }
    drop(log);
    let (log, recovery) = open(dir.path());
    assert_eq!(recovery.last, Lsn(1600));
    assert_eq!(recovery.histories.len(), 4);
    assert!(recovery.histories.iter().all(|history| history.end.position.seq == Seq(400)));
    assert_eq!(replay(&log, Lsn::ZERO).unwrap().len(), 1600);
}

#[tokio::test]
async fn asynchronous_commits_are_synced_later() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { sync_interval: Duration::from_secs(3600), ..LogConfig::new(dir.path()) };
    let (log, _) = open_history_with(config);
    let mut appending = log.append(commit(HISTORY, b"late"), Persistence::Async).await.unwrap();
    let written = appending.written().await.unwrap();
    assert_eq!(written.lsn, Lsn(1));
    let status = log.status();
    assert_eq!((status.appended, status.durable), (Lsn(1), Lsn::ZERO));
    assert!(status.unsynced_bytes > 0);
    assert!(replay(&log, Lsn::ZERO).unwrap().is_empty(), "nothing is read before it is durable");
    assert!(matches!(log.read(Lsn(1)), Err(LogError::EndsBefore { .. })));
    assert_eq!(log.sync().await.unwrap(), Lsn(1));
    assert_eq!(appending.durable().await.unwrap(), written);
    assert_eq!(log.status().unsynced_bytes, 0);
    assert_eq!(replay(&log, Lsn::ZERO).unwrap().len(), 1);
}

#[tokio::test]
async fn the_interval_syncs() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { sync_interval: Duration::from_millis(5), ..LogConfig::new(dir.path()) };
    let (log, _) = open_history_with(config);
    let appending = log.append(commit(HISTORY, b"soon"), Persistence::Async).await.unwrap();
    assert_eq!(appending.durable().await.unwrap().lsn, Lsn(1));
}

#[tokio::test]
async fn unsynced_bytes_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        LogConfig { sync_interval: Duration::from_secs(3600), async_max_bytes: 100_000, ..LogConfig::new(dir.path()) };
    let (log, _) = open_history_with(config);
    for _ in 0..50 {
        let mut appending = log.append(commit(HISTORY, &[1; 10_000]), Persistence::Async).await.unwrap();
        appending.written().await.unwrap();
        assert!(log.status().unsynced_bytes <= 120_000, "{}", log.status().unsynced_bytes);
    }
    assert!(log.status().syncs >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_queue_is_bounded_and_everything_gets_through() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig { queue_max_bytes: 64 << 10, segment_bytes: 1 << 20, ..LogConfig::new(dir.path()) };
    let (log, _) = open_history_with(config);
    let mut waiting = Vec::new();
    for at in 0..300_u32 {
        waiting.push(log.append(commit(HISTORY, &[at as u8; 20_000]), Persistence::Async).await.unwrap());
    }
    append(&log, commit(HISTORY, &vec![0; 200_000])).await.unwrap();
    for (at, appending) in waiting.into_iter().enumerate() {
        assert_eq!(appending.durable().await.unwrap().lsn, Lsn(at as u64 + 1));
    }
}

#[tokio::test]
async fn closed_means_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    append_numbers(&log, 0..3).await;
    let unread = log.append(commit(HISTORY, &3_u32.to_le_bytes()), Persistence::Async).await.unwrap();
    log.close().await.unwrap();
    assert_eq!(unread.durable().await.unwrap().lsn, Lsn(4), "what waited was written and synced");
    assert!(matches!(append(&log, commit(HISTORY, b"")).await, Err(LogError::Closed)));
    assert!(matches!(log.sync().await, Err(LogError::Closed)));
    assert!(matches!(log.close().await, Err(LogError::Closed)));
    assert!(matches!(log.begin_transaction(HISTORY), Err(LogError::Closed)));
    let numbers: Vec<_> = replay(&log, Lsn::ZERO).unwrap().iter().map(number).collect();
    assert_eq!(numbers, [0, 1, 2, 3], "reads go on");
    assert!(matches!(log.truncate(Lsn(4)), Err(LogError::Closed)));
    assert!(matches!(log.retain(), Err(LogError::Closed)));
    // The folder is free.
    let (next, recovery) = open(dir.path());
    assert_eq!(recovery.last, Lsn(4));
    let second = crate::support::open_with(LogConfig::new(dir.path()), Lsn::ZERO);
    assert!(matches!(second, Err(LogError::Locked { .. })));
    drop(log);
    let second = crate::support::open_with(LogConfig::new(dir.path()), Lsn::ZERO);
    assert!(matches!(second, Err(LogError::Locked { .. })), "the one that was closed does not free it once more");
    next.close().await.unwrap();
}

#[tokio::test]
async fn one_log_per_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    let second = crate::support::open_with(LogConfig::new(dir.path()), Lsn::ZERO);
    assert!(matches!(second, Err(LogError::Locked { .. })));
    drop(log);
    open(dir.path());
}

#[tokio::test]
async fn histories_must_be_open() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open(dir.path());
    assert!(matches!(append(&log, commit(HISTORY, b"")).await, Err(LogError::UnknownHistory(HISTORY))));
    assert!(matches!(log.begin_transaction(HISTORY), Err(LogError::UnknownHistory(HISTORY))));
    assert_eq!(log.retained_after(HISTORY), None);
    assert_eq!(log.history_end(HISTORY), None);
    assert!(log.tail(HISTORY, Seq::ZERO).is_err());
}

#[tokio::test]
async fn rolling_makes_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    log.roll().await.unwrap();
    assert_eq!(segments(dir.path()).len(), 1, "an empty segment stays");
    append_numbers(&log, 0..2).await;
    log.roll().await.unwrap();
    append_numbers(&log, 2..4).await;
    assert_eq!(segments(dir.path()).len(), 2);
    assert!(segments(dir.path())[1].ends_with("00000000000000000003.wal"));
    assert_eq!(replay(&log, Lsn::ZERO).unwrap().iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(log.status().segments, 2);
}
