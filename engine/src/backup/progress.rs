//! What is under way, and what was lately.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tailrace_wal::{Clock, CommitTime};

use crate::EngineError;

/// Tasks that are remembered.
const KEPT: usize = 100;

/// State of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupState {
    /// Under way.
    Running,
    /// Done.
    Finished,
    /// It failed with this error.
    Failed(String),
    /// Whoever asked for it went away, or wanted its end.
    Cancelled,
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupKind {
    /// A backup is made.
    Backup,
    /// One is brought back.
    Restore,
    /// One is checked.
    Check,
    /// Old ones are removed.
    Prune,
}

impl BackupKind {
    /// Its name in SQL.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "BACKUP",
            Self::Restore => "RESTORE",
            Self::Check => "CHECK",
            Self::Prune => "PRUNE",
        }
    }
}

impl BackupState {
    /// Its name in SQL.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Finished => "FINISHED",
            Self::Failed(_) => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// A task as it is now.
#[derive(Debug, Clone)]
pub struct BackupStatus {
    /// What it does.
    pub kind: BackupKind,
    /// The backup; empty where there is none in particular.
    pub backup: String,
    /// Where.
    pub location: String,
    /// How it stands.
    pub state: BackupState,
    /// When it was begun.
    pub started: CommitTime,
    /// How long it takes, or took.
    pub elapsed: Duration,
    /// Files in all and done.
    pub files: (u64, u64),
    /// Bytes in all and done.
    pub bytes: (u64, u64),
    /// Rows in all and done.
    pub rows: (u64, u64),
}

impl BackupStatus {
    /// How much is done, percent. By bytes, where there are any.
    pub fn percent(&self) -> f64 {
        match (&self.state, self.bytes) {
            (BackupState::Finished, _) => 100.0,
            (_, (0, _)) => 0.0,
            (_, (all, done)) => (done as f64 * 100.0 / all as f64).min(100.0),
        }
    }

    /// How long it will take from here on at the speed so far.
    pub fn remaining(&self) -> Option<Duration> {
        let (all, done) = self.bytes;
        if self.state != BackupState::Running || done == 0 {
            return None;
        }
        let seconds = self.elapsed.as_secs_f64() * all.saturating_sub(done) as f64 / done as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// Counters of a task.
#[derive(Debug)]
pub(super) struct BackupTask {
    kind: BackupKind,
    backup: Mutex<String>,
    location: String,
    started: CommitTime,
    begun: Duration,
    ended: Mutex<Option<(BackupState, Duration)>>,
    files: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    rows: [AtomicU64; 2],
}

impl BackupTask {
    /// More is to be done than was known.
    pub(super) fn expect(&self, files: u64, bytes: u64, rows: u64) {
        self.files[0].fetch_add(files, Ordering::Relaxed);
        self.bytes[0].fetch_add(bytes, Ordering::Relaxed);
        self.rows[0].fetch_add(rows, Ordering::Relaxed);
    }

    /// Bytes are done.
    pub(super) fn passed(&self, bytes: u64) {
        self.bytes[1].fetch_add(bytes, Ordering::Relaxed);
    }

    /// A file is done.
    pub(super) fn done(&self, rows: u64) {
        self.files[1].fetch_add(1, Ordering::Relaxed);
        self.rows[1].fetch_add(rows, Ordering::Relaxed);
    }

    fn status(&self, now: Duration) -> BackupStatus {
        let ended = self.ended.lock().clone();
        let (state, until) = ended.unwrap_or((BackupState::Running, now));
        let pair = |counts: &[AtomicU64; 2]| (counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed));
        BackupStatus {
            kind: self.kind,
            backup: self.backup.lock().clone(),
            location: self.location.clone(),
            state,
            started: self.started,
            elapsed: until.saturating_sub(self.begun),
            files: pair(&self.files),
            bytes: pair(&self.bytes),
            rows: pair(&self.rows),
        }
    }
}

/// All tasks of a node since its start, as far as they are remembered.
#[derive(Debug, Default)]
pub(crate) struct BackupBoard(Mutex<VecDeque<Arc<BackupTask>>>);

/// A task under way; dropped before its end, it was cancelled.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) task: Arc<BackupTask>,
    clock: Arc<dyn Clock>,
}

impl BackupBoard {
    pub(super) fn begin(&self, kind: BackupKind, backup: &str, location: &str, clock: &Arc<dyn Clock>) -> Running {
        let task = Arc::new(BackupTask {
            kind,
            backup: Mutex::new(backup.to_owned()),
            location: location.to_owned(),
            started: clock.now(),
            begun: clock.monotonic(),
            ended: Mutex::new(None),
            files: Default::default(),
            bytes: Default::default(),
            rows: Default::default(),
        });
        let mut tasks = self.0.lock();
        if tasks.len() >= KEPT
            && let Some(oldest) = tasks.iter().position(|task| task.ended.lock().is_some())
        {
            tasks.remove(oldest);
        }
        tasks.push_back(task.clone());
        Running { task, clock: Arc::clone(clock) }
    }

    /// All tasks, oldest first.
    pub(crate) fn statuses(&self, clock: &dyn Clock) -> Vec<BackupStatus> {
        let now = clock.monotonic();
        self.0.lock().iter().map(|task| task.status(now)).collect()
    }

    /// Whether a task with this id is under way.
    pub(super) fn is_running(&self, backup: &str) -> bool {
        self.0.lock().iter().any(|task| task.ended.lock().is_none() && *task.backup.lock() == backup)
    }
}

impl Running {
    /// The task knows its backup now.
    pub(super) fn name(&self, backup: &str) {
        backup.clone_into(&mut self.task.backup.lock());
    }

    /// Ends it.
    pub(super) fn end<T>(&self, result: crate::Result<T>) -> crate::Result<T> {
        let state = match &result {
            Ok(_) => BackupState::Finished,
            Err(EngineError::Cancelled(_)) => BackupState::Cancelled,
            Err(error) => BackupState::Failed(error.to_string()),
        };
        *self.task.ended.lock() = Some((state, self.clock.monotonic()));
        result
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.ended.lock().get_or_insert_with(|| (BackupState::Cancelled, self.clock.monotonic()));
    }
}
