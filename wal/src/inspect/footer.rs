//! A sealed segment's footer against the frames that it indexes.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    HistoryHeader, HistoryId, LogError, Lsn,
    footer::{ENTRY_LEN, Footer, decode_entry},
    frame::Salt,
    history::Folded,
    index::{HistorySummary, RecordEntry},
    recovery::scan::Window,
    segment::Predecessor,
};

/// Entries read at once.
const ENTRIES_READ: usize = 1024;

/// Takes the records of a segment as they are read and compares.
pub(super) struct FooterCheck {
    footer: Footer,
    breaks: HashMap<HistoryId, Lsn>,
    /// Entries read ahead; those before `taken` are done with.
    entries: Bytes,
    taken: usize,
    /// Of the next record.
    place: u64,
    hashed: Xxh3,
    /// By their first record here.
    numbers: HashMap<HistoryId, u32>,
    summaries: BTreeMap<HistoryId, HistorySummary>,
}

/// Where the footer is wrong, and how.
type Wrong = (u64, String);

impl FooterCheck {
    pub(super) fn new(footer: Footer, salt: Salt) -> Self {
        let broken = |(id, summary): &(HistoryId, HistorySummary)| Some((*id, summary.broken?.lsn));
        Self {
            breaks: footer.histories.iter().filter_map(broken).collect(),
            footer,
            entries: Bytes::new(),
            taken: 0,
            place: 0,
            hashed: Xxh3::with_seed(salt.0),
            numbers: HashMap::new(),
            summaries: BTreeMap::new(),
        }
    }

    pub(super) fn frames_end(&self) -> u64 {
        self.footer.frames_end
    }

    /// Where it says that `history` was last begun anew.
    pub(super) fn breaks(&self, history: HistoryId) -> Option<Lsn> {
        self.breaks.get(&history).copied()
    }

    /// Compares the next record with its entry.
    pub(super) fn take(
        &mut self,
        window: &mut Window<'_>,
        record: &HistoryHeader,
        folded: &Folded,
        lsn: Lsn,
        offset: u64,
        frame_len: u32,
    ) -> Result<Result<(), Wrong>, LogError> {
        let at = self.footer.entry_offset(self.place);
        if at >= self.footer.summaries_offset {
            return Ok(Err((offset, format!("the footer does not count the record of LSN {lsn}"))));
        }
        if self.taken == self.entries.len() {
            let left = (self.footer.summaries_offset - at) as usize;
            self.entries = window.up_to(at, left.min(ENTRIES_READ * ENTRY_LEN))?;
            self.taken = 0;
            self.hashed.update(&self.entries);
        }
        let Some(bytes) = self.entries.get(self.taken..self.taken + ENTRY_LEN) else {
            return Ok(Err((at, "the file ends within the record entries of the footer".into())));
        };
        let entry = decode_entry(bytes);
        self.taken += ENTRY_LEN;
        self.place += 1;
        let next = self.numbers.len() as u32;
        let history = *self.numbers.entry(record.history).or_insert(next);
        let found = RecordEntry { offset, len: frame_len, seq: record.seq, history, kind: record.kind };
        HistorySummary::take(self.summaries.entry(record.history), folded, record, lsn);
        Ok(match entry {
            Ok(entry) if entry == found => Ok(()),
            Ok(_) => Err((at, format!("the footer's entry of LSN {lsn} is not what its frame says"))),
            Err(error) => Err((at, format!("the footer's entry of LSN {lsn}: {error}"))),
        })
    }

    /// Compares the rest when all frames are read.
    pub(super) fn finish(self, end: u64, last: Predecessor) -> Result<(), Wrong> {
        let Self { footer, hashed, numbers, summaries, .. } = self;
        let at = footer.frames_end;
        if end != footer.frames_end || last != footer.last {
            let (last, counted) = (last.last, footer.last.last);
            let reason = format!(
                "the frames end at byte {end} with LSN {last}, the footer says byte {at} and LSN {counted}, or another record"
            );
            return Err((at, reason));
        }
        if hashed.digest() != footer.records_hash {
            return Err((at, "the hash of the footer's record entries is wrong".into()));
        }
        let at = footer.summaries_offset;
        if footer.durable > footer.last.last {
            return Err((at, format!("the footer states LSN {} durable, beyond its last", footer.durable)));
        }
        let in_order = |(number, (id, _)): (usize, &(HistoryId, _))| numbers.get(id) == Some(&(number as u32));
        if numbers.len() != footer.histories.len() || !footer.histories.iter().enumerate().all(in_order) {
            return Err((at, "the footer lists other histories than its frames".into()));
        }
        for (id, stated) in &footer.histories {
            let is_same = summaries.get(id).is_some_and(|found| {
                let of = |summary: &HistorySummary| {
                    let large = summary.large.iter().map(|large| (large.seq, large.lsn));
                    (summary.boundary, summary.first, summary.last, summary.end, large.collect::<Vec<_>>())
                };
                of(found) == of(stated)
            });
            if !is_same {
                return Err((at, format!("the footer's summary of history {id} is not what its frames say")));
            }
        }
        Ok(())
    }
}
