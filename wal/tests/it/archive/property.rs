//! Whatever was appended is read back from archive and log together, whatever happens in between.

use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::{
    ArchiveTail, Frame, HistoryHeader, HistoryId, Log, Lsn, Persistence, Record, RecordKind, Seq, TransactionNumber,
};

use super::{archiver, config, drain, store::FaultyStore};
use crate::support::{abort, commit, fragment, open_with, start};

const HISTORIES: [HistoryId; 3] = [HistoryId([1; 16]), HistoryId([2; 16]), HistoryId([3; 16])];

/// What must come back of a record.
type Seen = (Lsn, HistoryHeader, Bytes, Vec<Bytes>);

fn seen(frame: &Frame) -> Seen {
    let parts = (0..frame.payload.parts.len()).map(|part| frame.payload.part_bytes(part)).collect();
    (frame.lsn, frame.header, frame.payload.directory_bytes.clone(), parts)
}

struct Open {
    history: HistoryId,
    number: TransactionNumber,
    fragments: Vec<tailrace_wal::PayloadHash>,
}

struct Model {
    random: StdRng,
    log: Log,
    appended: Vec<Seen>,
    open: Vec<Open>,
}

impl Model {
    async fn append(&mut self, record: Record) {
        let written = self.log.append(record, Persistence::Sync).await.unwrap().durable().await.unwrap();
        self.appended.push(seen(&self.log.read(written.lsn).unwrap()));
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = if self.random.random_bool(0.1) { 40_000 } else { 300 };
        let len = self.random.random_range(0..len);
        (0..len).map(|_| self.random.random_range(0..8_u8)).collect()
    }

    async fn append_something(&mut self) {
        let history = HISTORIES[self.random.random_range(0..3)];
        let bytes = self.bytes();
        match self.random.random_range(0..10) {
            0 => {
                let number = self.log.begin_transaction(history).unwrap();
                let record = fragment(history, number, 0, &bytes);
                let fragments = vec![record.payload.hash];
                self.append(record).await;
                self.open.push(Open { history, number, fragments });
            }
            1..=2 if !self.open.is_empty() => {
                let at = self.random.random_range(0..self.open.len());
                let open = &mut self.open[at];
                let record = fragment(open.history, open.number, open.fragments.len() as u32, &bytes);
                open.fragments.push(record.payload.hash);
                self.append(record).await;
            }
            3 if !self.open.is_empty() => {
                let at = self.random.random_range(0..self.open.len());
                let open = self.open.swap_remove(at);
                if self.random.random() {
                    self.append(abort(open.history, open.number)).await;
                } else {
                    let part = crate::support::part(&bytes);
                    let record = Record {
                        transaction: Some(open.number),
                        fragment: tailrace_wal::FragmentNumber(open.fragments.len() as u32),
                        payload: tailrace_wal::Payload::new(vec![part], open.fragments, None).unwrap(),
                        ..commit(open.history, &[])
                    };
                    self.append(record).await;
                }
            }
            _ => self.append(commit(history, &bytes)).await,
        }
    }

    /// What a reader of `history` that holds everything up to `after` must return.
    fn expected(&self, history: HistoryId, after: Seq) -> Vec<Seen> {
        let is_commit = |seen: &&Seen| seen.1.history == history && seen.1.kind == RecordKind::Commit;
        let start = self.appended.iter().filter(is_commit).find(|seen| seen.1.seq == after);
        let start = start.map_or(Lsn::ZERO, |seen| seen.0);
        self.appended.iter().filter(|seen| seen.0 > start && seen.1.history == history).cloned().collect()
    }

    fn end(&self, history: HistoryId) -> u64 {
        self.log.history_end(history).unwrap().position.seq.0
    }
}

async fn take(tail: &mut ArchiveTail, count: usize, into: &mut Vec<Seen>) {
    for _ in 0..count {
        match tail.try_next().await.unwrap() {
            Some(frame) => into.push(seen(&frame)),
            None => return,
        }
    }
}

async fn run(seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (log, recovery) = open_with(config(dir.path()), Lsn::ZERO).unwrap();
    for history in HISTORIES {
        start(&log, &recovery, history);
    }
    let store = FaultyStore::default();
    let archiver = archiver(&log, &store);
    let mut model = Model { random: StdRng::seed_from_u64(seed), log, appended: Vec::new(), open: Vec::new() };
    let mut follower = archiver.archive().replay(Some(&model.log), Lsn::ZERO);
    let mut followed = Vec::new();
    let mut readers: Vec<(HistoryId, Seq, ArchiveTail, Vec<Seen>)> = Vec::new();
    for _ in 0..300 {
        match model.random.random_range(0..20) {
            0 => model.log.roll().await.unwrap(),
            1 => archiver.catch_up().await.unwrap(),
            2 => {
                // What is open keeps the log back; ended transactions let it go.
                let upto = Lsn(model.random.random_range(0..=model.appended.len() as u64));
                model.log.truncate(upto).unwrap();
            }
            3 => {
                let count = model.random.random_range(0..40);
                take(&mut follower, count, &mut followed).await;
            }
            4 if readers.len() < 6 => {
                let history = HISTORIES[model.random.random_range(0..3)];
                let after = Seq(model.random.random_range(0..=model.end(history)));
                let tail = archiver.archive().tail(Some(&model.log), history, after).await;
                readers.push((history, after, tail.unwrap(), Vec::new()));
            }
            5..=6 if !readers.is_empty() => {
                let at = model.random.random_range(0..readers.len());
                let count = model.random.random_range(0..20);
                let (_, _, tail, read) = &mut readers[at];
                take(tail, count, read).await;
            }
            _ => model.append_something().await,
        }
    }
    take(&mut follower, usize::MAX, &mut followed).await;
    assert_eq!(followed, model.appended, "all, followed");
    for (history, after, mut tail, mut read) in readers {
        take(&mut tail, usize::MAX, &mut read).await;
        assert_eq!(read, model.expected(history, after), "history {history} after seq {after}");
    }
    // The archive alone, after everything was sealed.
    model.log.roll().await.unwrap();
    archiver.catch_up().await.unwrap();
    let alone = super::archive(&store);
    alone.refresh().await.unwrap();
    let from = Lsn(model.random.random_range(0..model.appended.len() as u64));
    let frames = drain(alone.replay(None, from)).await.unwrap();
    assert_eq!(frames.iter().map(seen).collect::<Vec<_>>(), model.appended[from.0 as usize..], "alone");
    for history in HISTORIES {
        let after = Seq(model.random.random_range(0..=model.end(history)));
        let frames = drain(alone.tail(None, history, after).await.unwrap()).await.unwrap();
        let frames: Vec<_> = frames.iter().map(seen).collect();
        assert_eq!(frames, model.expected(history, after), "history {history} alone after seq {after}");
    }
}

#[tokio::test]
async fn archive_and_log_give_what_was_appended() {
    let only: Option<u64> = std::env::var("TAILRACE_ARCHIVE_SEED").ok().and_then(|seed| seed.parse().ok());
    let count = std::env::var("TAILRACE_ARCHIVE_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(20);
    let seeds = only.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        let replay = format!(
            "TAILRACE_ARCHIVE_SEED={seed} cargo test -p tailrace-wal --test it archive_and_log_give_what_was_appended"
        );
        let done = tokio::spawn(run(seed)).await;
        assert!(done.is_ok(), "seed {seed} failed; again: {replay}");
    }
}
