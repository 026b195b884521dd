//! Fragments, aborts, restart seqs, and records of other nodes.

use tailrace_wal::{
    Chain, CommitTime, Epoch, FragmentNumber, Frame, HistoryEnd, Log, LogConfig, LogError, Lsn, Payload, Persistence,
    Position, Record, RecordKind, Seq, TransactionNumber, VerbatimRecord,
};

use crate::support::{
    HISTORY, abort, append, append_frame, append_numbers, commit, fragment, open, open_history, open_with, part,
    replay, segments, start,
};

/// The commit of a transaction whose fragments are `fragments`.
fn commit_large(transaction: TransactionNumber, fragments: &[Frame]) -> Record {
    Record {
        history: HISTORY,
        kind: RecordKind::Commit,
        transaction: Some(transaction),
        fragment: FragmentNumber(fragments.len() as u32),
        payload: Payload::new(vec![part(b"rest")], fragments.iter().map(|frame| frame.payload.hash).collect(), None)
            .unwrap(),
    }
}

async fn append_fragment(log: &Log, transaction: TransactionNumber, number: u32) -> Frame {
    let written = append(log, fragment(HISTORY, transaction, number, b"fragment")).await.unwrap();
    log.read(written.lsn).unwrap()
}

/// Commits 1 and 2, a transaction begun after 1 and committed as 3, one begun after 2 and aborted after 3, commit 4.
async fn play(log: &Log) -> Vec<Frame> {
    append_numbers(log, 0..1).await;
    let first = log.begin_transaction(HISTORY).unwrap();
    let second = log.begin_transaction(HISTORY).unwrap();
    let f0 = append_fragment(log, first, 0).await;
    append_numbers(log, 1..2).await;
    append_fragment(log, second, 0).await;
    let f1 = append_fragment(log, first, 1).await;
    append(log, commit_large(first, &[f0, f1])).await.unwrap();
    append(log, abort(HISTORY, second)).await.unwrap();
    append_numbers(log, 2..3).await;
    replay(log, Lsn::ZERO).unwrap()
}

#[tokio::test]
async fn restart_seqs() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let frames = play(&log).await;
    let facts: Vec<_> = frames
        .iter()
        .map(|frame| (frame.header.kind, frame.header.seq.0, frame.header.restart_seq.0, frame.header.fragment.0))
        .collect();
    use RecordKind::{Abort, Commit, Fragment};
    let expected = [
        (Commit, 1, 1, 0),
        (Fragment, 1, 1, 0),
        (Commit, 2, 1, 0),
        (Fragment, 2, 1, 0),
        (Fragment, 2, 1, 1),
        (Commit, 3, 2, 2),
        (Abort, 3, 3, 0),
        (Commit, 4, 4, 0),
    ];
    assert_eq!(facts, expected);
    for pair in frames.windows(2) {
        if pair[1].header.kind != Commit {
            assert_eq!(pair[1].header.chain, pair[0].header.chain, "does not move the position");
        }
    }
    let numbers: std::collections::BTreeSet<_> = frames.iter().map(|frame| frame.header.transaction).collect();
    assert_eq!(numbers.len(), 5, "one number per transaction");
    // A reader that starts after the restart seq of its position gets every fragment that it may need.
    let mut tail = log.tail(HISTORY, Seq(1)).unwrap();
    assert_eq!(tail.try_next().unwrap().unwrap().lsn, Lsn(2));
}

#[tokio::test]
async fn fragments_must_be_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    let transaction = log.begin_transaction(HISTORY).unwrap();
    let invalid = |result: Result<_, LogError>| assert!(matches!(result, Err(LogError::Invalid { .. })), "{result:?}");
    invalid(append(&log, fragment(HISTORY, TransactionNumber(99), 0, b"never begun")).await);
    invalid(append(&log, fragment(HISTORY, transaction, 1, b"0 is missing")).await);
    let first = append_fragment(&log, transaction, 0).await;
    invalid(append(&log, fragment(HISTORY, transaction, 0, b"again")).await);
    let mut short = commit_large(transaction, std::slice::from_ref(&first));
    short.payload = Payload::empty();
    invalid(append(&log, short).await);
    invalid(append(&log, commit_large(transaction, &[first.clone(), first.clone()])).await);
    invalid(append(&log, Record { transaction: None, ..fragment(HISTORY, transaction, 1, b"") }).await);
    append(&log, commit_large(transaction, &[first])).await.unwrap();
    assert_eq!(log.status().appended, Lsn(2), "nothing refused was written");
}

