//! A database at work: its latches, its apply queue, what flushes and task lists need of it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tailrace_wal::{HistoryId, Lsn, Seq};
use tokio::sync::{RwLock, watch};

use crate::{
    DatabaseVersion, Datafile, EngineError, GroupFold, Result, TASKS_KEPT, TableId, TaskInfo,
    apply::{self, Changes},
    digest::Points,
    effect::Committed,
    held::Held,
    keys::Keys,
};

/// A live database. Lock order: `ddl` or `following`, `latch`, table latches by id, the engine's gate, `held`, `applying`.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) id: HistoryId,
    pub(crate) name: String,
    /// One DDL statement at a time.
    pub(crate) ddl: tokio::sync::Mutex<()>,
    /// Shared by commits and by DDL of single tables, exclusive for the end of the database.
    pub(crate) latch: Arc<RwLock<()>>,
    tables: Mutex<HashMap<TableId, Arc<RwLock<()>>>>,
    /// One run of a followed history at a time.
    pub(crate) following: tokio::sync::Mutex<()>,
    pub(crate) held: Mutex<Held>,
    pub(crate) applying: Mutex<Applying>,
    progress: watch::Sender<Progress>,
    pub(crate) keys: Keys,
}

/// How far the apply queue is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Progress {
    applied: Seq,
    stopped: Option<String>,
}

/// The apply queue and what it leaves behind.
#[derive(Debug)]
pub(crate) struct Applying {
    /// The newest version; the engine publishes it while this is locked.
    pub(crate) version: Arc<DatabaseVersion>,
    /// LSN of the transaction at the version's position, as far as known: everything of this database up to here is
    /// applied.
    pub(crate) applied: Lsn,
    /// Records at or below this LSN belong to a copy that a repair has replaced.
    pub(crate) replay_after: Lsn,
    /// Every fragment that was written after this seq is in this node's log, or its transaction is over.
    pub(crate) complete_from: Seq,
    pub(crate) changes: Changes,
    pub(crate) ended: bool,
    pending: BTreeMap<Seq, Committed>,
    groups: GroupFold,
    tasks: VecDeque<TaskInfo>,
    /// What the database was at the latest digest points.
    pub(crate) points: Points,
}

/// What one call of [`Database::apply`] did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// A version other than the one before.
    pub(crate) version: Option<Arc<DatabaseVersion>>,
    pub(crate) ended: bool,
    /// Payload bytes of rows that are in memory now.
    pub(crate) bytes: u64,
    /// An apply failed, which admission should have made impossible.
    pub(crate) failed: Option<String>,
}

impl Database {
    pub(crate) fn new(version: Arc<DatabaseVersion>, applied: Lsn) -> Self {
        let progress = Progress { applied: version.position.seq, stopped: version.stopped.clone() };
        Self {
            id: version.id,
            name: version.name.clone(),
            ddl: tokio::sync::Mutex::default(),
            latch: Arc::default(),
            tables: Mutex::default(),
            following: tokio::sync::Mutex::default(),
            held: Mutex::default(),
            applying: Mutex::new(Applying {
                version,
                applied,
                replay_after: Lsn::ZERO,
                complete_from: Seq::ZERO,
                changes: Changes::default(),
                ended: false,
                pending: BTreeMap::new(),
                groups: GroupFold::default(),
                tasks: VecDeque::new(),
                points: Points::default(),
            }),
            progress: watch::Sender::new(progress),
            keys: Keys::default(),
        }
    }

    /// The newest version.
    pub(crate) fn version(&self) -> Arc<DatabaseVersion> {
        self.applying.lock().version.clone()
    }

    /// The latch of a table. Entries of dropped tables stay; ids are never used again.
    pub(crate) fn table_latch(&self, id: TableId) -> Arc<RwLock<()>> {
        self.tables.lock().entry(id).or_default().clone()
    }

    /// The error that meets a writer of a database which cannot be written.
    pub(crate) fn check_writable(version: &DatabaseVersion) -> Result<()> {
        if let Some(reason) = &version.stopped {
            return Err(EngineError::DatabaseStopped { database: version.name.clone(), reason: reason.clone() });
        }
        match &version.role {
            crate::Role::Primary => Ok(()),
            crate::Role::Replica { primary } => {
                Err(EngineError::ReadOnlyReplica { database: version.name.clone(), primary: primary.clone() })
            }
        }
    }

