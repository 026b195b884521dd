//! A writer that is stepped by hand.

use std::{io, sync::Arc};

use crate::{
    Clock, Disk, Log, LogConfig, LogError, Lsn, NodeId, Recovery,
    queue::Woken,
    writer::{SyncBegun, Writer},
};

/// The writer of a log that was opened with [`Log::open_stepped`]: it does what the thread does, when it is told to.
/// Dropping it is the end of the process: what waits is never written.
#[derive(Debug)]
pub struct Stepper {
    /// `None` once it has ended.
    writer: Option<Writer>,
    /// A sync for which the thread would have given its turn away, and what the disk said once it was asked.
    begun: Option<(SyncBegun, Option<io::Result<()>>)>,
}

impl Stepper {
    pub(crate) fn new(writer: Writer) -> Self {
        Self { writer: Some(writer), begun: None }
    }

    /// Takes exactly what waits now, as one batch. `false` when nothing waits or the writer has ended.
    pub fn step(&mut self) -> bool {
        let stepped = self.begin();
        self.end_sync();
        stepped
    }

    /// As [`Stepper::step`], up to a sync during which appenders may write, if it comes to one; then
    /// [`Stepper::end_sync`] has to follow.
    pub fn begin(&mut self) -> bool {
        let Some(items) = self.writer.as_ref().and_then(Writer::waiting) else { return false };
        self.turn(items);
        true
    }

    /// During such a sync: the disk does its part now, so that what is written from here on is not durable with it.
    /// Otherwise it does so at the end.
    pub fn sync_early(&mut self) {
        if let Some((begun, result @ None)) = &mut self.begun {
            *result = Some(begun.sync());
        }
    }

    /// During such a sync: the record that waits first is written as by its appender, if that is possible.
    pub fn write_beside(&mut self) -> bool {
        let Some(writer) = self.writer.as_mut().filter(|_| self.begun.is_some()) else { return false };
        match writer.write_waiting() {
            Ok(written) => written,
            Err(error) => {
                self.writer = None;
                if let Some((begun, _)) = self.begun.take() {
                    begun.refuse(&error);
                }
                true
            }
        }
    }

    /// Ends a sync that [`Stepper::begin`] came to.
    pub fn end_sync(&mut self) {
        let Some((begun, result)) = self.begun.take() else { return };
        let result = result.unwrap_or_else(|| begun.sync());
        if self.writer.as_mut().is_some_and(|writer| !writer.end_sync(begun, result)) {
            self.writer = None;
        }
    }

    /// The time that the writer would wait for more has passed: it syncs what is not synced, or appends a durable
    /// mark. `false` when it would wait for ever, when something waits, or when it has ended.
    pub fn idle(&mut self) -> bool {
        let Some(idle) = self.writer.as_ref().and_then(Writer::idles) else { return false };
        self.turn(idle);
        self.end_sync();
        true
    }

    fn turn(&mut self, woken: Woken) {
        let Some(writer) = &mut self.writer else { return };
        if writer.turn(woken) {
            self.begun = writer.begun().map(|begun| (begun, None));
        } else {
            self.writer = None;
        }
    }

    /// Whether the writer has ended: closed, or poisoned.
    pub fn has_ended(&self) -> bool {
        self.writer.is_none()
    }
}

impl Log {
    /// As [`Log::open`], with a writer that is stepped by hand, so that batches are what a test says they are.
    pub fn open_stepped(
        config: LogConfig,
        node: NodeId,
        durable_floor: Lsn,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Stepper, Recovery), LogError> {
        let (log, writer, recovery) = Self::recovered(config, node, durable_floor, disk, clock)?;
        Ok((log, Stepper::new(writer), recovery))
    }
}
