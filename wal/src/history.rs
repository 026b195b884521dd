//! What the writer knows of each history, and the fold of records into it. The same fold runs over records as they
//! are written and as recovery finds them.

use std::collections::{BTreeMap, btree_map::Entry};

use crate::{
    Clock, CommitTime, Epoch, FragmentNumber, HistoryEnd, HistoryHeader, HistoryId, LogError, Lsn, Position,
    RecordKind, Seq, TransactionNumber,
    config::planted,
    index::{EndedTransaction, Floor, HistorySummary, LargeCommit, OpenTransaction},
};

/// What the records of one history add up to.
#[derive(Debug, Clone, Default)]
pub(crate) struct HistoryFold {
    /// The last commit, as the records say or as `open_history` replaced it.
    pub(crate) end: Option<HistoryEnd>,
    /// The last position by the records alone; what the next record must continue, or the history begins anew.
    logged: Option<Position>,
    /// Transactions with fragments and neither commit nor abort.
    pub(crate) open: BTreeMap<(Epoch, TransactionNumber), OpenTransaction>,
    /// Where the history was last begun anew, or in its middle: fragments of transactions that were begun up to there may
    /// be elsewhere. `None`: everything since its beginning came here.
    begun_at: Option<Seq>,
    /// Of the last record, as far as it was seen itself.
    restart_seq: Seq,
    /// Of the log that writes it.
    #[cfg(feature = "simulation")]
    pub(crate) planted: Option<crate::simulation::PlantedBug>,
}

/// What folding one record found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Folded {
    /// Last seq committed before the record.
    before: Seq,
    /// Set when the record does not continue the records before it.
    pub(crate) broken: Option<Floor>,
    large: Option<LargeCommit>,
    /// Set when it ends a transaction in fragments.
    pub(crate) ended: Option<EndedTransaction>,
}

impl HistoryFold {
    /// The last position by the records alone.
    pub(crate) fn logged(&self) -> Option<Position> {
        self.logged
    }

    /// Takes in one record.
    pub(crate) fn take(&mut self, header: &HistoryHeader, lsn: Lsn) -> Folded {
        let is_commit = header.kind == RecordKind::Commit;
        let before = if is_commit { Seq(header.seq.0.saturating_sub(1)) } else { header.seq };
        let continues = self.logged.is_none_or(|logged| {
            if is_commit {
                logged.follow(header.epoch, header.kind, header.commit_time, header.payload_hash) == header.position()
            } else {
                // After a repair, fragments from before the position may be sent again; none can come from after it.
                header.seq < logged.seq || (header.seq == logged.seq && header.chain == logged.chain)
            }
        });
        let broken = (!continues).then(|| Floor { lsn: Lsn(lsn.0.saturating_sub(1)), seq: before });
        if let Some(floor) = broken {
            self.open.retain(|_, open| open.first_fragment > floor.lsn);
        }
        if broken.is_some() || self.logged.is_none() {
            self.begin_at(before, is_commit);
        }
        let key = (header.epoch, header.transaction);
        let mut large = None;
        // Of a commit that lists more fragments than were seen here, the first ones are not retained.
        let is_whole = |open: &OpenTransaction| !is_commit || open.fragments >= header.fragment.0;
        let whole = self.open.get(&key).copied().filter(is_whole);
        let ends = |open: &OpenTransaction| header.kind != RecordKind::Fragment && open.first_fragment > Lsn::ZERO;
        let ended = whole.filter(ends).map(|open| EndedTransaction { lsn, first_fragment: open.first_fragment });
        match header.kind {
            RecordKind::Commit => {
                self.open.remove(&key);
                if header.fragment.0 > 0 {
                    let first_fragment = whole.map_or(Lsn::ZERO, |open| open.first_fragment);
                    large = Some(LargeCommit { seq: header.seq, lsn, first_fragment });
                }
                self.end = Some(HistoryEnd { position: header.position(), commit_time: header.commit_time });
                self.logged = Some(header.position());
            }
            RecordKind::Fragment => {
                // Where it does not begin with fragment 0, that one is not retained any more.
                let first_fragment = if header.fragment.0 == 0 { lsn } else { Lsn::ZERO };
                let open = self.open.entry(key).or_insert(OpenTransaction {
                    epoch: header.epoch,
                    number: header.transaction,
                    first_fragment,
                    after: header.seq,
                    fragments: 0,
                });
                // One that comes again counts once.
                open.fragments = open.fragments.max(header.fragment.0.saturating_add(1));
            }
            RecordKind::Abort if planted!(self, KeepsAbortedOpen) => {}
            RecordKind::Abort => {
                self.open.remove(&key);
            }
        }
        if !is_commit && (self.logged.is_none() || broken.is_some()) {
            self.begin(header);
        }
        self.restart_seq = header.restart_seq;
        Folded { before, broken, large, ended }
    }

