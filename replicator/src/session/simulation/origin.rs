//! A primary's histories.

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng};
use tailrace_engine::EpochEntry;
use tailrace_wal::{
    CommitTime, Epoch, FragmentNumber, HistoryHeader, HistoryId, PayloadHash, Position, RecordKind, Seq,
    TransactionNumber,
};

use crate::{
    session::{Catalog, HistoryView},
    wire::Offer,
};

/// A history at its primary: all that was ever written, and how far back the log reaches.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) records: Vec<HistoryHeader>,
    pub(super) position: Position,
    pub(super) epochs: Vec<EpochEntry>,
    pub(super) open: BTreeMap<TransactionNumber, (Seq, u32)>,
    pub(super) epoch: Epoch,
    pub(super) new_epoch: bool,
    pub(super) next_transaction: u64,
    pub(super) retained_after: Seq,
    pub(super) on: bool,
}

impl Origin {
    pub(super) fn new(id: HistoryId) -> Self {
        Self {
            records: Vec::new(),
            position: Position::start(id),
            epochs: Vec::new(),
            open: BTreeMap::new(),
            epoch: Epoch { counter: 1, nonce: 9 },
            new_epoch: true,
            next_transaction: 1,
            retained_after: Seq::ZERO,
            on: true,
        }
    }

    pub(super) fn write(&mut self, kind: RecordKind, transaction: TransactionNumber, fragment: u32) {
        let time = CommitTime(self.records.len() as i64);
        let payload_hash = PayloadHash(transaction.0 * 1_000 + u64::from(fragment));
        if kind == RecordKind::Commit {
            if std::mem::take(&mut self.new_epoch) {
                self.epochs.push(EpochEntry {
                    epoch: self.epoch,
                    first_seq: self.position.seq.next(),
                    chain_before: self.position.chain,
                });
            }
            self.position = self.position.follow(self.epoch, kind, time, payload_hash);
        }
        let restart_seq = self.open.values().map(|(seq, _)| *seq).min().unwrap_or(self.position.seq);
        self.records.push(HistoryHeader {
            kind,
            history: self.position.history,
            epoch: self.epoch,
            transaction,
            fragment: FragmentNumber(fragment),
            seq: self.position.seq,
            restart_seq,
            chain: self.position.chain,
            commit_time: time,
            payload_hash,
            directory_len: 0,
            parts_len: 0,
        });
    }

    pub(super) fn step(&mut self, rng: &mut StdRng) {
        match rng.random_range(0..10) {
            0..4 => {
                let number = TransactionNumber(self.next_transaction);
                self.next_transaction += 1;
                self.write(RecordKind::Commit, number, 0);
            }
            4..7 => {
                let number = if self.open.len() < 3 && rng.random_bool(0.5) {
                    self.next_transaction += 1;
                    TransactionNumber(self.next_transaction - 1)
                } else if let Some((&number, _)) = self.open.first_key_value() {
                    number
                } else {
                    return;
                };
                let at = self.position.seq;
                let entry = self.open.entry(number).or_insert((at, 0));
                let fragment = entry.1;
                entry.1 += 1;
                self.write(RecordKind::Fragment, number, fragment);
            }
            7..9 => {
                if let Some((number, (_, fragments))) = self.open.pop_last() {
                    let kind = if rng.random_bool(0.8) { RecordKind::Commit } else { RecordKind::Abort };
                    self.write(kind, number, fragments);
                }
            }
            _ => {}
        }
    }

    /// A restart: open transactions are aborted, the next commit begins an epoch.
    pub(super) fn restart(&mut self) {
        while let Some((number, (_, fragments))) = self.open.pop_first() {
            self.write(RecordKind::Abort, number, fragments);
        }
        self.epoch = Epoch { counter: self.epoch.counter + 1, nonce: self.epoch.nonce * 3 };
        self.new_epoch = true;
    }

    /// Where a reader after the commit of `after` begins.
    pub(super) fn index_after(&self, after: Seq) -> usize {
        if after == Seq::ZERO {
            return 0;
        }
        1 + self
            .records
            .iter()
            .position(|record| record.kind == RecordKind::Commit && record.seq == after)
            .expect("only positions of this history are opened")
    }
}

#[derive(Debug, Default)]
pub(super) struct Origins(pub(super) BTreeMap<HistoryId, Origin>);

impl Origins {
    pub(super) fn offers(&self) -> Vec<Offer> {
        let on = self.0.iter().filter(|(_, origin)| origin.on);
        on.map(|(&history, origin)| Offer { name: format!("db{}", history.0[0]), history, position: origin.position })
            .collect()
    }
}

impl Catalog for Origins {
    fn history(&self, id: HistoryId) -> Option<HistoryView> {
        let origin = self.0.get(&id)?;
        Some(HistoryView {
            name: format!("db{}", id.0[0]),
            on: origin.on,
            end: origin.position,
            commit_time: CommitTime(0),
            epochs: origin.epochs.clone(),
            retained_after: origin.retained_after,
            ended: false,
        })
    }

    fn behind(&self, _replica: &str) -> Vec<(HistoryId, u64)> {
        Vec::new()
    }

    fn position_at(&self, id: HistoryId, seq: Seq) -> Option<Position> {
        let origin = self.0.get(&id)?;
        if seq <= origin.retained_after {
            return None;
        }
        let commit = origin.records.iter().find(|record| record.kind == RecordKind::Commit && record.seq == seq)?;
        Some(commit.position())
    }
}
