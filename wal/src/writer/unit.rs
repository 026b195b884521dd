//! Records on their way into one segment with one write: all of them get there, or none.

use std::{collections::BTreeMap, io::IoSlice};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    Clock, HistoryHeader, HistoryId, LogError, Lsn, PART_ALIGNMENT, Payload, Persistence, Run, Written,
    frame::{self, FrameChecksum, HEADER_LEN, Salt},
    history::{Histories, HistoryFold, check_verbatim},
    index::HistorySummary,
    payload::padded,
    queue::{Queued, Request},
    segment::{OpenSegment, Segment},
};

static PADDING: [u8; PART_ALIGNMENT] = [0; PART_ALIGNMENT];

/// Records that have their LSN and header but are not written yet.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    records: Vec<Placed>,
    headers: Vec<[u8; HEADER_LEN]>,
    /// Frames together, bytes.
    pub(crate) len: u64,
    /// Histories as they are after these records. The writer's state takes them over when they are written.
    folds: BTreeMap<HistoryId, Pending>,
}

#[derive(Debug)]
struct Placed {
    lsn: Lsn,
    header: HistoryHeader,
    payload: Payload,
    waiter: Waiter,
    summary: Folding,
}

/// A history in the course of a unit.
#[derive(Debug)]
struct Pending {
    fold: HistoryFold,
    /// `open_history` count when it was copied: if it has moved on, the copy is out of date.
    opened: u64,
}

type Folding = crate::history::Folded;

/// Who waits for a record.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) written: oneshot::Sender<Result<Written, LogError>>,
    pub(crate) durable: oneshot::Sender<Result<Written, LogError>>,
    pub(crate) persistence: Persistence,
    pub(crate) run: Option<Run>,
}

/// A record that is written and waits to be synced.
#[derive(Debug)]
pub(crate) struct Unsynced {
    pub(crate) written: Written,
    pub(crate) durable: oneshot::Sender<Result<Written, LogError>>,
}

impl Unit {
    /// Whether it has no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Gives a record its place, or refuses it.
    pub(crate) fn place(
        &mut self,
        request: Request,
        histories: &mut Histories,
        lsn: Lsn,
        durable: Lsn,
        salt: Salt,
        clock: &dyn Clock,
    ) -> bool {
        let Request { record, persistence, run, written, durable: on_durable } = request;
        let waiter = Waiter { written, durable: on_durable, persistence, run };
        if let Some(error) = waiter.builds_on_refused().cloned() {
            waiter.refuse(&error);
            return false;
        }
        match self.head(&record, histories, clock) {
            Ok(header) => {
                let (payload, skipped) = match record {
                    Queued::Own(record) => (record.payload, false),
                    Queued::Verbatim(record) => (record.payload, record.skipped),
                };
                let Some(pending) = self.folds.get_mut(&header.history) else {
                    waiter.refuse(&LogError::UnknownHistory(header.history));
                    return false;
                };
                let summary = pending.fold.take(&header, lsn);
                self.headers.push(frame::encode_record(&header, lsn, durable, skipped, salt));
                self.len += header.frame_len();
                self.records.push(Placed { lsn, header, payload, waiter, summary });
                true
            }
            Err(error) => {
                waiter.refuse(&error);
                false
            }
        }
    }

    fn head(
        &mut self,
        record: &Queued,
        histories: &mut Histories,
        clock: &dyn Clock,
    ) -> Result<HistoryHeader, LogError> {
        let id = match record {
            Queued::Own(record) => record.history,
            Queued::Verbatim(record) => record.header.history,
        };
        let known = histories.get_mut(&id).filter(|known| known.opened > 0).ok_or(LogError::UnknownHistory(id))?;
        let pending =
            self.folds.entry(id).or_insert_with(|| Pending { fold: known.fold.clone(), opened: known.opened });
        if pending.opened != known.opened {
            *pending = Pending { fold: known.fold.clone(), opened: known.opened };
        }
        match record {
            Queued::Own(record) => known.head(&pending.fold, record, clock),
            Queued::Verbatim(record) => {
                check_verbatim(&pending.fold, &record.header)?;
                Ok(record.header)
            }
        }
    }

