//! What the log was told, what it answered, and therefore what must be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use futures::{FutureExt, future::BoxFuture};
use tailrace_wal::{
    Appending, CommitTime, Epoch, Frame, HistoryEnd, HistoryHeader, HistoryId, LogError, Lsn, PayloadHash, Persistence,
    Position, RecordKind, Recovery, Seq, TransactionNumber, Written,
};

/// The error says what was wrong.
pub(crate) type Check<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*));
        }
    };
}
pub(crate) use ensure;

/// A record that is in the log, or was and is truncated.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) facts: Facts,
    pub(crate) position: Position,
    pub(crate) restart_seq: Seq,
    pub(crate) commit_time: CommitTime,
    /// Of a commit of a transaction in fragments, and of its fragments.
    pub(crate) first_fragment: Option<Lsn>,
    /// What was known to be durable before it was written; its frame states at least that.
    pub(crate) stated: Lsn,
}

/// What is known of a record before it is written.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) history: HistoryId,
    pub(crate) kind: RecordKind,
    /// `None`: the writer gives it one.
    pub(crate) transaction: Option<TransactionNumber>,
    pub(crate) fragment: u32,
    pub(crate) payload: PayloadHash,
    pub(crate) frame_len: u64,
    pub(crate) skipped: bool,
    /// Of a record from elsewhere.
    pub(crate) verbatim: Option<HistoryHeader>,
}

/// What the writer, or a frame, says of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Said {
    lsn: Lsn,
    position: Position,
    restart_seq: Seq,
    commit_time: CommitTime,
}

/// An append that was asked for.
struct Submission {
    number: u64,
    facts: Facts,
    /// Whether it should be taken.
    is_valid: bool,
    persistence: Persistence,
    wait: Wait,
    /// Its LSN, once it is written.
    lsn: Option<Lsn>,
}

enum Wait {
    Written(Appending),
    Durable(BoxFuture<'static, Result<Written, LogError>>),
    /// Poisoned: it may be there.
    Unknown,
}

/// One history, folded.
#[derive(Debug, Clone)]
pub(crate) struct Fold {
    pub(crate) end: HistoryEnd,
    /// The epoch begun since the log was opened.
    epoch: Option<Epoch>,
    pub(crate) open: BTreeMap<(Epoch, TransactionNumber), Open>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Open {
    pub(crate) first_fragment: Lsn,
    pub(crate) after: Seq,
    pub(crate) fragments: u32,
}

/// All that is known of one log.
pub(crate) struct Oracle {
    /// From LSN 1 on.
    pub(crate) entries: Vec<Entry>,
    pub(crate) folds: BTreeMap<HistoryId, Fold>,
    /// Oldest record retained.
    pub(crate) first: Lsn,
    /// The oldest that may still be on the disk: a truncation failed half way.
    pub(crate) first_left: Lsn,
    /// While a truncation runs: how far it may go.
    pub(crate) truncates_to: Option<Lsn>,
    /// Everything up to here survives.
    pub(crate) durable: Lsn,
    submissions: Vec<Submission>,
    next_number: u64,
    /// The log's own mark.
    mark: Option<tokio::sync::watch::Receiver<Lsn>>,
    /// A call may fail for want of space, or did since the last step: what follows it may be refused too.
    pub(crate) may_refuse: bool,
    /// Refused for want of space in the last step.
    pub(crate) refused: u64,
    pub(crate) is_poisoned: bool,
    pub(crate) failure: Option<String>,
}

impl Fold {
    pub(crate) fn new(history: HistoryId) -> Self {
        let end = HistoryEnd { position: Position::start(history), commit_time: CommitTime(0) };
        Self { end, epoch: None, open: BTreeMap::new() }
    }

