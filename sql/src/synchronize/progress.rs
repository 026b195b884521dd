//! What `system.synchronizations` shows: runs of this node since its start, the latest ones.

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

use super::{Request, plan::Item};
use crate::SqlError;

/// Runs that are remembered.
const KEPT: usize = 100;

/// The runs of a node. They are kept in memory: what they did is in the tables.
#[derive(Debug, Default)]
pub struct Synchronizations {
    runs: Mutex<VecDeque<Arc<Run>>>,
    next: AtomicU64,
}

/// One run.
#[derive(Debug)]
struct Run {
    id: u64,
    source: String,
    table: String,
    predicate: Option<String>,
    clock: Arc<dyn Clock>,
    started: CommitTime,
    moment: Duration,
    now: Mutex<Now>,
}

#[derive(Debug, Clone, Default)]
struct Now {
    state: &'static str,
    message: Option<String>,
    finished: Option<CommitTime>,
    /// Partitions on both sides, those that differ, those that are equal since.
    partitions: u64,
    differing: u64,
    done: u64,
    /// Rows that are to come, as far as known, and those that have come.
    wanted_rows: u64,
    rows: u64,
    bytes: u64,
}

/// A run as it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Synchronization {
    pub(crate) id: u64,
    pub(crate) source: String,
    pub(crate) table: String,
    pub(crate) predicate: Option<String>,
    /// `STARTING`, `COMPARING`, `MOVING`, `FINISHED`, `FAILED`, `CANCELLED`.
    pub(crate) state: &'static str,
    pub(crate) percent: f64,
    /// What is left, at the pace so far; `None` where nothing tells, or it is over.
    pub(crate) remaining: Option<Duration>,
    pub(crate) partitions: u64,
    pub(crate) differing: u64,
    pub(crate) done: u64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) started: CommitTime,
    pub(crate) finished: Option<CommitTime>,
    pub(crate) message: Option<String>,
}

/// A run under way. One that is dropped before its end was cancelled.
#[derive(Debug)]
pub(super) struct Entry(Arc<Run>);

impl Synchronizations {
    pub(super) fn begin(&self, source: &str, request: &Request, clock: &Arc<dyn Clock>) -> Entry {
        let run = Arc::new(Run {
            id: self.next.fetch_add(1, Ordering::Relaxed) + 1,
            source: source.to_owned(),
            table: request.table.clone(),
            predicate: request.predicate.clone(),
            clock: clock.clone(),
            started: clock.now(),
            moment: clock.monotonic(),
            now: Mutex::new(Now { state: "STARTING", ..Now::default() }),
        });
        let mut runs = self.runs.lock();
        if runs.len() == KEPT {
            runs.pop_front();
        }
        runs.push_back(run.clone());
        Entry(run)
    }

    /// The latest runs, oldest first.
    pub(crate) fn runs(&self) -> Vec<Synchronization> {
        self.runs.lock().iter().map(|run| run.shown()).collect()
    }
}

impl Run {
    fn shown(&self) -> Synchronization {
        let now = self.now.lock().clone();
        let over = now.finished.is_some();
        let percent = match now.state {
            "FINISHED" => 100.0,
            "STARTING" | "COMPARING" => 0.0,
            _ if now.differing == 0 => 0.0,
            // Rows say more than partitions, which may be of any size; removed ones have none.
            _ if now.wanted_rows > 0 => 100.0 * (now.rows as f64 / now.wanted_rows as f64).min(1.0),
            _ => 100.0 * now.done as f64 / now.differing as f64,
        };
        let elapsed = self.clock.monotonic().saturating_sub(self.moment);
        let estimate = || elapsed.mul_f64((100.0 - percent) / percent);
        Synchronization {
            id: self.id,
            source: self.source.clone(),
            table: self.table.clone(),
            predicate: self.predicate.clone(),
            state: now.state,
            percent,
            remaining: (!over && percent > 0.0).then(estimate),
            partitions: now.partitions,
            differing: now.differing,
            done: now.done,
            rows: now.rows,
            bytes: now.bytes,
            started: self.started,
            finished: now.finished,
            message: now.message,
        }
    }

    fn end(&self, state: &'static str, message: Option<String>) {
        let mut now = self.now.lock();
        if now.finished.is_none() {
            now.state = state;
            now.message = message;
            now.finished = Some(self.clock.now());
        }
    }
}

impl Entry {
    pub(super) fn state(&self, state: &'static str) {
        self.0.now.lock().state = state;
    }

    /// What is to be done is known.
    pub(super) fn planned(&self, items: &[Item]) {
        let mut now = self.0.now.lock();
        let moving = || items.iter().filter(|item| !item.action.is_quiet());
        now.state = "MOVING";
        now.partitions = items.len() as u64;
        now.differing = moving().count() as u64;
        now.wanted_rows = moving().map(|item| item.there.rows).sum();
    }

    /// Rows have come.
    pub(super) fn moved(&self, rows: u64, bytes: u64) {
        let mut now = self.0.now.lock();
        now.rows += rows;
        now.bytes += bytes;
    }

    /// Partitions are equal now.
    pub(super) fn done(&self, partitions: usize) {
        self.0.now.lock().done += partitions as u64;
    }

    /// It is over, and nothing was moved.
    pub(super) fn foretold(&self) {
        self.0.end("FINISHED", Some("a dry run: nothing was changed".to_owned()));
    }

    pub(super) fn end(&self, result: Result<(), &SqlError>) {
        match result {
            Ok(()) => self.0.end("FINISHED", None),
            Err(error) => self.0.end("FAILED", Some(format!("{error}"))),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.0.end("CANCELLED", Some("it was ended before it was done; run it again to go on".to_owned()));
    }
}