    /// The bytes to be written. Nothing of a payload is copied.
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::with_capacity(self.records.len() * 6 + 16);
        for (header, placed) in self.headers.iter().zip(&self.records) {
            slices.push(IoSlice::new(header));
            push_payload(&mut slices, &placed.payload);
        }
        slices
    }

    /// Fails all its records.
    pub(crate) fn refuse(self, error: &LogError) {
        self.records.into_iter().for_each(|placed| placed.waiter.refuse(error));
    }

    /// The records are written, the first at `offset`: readers find them, histories move on, waiters are told.
    /// Returns the last frame's checksum and how many waiters want a sync now.
    pub(crate) fn publish(
        self,
        mut offset: u64,
        histories: &mut Histories,
        segment: &Segment,
        open: &OpenSegment,
        unsynced: &mut Vec<Unsynced>,
        before_telling: impl FnOnce(Lsn),
    ) -> (FrameChecksum, usize) {
        let last_lsn = self.records.last().map_or(Lsn::ZERO, |placed| placed.lsn);
        {
            let mut records = open.records.write();
            for placed in &self.records {
                let len = placed.header.frame_len();
                records.push(placed.header.history, placed.header.kind, placed.header.seq, offset, len as u32);
                offset += len;
            }
        }
        segment.update(|state| {
            state.last = last_lsn;
            state.bytes = offset;
            for placed in &self.records {
                HistorySummary::take(
                    state.histories.entry(placed.header.history),
                    &placed.summary,
                    &placed.header,
                    placed.lsn,
                );
            }
            for (id, pending) in &self.folds {
                if let Some(summary) = state.histories.get_mut(id) {
                    summary.set_open(&pending.fold);
                }
            }
        });
        for placed in &self.records {
            if let Some(ended) = placed.summary.ended
                && let Some(known) = histories.get_mut(&placed.header.history)
            {
                known.ended.push(ended);
            }
        }
        for (id, pending) in self.folds {
            if let Some(known) = histories.get_mut(&id).filter(|known| known.opened == pending.opened) {
                known.fold = pending.fold;
            }
        }
        before_telling(last_lsn);
        let mut syncing = 0;
        for placed in self.records {
            let Waiter { written: on_written, durable, persistence, .. } = placed.waiter;
            let header = placed.header;
            let written = Written {
                lsn: placed.lsn,
                position: header.position(),
                restart_seq: header.restart_seq,
                commit_time: header.commit_time,
            };
            syncing += usize::from(persistence == Persistence::Sync);
            // Waiters may have gone, which is their right.
            let _ = on_written.send(Ok(written));
            unsynced.push(Unsynced { written, durable });
        }
        (self.headers.last().map_or(FrameChecksum::default(), frame::checksum_of), syncing)
    }
}

impl Waiter {
    /// Why a record before it in its run was refused.
    fn builds_on_refused(&self) -> Option<&LogError> {
        self.run.as_ref()?.refused()
    }

    fn refuse(self, error: &LogError) {
        if let Some(run) = &self.run {
            run.refuse(error);
        }
        let _ = self.written.send(Err(error.clone()));
        let _ = self.durable.send(Err(error.clone()));
    }
}

/// Adds a payload with its padding.
pub(crate) fn push_payload<'a>(slices: &mut Vec<IoSlice<'a>>, payload: &'a Payload) {
    push_padded(slices, std::slice::from_ref(&payload.directory_bytes));
    payload.parts.iter().for_each(|pieces| push_padded(slices, pieces));
}

fn push_padded<'a>(slices: &mut Vec<IoSlice<'a>>, pieces: &'a [Bytes]) {
    let mut len = 0;
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        slices.push(IoSlice::new(piece));
        len += piece.len();
    }
    let padding = padded(len) - len;
    if padding > 0 {
        slices.push(IoSlice::new(&PADDING[..padding]));
    }
}