#[tokio::test]
async fn recovered_open_transactions_are_aborted_in_their_epoch() {
    for rolls in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = open_history(dir.path());
        append_numbers(&log, 0..1).await;
        let transaction = log.begin_transaction(HISTORY).unwrap();
        let fragment = append_fragment(&log, transaction, 0).await;
        if rolls {
            log.roll().await.unwrap();
        }
        append_numbers(&log, 1..2).await;
        drop(log);
        let (log, recovery) = open_history(dir.path());
        assert_eq!(recovery.histories[0].open, [transaction]);
        let written = append(&log, abort(HISTORY, transaction)).await.unwrap();
        let aborted = log.read(written.lsn).unwrap().header;
        assert_eq!((aborted.epoch, aborted.transaction), (fragment.header.epoch, transaction));
        assert_eq!((aborted.seq, aborted.restart_seq), (Seq(2), Seq(2)));
        append_numbers(&log, 2..3).await;
        let frames = replay(&log, Lsn::ZERO).unwrap();
        assert_eq!(frames.last().unwrap().header.epoch.counter, fragment.header.epoch.counter + 1);
        drop(log);
        let (_, recovery) = open(dir.path());
        assert!(recovery.histories[0].open.is_empty());
    }
}

#[tokio::test]
async fn a_second_log_gets_an_equal_history() {
    let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = open_history(first_dir.path());
    let (second, _) = open_history(second_dir.path());
    let frames = play(&first).await;
    for frame in &frames {
        let written = append_frame(&second, frame).await.unwrap();
        assert_eq!(written.position, frame.header.position());
        assert_eq!(written.commit_time, frame.header.commit_time);
    }
    for (mine, theirs) in replay(&second, Lsn::ZERO).unwrap().iter().zip(&frames) {
        assert_eq!(mine.header, theirs.header);
        assert_eq!(mine.payload.directory_bytes, theirs.payload.directory_bytes);
        assert_eq!(mine.payload.part_bytes(0), theirs.payload.part_bytes(0));
    }
    assert_eq!(first.history_end(HISTORY), second.history_end(HISTORY));
    drop(second);
    let (second, recovery) = open_history(second_dir.path());
    assert_eq!(recovery.histories[0].end, first.history_end(HISTORY).unwrap());
    // After a promotion its own appends begin an epoch.
    let written = append(&second, commit(HISTORY, b"promoted")).await.unwrap();
    assert_eq!(written.position.epoch.counter, frames[0].header.epoch.counter + 1);
}

#[tokio::test]
async fn what_does_not_continue_is_forked() {
    let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = open_history(first_dir.path());
    let (second, _) = open_history(second_dir.path());
    append_numbers(&first, 0..4).await;
    let frames = replay(&first, Lsn::ZERO).unwrap();
    append_frame(&second, &frames[0]).await.unwrap();
    let refused = |frame: Frame| {
        let second = second.clone();
        async move {
            let Err(LogError::Forked { here, record }) = append_frame(&second, &frame).await else {
                panic!("not refused: {:?}", frame.header)
            };
            assert_eq!((here.seq, *record), (Seq(1), frame.header.position()));
        }
    };
    refused(frames[0].clone()).await;
    refused(frames[2].clone()).await;
    let edited = |edit: fn(&mut Frame)| {
        let mut frame = frames[1].clone();
        edit(&mut frame);
        frame
    };
    refused(edited(|frame| frame.header.chain = Chain(1))).await;
    refused(edited(|frame| frame.header.epoch.nonce ^= 1)).await;
    refused(edited(|frame| frame.header.commit_time = CommitTime(5))).await;
    // A fork that is consistent in itself, of another epoch with the same counter.
    refused(edited(|frame| {
        let header = &mut frame.header;
        header.epoch = Epoch { counter: header.epoch.counter, nonce: header.epoch.nonce ^ 1 };
        header.chain = Chain(77);
    }))
    .await;
    let mut other_payload = frames[1].clone();
    other_payload.payload = frames[3].payload.clone();
    assert!(matches!(append_frame(&second, &other_payload).await, Err(LogError::Invalid { .. })));
    assert_eq!(second.status().appended, Lsn(1), "nothing of it was written");
    append_frame(&second, &frames[1]).await.unwrap();
}