    /// Takes in all of one segment's records by their summary.
    pub(crate) fn take_summary(&mut self, summary: &HistorySummary) {
        self.open = summary.open.iter().map(|open| ((open.epoch, open.number), *open)).collect();
        match summary.broken {
            Some(floor) => self.begun_at = Some(floor.seq),
            None if self.logged.is_none() => self.begin_at(summary.boundary, true),
            None => {}
        }
        self.restart_seq = Seq::ZERO;
        if let Some(end) = summary.end {
            self.end = Some(end);
            self.logged = Some(end.position);
        }
    }

    /// The records at hand are the first after `seq`, or do not continue those before them. Before its first commit a
    /// history that is begun anew comes from ever later places (`is_certain`: this is the last).
    fn begin_at(&mut self, seq: Seq, is_certain: bool) {
        let is_beginning = seq == Seq::ZERO && self.logged.is_none();
        let known = self.begun_at.filter(|_| !is_certain);
        self.begun_at = if is_beginning { known } else { known.max(Some(seq)) };
    }

    /// Whether the records alone tell where the history stands.
    pub(crate) fn is_begun(&self) -> bool {
        self.logged.is_some()
    }

    /// Goes on from where a fragment or an abort stands: no commit before it is known.
    pub(crate) fn begin(&mut self, header: &HistoryHeader) {
        let end = end_before(header);
        let replaced = self.end.is_some_and(|end| self.logged != Some(end.position));
        self.logged = Some(end.position);
        if !replaced {
            self.end = Some(end);
        }
    }

    /// Whether fragments of a record's transaction may be elsewhere. What is open was begun at the restart seq or later; a
    /// commit states that of the others, its own transaction was open in the record before it.
    fn may_be_elsewhere(&self, header: &HistoryHeader) -> bool {
        let begun_from = if header.kind == RecordKind::Commit { self.restart_seq } else { header.restart_seq };
        self.begun_at.is_some_and(|begun_at| begun_from <= begun_at)
    }

    /// Whether the records alone lead to `position`.
    fn leads_to(&self, position: Position) -> bool {
        match self.logged {
            Some(logged) => logged == position || (logged.seq, logged.chain) == (position.seq, position.chain),
            None => false,
        }
    }
}

impl HistorySummary {
    /// Adds a record that a fold has just taken; [`HistorySummary::set_open`] follows after the last.
    pub(crate) fn take(slot: Entry<'_, HistoryId, Self>, folded: &Folded, header: &HistoryHeader, lsn: Lsn) {
        let summary = slot.or_insert_with(|| Self {
            boundary: folded.before,
            first: lsn,
            last: lsn,
            end: None,
            broken: None,
            large: Vec::new(),
            open: Vec::new(),
        });
        summary.last = lsn;
        summary.broken = folded.broken.or(summary.broken);
        summary.large.extend(folded.large);
        if header.kind == RecordKind::Commit {
            summary.end = Some(HistoryEnd { position: header.position(), commit_time: header.commit_time });
        }
    }

    /// States which transactions are open after its last record.
    pub(crate) fn set_open(&mut self, fold: &HistoryFold) {
        self.open.clear();
        self.open.extend(fold.open.values().copied());
    }
}

/// The end of a history as a fragment or an abort tells it.
fn end_before(header: &HistoryHeader) -> HistoryEnd {
    let position = match header.seq {
        Seq::ZERO => Position::start(header.history),
        _ => header.position(),
    };
    HistoryEnd { position, commit_time: header.commit_time }
}

