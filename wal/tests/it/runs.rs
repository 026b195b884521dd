//! Records of a feed build on each other: a log has the beginning of a run, whatever was refused and when.

use std::sync::Arc;

use futures::FutureExt;
use tailrace_wal::{
    Appending, FragmentNumber, Frame, HistoryEnd, Log, LogConfig, LogError, Lsn, Payload, Persistence, Record,
    RecordKind, Run, Seq, VerbatimRecord, Written,
    simulation::{Failure, SimulatedClock, SimulatedDisk, Stepper},
};

use crate::support::{HISTORY, NODE, abort, append, append_frame, commit, fragment, open_history, part, replay, start};

/// A history with a large transaction, an aborted one, and commits between.
async fn original() -> Vec<Frame> {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    append(&log, commit(HISTORY, b"first")).await.unwrap();
    let (large, gone) = (log.begin_transaction(HISTORY).unwrap(), log.begin_transaction(HISTORY).unwrap());
    let mut hashes = Vec::new();
    for number in 0..3 {
        let record = fragment(HISTORY, large, number, &[number as u8; 300]);
        hashes.push(record.payload.hash);
        append(&log, record).await.unwrap();
    }
    append(&log, fragment(HISTORY, gone, 0, b"never")).await.unwrap();
    append(&log, abort(HISTORY, gone)).await.unwrap();
    append(&log, commit(HISTORY, b"second")).await.unwrap();
    let payload = Payload::new(vec![part(b"third")], hashes, None).unwrap();
    let record = Record {
        history: HISTORY,
        kind: RecordKind::Commit,
        transaction: Some(large),
        fragment: FragmentNumber(3),
        payload,
    };
    append(&log, record).await.unwrap();
    append(&log, commit(HISTORY, b"fourth")).await.unwrap();
    replay(&log, Lsn::ZERO).unwrap()
}

/// [`original`] and behind it another large transaction.
async fn longer() -> Vec<Frame> {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = open_history(dir.path());
    for frame in original().await {
        append_frame(&log, &frame).await.unwrap();
    }
    let large = log.begin_transaction(HISTORY).unwrap();
    let first = fragment(HISTORY, large, 0, b"begins after all");
    let mut rest = fragment(HISTORY, large, 2, b"ends");
    let second = fragment(HISTORY, large, 1, b"goes on");
    let payload = Payload::new(vec![part(b"rest")], vec![first.payload.hash, second.payload.hash], None).unwrap();
    rest = Record { kind: RecordKind::Commit, payload, ..rest };
    for record in [first, second, rest] {
        append(&log, record).await.unwrap();
    }
    replay(&log, Lsn::ZERO).unwrap()
}

struct Copy {
    disk: SimulatedDisk,
    log: Log,
    stepper: Stepper,
}

impl Copy {
    fn new() -> Self {
        Self::on(SimulatedDisk::new(1))
    }

    fn on(disk: SimulatedDisk) -> Self {
        let clock = Arc::new(SimulatedClock::new(1));
        let opened = Log::open_stepped(LogConfig::new("log"), NODE, Lsn::ZERO, disk.shared(), clock);
        let (log, stepper, recovery) = opened.unwrap();
        start(&log, &recovery, HISTORY);
        Self { disk, log, stepper }
    }

    /// The process is killed and started again.
    fn started_again(self) -> Self {
        Self::on(self.disk.fork())
    }

    fn take_one(&mut self, frame: &Frame) -> Result<Written, LogError> {
        self.take(&Run::new(), std::slice::from_ref(frame)).remove(0)
    }

    fn queue(&self, run: &Run, frame: &Frame) -> Result<Appending, LogError> {
        let record = VerbatimRecord { header: frame.header, payload: frame.payload.clone(), skipped: false };
        self.log.append_in_run(run, record, Persistence::Async).now_or_never().unwrap()
    }

    /// Queues them and lets the writer take them together.
    fn take(&mut self, run: &Run, frames: &[Frame]) -> Vec<Result<Written, LogError>> {
        let queued: Vec<_> = frames.iter().map(|frame| self.queue(run, frame)).collect();
        self.stepper.step();
        queued.into_iter().map(|queued| queued?.written().now_or_never().unwrap()).collect()
    }