    /// Checks a record against those before it and takes it in. Returns its first fragment's LSN, if it has any.
    pub(crate) fn take(&mut self, facts: &Facts, said: &Said) -> Check<Option<Lsn>> {
        let Said { lsn, position, restart_seq, commit_time } = *said;
        let end = self.end;
        let number = facts.transaction;
        let key = match (facts.kind, number) {
            (RecordKind::Abort, Some(number)) if facts.verbatim.is_none() => {
                let current = self.epoch.map(|epoch| (epoch, number)).filter(|key| self.open.contains_key(key));
                let found = current.or_else(|| self.open.keys().find(|(_, open)| *open == number).copied());
                Some(found.unwrap_or((position.epoch, number)))
            }
            (_, number) => number.map(|number| (position.epoch, number)),
        };
        if facts.kind == RecordKind::Commit {
            let next = end.position.follow(position.epoch, facts.kind, commit_time, facts.payload);
            ensure!(next == position, "{lsn} is at {position}, {next} follows {}", end.position);
            ensure!(commit_time > end.commit_time, "{lsn}: commit time {commit_time:?} after {:?}", end.commit_time);
        } else {
            let here = (end.position.seq, end.position.chain);
            ensure!((position.seq, position.chain) == here, "{lsn} stands at {position}, not at {}", end.position);
        }
        match &facts.verbatim {
            Some(header) => {
                let is_same = header.position() == position
                    && header.restart_seq == restart_seq
                    && header.commit_time == commit_time;
                ensure!(is_same, "{lsn} is not verbatim: {said:?} of {header:?}");
            }
            None => {
                let is_old = facts.kind == RecordKind::Abort;
                match self.epoch {
                    _ if is_old => ensure!(
                        key.is_none_or(|(epoch, _)| epoch == position.epoch),
                        "{lsn} aborts {number:?} in epoch {}, it is open as {key:?}",
                        position.epoch
                    ),
                    None => {
                        let before = end.position.epoch;
                        ensure!(position.epoch.counter > before.counter, "{lsn} goes on in {before} after a start");
                        self.epoch = Some(position.epoch);
                    }
                    Some(epoch) => ensure!(position.epoch == epoch, "{lsn} in {}, not {epoch}", position.epoch),
                }
            }
        }
        let own = key.and_then(|key| self.open.get(&key)).copied();
        let others = self.open.iter().filter(|(open, _)| Some(**open) != key).map(|(_, open)| open.after);
        let begun = (facts.kind == RecordKind::Fragment).then(|| own.map_or(end.position.seq, |open: Open| open.after));
        let expected = others.chain(begun).min().map_or(position.seq, |after| after.min(position.seq));
        ensure!(restart_seq == expected, "{lsn} has restart seq {restart_seq}, {expected} is right");
        let mut first_fragment = own.map(|open| open.first_fragment);
        match (facts.kind, key) {
            (RecordKind::Fragment, Some(key)) => {
                let open =
                    self.open.entry(key).or_insert(Open { first_fragment: lsn, after: end.position.seq, fragments: 0 });
                ensure!(open.fragments == facts.fragment, "{lsn}: fragment {} of {open:?}", facts.fragment);
                open.fragments += 1;
                first_fragment = Some(open.first_fragment);
            }
            (kind, Some(key)) => {
                let open = self.open.remove(&key).map_or(0, |open| open.fragments);
                let is_whole = kind != RecordKind::Commit || facts.fragment == open;
                ensure!(is_whole, "{lsn} commits {} fragments, {open} are there", facts.fragment);
            }
            _ => {}
        }
        if facts.kind == RecordKind::Commit {
            self.end = HistoryEnd { position, commit_time };
        }
        Ok(first_fragment)
    }
}

impl Entry {
    fn said(&self, lsn: Lsn) -> Said {
        Said { lsn, position: self.position, restart_seq: self.restart_seq, commit_time: self.commit_time }
    }

    /// Whether a frame is this record.
    pub(crate) fn check(&self, frame: &Frame) -> Check {
        let header = &frame.header;
        let facts = &self.facts;
        let is_same = header.history == facts.history
            && header.kind == facts.kind
            && header.payload_hash == facts.payload
            && frame.payload.hash == facts.payload
            && facts.transaction.is_none_or(|number| number == header.transaction)
            && header.position() == self.position
            && header.restart_seq == self.restart_seq
            && header.commit_time == self.commit_time
            && frame.skipped == facts.skipped;
        ensure!(is_same, "{} is {header:?}, it was written as {self:?}", frame.lsn);
        Ok(())
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { history, kind, transaction, fragment, frame_len, .. } = &self.facts;
        let (Position { epoch, seq, .. }, restart) = (self.position, self.restart_seq);
        let (history, number) = (history.0[0], transaction.map_or(0, |number| number.0));
        write!(
            f,
            "history {history} {kind:?} {epoch}/{number}/{fragment} seq {seq} restart {restart} {frame_len} bytes"
        )
    }
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Self {
            entries: Vec::new(),
            folds: BTreeMap::new(),
            first: Lsn(1),
            first_left: Lsn(1),
            truncates_to: None,
            durable: Lsn::ZERO,
            submissions: Vec::new(),
            next_number: 0,
            mark: None,
            may_refuse: false,
            refused: 0,
            is_poisoned: false,
            failure: None,
        }
    }

    /// Last record written.
    pub(crate) fn appended(&self) -> Lsn {
        Lsn(self.entries.len() as u64)
    }

