//! What becomes of a followed database when something stands in its way: tried again after a pause, or blocked until
//! somebody does something about it.

use std::time::Duration;

use tailrace_engine::{EngineError, Role};
use tailrace_wal::{CommitTime, LogError, Seq};

use super::{
    database::{Database, Phase},
    link::{Event, Link},
    status::{Failing, RETRY},
};
use crate::ReplicationState;

impl Database {
    pub(super) fn name_taken(&mut self, link: &Link) {
        self.phase = Phase::NameTaken;
        let version = self.shared.engine.version();
        let holder = version.database(&self.face.name).map(|database| database.role.clone());
        if matches!(holder, Some(Role::Replica { primary }) if primary == link.primary) {
            // The name's former database is about to end here.
            let reason = "waits until the former database of this name has ended here".to_owned();
            self.set_state(ReplicationState::Enabled, Some(reason), None);
            return;
        }
        let name = &self.face.name;
        let reason = format!(
            "this cluster has a database {name:?} of its own; it is left alone, and {name:?} of {:?} is not followed",
            link.primary
        );
        let remedy = format!(
            "DROP DATABASE {name} here if it is no longer wanted, or leave it out of [replication.replica] databases"
        );
        self.set_state(ReplicationState::NameTaken, Some(reason), Some(remedy));
    }

    pub(super) fn forked(&mut self, reason: &str) {
        let remedy =
            format!("decide which side is right; to take the primary's: CALL repair_database('{}')", self.face.name);
        self.block(ReplicationState::Forked, reason.to_owned(), remedy);
    }

    pub(super) fn fail(&mut self, error: &EngineError) {
        self.lacks = None;
        match error {
            EngineError::Forked(reason) => self.forked(reason),
            EngineError::Log(error @ LogError::Forked { .. }) => self.forked(&error.to_string()),
            EngineError::Closed => {
                self.pipeline.clear();
                self.stopping = true;
            }
            // As soon as it is granted, it goes on.
            EngineError::NotPermitted { right, .. } => {
                self.lacks = Some(*right);
                self.fail_with(&error.to_string());
            }
            // Trying again changes nothing about these.
            EngineError::Log(LogError::Poisoned { .. }) => {
                let remedy = "put the disk right and restart this node".to_owned();
                self.block(ReplicationState::Stopped, error.to_string(), remedy);
            }
            // Nor does skipping: it has no seq yet.
            EngineError::TransactionTooLarge { .. } => {
                let remedy =
                    "raise engine.transaction_max_bytes of this node to its primary's and restart it".to_owned();
                self.block(ReplicationState::Stopped, error.to_string(), remedy);
            }
            EngineError::DatabaseStopped { .. } => {
                let remedy = format!("CALL repair_database('{}')", self.face.name);
                self.block(ReplicationState::Stopped, error.to_string(), remedy);
            }
            // The record is whole and will be taken once there is space: nobody has to call for it.
            error if error.is_full() => {
                self.failures = 0;
                self.fail_with(&error.to_string());
            }
            error => self.fail_with(&error.to_string()),
        }
    }

    pub(super) fn fail_with(&mut self, reason: &str) {
        self.failures += 1;
        let most = self.shared.config.task_failures_max.max(1);
        self.pipeline.restart();
        if self.failures >= most {
            let reason = format!("{reason} (failed {} times)", self.failures);
            self.face.board.lock().failed(&reason);
            let remedy = self.remedy();
            let failing = self.failing(None);
            self.block_failing(ReplicationState::Stopped, reason, remedy.unwrap_or_else(|| RETRY.to_owned()), failing);
            return;
        }
        let pause = self.pause();
        let details = format!(
            "{reason}; attempt {} of {most} failed, the next follows in {} ms",
            self.failures,
            pause.as_millis()
        );
        tracing::warn!(database = self.face.name, details, "a task of a followed database failed");
        self.face.board.lock().failed(&details);
        let state = if self.face.state() == ReplicationState::Lost {
            ReplicationState::Lost
        } else {
            ReplicationState::Enabled
        };
        let now = self.shared.engine.clock().now();
        self.face.set_state(state, Some(details), self.remedy(), self.failing(Some(pause)), now);
    }

    /// What ends the failures other than waiting.
    fn remedy(&self) -> Option<String> {
        if let (Some(right), Some(user)) = (self.lacks, &self.shared.config.apply_user) {
            return Some(format!("CALL grant_right('{user}', '{}', '{}')", self.face.name, right.name()));
        }
        // The first one begins the database.
        let may_skip = self.failed_task.filter(|task| *task > Seq(1));
        may_skip.map(|task| format!("{RETRY}, or {}", self.skip_statement(task)))
    }

    /// What fails, and after what pause it is tried again.
    fn failing(&self, next: Option<Duration>) -> Failing {
        let now = self.shared.engine.clock().now();
        let after = |pause: Duration| CommitTime(now.0.saturating_add(pause.as_micros() as i64));
        Failing { attempts: self.failures, next_try: next.map(after), task: self.failed_task }
    }

    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.backoff.next();
        self.resume_at = Some(self.now() + pause);
        pause
    }

    pub(super) fn block(&mut self, state: ReplicationState, reason: String, remedy: String) {
        self.block_failing(state, reason, remedy, Failing::default());
    }

    fn block_failing(&mut self, state: ReplicationState, reason: String, remedy: String, failing: Failing) {
        self.phase = Phase::Blocked;
        self.pipeline.clear();
        self.face.board.lock().clear_waiting();
        self.say(Event::CloseFeed { history: self.face.history });
        let now = self.shared.engine.clock().now();
        self.face.set_state(state, Some(reason), Some(remedy), failing, now);
    }
}
