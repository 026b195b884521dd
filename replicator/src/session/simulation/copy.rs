//! A replica's copy of a history.

use std::collections::HashSet;

use tailrace_wal::{Epoch, FragmentNumber, HistoryHeader, HistoryId, Position, RecordKind, Seq, TransactionNumber};

/// A replica's copy: its log, of which `durable` records survive a crash, and what waits.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) records: Vec<HistoryHeader>,
    pub(super) seen: HashSet<Key>,
    pub(super) durable: usize,
    pub(super) waiting: Vec<Vec<HistoryHeader>>,
    pub(super) base: Position,
    pub(super) base_restart: Seq,
    pub(super) repairs: u32,
}

pub(super) type Key = (Epoch, TransactionNumber, RecordKind, FragmentNumber);

impl Copy {
    pub(super) fn new(id: HistoryId) -> Self {
        let base = Position::start(id);
        Self {
            records: Vec::new(),
            seen: HashSet::new(),
            durable: 0,
            waiting: Vec::new(),
            base,
            base_restart: Seq::ZERO,
            repairs: 0,
        }
    }

    pub(super) fn position(&self) -> (Position, Seq) {
        let commit = self.records.iter().rev().find(|record| record.kind == RecordKind::Commit);
        let position = commit.map_or(self.base, |record| record.position());
        (position, self.records.last().map_or(self.base_restart, |record| record.restart_seq.max(self.base_restart)))
    }

    pub(super) fn apply(&mut self, chunk: Vec<HistoryHeader>) {
        for record in chunk {
            let (position, _) = self.position();
            let seen = &self.seen;
            if seen.contains(&key(&record)) {
                continue;
            }
            match record.kind {
                RecordKind::Commit if record.seq <= position.seq => continue,
                RecordKind::Commit => {
                    let next = position.follow(record.epoch, record.kind, record.commit_time, record.payload_hash);
                    assert_eq!(next, record.position(), "a hole or a fork");
                    let fragments = (0..record.fragment.0).filter(|&fragment| {
                        seen.contains(&(
                            record.epoch,
                            record.transaction,
                            RecordKind::Fragment,
                            FragmentNumber(fragment),
                        ))
                    });
                    assert_eq!(fragments.count(), record.fragment.0 as usize, "a commit without its fragments");
                }
                // Older ones come after a repair, whose position has open transactions.
                _ => assert!(record.seq <= position.seq, "out of order"),
            }
            self.seen.insert(key(&record));
            self.records.push(record);
        }
    }

    pub(super) fn crash(&mut self) {
        self.records.truncate(self.durable);
        self.seen = self.records.iter().map(key).collect();
        self.waiting.clear();
    }
}

pub(super) fn key(record: &HistoryHeader) -> Key {
    (record.epoch, record.transaction, record.kind, record.fragment)
}