    pub(crate) fn entry(&self, lsn: Lsn) -> Option<&Entry> {
        self.entries.get((lsn.0 as usize).checked_sub(1)?)
    }

    /// Retained records of a history: LSN and entry.
    pub(crate) fn of_history(&self, history: HistoryId) -> impl Iterator<Item = (Lsn, &Entry)> {
        self.retained().filter(move |(_, entry)| entry.facts.history == history)
    }

    pub(crate) fn retained(&self) -> impl Iterator<Item = (Lsn, &Entry)> {
        let all = self.entries.iter().enumerate().map(|(index, entry)| (Lsn(index as u64 + 1), entry));
        all.skip(self.first.0 as usize - 1)
    }

    /// LSN of a retained commit; the record before the first retained one where it is not.
    pub(crate) fn commit_lsn(&self, history: HistoryId, seq: Seq) -> Lsn {
        self.of_history(history)
            .find(|(_, entry)| entry.facts.kind == RecordKind::Commit && entry.position.seq == seq)
            .map_or(Lsn(self.first.0 - 1), |(lsn, _)| lsn)
    }

    /// Readers of a history can start after this.
    pub(crate) fn retained_after(&self, history: HistoryId) -> Seq {
        let end = self.folds.get(&history).map_or(Seq::ZERO, |fold| fold.end.position.seq);
        let boundary = self.of_history(history).next().map_or(end, |(_, entry)| match entry.facts.kind {
            RecordKind::Commit => Seq(entry.position.seq.0 - 1),
            _ => entry.position.seq,
        });
        let cut = self.of_history(history).filter(|(_, entry)| {
            entry.facts.kind == RecordKind::Commit && entry.first_fragment.is_some_and(|lsn| lsn < self.first)
        });
        cut.map(|(_, entry)| entry.position.seq).max().unwrap_or_default().max(boundary)
    }

    /// First record of any transaction that is open, or is open again when a crash takes its end.
    pub(crate) fn first_needed(&self) -> Option<Lsn> {
        let open = self.folds.values().flat_map(|fold| fold.open.values()).map(|open| open.first_fragment);
        let is_end = |entry: &Entry| entry.facts.kind != RecordKind::Fragment;
        let ended = self.retained().filter(|(lsn, entry)| *lsn > self.durable && is_end(entry));
        open.chain(ended.filter_map(|(_, entry)| entry.first_fragment)).min()
    }

    /// Bytes of frames that are written and not durable.
    pub(crate) fn unsynced_bytes(&self) -> u64 {
        self.entries.iter().skip(self.durable.0 as usize).map(|entry| entry.facts.frame_len).sum()
    }

    pub(crate) fn submit(&mut self, facts: Facts, is_valid: bool, persistence: Persistence, appending: Appending) {
        let number = self.next_number;
        self.next_number += 1;
        let wait = Wait::Written(appending);
        self.submissions.push(Submission { number, facts, is_valid, persistence, wait, lsn: None });
    }

    /// Number of the next submission.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Everything that was submitted before this number is durable or was refused.
    pub(crate) fn check_settled(&self, number: u64) -> Check {
        match self.submissions.iter().find(|submission| submission.number < number) {
            Some(submission) => Err(format!("a sync passed over {:?}", submission.facts)),
            None => Ok(()),
        }
    }

    /// Takes in all that was answered.
    pub(crate) fn poll(&mut self) {
        if self.failure.is_none()
            && let Err(failure) = self.try_poll()
        {
            self.failure = Some(failure);
        }
    }

    fn try_poll(&mut self) -> Check {
        let mark = self.mark.as_ref().map_or(self.durable, |mark| *mark.borrow());
        let stated = self.durable;
        let mut submissions = std::mem::take(&mut self.submissions);
        let mut result = Ok(());
        submissions.retain_mut(|submission| {
            if result.is_err() {
                return true;
            }
            match self.poll_one(submission, stated) {
                Ok(is_done) => !is_done,
                Err(failure) => {
                    result = Err(failure);
                    true
                }
            }
        });
        self.submissions = submissions;
        result?;
        ensure!(mark >= self.durable || self.is_poisoned, "the durable mark is {mark}, {} was told", self.durable);
        ensure!(mark <= self.appended(), "{mark} is called durable, {} is written", self.appended());
        self.durable = self.durable.max(mark);
        Ok(())
    }

