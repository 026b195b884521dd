//! Whose turn it is to write: the log's thread works off the queue, and an appender that finds nobody writing and nothing
//! queued writes its own small record, which saves waking two threads. A turn of an appender is one write and never a sync:
//! its thread may be one that must not block. For a sync that no append waits for, the thread gives its turn away (`sync.rs`).
//! The rules of turns are the queue's (`queue.rs`).

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::Writer;
use crate::{LogError, queue::Request, shared::Shared};

/// Frames up to this size are written by their appender: measured, a write of 300 bytes to 32 KiB takes 3 to 6 µs where it
/// overwrites zeros, one of 64 KiB 10 to 25 µs, and having the thread do it 20 to 45 µs more.
const INLINE_BYTES_MAX: u64 = 32 << 10;

/// An appender's write should take microseconds. After one that took longer than this (memory full of unwritten pages, a
/// disk that makes writes wait) the thread waits for a while in place of those who should not.
const LONG_WRITE: Duration = Duration::from_millis(1);

/// The writer between turns.
#[derive(Debug)]
pub(crate) struct Pen {
    shared: Arc<Shared>,
    /// `None` in somebody's turn, and once the writer has ended.
    writer: Mutex<Option<Box<Writer>>>,
}

/// A turn that was taken of the queue. It ends when this is dropped.
#[derive(Debug)]
struct Turn<'a> {
    pen: &'a Pen,
    /// `None` once the writer has ended.
    writer: Option<Box<Writer>>,
    was_long: bool,
}

impl Pen {
    /// Before anyone has a turn.
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer) -> Self {
        shared.queue.leave(writer.due(), false);
        Self { shared, writer: Mutex::new(Some(Box::new(writer))) }
    }

    /// The thread's body.
    pub(crate) fn run(&self) {
        let Shared { queue, clock, .. } = &*self.shared;
        while let Some(mut woken) = queue.wait(&**clock) {
            let mut turn = self.turn();
            loop {
                let goes_on = turn.with_writer(|writer| {
                    let goes_on = writer.turn(woken);
                    writer.gather();
                    goes_on
                });
                if !goes_on {
                    return;
                }
                // The turn is free while the disk works.
                if let Some(begun) = turn.writer.as_mut().and_then(|writer| writer.begun()) {
                    drop(turn);
                    let result = begun.sync();
                    if !queue.enter() {
                        return begun.refuse(&self.shared.poison.get().unwrap_or(LogError::Closed));
                    }
                    turn = self.turn();
                    if !turn.with_writer(|writer| writer.end_sync(begun, result)) {
                        return;
                    }
                }
                match queue.take_more() {
                    Some(more) => woken = more,
                    None => break,
                }
            }
        }
    }

    /// Writes a record on the calling thread. A sync that it asks for is the thread's. Gives it back if it has to be
    /// queued.
    #[expect(clippy::result_large_err, reason = "it is given back, not an error")]
    pub(crate) fn append(&self, request: Request) -> Result<(), Request> {
        let len = request.frame_len();
        if len > INLINE_BYTES_MAX || !self.shared.queue.try_enter() {
            return Err(request);
        }
        let mut turn = self.turn();
        if !turn.writer.as_ref().is_some_and(|writer| writer.is_ready_for(len)) {
            return Err(request);
        }
        let clock = &*self.shared.clock;
        let start = clock.monotonic();
        turn.with_writer(|writer| writer.write(request));
        turn.was_long = clock.monotonic().saturating_sub(start) > LONG_WRITE;
        Ok(())
    }

    fn turn(&self) -> Turn<'_> {
        Turn { pen: self, writer: self.writer.lock().take(), was_long: false }
    }
}

impl Turn<'_> {
    /// `false` when that was the writer's last.
    fn with_writer(&mut self, work: impl FnOnce(&mut Writer) -> bool) -> bool {
        // Out of its place meanwhile: one that unwinds fails everyone and does not come back.
        let Some(mut writer) = self.writer.take() else { return false };
        let goes_on = work(&mut writer);
        if goes_on {
            self.writer = Some(writer);
        }
        goes_on
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let queue = &self.pen.shared.queue;
        let Some(writer) = self.writer.take() else { return queue.end() };
        let due = writer.due();
        // Back in its place before anyone can have the next turn.
        *self.pen.writer.lock() = Some(writer);
        queue.leave(due, self.was_long);
    }
}
