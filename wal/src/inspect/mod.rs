//! Reads the segments of a folder as they lie on disk, for tools: nothing is opened for writing, no lock is taken, and a
//! node may append, seal and truncate at the same moment.
//!
//! Frames are decoded by what recovery decodes them with, and the same rules (`FORMAT.md`, *Recovery*) tell a tail from
//! damage. Beyond what a start checks, every frame of every segment is read, footers are compared with the frames that
//! they index, and each history is followed record by record.
//!
//! | file | what |
//! |---|---|
//! | `folder` | which segments there are, in order, while a node makes and removes some |
//! | `file` | one segment: its frames, what lies behind them |
//! | `footer` | a sealed segment's footer against its frames |
//! | `history` | one history: seqs, chain, fragments, restart seqs |
//! | `report` | what is found |

mod file;
mod folder;
mod footer;
mod history;
mod report;

use std::{
    collections::BTreeMap,
    ops::{ControlFlow, RangeInclusive},
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{Disk, HistoryHeader, HistoryId, LogConfig, LogError, Lsn, Payload};
use file::SegmentReader;
use folder::{Folder, Next};
use history::HistoryCheck;
pub use report::{Condition, Damage, HistoryReport, OpenReport, SegmentReport};

/// Takes what an [`Inspector`] reads, in log order.
pub trait Visitor {
    /// A frame whose checksums are right, a durable mark among them. [`ControlFlow::Break`] ends the reading.
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        let _ = frame;
        ControlFlow::Continue(())
    }

    /// A segment was read to its end, or to its first damage.
    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()>;
}

/// A frame as it lies in a segment.
#[derive(Debug, Clone, Copy)]
pub struct InspectedFrame<'a> {
    /// The segment.
    pub path: &'a Path,
    /// Where the frame begins, bytes from the start of the file.
    pub offset: crate::FileOffset,
    /// Header, payload and padding, bytes.
    pub bytes: u32,
    /// Of a durable mark: the last LSN before it.
    pub lsn: Lsn,
    /// What its writer knew to be durable.
    pub durable: Lsn,
    /// This node's operator skipped it.
    pub skipped: bool,
    /// `None` on a durable mark.
    pub header: Option<&'a HistoryHeader>,
    /// Of a durable mark: empty.
    pub payload: &'a Payload,
}

/// Reads a folder of segments. See the module's page.
#[derive(Debug, Clone)]
pub struct Inspector {
    disk: Arc<dyn Disk>,
    config: LogConfig,
    floor: Lsn,
    replaced: BTreeMap<HistoryId, Lsn>,
}

impl Inspector {
    /// For the segments in `dir`.
    pub fn new(disk: Arc<dyn Disk>, dir: impl Into<PathBuf>) -> Self {
        Self { disk, config: LogConfig::new(dir), floor: Lsn::ZERO, replaced: BTreeMap::new() }
    }

    /// Others (the manifest) state everything up to `floor` durable: what is missing or damaged up to there is damage.
    #[must_use]
    pub fn durable_floor(mut self, floor: Lsn) -> Self {
        self.floor = floor;
        self
    }

    /// Records of `history` up to `lsn` belong to a copy that a repair replaced: those after it need not continue them.
    #[must_use]
    pub fn replaced(mut self, history: HistoryId, lsn: Lsn) -> Self {
        self.replaced.insert(history, lsn);
        self
    }

    /// Reads the segments with records in `lsns`, and all of their frames. Memory is bounded by one frame, one history
    /// each, and the open transactions.
    ///
    /// Damage is not an error but in the [`SegmentReport`] where it begins; the reading goes on with the next segment
    /// unless the visitor ends it. Errors are failing reads and files of another format.
    pub fn read(&self, lsns: RangeInclusive<Lsn>, visitor: &mut dyn Visitor) -> Result<Vec<HistoryReport>, LogError> {
        let mut folder = Folder::list(&*self.disk, &self.config.dir, &lsns)?;
        let mut histories: BTreeMap<HistoryId, HistoryCheck> = BTreeMap::new();
        while let Some(next) = folder.next(self.floor)? {
            let report = match next {
                Next::Damaged(report) => {
                    histories.values_mut().for_each(HistoryCheck::interrupt);
                    *report
                }
                Next::Segment(segment) => {
                    if segment.follows.is_none() {
                        // The first, or the first after some that were truncated meanwhile.
                        histories.values_mut().for_each(HistoryCheck::interrupt);
                    }
                    let reader = SegmentReader::new(&self.config, &segment, self.floor, &self.replaced, &mut histories);
                    match reader.read(visitor)? {
                        ControlFlow::Continue(read) => folder.read(read),
                        ControlFlow::Break(()) => break,
                    }
                }
            };
            if report.damage().is_some() {
                histories.values_mut().for_each(HistoryCheck::interrupt);
            }
            if visitor.segment(&report).is_break() {
                break;
            }
        }
        Ok(histories.into_iter().map(|(id, check)| check.report(id)).collect())
    }
}

#[cfg(test)]
mod tests;