/// A history as the writer holds it.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Written records only.
    pub(crate) fold: HistoryFold,
    /// Readers cannot start before this.
    pub(crate) floor: Option<Floor>,
    /// Transactions in fragments whose end may not have been durable at the last truncation.
    pub(crate) ended: Vec<EndedTransaction>,
    /// Counts `open_history`; 0 while it was not called.
    pub(crate) opened: u64,
    /// The epoch begun since it was opened.
    epoch: Option<Epoch>,
    next_transaction: u64,
}

impl History {
    /// What recovery found.
    pub(crate) fn recovered(fold: HistoryFold, floor: Option<Floor>) -> Self {
        Self { fold, floor, ..Self::default() }
    }

    /// Starts or replaces what the writer goes on from. `appended` is the last LSN written.
    pub(crate) fn open(&mut self, end: HistoryEnd, appended: Lsn) {
        let has_records = self.fold.logged.is_some();
        if !self.fold.leads_to(end.position) {
            self.floor = Some(Floor { lsn: if has_records { appended } else { Lsn::ZERO }, seq: end.position.seq });
            if has_records {
                self.fold.open.clear();
                self.ended.clear();
            }
            let is_beginning = !has_records && end.position.seq == Seq::ZERO;
            self.fold.begun_at = (!is_beginning).then_some(end.position.seq);
        }
        self.fold.end = Some(end);
        self.opened += 1;
        self.epoch = None;
    }

    /// First fragments of transactions that are open, or are open again when a crash takes their end.
    pub(crate) fn first_fragments(&mut self, durable: Lsn) -> impl Iterator<Item = Lsn> {
        self.ended.retain(|ended| ended.lsn > durable);
        let ended = self.ended.iter().map(|ended| ended.first_fragment);
        self.fold.open.values().map(|open| open.first_fragment).chain(ended)
    }

    /// A number for a transaction in fragments.
    pub(crate) fn begin_transaction(&mut self, end: &HistoryEnd, clock: &dyn Clock) -> TransactionNumber {
        self.current_epoch(end, clock);
        self.next_transaction += 1;
        TransactionNumber(self.next_transaction)
    }

    /// The epoch of this node's appends; begins it if none was begun since the history was opened.
    fn current_epoch(&mut self, end: &HistoryEnd, clock: &dyn Clock) -> Epoch {
        *self.epoch.get_or_insert_with(|| {
            self.next_transaction = 0;
            let more = u32::from(!planted!(self.fold, ReusesEpoch));
            Epoch { counter: end.position.epoch.counter.saturating_add(more), nonce: clock.random() as u32 }
        })
    }

    /// Gives a record of this node its header. `fold` is this history's state after the records before it in the
    /// batch; lengths and hash come from the payload.
    pub(crate) fn head(
        &mut self,
        fold: &HistoryFold,
        record: &crate::Record,
        clock: &dyn Clock,
    ) -> Result<HistoryHeader, LogError> {
        let Some(end) = fold.end else { return Err(LogError::UnknownHistory(record.history)) };
        let wrong = |reason: String| Err(LogError::Invalid { reason });
        let (epoch, transaction) = match (record.kind, record.transaction) {
            (RecordKind::Commit, None) if record.fragment.0 == 0 => {
                (self.current_epoch(&end, clock), self.begin_transaction(&end, clock))
            }
            (_, None) => return wrong(format!("a {:?} record needs its transaction", record.kind)),
            (RecordKind::Abort, Some(number)) => (self.epoch_to_abort(fold, &end, number, clock), number),
            (_, Some(number)) => {
                let epoch = self.current_epoch(&end, clock);
                if number.0 == 0 || number.0 > self.next_transaction {
                    return wrong(format!("transaction {number} was not begun in epoch {epoch}"));
                }
                (epoch, number)
            }
        };
        let open = fold.open.get(&(epoch, transaction));
        let written = open.map_or(0, |open| open.fragments);
        if record.kind != RecordKind::Abort && record.fragment.0 != written {
            return wrong(format!(
                "transaction {transaction} has {written} fragments in the log, the {:?} record says {}",
                record.kind, record.fragment
            ));
        }
        if record.kind == RecordKind::Commit && record.payload.directory.fragments.len() != written as usize {
            return wrong(format!(
                "transaction {transaction} has {written} fragments, its directory lists {}",
                record.payload.directory.fragments.len()
            ));
        }
        let mut position = end.position;
        let commit_time = CommitTime(clock.now().0.max(end.commit_time.0.saturating_add(1)));
        if record.kind == RecordKind::Commit {
            position = position.follow(epoch, record.kind, commit_time, record.payload.hash);
        }
        // The restart seq is that after this record: a fragment's own transaction counts, an ended one does not.
        let others =
            fold.open.values().filter(|open| (open.epoch, open.number) != (epoch, transaction)).map(|open| open.after);
        let own = (record.kind == RecordKind::Fragment).then(|| open.map_or(position.seq, |open| open.after));
        let mut restart_seq = others.chain(own).min().map_or(position.seq, |after| after.min(position.seq));
        if planted!(self.fold, LosesRestartSeq) {
            restart_seq = position.seq;
        }
        Ok(HistoryHeader {
            kind: record.kind,
            history: record.history,
            epoch,
            transaction,
            fragment: if record.kind == RecordKind::Abort { FragmentNumber(0) } else { record.fragment },
            seq: position.seq,
            restart_seq,
            chain: position.chain,
            commit_time,
            payload_hash: record.payload.hash,
            directory_len: record.payload.directory_bytes.len() as u32,
            parts_len: record.payload.parts_len() as u32,
        })
    }