#[tokio::test]
async fn skipped_records_keep_their_flag() {
    let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = open_history(first_dir.path());
    let (second, _) = open_history(second_dir.path());
    append_numbers(&first, 0..1).await;
    let frame = first.read(Lsn(1)).unwrap();
    let record = VerbatimRecord { header: frame.header, payload: frame.payload.clone(), skipped: true };
    second.append_verbatim(record, Persistence::Sync).await.unwrap().durable().await.unwrap();
    let copy = second.read(Lsn(1)).unwrap();
    assert!(copy.skipped);
    assert_eq!(copy.header, frame.header);
}

#[tokio::test]
async fn a_repair_replaces_the_position() {
    let (first_dir, second_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, _) = open_history(first_dir.path());
    append_numbers(&first, 0..6).await;
    let frames = replay(&first, Lsn::ZERO).unwrap();
    let (second, _) = open_history(second_dir.path());
    append_frame(&second, &frames[0]).await.unwrap();
    let mut old_reader = second.tail(HISTORY, Seq(1)).unwrap();
    let end =
        HistoryEnd { position: first.position_at(HISTORY, Seq(4)).unwrap(), commit_time: frames[3].header.commit_time };
    second.open_history(end).unwrap();
    assert_eq!(second.history_end(HISTORY), Some(end));
    assert_eq!(second.retained_after(HISTORY), Some(Seq(4)));
    append_frame(&second, &frames[4]).await.unwrap();
    assert!(matches!(old_reader.try_next(), Err(LogError::Truncated { .. })), "must not read across the gap");
    for restarts in 0..3 {
        // The folder is there as long as its log.
        let (second, recovery, _folder) = if restarts == 0 {
            (second.clone(), None, None)
        } else {
            let copy = crate::support::copy_segments(second_dir.path());
            let (log, recovery) = open_history(copy.path());
            (log, Some(recovery), Some(copy))
        };
        if let Some(recovery) = recovery {
            assert_eq!(recovery.histories[0].end.position, frames[4].header.position());
        }
        assert_eq!(second.retained_after(HISTORY), Some(Seq(4)), "restarts: {restarts}");
        assert!(matches!(second.tail(HISTORY, Seq(1)), Err(LogError::Truncated { .. })));
        let mut tail = second.tail(HISTORY, Seq(4)).unwrap();
        assert_eq!(tail.try_next().unwrap().unwrap().header, frames[4].header);
    }
}

#[tokio::test]
async fn a_history_may_begin_in_the_middle() {
    let dir = tempfile::tempdir().unwrap();
    let end = HistoryEnd {
        position: Position { seq: Seq(100), chain: Chain(5), ..Position::start(HISTORY) },
        commit_time: CommitTime(0),
    };
    let (log, _) = open(dir.path());
    log.open_history(end).unwrap();
    assert_eq!(log.retained_after(HISTORY), Some(Seq(100)));
    append_numbers(&log, 0..1).await;
    assert_eq!(log.retained_after(HISTORY), Some(Seq(100)));
    drop(log);
    let (log, recovery) = open(dir.path());
    start(&log, &recovery, HISTORY);
    assert_eq!(log.retained_after(HISTORY), Some(Seq(100)));
}

#[tokio::test]
async fn retained_after_counts_fragments() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    assert_eq!(log.retained_after(HISTORY), Some(Seq(0)));
    append_numbers(&log, 0..2).await;
    let transaction = log.begin_transaction(HISTORY).unwrap();
    let first = append_fragment(&log, transaction, 0).await;
    log.roll().await.unwrap();
    append_numbers(&log, 2..4).await;
    assert_eq!(log.truncate(Lsn(100)).unwrap(), Lsn(1), "not past an open transaction");
    append(&log, commit_large(transaction, &[first])).await.unwrap();
    append_numbers(&log, 4..5).await;
    assert_eq!(log.retained_after(HISTORY), Some(Seq(0)));
    log.roll().await.unwrap();
    append_numbers(&log, 5..6).await;
    // Commits 3, 4, 5 (large), 6 are in the second segment, fragment 0 of 5 is in the first.
    assert_eq!(log.truncate(Lsn(3)).unwrap(), Lsn(4));
    assert_eq!(log.retained_after(HISTORY), Some(Seq(5)), "5 cannot be read whole any more");
    drop(log);
    let (log, recovery) = open_with(LogConfig::new(dir.path()), Lsn::ZERO).unwrap();
    start(&log, &recovery, HISTORY);
    assert_eq!(log.retained_after(HISTORY), Some(Seq(5)));
    assert_eq!(log.truncate(Lsn(7)).unwrap(), Lsn(8));
    assert_eq!(log.retained_after(HISTORY), Some(Seq(6)));
    assert!(segments(dir.path()).len() >= 2);
}
