//! The manifest: a node's physical facts. A second, small log beside the node's own, whose records are edits and, from
//! time to time, a checkpoint of their fold; what lies before the last checkpoint is truncated.
//!
//! An edit or checkpoint is one transaction of the manifest's only history, written in fragments where it is large.
//! Bodies are JSON; the directory's operation code tells them apart.

mod check;
mod edit;
mod facts;
#[cfg(feature = "simulation")]
pub(crate) mod fuzz;
#[cfg(test)]
mod golden;
mod state;

pub(crate) use edit::{Edit, FlushEdit, FlushedHistory, KeyRecord, PinRecord, SettleEdit};
pub use facts::{DatabaseFacts, ManifestFacts};
pub(crate) use state::{HistoryState, ManifestState, TableState};

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tailrace_wal::{
    Clock, CommitTime, Disk, Epoch, FragmentNumber, Frame, HistoryEnd, HistoryId, Log, LogConfig, LogError, Lsn,
    NodeId, Part, PartEntry, PartHash, Payload, PayloadHash, Persistence, Position, Record, RecordKind,
    TransactionNumber,
};

use crate::{EngineConfig, EngineError, Result, config::planted, ids::unique, space::Space};

/// The manifest's one history. The log beneath belongs to one node and is never read by another.
const HISTORY: HistoryId = HistoryId([0; 16]);
/// The node in the segment headers: the real one is known only once the manifest is read.
const NODE: NodeId = NodeId([0; 16]);
/// Operation codes of parts.
const EDIT: u16 = 1;
const CHECKPOINT: u16 = 2;
/// Version of the documents that are written, in the schema version of their parts; older ones from 1 on are read.
const FORMAT_VERSION: u32 = 3;

/// How a manifest is cut up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ManifestSizes {
    /// Body bytes per record, well below the largest frame.
    pub(crate) piece_bytes: usize,
    /// Segments of the manifest's log.
    pub(crate) segment_bytes: u64,
    /// Bytes of edits after which a checkpoint is written, or twice the last checkpoint where that is more: checkpoints
    /// cost a constant factor of what edits cost.
    pub(crate) checkpoint_bytes: u64,
}

impl Default for ManifestSizes {
    fn default() -> Self {
        Self { piece_bytes: 4 << 20, segment_bytes: 16 << 20, checkpoint_bytes: 4 << 20 }
    }
}

/// When the parts of a manifest are durable.
#[derive(Debug, Clone, Copy)]
struct Care {
    edits: Persistence,
    checkpoints: Persistence,
}

/// The manifest of a node. Edits are durable when [`Manifest::append`] returns.
#[derive(Debug)]
pub(crate) struct Manifest {
    log: Log,
    sizes: ManifestSizes,
    care: Care,
    space: Arc<Space>,
    inner: tokio::sync::Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: ManifestState,
    /// Edits since the last checkpoint.
    edited_bytes: u64,
    checkpoint_bytes: u64,
}

impl Manifest {
    /// Opens the manifest in `dir`, or creates it with a new node id and a new system history.
    pub(crate) async fn open(
        config: &EngineConfig,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        space: Arc<Space>,
    ) -> Result<(Self, ManifestState)> {
        let dir = config.data_dir.join("manifest");
        let sizes = manifest_sizes(config);
        let care = Care {
            edits: if planted!(config, DoesNotSyncEdits) { Persistence::Async } else { Persistence::Sync },
            checkpoints: if planted!(config, DoesNotSyncCheckpoints) { Persistence::Async } else { Persistence::Sync },
        };
        let (node, system) = (NodeId(unique(&*clock)), HistoryId(unique(&*clock)));
        let sync_interval =
            if config.is_by_hand() { config.wal.sync_interval } else { LogConfig::new("").sync_interval };
        let config = LogConfig { segment_bytes: sizes.segment_bytes, sync_interval, ..LogConfig::new(dir.clone()) };
        let named = dir.clone();
        let read = tokio::task::spawn_blocking(move || {
            let (log, recovery) = Log::open(config, NODE, Lsn::ZERO, disk, clock)?;
            let end = recovery.histories.first().map_or(
                HistoryEnd { position: Position::start(HISTORY), commit_time: CommitTime::default() },
                |history| history.end,
            );
            let mut folding = Folding::new(named);
            let mut tail = log.replay(Lsn(recovery.first.0.saturating_sub(1)))?;
            while let Some(frame) = tail.try_next()? {
                folding.frame(frame)?;
            }
            log.open_history(end)?;
            let open = recovery.histories.into_iter().flat_map(|history| history.open).collect::<Vec<_>>();
            Ok::<_, EngineError>((log, folding.finish()?, open))
        });
        let (log, found, open) = read.await.map_err(|_| EngineError::Closed)??;
        let created = found.is_none();
        let inner = found.unwrap_or_else(|| Inner {
            state: ManifestState { node, system, ..ManifestState::default() },
            edited_bytes: 0,
            checkpoint_bytes: 0,
        });
        if created && log.status().appended > Lsn::ZERO {
            return Err(damaged(&dir.display().to_string(), "it holds records and no checkpoint"));
        }
        let manifest = Self { log, sizes, care, space, inner: tokio::sync::Mutex::new(inner) };
        // A crash, or want of space, left them without an end: they would hold the log for ever.
        for transaction in open {
            manifest.abort(transaction).await;
        }
        let mut inner = manifest.inner.lock().await;
        if created {
            manifest.checkpoint(&mut inner).await?;
        }
        let state = inner.state.clone();
        drop(inner);
        Ok((manifest, state))
    }