    /// An abort belongs to the epoch in which its transaction was begun; one that recovery found open is older than
    /// any begun since.
    fn epoch_to_abort(
        &mut self,
        fold: &HistoryFold,
        end: &HistoryEnd,
        number: TransactionNumber,
        clock: &dyn Clock,
    ) -> Epoch {
        let is_open = |epoch: &Epoch| fold.open.contains_key(&(*epoch, number));
        self.epoch
            .filter(is_open)
            .or_else(|| fold.open.keys().find(|(_, open)| *open == number).map(|(epoch, _)| *epoch))
            .unwrap_or_else(|| self.current_epoch(end, clock))
    }
}

/// A record from its primary: must it be refused?
pub(crate) fn check_verbatim(fold: &HistoryFold, header: &HistoryHeader) -> Result<(), LogError> {
    let Some(end) = fold.end else { return Err(LogError::UnknownHistory(header.history)) };
    let here = end.position;
    let forked = || Err(LogError::Forked { here: Box::new(here), record: Box::new(header.position()) });
    if planted!(fold, AcceptsAnyVerbatim) {
        return Ok(());
    }
    if header.kind != RecordKind::Commit {
        // It may be older than the position, after a repair. One from beyond it would begin the history anew.
        let is_beyond = header.seq > here.seq || (header.seq == here.seq && header.chain != here.chain);
        if is_beyond {
            return forked();
        }
        return if header.kind == RecordKind::Fragment { check_fragments_before(fold, header) } else { Ok(()) };
    }
    let next = here.follow(header.epoch, header.kind, header.commit_time, header.payload_hash);
    let same_or_later_epoch = header.epoch == here.epoch || header.epoch.counter > here.epoch.counter;
    if next != header.position() || !same_or_later_epoch || header.commit_time <= end.commit_time {
        return forked();
    }
    check_fragments_before(fold, header)
}

/// A fragment follows those before it, a commit all that it lists, as far as that is known: a reader of this log must
/// find them.
fn check_fragments_before(fold: &HistoryFold, header: &HistoryHeader) -> Result<(), LogError> {
    let open = fold.open.get(&(header.epoch, header.transaction));
    let here = open.map_or(0, |open| open.fragments);
    // After a repair, fragments from before its position come again between others, and those of a transaction need not all
    // be counted. One that is known from its first fragment on is.
    let is_counted = match open {
        Some(open) => open.first_fragment > Lsn::ZERO,
        None => !fold.may_be_elsewhere(header),
    };
    if header.fragment.0 <= here || !is_counted || planted!(fold, TakesAfterRefused) {
        return Ok(());
    }
    Err(LogError::Invalid {
        reason: format!(
            "the {:?} record of transaction {} at seq {} follows {} fragments, {here} are in the log",
            header.kind, header.transaction, header.seq, header.fragment
        ),
    })
}

/// Histories by id.
pub(crate) type Histories = BTreeMap<HistoryId, History>;
