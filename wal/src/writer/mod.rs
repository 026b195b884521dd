//! What is done in a turn: all that waits is written with as few calls as possible, synced once if anyone waits for that,
//! and all are told. One turn follows the other; whose they are says `turn`.

mod active;
mod sync;
mod turn;
mod unit;

use std::{
    collections::VecDeque,
    io::IoSlice,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

pub(crate) use active::{Active, WriteError, make_segment};
pub(crate) use sync::SyncBegun;
pub(crate) use turn::Pen;
pub(crate) use unit::push_payload;
use unit::{Unit, Unsynced};

use crate::{
    LogError, Lsn,
    config::planted,
    frame,
    queue::{Item, Reply, Request, Woken},
    segment::{Predecessor, SegmentState},
    shared::Shared,
};

/// Most bytes that one write call gets: the records of one write become known together.
const UNIT_BYTES_MAX: u64 = 16 << 20;

/// From this many unsynced bytes on, the writer syncs whenever it has written all that waits: the disk works while
/// producers prepare what comes next, and the commit of a bulk load waits for its last bytes only.
const EAGER_SYNC_BYTES: u64 = 8 << 20;

/// Most that counts of a sync's time where the writer waits for company: half of it is given to those who come back.
const GATHER_MAX: Duration = Duration::from_micros(200);

/// The writer's own state.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    active: Active,
    /// The last record written and its checksum.
    last: Predecessor,
    /// Highest durable LSN that the log itself states, in a frame, mark or segment header.
    stated: Lsn,
    unsynced: Vec<Unsynced>,
    /// Monotonic time of the oldest write that is not synced.
    unsynced_since: Option<Duration>,
    /// Of the unsynced: those who asked for a sync.
    syncing: usize,
    /// How many are likely to come now: those who waited for the last sync, and what came meanwhile.
    company: usize,
    /// How long that sync took.
    sync_time: Duration,
    /// A sync for which the turn need not be kept.
    begun: Option<SyncBegun>,
}

/// Whether there are further turns.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

impl Writer {
    /// A writer that goes on in `active`, behind `last`; everything up to there is durable.
    pub(crate) fn new(shared: Arc<Shared>, active: Active, last: Predecessor) -> Self {
        let stated = active.segment.header.predecessor.last;
        Self {
            shared,
            active,
            last,
            stated,
            unsynced: Vec::new(),
            unsynced_since: None,
            syncing: 0,
            company: 0,
            sync_time: Duration::ZERO,
            begun: None,
        }
    }