    /// Appends an edit. On an error nothing counts as done.
    pub(crate) async fn append(&self, edit: Edit) -> Result<()> {
        let mut inner = self.inner.lock().await;
        let body = encode(&edit)?;
        let bytes = body.len() as u64;
        self.space.needed("the manifest", || self.write(EDIT, body.clone(), self.care.edits)).await?;
        inner.state.apply(edit);
        inner.edited_bytes += bytes;
        if inner.edited_bytes > self.sizes.checkpoint_bytes.max(2 * inner.checkpoint_bytes)
            && let Err(error) = self.checkpoint(&mut inner).await
        {
            tracing::warn!(%error, "no checkpoint of the manifest was written; the next edit tries again");
        }
        Ok(())
    }

    /// A history at its last flush.
    pub(crate) async fn history(&self, id: HistoryId) -> Option<HistoryState> {
        self.inner.lock().await.state.histories.get(&id).cloned()
    }

    /// Waits until it takes nothing any more, and says why.
    pub(crate) async fn stopped(&self) -> LogError {
        crate::engine::stopped(&self.log).await
    }

    /// Closes the log: every edit that was acknowledged is durable already.
    pub(crate) async fn close(&self) -> Result<()> {
        let _inner = self.inner.lock().await;
        Ok(self.log.close().await?)
    }

    async fn checkpoint(&self, inner: &mut Inner) -> Result<()> {
        let body = encode(&inner.state)?;
        let bytes = body.len() as u64;
        self.space.needed("a checkpoint of the manifest", || async { Ok(self.log.roll().await?) }).await?;
        let before = self.log.status().appended;
        let write = || self.write(CHECKPOINT, body.clone(), self.care.checkpoints);
        self.space.needed("a checkpoint of the manifest", write).await?;
        inner.edited_bytes = 0;
        inner.checkpoint_bytes = bytes;
        let log = self.log.clone();
        let truncated = tokio::task::spawn_blocking(move || log.truncate(before)).await;
        truncated.map_err(|_| EngineError::Closed)??;
        Ok(())
    }

    /// Writes one transaction and waits until it is durable.
    async fn write(&self, operation: u16, body: Bytes, persistence: Persistence) -> Result<()> {
        let step = self.sizes.piece_bytes;
        let mut pieces: Vec<Bytes> =
            (0..body.len()).step_by(step).map(|at| body.slice(at..body.len().min(at + step))).collect();
        let last = pieces.pop().unwrap_or_default();
        let transaction = if pieces.is_empty() { None } else { Some(self.log.begin_transaction(HISTORY)?) };
        let written = self.write_pieces(operation, pieces, last, transaction, persistence).await;
        if let (Err(error), Some(transaction)) = (&written, transaction)
            && surely_not_written(error)
        {
            // Left open, its fragments would never be truncated.
            self.abort(transaction).await;
        }
        written
    }

    async fn write_pieces(
        &self,
        operation: u16,
        pieces: Vec<Bytes>,
        last: Bytes,
        transaction: Option<TransactionNumber>,
        persistence: Persistence,
    ) -> Result<()> {
        let mut hashes = Vec::with_capacity(pieces.len());
        let mut number = FragmentNumber(0);
        for piece in pieces {
            let payload = payload(operation, piece, Vec::new())?;
            hashes.push(payload.hash);
            self.record(RecordKind::Fragment, transaction, number, payload, Persistence::Async).await?;
            number.0 += 1;
        }
        let payload = payload(operation, last, hashes)?;
        self.record(RecordKind::Commit, transaction, number, payload, persistence).await
    }

