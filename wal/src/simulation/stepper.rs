//! A writer that is stepped by hand.

use std::sync::Arc;

use crate::{Clock, Disk, Log, LogConfig, LogError, Lsn, NodeId, Recovery, writer::Writer};

/// The writer of a log that was opened with [`Log::open_stepped`]: it does what the thread does, when it is told to.
/// Dropping it is the end of the process: what waits is never written.
#[derive(Debug)]
pub struct Stepper {
    /// `None` once it has ended.
    writer: Option<Writer>,
}

impl Stepper {
    pub(crate) fn new(writer: Writer) -> Self {
        Self { writer: Some(writer) }
    }

    /// Takes exactly what waits now, as one batch. `false` when nothing waits or the writer has ended.
    pub fn step(&mut self) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        let Some(items) = writer.waiting() else { return false };
        if !writer.turn(items) {
            self.writer = None;
        }
        true
    }

    /// The time that the writer would wait for more has passed: it syncs what is not synced, or appends a durable
    /// mark. `false` when it would wait for ever, when something waits, or when it has ended.
    pub fn idle(&mut self) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        let Some(idle) = writer.idles() else { return false };
        if !writer.turn(idle) {
            self.writer = None;
        }
        true
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