    /// The feed goes on from what is here, in takes of `together`, and the copy is whole then.
    fn finish(mut self, frames: &[Frame], together: usize) {
        let here = self.log.status().appended.0 as usize;
        let run = Run::new();
        for some in frames[here..].chunks(together) {
            assert!(self.take(&run, some).iter().all(Result::is_ok));
        }
        let mut sync = Box::pin(self.log.sync());
        assert!((&mut sync).now_or_never().is_none());
        self.stepper.step();
        sync.now_or_never().unwrap().unwrap();
        let copied: Vec<_> = replay(&self.log, Lsn::ZERO).unwrap().iter().map(|frame| frame.header).collect();
        assert_eq!(copied, frames.iter().map(|frame| frame.header).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn nothing_is_taken_behind_what_found_no_space() {
    let frames = original().await;
    for refused in 0..frames.len() {
        for together in 1..4 {
            // Polls of one task end at some time with nothing.
            tokio::task::yield_now().await;
            let mut copy = Copy::new();
            let run = Run::new();
            for frame in &frames[..refused] {
                copy.take(&run, std::slice::from_ref(frame)).remove(0).unwrap();
            }
            copy.disk.fail_from(0, Failure::Full);
            let end = (refused + together).min(frames.len());
            assert!(
                copy.take(&run, &frames[refused..end]).iter().all(|taken| matches!(taken, Err(LogError::Full { .. })))
            );
            copy.disk.heal();
            // There is space again, and the rest is on its way.
            for some in frames[end..].chunks(together) {
                for taken in copy.take(&run, some) {
                    assert!(matches!(taken, Err(LogError::Full { .. })), "{taken:?} behind {refused}");
                }
            }
            assert_eq!(copy.log.status().appended, Lsn(refused as u64));
            copy.finish(&frames, together);
        }
    }
}

#[tokio::test]
async fn nothing_is_taken_behind_what_was_refused_at_the_door() {
    let frames = original().await;
    for refused in 0..frames.len() {
        tokio::task::yield_now().await;
        let mut copy = Copy::new();
        let run = Run::new();
        assert!(copy.take(&run, &frames[..refused]).iter().all(Result::is_ok));
        copy.log.refuse_writes(true);
        let at_door = copy.take(&run, &frames[refused..=refused]).remove(0);
        copy.log.refuse_writes(false);
        // Aborts are taken although the disk counts as full.
        let is_abort = frames[refused].header.kind == RecordKind::Abort;
        assert_eq!(at_door.is_ok(), is_abort, "{at_door:?}");
        for taken in copy.take(&run, &frames[refused + 1..]) {
            assert_eq!(taken.is_ok(), is_abort, "{taken:?} behind {refused}");
        }
        copy.finish(&frames, 2);
    }
}

#[tokio::test]
async fn nothing_is_taken_behind_a_fork() {
    let frames = original().await;
    let mut copy = Copy::new();
    let mut forked = frames.clone();
    forked[1].header.chain.0 ^= 1;
    let taken = copy.take(&Run::new(), &forked);
    assert!(taken[0].is_ok());
    for taken in &taken[1..] {
        assert!(matches!(taken, Err(LogError::Forked { .. })), "{taken:?}");
    }
    copy.finish(&frames, 3);
}

#[tokio::test]
async fn a_commit_needs_its_fragments_in_the_log() {
    let frames = original().await;
    let large: Vec<usize> =
        (0..frames.len()).filter(|at| frames[*at].header.transaction == frames[1].header.transaction).collect();
    let at =
        |seq| frames.iter().position(|frame| frame.header.kind == RecordKind::Commit && frame.header.seq == Seq(seq));
    let end = at(3).unwrap();
    assert!(large.contains(&end));
    for missing in large.into_iter().filter(|missing| *missing < end) {
        tokio::task::yield_now().await;
        let mut copy = Copy::new();
        for (index, frame) in frames.iter().enumerate().take(end + 1) {
            if index == missing {
                continue;
            }
            let taken = copy.take(&Run::new(), std::slice::from_ref(frame)).remove(0);
            let is_behind = index > missing && frame.header.transaction == frames[missing].header.transaction;
            match taken {
                Err(LogError::Invalid { reason }) if is_behind => {
                    assert!(reason.contains("are in the log"), "{reason}")
                }
                taken => assert!(taken.is_ok() && !is_behind, "{index} without {missing}: {taken:?}"),
            }
        }
    }
}

/// A repair replaces the position; what was open there comes again, and what is over by then comes in pieces.
#[tokio::test]
async fn only_after_a_repair_may_a_transaction_lack_its_beginning() {
    let frames = longer().await;
    let place = |kind, seq| {
        let is_it = |frame: &Frame| (frame.header.kind, frame.header.seq) == (kind, Seq(seq));
        frames.iter().position(is_it).unwrap()
    };
    let (begins, second, third) =
        (place(RecordKind::Fragment, 1), place(RecordKind::Commit, 2), place(RecordKind::Commit, 3));
    let (begins_after, fifth) = (place(RecordKind::Fragment, 4), place(RecordKind::Commit, 5));
    for (missing, starts) in (0..=3).flat_map(|missing| [false, true].map(|starts| (missing, starts))) {
        tokio::task::yield_now().await;
        let mut copy = Copy::new();
        copy.take_one(&frames[0]).unwrap();
        let header = frames[second].header;
        let end = HistoryEnd { position: header.position(), commit_time: header.commit_time };
        copy.log.open_history(end).unwrap();
        // The feed starts at the position's restart seq; commits that are here are left out.
        for frame in frames[begins + missing..=third].iter().filter(|frame| frame.header != header) {
            copy.take_one(frame).unwrap();
        }
        if starts {
            copy = copy.started_again();
        }
        for frame in &frames[third + 1..begins_after] {
            copy.take_one(frame).unwrap();
        }
        if starts {
            copy = copy.started_again();
        }
        // This one was begun behind the repair: all of it has to come.
        for frame in &frames[begins_after + 1..=fifth] {
            let taken = copy.take_one(frame);
            assert!(matches!(taken, Err(LogError::Invalid { .. })), "{missing}, {starts}: {taken:?}");
        }
        for frame in &frames[begins_after..=fifth] {
            copy.take_one(frame).unwrap();
        }
    }
}
