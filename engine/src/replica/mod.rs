//! A followed history: what arrives from a primary is prepared, appended and applied here.
//!
//! `follow.rs` begins and ends a copy, `check.rs` makes sure of a whole run before anything of it is appended, `commit.rs`
//! appends and applies it.

mod check;
mod commit;
mod follow;

use std::sync::Arc;

use tailrace_wal::{HistoryHeader, HistoryId, Payload, Position, RecordKind, Seq};

use crate::{
    DeadLetter, Engine, EngineError, Operation, Result, TaskInfo,
    database::Database,
    effect::{Effect, Origin, decode_effects, invalid},
    held::{decode_fragment, transaction_key},
};

/// Applies one followed history. One exists per history; calls to `commit` come one at a time, `prepare` in parallel.
#[derive(Debug)]
pub struct Applier {
    engine: Arc<Engine>,
    database: Arc<Database>,
}

/// A record whose parts were decoded and checked against the catalog after all that was prepared before it.
#[derive(Debug)]
pub struct Prepared {
    header: HistoryHeader,
    payload: Payload,
    /// `None` where a fragment cannot be decoded now: its commit decides.
    effects: Option<Vec<Effect>>,
    /// A commit that is to be left out.
    skip: Option<Box<DeadLetter>>,
}

impl Prepared {
    /// The record's header.
    pub fn header(&self) -> &HistoryHeader {
        &self.header
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
        self.database.id
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    pub(crate) fn name(&self) -> &str {
        &self.database.name
    }

    /// Where it stands here: applied position, and where a feed has to start (`Open` sends both).
    pub fn position(&self) -> (Position, Seq) {
        let version = self.database.version();
        (version.position, version.restart_seq)
    }

    /// Decodes and checks one record. Records are prepared in feed order as far as DDL is concerned: a record after DDL
    /// is prepared after that DDL was committed. CPU-bound; call it on a blocking thread. Duplicates (`seq` at or
    /// before the position, fragments that are held) are returned as `None`.
    pub fn prepare(&self, header: HistoryHeader, payload: Payload) -> Result<Option<Prepared>> {
        if header.history != self.database.id {
            return Err(invalid(&format!(
                "a record of history {} in the feed of {}",
                header.history, self.database.id
            )));
        }
        if header.payload_hash != payload.hash {
            return Err(invalid("a record's header and payload do not belong together"));
        }
        if header.restart_seq > header.seq {
            return Err(invalid(&format!("restart seq {} lies after seq {}", header.restart_seq, header.seq)));
        }
        let (version, complete_from, ended) = {
            let applying = self.database.applying.lock();
            (applying.version.clone(), applying.complete_from, applying.ended)
        };
        if ended {
            // What a client wrote into an open transaction after DROP DATABASE, and its abort.
            return Ok(None);
        }
        let here = version.position.seq;
        let key = transaction_key(&header);
        let effects = match header.kind {
            RecordKind::Commit if header.seq <= here => {
                if header.fragment.0 == 0 || complete_from == Seq::ZERO {
                    return Ok(None);
                }
                // Its fragments may have come again, in this run or before: then they are over.
                Some(Vec::new())
            }
            RecordKind::Commit => Some(decode_effects(&version, &payload, Origin::Peer)?),
            RecordKind::Fragment => {
                let held = self.database.held.lock();
                let known = held.get(&key).map(|held| held.fragments.len());
                let again = match known {
                    Some(known) => (header.fragment.0 as usize) < known,
                    // Everything has come here: it is over. After a repair, the run knows what came before it.
                    None => (header.seq < here && complete_from == Seq::ZERO) || held.was_aborted(&key),
                };
                if again {
                    return Ok(None);
                }
                drop(held);
                decode_fragment(&version, &payload)
            }
            RecordKind::Abort => {
                let over = header.seq < here && complete_from == Seq::ZERO;
                if over || self.database.held.lock().was_aborted(&key) {
                    return Ok(None);
                }
                // Its fragments may be in the same run.
                Some(Vec::new())
            }
        };
        Ok(Some(Prepared { header, payload, effects, skip: None }))
    }

    /// Leaves a transaction out that could not be taken: it is appended verbatim and marked as skipped, its position
    /// counts, what it does is kept as a [`crate::DeadLetter`], and the database is DIVERGED. The letter is durable
    /// before the record is written. `reason`: why it is skipped. It must be the next one here, with all of its
    /// fragments; the first and the last record of a history cannot be skipped. `None`: it is here already.
    pub async fn skip(&self, header: HistoryHeader, payload: Payload, reason: String) -> Result<Option<Applied>> {
        if header.history != self.database.id || header.payload_hash != payload.hash {
            return Err(invalid("a record's header and payload or history do not belong together"));
        }
        if header.kind != RecordKind::Commit {
            return Err(invalid("only a committed transaction can be skipped"));
        }
        let version = self.database.version();
        if header.seq <= version.position.seq || self.database.applying.lock().ended {
            return Ok(None);
        }
        let does = |operation: Operation| payload.directory.parts.iter().any(|part| part.operation == operation.code());
        if header.seq == Seq(1) || does(Operation::CreateDatabase) || does(Operation::DropDatabase) {
            return Err(EngineError::Invalid(format!(
                "task {} begins or ends database {:?} and cannot be skipped; if the database is not wanted here, leave it \
                 out of [replication.replica] databases",
                header.seq, version.name
            )));
        }
        // Its fragments are counted when it is committed.
        let letter = DeadLetter::of(&version, &[(header, payload.clone())], &reason, self.engine.clock.now());
        let prepared = Prepared { header, payload, effects: Some(Vec::new()), skip: Some(Box::new(letter)) };
        let (engine, database) = (self.engine.clone(), self.database.clone());
        self.engine.to_the_end(async move { engine.commit_run(database, vec![prepared]).await }).await.map(Some)
    }

    /// Appends a run of prepared records verbatim and applies them, in order, without waiting for the disk.
    pub async fn commit(&self, run: Vec<Prepared>) -> Result<Applied> {
        let (engine, database) = (self.engine.clone(), self.database.clone());
        self.engine.to_the_end(async move { engine.commit_run(database, run).await }).await
    }

    /// Waits until everything committed so far is durable: one sync, however many runs. Then it may be acknowledged.
    pub async fn durable(&self) -> Result<(Position, Seq)> {
        let reached = self.position();
        #[cfg(feature = "simulation")]
        self.engine.keep_position_apart(&self.database).await?;
        self.engine.log.sync().await?;
        Ok(reached)
    }
}
