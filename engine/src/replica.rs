//! A followed history: what arrives from a primary is prepared, appended and applied here.

use std::sync::Arc;

use tailrace_wal::{HistoryHeader, HistoryId, Payload, Position, Seq};

use crate::{Engine, Result, TaskInfo};

/// Applies one followed history. One exists per history; calls to `commit` come one at a time, `prepare` in parallel.
#[derive(Debug)]
pub struct Applier {
    _private: (),
}

/// A record whose parts were decoded and checked against the catalog after all that was prepared before it.
#[derive(Debug)]
pub struct Prepared {
    _private: (),
}

impl Prepared {
    /// The record's header.
    pub fn header(&self) -> &HistoryHeader {
        todo!()
    }
}

/// What one [`Applier::commit`] did.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The history's position here now: applied, readable, not yet durable.
    pub position: Position,
    /// Where a reader at that position has to start.
    pub restart_seq: Seq,
    /// Transactions among the records, in order (none for a run of fragments).
    pub tasks: Vec<TaskInfo>,
    /// The history ended: its last record was DROP DATABASE.
    pub ended: bool,
}

impl Applier {
    /// Which history.
    pub fn history(&self) -> HistoryId {
        todo!()
    }

    /// Where it stands here: applied position, and where a feed has to start (`Open` sends both).
    pub fn position(&self) -> (Position, Seq) {
        todo!()
    }

    /// Decodes and checks one record. Records are prepared in feed order as far as DDL is concerned: a record after DDL
    /// is prepared after that DDL was committed. CPU-bound; call it on a blocking thread. Duplicates (`seq` at or
    /// before the position, fragments that are held) are returned as `None`.
    pub fn prepare(&self, _header: HistoryHeader, _payload: Payload) -> Result<Option<Prepared>> {
        todo!()
    }

    /// Appends a run of prepared records verbatim and applies them, in order, without waiting for the disk.
    pub async fn commit(&self, _run: Vec<Prepared>) -> Result<Applied> {
        todo!()
    }

    /// Waits until everything committed so far is durable: one sync, however many runs. Then it may be acknowledged.
    pub async fn durable(&self) -> Result<(Position, Seq)> {
        todo!()
    }
}

impl Engine {
    /// Opens a followed history: the one that is here already, or a new one at position 0 (logged in the system history
    /// as followed from `primary`). A local database of that name that is not this history is
    /// [`crate::EngineError::AlreadyExists`]: name taken.
    pub async fn follow(self: &Arc<Self>, _history: HistoryId, _name: &str, _primary: &str) -> Result<Arc<Applier>> {
        todo!()
    }

    /// Drops this node's copy of a followed history whose end it can no longer fetch record by record.
    pub async fn drop_followed(self: &Arc<Self>, _history: HistoryId) -> Result<()> {
        todo!()
    }
}