    /// Ends a transaction that will have no commit.
    async fn abort(&self, transaction: TransactionNumber) {
        let (kind, number) = (RecordKind::Abort, FragmentNumber(0));
        let append = || self.record(kind, Some(transaction), number, Payload::empty(), Persistence::Async);
        if let Err(error) = self.space.needed("the manifest", append).await {
            tracing::warn!(%error, "no abort record was written to the manifest; the next start does it");
        }
    }

    async fn record(
        &self,
        kind: RecordKind,
        transaction: Option<TransactionNumber>,
        fragment: FragmentNumber,
        payload: Payload,
        persistence: Persistence,
    ) -> Result<()> {
        let record = Record { history: HISTORY, kind, transaction, fragment, payload };
        let mut appending = self.log.append(record, persistence).await?;
        match persistence {
            Persistence::Async => appending.written().await?,
            Persistence::Sync => appending.durable().await?,
        };
        Ok(())
    }
}

fn manifest_sizes(config: &EngineConfig) -> ManifestSizes {
    #[cfg(feature = "simulation")]
    if config.simulation.small_manifest {
        return ManifestSizes { piece_bytes: 1 << 10, segment_bytes: 16 << 10, checkpoint_bytes: 4 << 10 };
    }
    let _ = config;
    ManifestSizes::default()
}

/// Whether an edit that failed like this is certainly not in the manifest, so that the files it would have named can go.
/// After any other failure of the log only the next start can tell.
pub(crate) fn surely_not_written(error: &EngineError) -> bool {
    match error {
        EngineError::Log(error) => matches!(error, LogError::Full { .. } | LogError::Invalid { .. }),
        EngineError::Closed => false,
        _ => true,
    }
}

/// The fold of a manifest being read.
struct Folding {
    /// The manifest's folder, for errors.
    dir: PathBuf,
    inner: Option<Inner>,
    open: HashMap<(Epoch, TransactionNumber), Vec<Payload>>,
}

impl Folding {
    fn new(dir: PathBuf) -> Self {
        Self { dir, inner: None, open: HashMap::new() }
    }

    fn frame(&mut self, frame: Frame) -> Result<()> {
        if frame.header.history != HISTORY {
            return Err(damaged(&format!("record {}", frame.lsn), "it is of another history"));
        }
        let key = (frame.header.epoch, frame.header.transaction);
        match frame.header.kind {
            RecordKind::Fragment => {
                self.open.entry(key).or_default().push(frame.payload);
                Ok(())
            }
            RecordKind::Abort => {
                self.open.remove(&key);
                Ok(())
            }
            RecordKind::Commit => {
                let mut payloads = self.open.remove(&key).unwrap_or_default();
                // Fragments of a checkpoint before the retained one may be gone: only whole bodies count.
                if payloads.len() != frame.payload.directory.fragments.len() {
                    return Ok(());
                }
                let Some(part) = frame.payload.directory.parts.first() else {
                    return Err(damaged(&format!("record {}", frame.lsn), "it is neither edit nor checkpoint"));
                };
                let (operation, version) = (part.operation, part.schema_version);
                check_version(&self.dir, version)?;
                payloads.push(frame.payload);
                let body: Vec<u8> = payloads.iter().flat_map(|payload| payload.part_bytes(0)).collect();
                self.transaction(operation, &body, frame.lsn)
            }
        }
    }

    fn transaction(&mut self, operation: u16, body: &[u8], lsn: Lsn) -> Result<()> {
        let wrong = |error: serde_json::Error| {
            damaged(&format!("record {lsn}"), &format!("{error}; if a newer version wrote it, start that version"))
        };
        match (operation, &mut self.inner) {
            (CHECKPOINT, _) => {
                let state = serde_json::from_slice(body).map_err(wrong)?;
                self.inner = Some(Inner { state, edited_bytes: 0, checkpoint_bytes: body.len() as u64 });
            }
            (EDIT, Some(inner)) => {
                inner.state.apply(serde_json::from_slice(body).map_err(wrong)?);
                inner.edited_bytes += body.len() as u64;
            }
            // Before the retained checkpoint.
            (EDIT, None) => {}
            _ => return Err(damaged(&format!("record {lsn}"), "it is neither edit nor checkpoint")),
        }
        Ok(())
    }

    /// The fold, if there is a checkpoint, and it says what can be.
    fn finish(self) -> Result<Option<Inner>> {
        if let Some(inner) = &self.inner {
            inner.state.check().map_err(|reason| damaged(&self.dir.display().to_string(), &reason))?;
        }
        Ok(self.inner)
    }
}

/// Refuses a document of another format.
fn check_version(dir: &Path, found: u32) -> Result<()> {
    match found {
        0 => Err(LogError::PreReleaseFormat { path: dir.into() }.into()),
        1..=FORMAT_VERSION => Ok(()),
        _ => Err(LogError::UnknownFormat { path: dir.into(), found, known: FORMAT_VERSION }.into()),
    }
}