    /// Queues transactions and applies all that are next in line, publishing one new version through `publish`.
    pub(crate) fn apply(
        &self,
        committed: impl IntoIterator<Item = Committed>,
        publish: impl FnOnce(&Arc<DatabaseVersion>, bool),
    ) -> Outcome {
        let mut guard = self.applying.lock();
        let applying = &mut *guard;
        applying.pending.extend(committed.into_iter().map(|committed| (committed.position.seq, committed)));
        let mut outcome = Outcome::default();
        if applying.version.stopped.is_some() || applying.ended {
            applying.pending.clear();
            return outcome;
        }
        let mut version = DatabaseVersion::clone(&applying.version);
        while let Some(committed) = applying.pending.remove(&version.position.seq.next()) {
            let before = version.clone();
            let mut task = apply::describe(&version, &committed);
            let bytes: u64 = if committed.skipped.is_some() { 0 } else { committed.bytes };
            let lsn = committed.lsn;
            let key = committed.directories.last().and_then(|directory| directory.idempotency_key.clone());
            let receipt = crate::Receipt {
                position: committed.position,
                lsn,
                commit_time: committed.commit_time,
                rows: task.rows,
            };
            let directories = committed.directories.clone();
            let point = committed.point();
            match apply::apply(&mut version, committed, &mut applying.changes) {
                Ok(ended) => outcome.ended = ended.0,
                Err(error) => {
                    // The state before it stays readable; nothing after it can be applied.
                    version = before;
                    let reason = format!(
                        "transaction {} could not be applied: {error}; rebuild this copy from a replica or a backup",
                        task.seq
                    );
                    version.stopped = Some(reason.clone());
                    outcome.failed = Some(reason);
                    break;
                }
            }
            if let Some(point) = point {
                applying.points.capture(point, &version);
            }
            applying.points.capture_expected(&version);
            outcome.bytes += bytes;
            applying.applied = lsn;
            if let Some(key) = key {
                // Not a slice of the record, which it would keep in memory.
                let key = bytes::Bytes::copy_from_slice(&key);
                applying.changes.keys.push((key.clone(), receipt));
                self.keys.remember(key, receipt);
            }
            task.group = applying.groups.next(task.seq, &directories.iter().collect::<Vec<_>>());
            if applying.tasks.len() == TASKS_KEPT {
                applying.tasks.pop_front();
            }
            applying.tasks.push_back(task);
        }
        if version.position == applying.version.position && version.stopped == applying.version.stopped {
            return outcome;
        }
        if version.stopped.is_some() {
            applying.pending.clear();
        }
        applying.ended = outcome.ended;
        applying.version = Arc::new(version);
        publish(&applying.version, outcome.ended);
        outcome.version = Some(applying.version.clone());
        self.progress.send_replace(Progress {
            applied: applying.version.position.seq,
            stopped: applying.version.stopped.clone(),
        });
        outcome
    }

    /// Waits until `seq` is applied.
    pub(crate) async fn applied(&self, seq: Seq) -> Result<()> {
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|now| now.applied >= seq || now.stopped.is_some()).await;
        match reached {
            Ok(now) if now.applied >= seq => Ok(()),
            Ok(now) => Err(EngineError::DatabaseStopped {
                database: self.name.clone(),
                reason: now.stopped.clone().unwrap_or_default(),
            }),
            Err(_) => Err(EngineError::Closed),
        }
    }

    /// Changes the version beside its history: a switch, a stop, datafiles in the place of chunks.
    pub(crate) fn alter(
        &self,
        change: impl FnOnce(&mut DatabaseVersion, &mut Changes),
        publish: impl FnOnce(&Arc<DatabaseVersion>, bool),
    ) {
        let mut applying = self.applying.lock();
        let applying = &mut *applying;
        let mut version = DatabaseVersion::clone(&applying.version);
        change(&mut version, &mut applying.changes);
        applying.version = Arc::new(version);
        publish(&applying.version, applying.ended);
        self.progress.send_replace(Progress {
            applied: applying.version.position.seq,
            stopped: applying.version.stopped.clone(),
        });
    }

    /// Puts another copy in the place of this one, whose records up to `floor` count no longer. Returns the datafiles
    /// that nothing names now. The caller keeps everything else away from the database.
    pub(crate) fn replace(
        &self,
        version: Arc<DatabaseVersion>,
        floor: Lsn,
        publish: impl FnOnce(&Arc<DatabaseVersion>, bool),
    ) -> Vec<Arc<Datafile>> {
        let mut guard = self.applying.lock();
        let applying = &mut *guard;
        let mut changes = std::mem::take(&mut applying.changes);
        apply::retire_all(&mut DatabaseVersion::clone(&applying.version), &mut changes);
        applying.applied = floor;
        applying.replay_after = floor;
        applying.complete_from = version.position.seq;
        applying.pending.clear();
        applying.tasks.clear();
        applying.points = Points::default();
        applying.groups = GroupFold::default();
        applying.version = version;
        publish(&applying.version, false);
        self.progress.send_replace(Progress {
            applied: applying.version.position.seq,
            stopped: applying.version.stopped.clone(),
        });
        changes.retired
    }

    /// The latest transactions after `after`, oldest first.
    pub(crate) fn tasks(&self, after: Seq) -> Vec<TaskInfo> {
        let applying = self.applying.lock();
        let first = applying.tasks.partition_point(|task| task.seq <= after);
        applying.tasks.range(first..).cloned().collect()
    }

    /// The tasks of these seqs.
    pub(crate) fn tasks_between(&self, after: Seq, upto: Seq) -> Vec<TaskInfo> {
        let applying = self.applying.lock();
        let first = applying.tasks.partition_point(|task| task.seq <= after);
        applying.tasks.range(first..).take_while(|task| task.seq <= upto).cloned().collect()
    }
}
