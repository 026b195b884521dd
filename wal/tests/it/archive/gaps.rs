//! A claim that is lost, and what readers say about what is missing.

use tailrace_wal::{LogConfig, LogError, Lsn, Seq};

use super::{
    archive, archiver, assert_contiguous, config, drain, drain_history, lsns, segments_of, store::FaultyStore,
};
use crate::support::{HISTORY, append_numbers, open_history_with};

#[tokio::test]
async fn a_lost_claim_leaves_a_named_gap_and_archiving_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history_with(LogConfig { pin_max_bytes: 16 << 10, ..config(dir.path()) });
    let store = FaultyStore::default();
    let archiver = archiver(&log, &store);
    append_numbers(&log, 0..10).await;
    log.roll().await.unwrap();
    archiver.catch_up().await.unwrap();

    store.set_down(true);
    append_numbers(&log, 10..20).await;
    log.roll().await.unwrap();
    assert_eq!(log.truncate(Lsn(u64::MAX)).unwrap(), Lsn(11), "within the budget");
    assert!(archiver.catch_up().await.is_err());
    for more in 2..8 {
        append_numbers(&log, more * 10..more * 10 + 10).await;
        log.roll().await.unwrap();
    }
    assert_eq!(log.truncate(Lsn(u64::MAX)).unwrap(), Lsn(81), "the budget is used up, and the log goes on");
    let lost = archiver.status().lost.unwrap();
    assert!(lost.contains("its budget is 16384"), "{lost}");

    // Before the gap is recorded, readers name what they can.
    let error = drain(archiver.archive().replay(Some(&log), Lsn(10))).await.unwrap_err();
    assert!(matches!(error, LogError::ArchiveGap { from: Lsn(11), to: Lsn(80), .. }), "{error}");

    store.set_down(false);
    append_numbers(&log, 80..90).await;
    log.roll().await.unwrap();
    append_numbers(&log, 90..91).await;
    archiver.catch_up().await.unwrap();
    let status = archiver.status();
    assert_eq!((status.lost, status.archived, status.segments), (None, Lsn(90), 2));
    let [gap] = &status.gaps[..] else { panic!("{:?}", status.gaps) };
    assert_eq!((gap.from, gap.to), (Lsn(11), Lsn(80)));
    assert!(gap.reason.contains("budget"), "{}", gap.reason);
    let [missing] = gap.histories[..] else { panic!("{:?}", gap.histories) };
    assert_eq!((missing.history, missing.after, missing.upto), (HISTORY, Seq(10), Seq(80)));
    assert_contiguous(archiver.archive());

    for live in [Some(&log), None] {
        let mut tail = archiver.archive().tail(live, HISTORY, Seq(4)).await.unwrap();
        for lsn in 5..=10 {
            assert_eq!(tail.try_next().await.unwrap().unwrap().lsn, Lsn(lsn));
        }
        for _ in 0..2 {
            let error = tail.try_next().await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains("LSN 11 to 80") && text.contains("seq 11 to 80"), "{text}");
        }
        let error = drain_history(archiver.archive(), live, HISTORY, 40).await.unwrap_err();
        assert!(matches!(error, LogError::ArchiveGap { from: Lsn(11), to: Lsn(80), .. }), "{error}");
        let behind = drain_history(archiver.archive(), live, HISTORY, 80).await.unwrap();
        assert_eq!(lsns(&behind), (81..=if live.is_some() { 91 } else { 90 }).collect::<Vec<_>>());
    }
    // Another process reads the same.
    let alone = archive(&store);
    alone.refresh().await.unwrap();
    assert_eq!(alone.gaps(), status.gaps);
}

#[tokio::test]
async fn what_was_truncated_before_the_first_archiving_is_a_gap_too() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history_with(config(dir.path()));
    append_numbers(&log, 0..10).await;
    log.roll().await.unwrap();
    log.truncate(Lsn(u64::MAX)).unwrap();
    append_numbers(&log, 10..20).await;
    log.roll().await.unwrap();
    let archiver = archiver(&log, &FaultyStore::default());
    archiver.catch_up().await.unwrap();
    assert_eq!(segments_of(archiver.archive()), 1);
    let gaps = archiver.archive().gaps();
    assert_eq!((gaps[0].from, gaps[0].to, gaps[0].histories[0].upto), (Lsn(1), Lsn(10), Seq(10)));
    let error = drain_history(archiver.archive(), Some(&log), HISTORY, 3).await.unwrap_err();
    assert!(error.to_string().contains("for the first time"), "{error}");
    assert_eq!(drain_history(archiver.archive(), Some(&log), HISTORY, 10).await.unwrap().len(), 10);
}
