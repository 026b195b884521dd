//! Follows one history record by record.

use std::collections::BTreeMap;

use super::report::{HistoryReport, OpenReport};
use crate::{
    CommitTime, Epoch, FragmentNumber, HistoryHeader, HistoryId, Lsn, Payload, PayloadHash, RecordKind, Seq,
    TransactionNumber,
    history::{Folded, HistoryFold},
};

/// The state of one history's check.
#[derive(Debug, Default)]
pub(super) struct HistoryCheck {
    fold: HistoryFold,
    /// Payload hashes of open transactions' fragments, where the first was seen.
    fragments: BTreeMap<(Epoch, TransactionNumber), Vec<PayloadHash>>,
    records: u64,
    bytes: u64,
    first_seq: Option<Seq>,
    last: Option<HistoryHeader>,
    /// The next commit need not come after `last`.
    is_interrupted: bool,
    restart_seq: Seq,
    epochs: u64,
    breaks: u64,
}

impl HistoryCheck {
    /// Takes the next record. `may_break` says whether it may be the first after a repair. Returns what is wrong.
    pub(super) fn take(
        &mut self,
        header: &HistoryHeader,
        payload: &Payload,
        lsn: Lsn,
        bytes: u32,
        may_break: bool,
    ) -> Result<Folded, String> {
        let before = self.fold.logged();
        let folded = self.fold.take(header, lsn);
        if folded.broken.is_some() {
            if !may_break {
                let at = before.map(|position| position.to_string()).unwrap_or_default();
                return Err(format!(
                    "the record at {} does not continue its history, which was at {at} before",
                    header.position()
                ));
            }
            self.breaks += 1;
            self.fragments.clear();
            self.is_interrupted = true;
        }
        self.fragments(header, payload)?;
        if header.kind == RecordKind::Commit {
            self.commit(header)?;
        }
        if let Some(open) = self.fold.open.values().find(|open| open.after < header.restart_seq) {
            return Err(format!(
                "restart seq {} passes over transaction {} of epoch {}, which began after seq {} and is open",
                header.restart_seq, open.number, open.epoch, open.after
            ));
        }
        self.restart_seq = header.restart_seq;
        self.records += 1;
        self.bytes += u64::from(bytes);
        Ok(folded)
    }

    /// Records are missing: what follows need not continue what was read.
    pub(super) fn interrupt(&mut self) {
        self.fold = HistoryFold::default();
        self.fragments.clear();
        self.is_interrupted = true;
    }

    fn commit(&mut self, header: &HistoryHeader) -> Result<(), String> {
        if let Some(last) = self.last.as_ref().filter(|_| !self.is_interrupted) {
            if header.commit_time <= last.commit_time {
                return Err(format!(
                    "seq {} has commit time {}, seq {} before it {}",
                    header.seq, header.commit_time, last.seq, last.commit_time
                ));
            }
            if header.epoch != last.epoch && header.epoch.counter <= last.epoch.counter {
                return Err(format!("epoch {} follows epoch {}", header.epoch, last.epoch));
            }
        }
        if self.epochs == 0 || self.last.is_none_or(|last| last.epoch != header.epoch) {
            self.epochs += 1;
        }
        self.first_seq.get_or_insert(header.seq);
        self.last = Some(*header);
        self.is_interrupted = false;
        Ok(())
    }

    /// Fragments are numbered from 0, and their commit lists the hash of each.
    fn fragments(&mut self, header: &HistoryHeader, payload: &Payload) -> Result<(), String> {
        let key = (header.epoch, header.transaction);
        let listed = &payload.directory.fragments;
        match header.kind {
            RecordKind::Fragment if header.fragment == FragmentNumber(0) => {
                self.fragments.insert(key, vec![payload.hash]);
            }
            RecordKind::Fragment => {
                if let Some(seen) = self.fragments.get_mut(&key) {
                    if header.fragment.0 as usize != seen.len() {
                        return Err(format!(
                            "fragment {} of transaction {} stands where fragment {} was expected",
                            header.fragment,
                            header.transaction,
                            seen.len()
                        ));
                    }
                    seen.push(payload.hash);
                }
            }
            RecordKind::Abort => {
                self.fragments.remove(&key);
            }
            RecordKind::Commit => {
                if listed.len() != header.fragment.0 as usize {
                    return Err(format!(
                        "the commit of seq {} has {} fragments, its directory lists {}",
                        header.seq,
                        header.fragment,
                        listed.len()
                    ));
                }
                let seen = self.fragments.remove(&key);
                if let Some(seen) = seen.filter(|seen| seen != listed) {
                    let at = seen.iter().zip(listed).take_while(|(seen, listed)| seen == listed).count();
                    return Err(format!(
                        "the commit of seq {} lists another fragment {at} than the one that was logged",
                        header.seq
                    ));
                }
            }
        }
        if header.kind != RecordKind::Commit && !listed.is_empty() {
            return Err(format!("a {:?} record lists fragments", header.kind));
        }
        Ok(())
    }

    pub(super) fn report(self, id: HistoryId) -> HistoryReport {
        let open = self.fold.open.values().map(|open| OpenReport {
            epoch: open.epoch,
            number: open.number,
            first_fragment: open.first_fragment,
            fragments: open.fragments,
        });
        HistoryReport {
            id,
            records: self.records,
            bytes: self.bytes,
            first_seq: self.first_seq,
            last_seq: self.last.map(|last| last.seq),
            epochs: self.epochs,
            epoch: self.last.map(|last| last.epoch).unwrap_or_default(),
            chain: self.last.map(|last| last.chain).unwrap_or_default(),
            commit_time: self.last.map_or(CommitTime::default(), |last| last.commit_time),
            restart_seq: self.restart_seq,
            breaks: self.breaks,
            open: open.collect(),
        }
    }
}