    /// Does what it was woken for. `false` when that was the last. Otherwise a sync may be left to do
    /// ([`Writer::begun`]), before the next turn of the thread.
    pub(crate) fn turn(&mut self, woken: Woken) -> bool {
        let next = match woken {
            Woken::Items(items) => self.work(items),
            Woken::Idle => self.idle().map(|()| Next::Go),
        };
        match next {
            Ok(next) => next == Next::Go,
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    /// Writes one record and syncs nothing: an appender's turn. `false` when that was the last.
    pub(crate) fn write(&mut self, request: Request) -> bool {
        match self.append_unit(&mut VecDeque::from([request])) {
            Ok(()) => true,
            Err(WriteError::Full(error)) => {
                tracing::warn!("{error}");
                true
            }
            Err(WriteError::Broken(error)) => {
                self.fail(&error);
                false
            }
        }
    }

    /// What would wake it now, if anything waits.
    #[cfg(feature = "simulation")]
    pub(crate) fn waiting(&self) -> Option<Woken> {
        self.shared.queue.take_waiting()
    }

    /// Writes the record that waits first as its appender would have, if it could. The error has ended the log.
    #[cfg(feature = "simulation")]
    pub(crate) fn write_waiting(&mut self) -> Result<bool, LogError> {
        let queue = &self.shared.queue;
        let Some(request) = queue.take_append_if(|len| self.is_ready_for(len)) else { return Ok(false) };
        match self.write(request) {
            true => Ok(true),
            false => Err(self.shared.poison.get().unwrap_or(LogError::Closed)),
        }
    }

    /// What would wake it when nothing came for as long as it waits.
    #[cfg(feature = "simulation")]
    pub(crate) fn idles(&self) -> Option<Woken> {
        (self.shared.queue.is_empty() && self.due().is_some()).then_some(Woken::Idle)
    }

    /// When it has something to do though nothing comes, in monotonic time: the next sync, at once if someone waits for it,
    /// or a durable mark, which is worth it when nothing came for as long.
    fn due(&self) -> Option<Duration> {
        let since = match self.unsynced_since {
            Some(_) if self.syncing > 0 => return Some(Duration::ZERO),
            Some(since) => since,
            None if self.stated < self.last.last => self.shared.clock.monotonic(),
            None => return None,
        };
        Some(since.saturating_add(self.shared.config.sync_interval))
    }

    /// Whether an appender may write a record of `len` bytes itself: the write is short, as it overwrites zeros that are
    /// there, and nothing else becomes due with it.
    fn is_ready_for(&self, len: u64) -> bool {
        let unsynced = self.shared.marks.unsynced_bytes.load(Ordering::Relaxed) + len;
        !self.active.is_full_for(len)
            && self.active.has_zeros_for(len)
            && unsynced < EAGER_SYNC_BYTES.min(self.shared.config.async_max_bytes)
            && !self.is_overdue()
    }

    /// Waits for those who are likely to come now.
    fn gather(&mut self) {
        let company = std::mem::take(&mut self.company);
        self.shared.queue.gather(company, self.sync_time.min(GATHER_MAX) / 2, &*self.shared.clock);
    }

    fn is_overdue(&self) -> bool {
        self.unsynced_since.is_some_and(|since| {
            self.shared.clock.monotonic().saturating_sub(since) >= self.shared.config.sync_interval
        })
    }

    fn idle(&mut self) -> Result<(), LogError> {
        if self.unsynced_since.is_none() {
            self.mark()
        } else if self.begin_sync(&mut Vec::new()) {
            Ok(())
        } else {
            self.sync()
        }
    }

    fn work(&mut self, items: VecDeque<Item>) -> Result<Next, LogError> {
        let mut appends = VecDeque::with_capacity(items.len());
        let mut items = items.into_iter();
        let mut replies = Vec::new();
        while let Some(item) = items.next() {
            let done = match item {
                Item::Append(request) => {
                    appends.push_back(request);
                    continue;
                }
                // Answered at the end: what follows is synced with it.
                Item::Sync(reply) => {
                    replies.push(reply);
                    continue;
                }
                Item::Roll(reply) => self.append_all(&mut appends).and_then(|()| match self.roll() {
                    Ok(()) => {
                        self.reply(vec![reply]);
                        Ok(())
                    }
                    Err(WriteError::Full(error)) => {
                        let _ = reply.send(Err(error));
                        Ok(())
                    }
                    Err(WriteError::Broken(error)) => {
                        let _ = reply.send(Err(self.shared.poison.set(&error)));
                        Err(error)
                    }
                }),
                Item::Close(reply) => match self.append_all(&mut appends).and_then(|()| self.close()) {
                    Ok(()) => {
                        items.for_each(|item| item.refuse(&LogError::Closed));
                        replies.push(reply);
                        self.reply(replies);
                        return Ok(Next::Stop);
                    }
                    Err(error) => {
                        let _ = reply.send(Err(self.shared.poison.set(&error)));
                        Err(error)
                    }
                },
            };
            if let Err(error) = done {
                return Err(self.refuse_rest(error, appends, items, replies));
            }
        }
        match self.append_all(&mut appends).and_then(|()| self.finish(&mut replies)) {
            Ok(()) => Ok(Next::Go),
            Err(error) => Err(self.refuse_rest(error, appends, items, replies)),
        }
    }

    /// The end of a batch: syncs if somebody asked for it, or if it is time to.
    fn finish(&mut self, replies: &mut Vec<Reply>) -> Result<(), LogError> {
        let is_bulk = self.shared.marks.unsynced_bytes.load(Ordering::Relaxed) >= EAGER_SYNC_BYTES;
        let is_due = !replies.is_empty() || self.syncing > 0 || self.is_overdue() || is_bulk;
        if is_due && self.unsynced_since.is_some() && !self.begin_sync(replies) {
            self.sync()?;
        }
        if self.begun.is_none() {
            self.reply(std::mem::take(replies));
        }
        Ok(())
    }

    fn reply(&self, replies: Vec<Reply>) {
        for reply in replies {
            let _ = reply.send(Ok(self.shared.marks.durable()));
        }
    }

    fn refuse_rest(
        &self,
        error: LogError,
        appends: VecDeque<Request>,
        items: impl Iterator<Item = Item>,
        replies: Vec<Reply>,
    ) -> LogError {
        let poisoned = self.shared.poison.set(&error);
        appends.into_iter().for_each(|request| request.refuse(&poisoned));
        items.chain(replies.into_iter().map(Item::Sync)).for_each(|item| item.refuse(&poisoned));
        error
    }

    /// Writes all of `appends`. An error poisons.
    fn append_all(&mut self, appends: &mut VecDeque<Request>) -> Result<(), LogError> {
        while let Some(first) = appends.front() {
            // A full segment is synced by the roll.
            if self.unsynced_room() < first.frame_len() && !self.active.is_full_for(first.frame_len()) {
                self.sync()?;
            }
            match self.append_unit(appends) {
                Ok(()) => {}
                Err(WriteError::Full(error)) => {
                    tracing::warn!("{error}");
                    // The rest of the batch may build on what was refused.
                    appends.drain(..).for_each(|request| request.refuse(&error));
                }
                Err(WriteError::Broken(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// How much more may be written before a sync is due.
    fn unsynced_room(&self) -> u64 {
        let unsynced = self.shared.marks.unsynced_bytes.load(Ordering::Relaxed);
        self.shared.config.async_max_bytes.saturating_sub(unsynced)
    }

    /// Writes as many records as one write takes.
    fn append_unit(&mut self, appends: &mut VecDeque<Request>) -> Result<(), WriteError> {
        let first_len = appends.front().map_or(0, Request::frame_len);
        if self.active.is_full_for(first_len) {
            self.roll()?;
        }
        let bytes_max = self.active.room().min(self.unsynced_room()).min(UNIT_BYTES_MAX).max(first_len);
        let mut unit = Unit::default();
        {
            let shared = self.shared.clone();
            let mut histories = shared.histories.lock();
            let too_high = planted!(shared.config, StatesDurableTooHigh);
            let durable = if too_high { self.last.last } else { shared.marks.durable() };
            let mut next = self.last.last.next();
            while let Some(request) = appends.front()
                && unit.len + request.frame_len() <= bytes_max
            {
                let Some(request) = appends.pop_front() else { break };
                if unit.place(request, &mut histories, next, durable, self.active.open.salt, &*shared.clock) {
                    next = next.next();
                }
            }
        }
        if unit.is_empty() {
            return Ok(());
        }
        let (offset, len) = (self.active.end, unit.len);
        match self.active.write(unit.slices(), len) {
            Ok(()) => {}
            Err(WriteError::Full(error)) => {
                self.active.is_cut = true;
                unit.refuse(&error);
                return Err(WriteError::Full(error));
            }
            Err(WriteError::Broken(error)) => {
                unit.refuse(&self.shared.poison.set(&error));
                return Err(WriteError::Broken(error));
            }
        }
        let marks = &self.shared.marks;
        marks.unsynced_bytes.fetch_add(len, Ordering::Relaxed);
        marks.appended_bytes.fetch_add(len, Ordering::Relaxed);
        self.unsynced_since.get_or_insert_with(|| self.shared.clock.monotonic());
        self.stated = marks.durable();
        let (checksum, syncing) = {
            let mut histories = self.shared.histories.lock();
            let (segment, open) = (&self.active.segment, &self.active.open);
            unit.publish(offset, &mut histories, segment, open, &mut self.unsynced, |last| {
                self.last.last = last;
                marks.set_appended(last);
            })
        };
        self.last.checksum = checksum;
        self.syncing += syncing;
        if planted!(self.shared.config, AcksBeforeSync) {
            self.acknowledge();
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), LogError> {
        if self.unsynced_since.is_none() {
            return Ok(());
        }
        let start = self.shared.clock.monotonic();
        if planted!(self.shared.config, SkipsSync) {
            self.synced();
            return Ok(());
        }
        match self.active.sync() {
            Err(_) if planted!(self.shared.config, RetriesFailedSync) => self.active.sync()?,
            Err(_) if planted!(self.shared.config, GoesOnAfterFailedSync) => {
                self.fail_unsynced();
                return Ok(());
            }
            result => result?,
        }
        self.sync_time = self.shared.clock.monotonic().saturating_sub(start);
        self.synced();
        Ok(())
    }

    /// What the planted bug does to those who wait for a sync that failed.
    fn fail_unsynced(&mut self) {
        let error = LogError::Poisoned { reason: "this sync alone failed".into() };
        for Unsynced { durable, .. } in self.unsynced.drain(..) {
            let _ = durable.send(Err(error.clone()));
        }
    }

    /// Everything written is durable.
    fn synced(&mut self) {
        let marks = &self.shared.marks;
        marks.syncs.fetch_add(1, Ordering::Relaxed);
        marks.unsynced_bytes.store(0, Ordering::Relaxed);
        marks.set_durable(self.last.last);
        self.unsynced_since = None;
        self.acknowledge();
        self.shared.marks.tell_durable();
    }

    fn acknowledge(&mut self) {
        self.company = match std::mem::take(&mut self.syncing) {
            0 | 1 => 0,
            waited => waited + self.shared.queue.len(),
        };
        for Unsynced { written, durable } in self.unsynced.drain(..) {
            let _ = durable.send(Ok(written));
        }
    }

    /// Appends a durable mark, so that the last batch is known to be durable when the log is read again.
    fn mark(&mut self) -> Result<(), LogError> {
        let durable = self.shared.marks.durable();
        // Whether it succeeds or there is no space for it: this batch has had its mark.
        self.stated = durable;
        if self.active.is_sealed || self.active.is_cut {
            return Ok(());
        }
        let mark = frame::encode_mark(durable, self.active.open.salt);
        match self.active.write(vec![IoSlice::new(&mark)], mark.len() as u64) {
            Ok(()) => {
                self.active.segment.update(|state| state.bytes = self.active.end);
                self.active.sync()
            }
            Err(WriteError::Full(_)) => Ok(()),
            Err(WriteError::Broken(error)) => Err(error),
        }
    }

    /// Seals the segment and begins the next. Nothing happens to a segment that nothing was written to.
    fn roll(&mut self) -> Result<(), WriteError> {
        let is_empty = self.last.last < self.active.open.first;
        if is_empty && !self.active.is_cut {
            return Ok(());
        }
        if planted!(self.shared.config, SealForgetsOpen) {
            let forget =
                |state: &mut SegmentState| state.histories.values_mut().for_each(|summary| summary.open.clear());
            self.active.segment.update(forget);
        }
        // One without records is replaced under its name.
        let has_end = self.active.is_sealed || is_empty;
        let next = if self.active.is_cut && !has_end {
            self.end_cut()?
        } else {
            if !has_end {
                self.active.seal(self.last, self.shared.marks.durable())?;
                self.synced();
            }
            self.begin_next()?
        };
        let shared = &self.shared;
        shared.segments.write().insert(next.open.first, next.segment.clone());
        shared.rolled.notify_one();
        self.active = next;
        self.stated = self.last.last;
        Ok(())
    }

    fn begin_next(&self) -> Result<Active, WriteError> {
        let shared = &self.shared;
        Active::begin(&*shared.disk, &*shared.clock, &shared.config, self.last, shared.node)
    }

    /// Seals a segment of which a record was refused, behind the next one, which is returned. A crash while the footer is
    /// written may show what lay in its space before. That may be the refused record, and it must not come back: the next
    /// segment says that it does not count.
    fn end_cut(&mut self) -> Result<Active, WriteError> {
        self.active.trim().and_then(|()| self.sync()).map_err(WriteError::Broken)?;
        let next = self.begin_next()?;
        match self.active.seal(self.last, self.shared.marks.durable()) {
            Ok(()) => Ok(next),
            Err(WriteError::Full(error)) => {
                next.discard(&*self.shared.disk, &self.shared.config).map_err(WriteError::Broken)?;
                Err(WriteError::Full(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Syncs and seals, so that the next start needs no scan. One of which a record was refused is left to the next start:
    /// only behind the next segment may it get its footer.
    fn close(&mut self) -> Result<(), LogError> {
        self.sync()?;
        if !self.active.is_sealed && !self.active.is_cut && self.last.last >= self.active.open.first {
            match self.active.seal(self.last, self.shared.marks.durable()) {
                Ok(()) | Err(WriteError::Full(_)) => {}
                Err(WriteError::Broken(error)) => return Err(error),
            }
        }
        self.shared.queue.close(&LogError::Closed);
        self.shared.marks.end();
        Ok(())
    }

    /// Poisons: every waiter fails, nothing is taken any more.
    fn fail(&mut self, error: &LogError) {
        let poisoned = self.shared.poison.set(error);
        for Unsynced { durable, .. } in self.unsynced.drain(..) {
            let _ = durable.send(Err(poisoned.clone()));
        }
        self.shared.queue.close(&poisoned);
        self.shared.marks.end();
    }
}

impl Drop for Writer {
    /// A bug that ends a turn must not leave anyone waiting.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fail(&LogError::Poisoned { reason: "the log's writer panicked".into() });
        }
    }
}
