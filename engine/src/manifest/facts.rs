//! What the manifest says, read as it lies on disk: for tools beside a running node.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path, sync::Arc};

use tailrace_wal::{
    Disk, Frame, HistoryId, Lsn, NodeId, Position,
    inspect::{Damage, InspectedFrame, Inspector, SegmentReport, Visitor},
};

use super::{Folding, ManifestState, damaged};
use crate::{EngineError, Result};

/// How often the manifest is read again when a checkpoint moves on while it is read.
const ATTEMPTS_MAX: usize = 8;

/// A manifest's fold, as far as tools need it.
#[derive(Debug, Clone, Default)]
pub struct ManifestFacts {
    /// The node.
    pub node: NodeId,
    /// The log holds everything up to here, or did until it was truncated: it is durable.
    pub flushed: Lsn,
    /// Histories that had not ended at the last flush.
    pub databases: BTreeMap<HistoryId, DatabaseFacts>,
}

/// One history at its last flush.
#[derive(Debug, Clone)]
pub struct DatabaseFacts {
    /// Name of its database.
    pub name: String,
    /// Where it was.
    pub position: Position,
    /// Records at or below this LSN belong to a copy that a repair replaced.
    pub replay_after: Lsn,
}

impl ManifestFacts {
    /// Reads the manifest in `dir`. Nothing is written and no lock is taken; a node may append and write checkpoints at
    /// the same time. An error names damage, or the format where another version wrote it. Blocks.
    pub fn read(disk: &Arc<dyn Disk>, dir: &Path) -> Result<Self> {
        for _ in 0..ATTEMPTS_MAX {
            let mut fold = Fold { folding: Folding::new(dir.into()), damage: None, failed: None };
            Inspector::new(disk.clone(), dir).read(Lsn(1)..=Lsn(u64::MAX), &mut fold)?;
            let Fold { folding, damage, failed } = fold;
            failed.map_or(Ok(()), Err)?;
            if let Some(damage) = damage {
                return Err(damaged(&dir.display().to_string(), &damage.to_string()));
            }
            // None: the segment with the checkpoint went while it was read; the next one has a newer checkpoint.
            if let Some(inner) = folding.finish()? {
                return Ok(inner.state.into());
            }
        }
        Err(damaged(&dir.display().to_string(), "it holds no checkpoint"))
    }
}

impl From<ManifestState> for ManifestFacts {
    fn from(state: ManifestState) -> Self {
        let databases = state.histories.into_iter().map(|(id, history)| {
            let (name, position, replay_after) = (history.name, history.position, history.replay_after);
            (id, DatabaseFacts { name, position, replay_after })
        });
        Self { node: state.node, flushed: state.flushed, databases: databases.collect() }
    }
}

struct Fold {
    folding: Folding,
    damage: Option<Damage>,
    failed: Option<EngineError>,
}

impl Visitor for Fold {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        let Some(header) = frame.header else { return ControlFlow::Continue(()) };
        let (lsn, skipped, payload) = (frame.lsn, frame.skipped, frame.payload.clone());
        match self.folding.frame(Frame { lsn, skipped, header: *header, payload }) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.damage = segment.damage().cloned();
        if self.damage.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
