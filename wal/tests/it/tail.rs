//! Readers.

use std::time::Duration;

use tailrace_wal::{HistoryId, LogConfig, LogError, Lsn, Persistence, Seq};

use crate::support::{HISTORY, append, append_numbers, commit, number, open_history, open_history_with, replay, start};

const OTHER: HistoryId = HistoryId([2; 16]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_get_everything_once_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_history_with(LogConfig { segment_bytes: 64 << 10, ..LogConfig::new(dir.path()) });
    start(&log, &recovery, OTHER);
    let count = 400_u32;
    let followers: Vec<_> = [(HISTORY, 0), (HISTORY, 0), (OTHER, 1)]
        .into_iter()
        .map(|(history, parity)| {
            let (log, mut tail) = (log.clone(), log.tail(history, Seq::ZERO).unwrap());
            tokio::spawn(async move {
                for at in 0..count {
                    let frame = tail.next().await.unwrap();
                    assert!(frame.lsn <= log.status().durable, "passed the durable mark");
                    assert_eq!((frame.header.history, frame.header.seq), (history, Seq(u64::from(at) + 1)));
                    assert_eq!(number(&frame), at * 2 + parity);
                    assert_eq!(tail.passed(), frame.lsn);
                }
                assert!(tail.try_next().unwrap().is_none());
            })
        })
        .collect();
    for at in 0..count * 2 {
        let history = if at % 2 == 0 { HISTORY } else { OTHER };
        let persistence = if at % 5 == 0 { Persistence::Sync } else { Persistence::Async };
        log.append(commit(history, &at.to_le_bytes()), persistence).await.unwrap();
    }
    log.sync().await.unwrap();
    for follower in followers {
        follower.await.unwrap();
    }
    assert!(log.status().segments > 3);
}

#[tokio::test]
async fn readers_start_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_history_with(LogConfig { segment_bytes: 16 << 10, ..LogConfig::new(dir.path()) });
    start(&log, &recovery, OTHER);
    for at in 0..200_u32 {
        append(&log, commit(if at % 4 == 0 { OTHER } else { HISTORY }, &at.to_le_bytes())).await.unwrap();
    }
    let check = |log: &tailrace_wal::Log| {
        for after in [0, 1, 2, 40, 41, 149, 150] {
            let mut tail = log.tail(HISTORY, Seq(after)).unwrap();
            for seq in after + 1..=150 {
                assert_eq!(tail.try_next().unwrap().unwrap().header.seq, Seq(seq), "after {after}");
            }
            assert!(tail.try_next().unwrap().is_none());
        }
        assert!(matches!(log.tail(HISTORY, Seq(151)), Err(LogError::Invalid { .. })));
        for lsn in [1, 2, 100, 200] {
            assert_eq!(log.read(Lsn(lsn)).unwrap().lsn, Lsn(lsn));
            assert_eq!(replay(log, Lsn(lsn)).unwrap().len() as u64, 200 - lsn);
        }
        for frame in replay(log, Lsn::ZERO).unwrap() {
            let position = frame.header.position();
            assert_eq!(log.position_at(position.history, position.seq), Some(position));
        }
        assert_eq!(log.position_at(HISTORY, Seq(151)), None);
        assert_eq!(log.position_at(HISTORY, Seq(0)).unwrap().seq, Seq::ZERO);
    };
    check(&log);
    drop(log);
    let (log, recovery) = open_history_with(LogConfig { segment_bytes: 16 << 10, ..LogConfig::new(dir.path()) });
    start(&log, &recovery, OTHER);
    check(&log);
}

#[tokio::test]
async fn waiting_can_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let mut tail = log.tail(HISTORY, Seq::ZERO).unwrap();
    for at in 0..20_u32 {
        assert!(tokio::time::timeout(Duration::from_millis(1), tail.next()).await.is_err());
        // Larger than what is read in place, so that the read itself is cancelled too.
        append(&log, commit(HISTORY, &vec![at as u8; 400_000])).await.unwrap();
        let frame = loop {
            if let Ok(frame) = tokio::time::timeout(Duration::from_micros(50), tail.next()).await {
                break frame.unwrap();
            }
        };
        assert_eq!(frame.header.seq, Seq(u64::from(at) + 1));
    }
}

#[tokio::test]
async fn unlinked_segments_are_read_to_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    for at in 0..20_u32 {
        append(&log, commit(HISTORY, &vec![at as u8; 1 << 20])).await.unwrap();
    }
    log.roll().await.unwrap();
    let mut tail = log.tail(HISTORY, Seq::ZERO).unwrap();
    assert_eq!(tail.try_next().unwrap().unwrap().header.seq, Seq(1));
    assert_eq!(log.truncate(Lsn(20)).unwrap(), Lsn(21));
    for seq in 2..=20 {
        assert_eq!(tail.try_next().unwrap().unwrap().header.seq, Seq(seq));
    }
    append_numbers(&log, 0..1).await;
    assert_eq!(tail.next().await.unwrap().header.seq, Seq(21));
    assert!(matches!(log.read(Lsn(20)), Err(LogError::ReplayTruncated { .. })));
}

#[tokio::test]
async fn truncation_overtakes_only_readers_that_miss_something() {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_history(dir.path());
    start(&log, &recovery, OTHER);
    append(&log, commit(OTHER, &7_u32.to_le_bytes())).await.unwrap();
    append_numbers(&log, 0..3).await;
    let mut idle = log.tail(OTHER, Seq(1)).unwrap();
    let mut slow = log.tail(HISTORY, Seq(1)).unwrap();
    log.roll().await.unwrap();
    append_numbers(&log, 3..4).await;
    log.truncate(Lsn(4)).unwrap();
    let Err(LogError::Truncated { retained_after, wanted, .. }) = slow.try_next() else { panic!("not refused") };
    assert_eq!((retained_after, wanted), (Seq(3), Seq(1)));
    append(&log, commit(OTHER, &8_u32.to_le_bytes())).await.unwrap();
    assert_eq!(number(&idle.next().await.unwrap()), 8, "nothing of its history was lost");
}