    /// Returns whether nothing more is to be learned of it.
    fn poll_one(&mut self, submission: &mut Submission, stated: Lsn) -> Check<bool> {
        if let Wait::Written(appending) = &mut submission.wait {
            match appending.written().now_or_never() {
                None => return Ok(false),
                Some(Ok(written)) => {
                    ensure!(submission.is_valid, "{:?} should have been refused", submission.facts);
                    ensure!(!self.is_poisoned, "{:?} was written by a poisoned log", submission.facts);
                    self.written(&submission.facts, &written, stated)?;
                    submission.lsn = Some(written.lsn);
                }
                Some(Err(error)) => return self.refused(submission, &error),
            }
            if let Wait::Written(appending) = std::mem::replace(&mut submission.wait, Wait::Unknown) {
                submission.wait = Wait::Durable(appending.durable().boxed());
            }
        }
        let Wait::Durable(future) = &mut submission.wait else { return Ok(false) };
        match future.now_or_never() {
            None => Ok(false),
            Some(Ok(written)) => {
                ensure!(!self.is_poisoned, "{:?} was acknowledged by a poisoned log", submission.facts);
                ensure!(Some(written.lsn) == submission.lsn, "two answers: {:?}, {written:?}", submission.lsn);
                self.durable = self.durable.max(written.lsn);
                Ok(true)
            }
            Some(Err(LogError::Poisoned { .. })) => Ok(true),
            Some(Err(error)) => Err(format!("written, and then: {error}")),
        }
    }

    fn written(&mut self, facts: &Facts, written: &Written, stated: Lsn) -> Check {
        let expected = self.appended().next();
        ensure!(written.lsn == expected, "LSN {} was given, {expected} is next", written.lsn);
        let Written { lsn, position, restart_seq, commit_time } = *written;
        let said = Said { lsn, position, restart_seq, commit_time };
        self.push(facts, &said, stated)
    }

    fn push(&mut self, facts: &Facts, said: &Said, stated: Lsn) -> Check {
        let fold = self.folds.entry(facts.history).or_insert_with(|| Fold::new(facts.history));
        let first_fragment = fold.take(facts, said)?;
        let Said { position, restart_seq, commit_time, .. } = *said;
        let facts = facts.clone();
        self.entries.push(Entry { facts, position, restart_seq, commit_time, first_fragment, stated });
        Ok(())
    }

    fn refused(&mut self, submission: &mut Submission, error: &LogError) -> Check<bool> {
        match error {
            LogError::Poisoned { .. } => {
                submission.wait = Wait::Unknown;
                Ok(false)
            }
            LogError::Full { .. } => {
                // Behind a refused record of its run it is refused for the same.
                ensure!(
                    self.may_refuse || !submission.is_valid,
                    "{:?} was refused for want of space",
                    submission.facts
                );
                self.refused += u64::from(submission.is_valid);
                Ok(true)
            }
            LogError::Forked { .. } | LogError::Invalid { .. } | LogError::UnknownHistory(_) => {
                let is_expected = !submission.is_valid || self.refused > 0;
                ensure!(is_expected, "{:?} was refused: {error}", submission.facts);
                Ok(true)
            }
            LogError::Closed => Ok(true),
            error => Err(format!("{:?}: {error}", submission.facts)),
        }
    }

    /// Synchronous appends that are written and still wait.
    pub(crate) fn waits_for_sync(&self) -> Option<Lsn> {
        let mut waiting = self.submissions.iter().filter(|submission| submission.persistence == Persistence::Sync);
        waiting.find_map(|submission| submission.lsn.filter(|_| matches!(submission.wait, Wait::Durable(_))))
    }

