//! Another node's history, from which the log under test takes records verbatim.

use rand::{Rng, rngs::StdRng};
use tailrace_wal::{
    CommitTime, Epoch, FragmentNumber, HistoryHeader, HistoryId, Payload, PayloadHash, Position, RecordKind, Seq,
    TransactionNumber, VerbatimRecord,
};

use crate::support::part;

/// A primary that makes its records when they are asked for.
pub(crate) struct Peer {
    pub(crate) history: HistoryId,
    pub(crate) records: Vec<VerbatimRecord>,
    position: Position,
    time: CommitTime,
    epoch: Epoch,
    next_transaction: u64,
    open: Option<Open>,
}

struct Open {
    transaction: TransactionNumber,
    after: Seq,
    fragments: Vec<PayloadHash>,
}

impl Peer {
    pub(crate) fn new(history: HistoryId) -> Self {
        Self {
            history,
            records: Vec::new(),
            position: Position::start(history),
            time: CommitTime(1_000_000),
            epoch: Epoch { counter: 1, nonce: 11 },
            next_transaction: 1,
            open: None,
        }
    }

    /// The record number `at`, made now if it is the next.
    pub(crate) fn record(&mut self, at: usize, random: &mut StdRng, bytes: &[u8]) -> VerbatimRecord {
        while self.records.len() <= at {
            let record = self.make(random, bytes);
            self.records.push(record);
        }
        self.records[at].clone()
    }

    fn make(&mut self, random: &mut StdRng, bytes: &[u8]) -> VerbatimRecord {
        if self.open.is_none() && random.random_bool(0.1) {
            self.epoch = Epoch { counter: self.epoch.counter + 1, nonce: random.random() };
        }
        let begins = self.open.is_none() && random.random_bool(0.2);
        if begins {
            let transaction = self.number();
            self.open = Some(Open { transaction, after: self.position.seq, fragments: Vec::new() });
        }
        let goes_on = self.open.as_ref().is_some_and(|open| open.fragments.is_empty());
        let (kind, list) = match &self.open {
            Some(_) if goes_on || random.random_bool(0.3) => (RecordKind::Fragment, vec![]),
            Some(_) if random.random_bool(0.2) => (RecordKind::Abort, vec![]),
            Some(open) if random.random_bool(0.5) => (RecordKind::Commit, open.fragments.clone()),
            _ => (RecordKind::Commit, vec![]),
        };
        let payload = match kind {
            RecordKind::Abort => Payload::empty(),
            _ => Payload::new(vec![part(bytes)], list.clone(), None).unwrap(),
        };
        let ends = kind == RecordKind::Abort || !list.is_empty();
        let belongs = ends || kind == RecordKind::Fragment;
        let transaction = match &self.open {
            Some(open) if belongs => open.transaction,
            _ => self.number(),
        };
        let fragment = match (&self.open, kind) {
            (Some(open), RecordKind::Fragment) => open.fragments.len(),
            (_, RecordKind::Commit) => list.len(),
            _ => 0,
        };
        self.time = CommitTime(self.time.0 + random.random_range(1..1000));
        if kind == RecordKind::Commit {
            self.position = self.position.follow(self.epoch, kind, self.time, payload.hash);
        }
        let held = self.open.as_ref().filter(|_| !ends).map(|open| open.after);
        let header = HistoryHeader {
            kind,
            history: self.history,
            epoch: self.epoch,
            transaction,
            fragment: FragmentNumber(fragment as u32),
            seq: self.position.seq,
            restart_seq: held.map_or(self.position.seq, |after| after.min(self.position.seq)),
            chain: self.position.chain,
            commit_time: self.time,
            payload_hash: payload.hash,
            directory_len: payload.directory_bytes.len() as u32,
            parts_len: payload.parts_len() as u32,
        };
        match &mut self.open {
            Some(open) if kind == RecordKind::Fragment => open.fragments.push(payload.hash),
            open if ends => *open = None,
            _ => {}
        }
        VerbatimRecord { header, payload, skipped: random.random_bool(0.1) }
    }

    fn number(&mut self) -> TransactionNumber {
        let number = TransactionNumber(self.next_transaction);
        self.next_transaction += 1;
        number
    }
}