fn encode<T: serde::Serialize>(body: &T) -> Result<Bytes> {
    serde_json::to_vec(body).map(Bytes::from).map_err(|error| damaged("edit", &error.to_string()))
}

fn payload(operation: u16, piece: Bytes, fragments: Vec<PayloadHash>) -> Result<Payload, LogError> {
    let entry = PartEntry {
        table: 0,
        schema_version: FORMAT_VERSION,
        operation,
        first_ordinal: 0,
        rows: 0,
        length: 0,
        hash: PartHash::default(),
        partition: Bytes::new(),
    };
    Payload::new(vec![Part::new(entry, vec![piece])?], fragments, None)
}

fn damaged(object: &str, reason: &str) -> EngineError {
    EngineError::Storage { operation: "read the manifest", object: object.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EpochEntry, SystemFact, TableId};
    use tailrace_wal::{Seq, SystemClock, SystemDisk};

    fn flushed(id: HistoryId, seq: u64, name: &str) -> FlushedHistory {
        FlushedHistory {
            id,
            name: name.to_owned(),
            position: Position { seq: Seq(seq), ..Position::start(id) },
            restart_seq: Seq(seq),
            commit_time: CommitTime(1),
            epochs: vec![EpochEntry { epoch: Epoch::default(), first_seq: Seq(1), chain_before: Default::default() }],
            next_table: TableId(1),
            replay_after: Lsn::ZERO,
            complete_from: Seq::ZERO,
            tables: Vec::new(),
            left_out: Vec::new(),
            dropped: Vec::new(),
            added: Vec::new(),
            system_facts: Vec::new(),
            keys: Vec::new(),
            skipped: Vec::new(),
            differences: Vec::new(),
        }
    }

    pub(super) async fn open(dir: &std::path::Path) -> (Manifest, ManifestState) {
        let (config, disk, clock) = (EngineConfig::new(dir), SystemDisk::shared(), SystemClock::shared());
        let space = Arc::new(Space::open(&config, disk.clone(), clock.clone()));
        Manifest::open(&config, disk, clock, space).await.unwrap()
    }

    #[tokio::test]
    async fn edits_survive_and_checkpoints_bound_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, first) = open(dir.path()).await;
        let (market, gone) = (HistoryId::random(), HistoryId::random());
        // Names of this length make checkpoints happen, and make them larger than one record.
        let long = "x".repeat(3 << 20);
        for seq in 1..=12 {
            let histories = vec![flushed(market, seq, &long), flushed(gone, seq, &long)];
            let edit = FlushEdit { flushed: Lsn(seq), replay_from: Lsn(seq + 1), histories, ended: Vec::new() };
            manifest.append(Edit::Flush(edit)).await.unwrap();
        }
        let edit = FlushEdit { flushed: Lsn(20), replay_from: Lsn(21), histories: Vec::new(), ended: vec![gone] };
        manifest.append(Edit::Flush(edit)).await.unwrap();
        assert!(manifest.log.status().first > Lsn(1), "nothing was truncated");
        manifest.close().await.unwrap();
        drop(manifest);
        let (manifest, state) = open(dir.path()).await;
        assert_eq!((state.node, state.system), (first.node, first.system));
        assert_eq!(state.flushed, Lsn(20));
        assert_eq!(state.replay_from, Lsn(21));
        assert_eq!(state.histories.keys().copied().collect::<Vec<_>>(), [market]);
        assert_eq!(state.histories[&market].position.seq, Seq(12));
        manifest.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_whole_history_is_installed_and_facts_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (manifest, first) = open(dir.path()).await;
        let mut system = flushed(first.system, 3, "system");
        system.system_facts = vec![SystemFact::PrimaryReplication { on: false }];
        let edit = FlushEdit { flushed: Lsn(3), replay_from: Lsn(4), histories: vec![system], ended: Vec::new() };
        manifest.append(Edit::Flush(edit)).await.unwrap();
        let mut copy = manifest.inner.lock().await.state.histories[&first.system].clone();
        copy.id = HistoryId::random();
        copy.position.history = copy.id;
        copy.replay_after = Lsn(9);
        manifest.append(Edit::Install(Box::new(copy.clone()))).await.unwrap();
        drop(manifest);
        let (_manifest, state) = open(dir.path()).await;
        assert_eq!(state.histories[&first.system].system_facts, [SystemFact::PrimaryReplication { on: false }]);
        assert_eq!(state.histories[&copy.id].replay_after, Lsn(9));
    }
}