    /// Compares what a recovery found with what must and may be there. Returns the entries that are there and were
    /// never answered.
    pub(crate) fn check_recovered(&self, recovery: &Recovery, frames: &[Frame], floor: Lsn) -> Check<Vec<Entry>> {
        ensure!(recovery.last >= floor, "ends at {}, {floor} was durable", recovery.last);
        let limit = self.truncates_to.unwrap_or(self.first);
        ensure!(
            self.first_left <= recovery.first && recovery.first <= limit,
            "starts with {}, {} to {limit} is right",
            recovery.first,
            self.first_left
        );
        ensure!(
            frames.len() as u64 == recovery.last.next().0 - recovery.first.0,
            "{} records from {} to {}",
            frames.len(),
            recovery.first,
            recovery.last
        );
        let mut folds = None;
        let mut waiting = self.submissions.iter().filter(|submission| submission.lsn.is_none());
        let mut adopted = Vec::new();
        for (frame, lsn) in frames.iter().zip(recovery.first.0..) {
            ensure!(frame.lsn == Lsn(lsn), "{} where LSN {lsn} is expected", frame.lsn);
            if let Some(entry) = self.entry(frame.lsn) {
                entry.check(frame)?;
                continue;
            }
            let folds = folds.get_or_insert_with(|| self.folds.clone());
            let facts = loop {
                let Some(submission) = waiting.next() else {
                    return Err(format!("{} was never written, or was refused: {:?}", frame.lsn, frame.header));
                };
                let facts = &submission.facts;
                let header = &frame.header;
                if (facts.payload, facts.kind, facts.history) == (header.payload_hash, header.kind, header.history) {
                    break facts;
                }
                ensure!(!submission.is_valid || self.may_refuse, "{:?} was passed over by {header:?}", facts);
            };
            let header = &frame.header;
            let (position, restart_seq, commit_time) = (header.position(), header.restart_seq, header.commit_time);
            let said = Said { lsn: frame.lsn, position, restart_seq, commit_time };
            let fold = folds.entry(facts.history).or_insert_with(|| Fold::new(facts.history));
            let first_fragment = fold.take(facts, &said)?;
            let entry =
                Entry { facts: facts.clone(), position, restart_seq, commit_time, first_fragment, stated: Lsn::ZERO };
            entry.check(frame)?;
            adopted.push(entry);
        }
        self.check_report(recovery, &adopted)?;
        Ok(adopted)
    }

    /// The recovery's own summary against the records.
    fn check_report(&self, recovery: &Recovery, adopted: &[Entry]) -> Check {
        let kept = self.entries.iter().take(recovery.last.0 as usize).chain(adopted);
        let kept: Vec<_> = kept.enumerate().map(|(index, entry)| (Lsn(index as u64 + 1), entry)).collect();
        let folds = fold_all(kept.iter().copied())?;
        let retained: BTreeSet<_> =
            kept.iter().filter(|(lsn, _)| *lsn >= recovery.first).map(|(_, entry)| entry.facts.history).collect();
        let reported: BTreeSet<_> = recovery.histories.iter().map(|found| found.end.position.history).collect();
        ensure!(reported == retained, "histories {reported:?} reported, {retained:?} retained");
        for found in &recovery.histories {
            let Some(fold) = folds.get(&found.end.position.history) else { continue };
            let has_commit = kept.iter().any(|(lsn, entry)| {
                *lsn >= recovery.first
                    && entry.facts.history == found.end.position.history
                    && entry.facts.kind == RecordKind::Commit
            });
            let (end, right) = (found.end.position, fold.end.position);
            ensure!(
                if has_commit { found.end == fold.end } else { (end.seq, end.chain) == (right.seq, right.chain) },
                "a history ends at {end}, {right} is right"
            );
            let open: BTreeSet<_> = found.open.iter().copied().collect();
            let right: BTreeSet<_> = fold.open.keys().map(|(_, number)| *number).collect();
            ensure!(open == right, "transactions {open:?} reported open, {right:?} are");
        }
        Ok(())
    }

    /// The log was opened again: what it has now is what there is.
    pub(crate) fn adopt(
        &mut self,
        recovery: &Recovery,
        adopted: Vec<Entry>,
        mark: tokio::sync::watch::Receiver<Lsn>,
    ) -> Check {
        self.entries.truncate(recovery.last.0 as usize);
        self.entries.extend(adopted);
        self.first = recovery.first;
        self.first_left = recovery.first;
        self.truncates_to = None;
        self.durable = recovery.last;
        self.submissions.clear();
        self.mark = Some(mark);
        self.may_refuse = false;
        self.refused = 0;
        self.is_poisoned = false;
        let all = self.entries.iter().enumerate().map(|(index, entry)| (Lsn(index as u64 + 1), entry));
        self.folds = fold_all(all)?;
        Ok(())
    }

    /// The log is gone; waiters with it.
    pub(crate) fn ended(&mut self) {
        self.mark = None;
        for submission in &mut self.submissions {
            submission.wait = Wait::Unknown;
        }
    }
}

fn fold_all<'a>(entries: impl Iterator<Item = (Lsn, &'a Entry)>) -> Check<BTreeMap<HistoryId, Fold>> {
    let mut folds: BTreeMap<HistoryId, Fold> = BTreeMap::new();
    for (lsn, entry) in entries {
        let history = entry.facts.history;
        let fold = folds.entry(history).or_insert_with(|| Fold::new(history));
        // Restarts lie between: epochs were checked when the records were written.
        fold.epoch = Some(entry.position.epoch);
        fold.take(&entry.facts, &entry.said(lsn))?;
    }
    folds.values_mut().for_each(|fold| fold.epoch = None);
    Ok(folds)
}
