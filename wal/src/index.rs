//! What a segment holds, per record and per history.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{Epoch, HistoryEnd, HistoryId, Lsn, RecordKind, Seq, TransactionNumber};

/// Where one record is. Its LSN follows from its place in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordEntry {
    /// From the start of the file, bytes.
    pub(crate) offset: u64,
    /// Of the frame, bytes.
    pub(crate) len: u32,
    /// As in the history half.
    pub(crate) seq: Seq,
    /// Number of the history in [`RecordIndex::histories`].
    pub(crate) history: u32,
    pub(crate) kind: RecordKind,
}

/// Every record of one segment, in LSN order.
#[derive(Debug, Default)]
pub(crate) struct RecordIndex {
    pub(crate) entries: Vec<RecordEntry>,
    /// History ids by number.
    pub(crate) histories: Vec<HistoryId>,
    numbers: HashMap<HistoryId, u32>,
    /// Per history number: places in `entries`.
    places: Vec<Vec<u32>>,
}

impl RecordIndex {
    /// Adds the next record.
    pub(crate) fn push(&mut self, history: HistoryId, kind: RecordKind, seq: Seq, offset: u64, len: u32) {
        let number = self.number_or_new(history);
        self.push_entry(RecordEntry { offset, len, seq, history: number, kind });
    }

    /// Adds the next record, of a history that has its number.
    pub(crate) fn push_entry(&mut self, entry: RecordEntry) {
        let place = self.entries.len() as u32;
        if let Some(places) = self.places.get_mut(entry.history as usize) {
            places.push(place);
        }
        self.entries.push(entry);
    }

    /// The number of a history, given now if it has none.
    pub(crate) fn number_or_new(&mut self, history: HistoryId) -> u32 {
        *self.numbers.entry(history).or_insert_with(|| {
            self.histories.push(history);
            self.places.push(Vec::new());
            self.histories.len() as u32 - 1
        })
    }

    /// Places of a history's records, in LSN order.
    pub(crate) fn places(&self, history: HistoryId) -> &[u32] {
        self.numbers.get(&history).and_then(|number| self.places.get(*number as usize)).map_or(&[], Vec::as_slice)
    }

    /// Place of the last commit of `seq`. The last, because a repair may have begun a history anew.
    pub(crate) fn commit(&self, history: HistoryId, seq: Seq) -> Option<u32> {
        self.places(history).iter().rev().copied().find(|place| {
            self.entries.get(*place as usize).is_some_and(|entry| entry.kind == RecordKind::Commit && entry.seq == seq)
        })
    }
}

/// One history within one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistorySummary {
    /// Last seq committed before its first record here.
    pub(crate) boundary: Seq,
    /// Its first and last record here.
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
    /// Its last commit here.
    pub(crate) end: Option<HistoryEnd>,
    /// Where it was last begun anew.
    pub(crate) broken: Option<Floor>,
    /// Commits that end a transaction in fragments.
    pub(crate) large: Vec<LargeCommit>,
    /// Transactions open after its last record here.
    pub(crate) open: Vec<OpenTransaction>,
}

/// Where a history starts anew: records at or below `lsn` are not continued by those after it, which start after
/// `seq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Floor {
    pub(crate) lsn: Lsn,
    pub(crate) seq: Seq,
}

/// A commit whose transaction had fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LargeCommit {
    pub(crate) seq: Seq,
    pub(crate) lsn: Lsn,
    /// Of fragment 0; [`Lsn::ZERO`] when that is not known.
    pub(crate) first_fragment: Lsn,
}

/// A transaction with fragments that was committed or aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndedTransaction {
    /// Of the commit or abort.
    pub(crate) lsn: Lsn,
    pub(crate) first_fragment: Lsn,
}

/// A transaction with fragments and neither commit nor abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenTransaction {
    pub(crate) epoch: Epoch,
    pub(crate) number: TransactionNumber,
    /// Of the first fragment seen.
    pub(crate) first_fragment: Lsn,
    /// Last seq committed before that.
    pub(crate) after: Seq,
    /// So far.
    pub(crate) fragments: u32,
}
