//! What an operator asks of a followed database: to leave out tasks that fail, and to take the primary's copy as a whole.

use std::{sync::Arc, time::Duration};

use tailrace_engine::EngineError;
use tailrace_wal::{LogError, Seq};
use tokio::sync::oneshot;

use super::{
    Follower,
    database::{Database, Phase},
    link::{Command, Event},
    status::{Face, REPAIRING, RETRY},
};
use crate::{FollowedDatabaseStatus, Refused, ReplicationState};

/// How long a request waits for what it asked for.
const PATIENCE: Duration = Duration::from_secs(10);

impl Follower {
    /// Leaves out tasks of a database: the one that fails, and those that follow it, in order. `None`: of the one database
    /// that fails. Waits until that is done, at most ten seconds; the answer says if it was not.
    pub async fn skip(&self, database: Option<&str>, tasks: &[Seq]) -> Result<Vec<String>, Refused> {
        let face = match database {
            Some(name) => self.face(name)?,
            None => self.failing_face()?,
        };
        let mut tasks = tasks.to_vec();
        tasks.sort_unstable();
        tasks.dedup();
        let Some(last) = tasks.last().copied() else { return Err(Refused::new("no task to skip is named")) };
        self.ask(&face, |reply| Command::Skip { tasks: tasks.clone(), reply }).await?;
        let done = tokio::time::timeout(PATIENCE, face.settled(last)).await;
        let shown = self.shown(&face);
        if shown.as_ref().is_none_or(|shown| shown.applied >= last) {
            return Ok(self.not_skipped(&face, &tasks));
        }
        let reason = shown.and_then(|shown| shown.reason).unwrap_or_default();
        match done {
            Ok(()) => Err(Refused::new(format!("database {:?} fails again: {reason}", face.name))
                .hint("get_slave_replication_status() shows which task")),
            Err(_) => Ok(vec![format!(
                "task {last} of database {:?} is left out as soon as the primary has sent it again; that need not be asked for \
                 again",
                face.name
            )]),
        }
    }

    /// Says which of these tasks were applied after all, before the request was heard.
    fn not_skipped(&self, face: &Face, tasks: &[Seq]) -> Vec<String> {
        let version = self.shared.engine.version();
        let Some(here) = version.database(&face.name).filter(|here| here.id == face.history) else { return Vec::new() };
        let applied = tasks.iter().filter(|task| !here.dead_letters().any(|letter| letter.seq == **task));
        applied.map(|task| format!("task {task} of database {:?} was applied, not skipped", face.name)).collect()
    }

    /// Replaces a followed database by its primary's copy, although the log reaches back: it is equal to it then. Waits
    /// for that at most ten seconds; the answer says if it was not done.
    pub async fn repair(&self, database: &str) -> Result<Vec<String>, Refused> {
        let face = self.face(database)?;
        self.ask(&face, |reply| Command::Repair { reply }).await?;
        let done = tokio::time::timeout(PATIENCE, face.repaired()).await;
        let Some(shown) = self.shown(&face) else { return Ok(Vec::new()) };
        match done {
            Ok(()) if shown.attempts == 0 => Ok(Vec::new()),
            Ok(()) => Err(Refused::new(format!(
                "the repair of database {database:?} failed and is tried again: {}",
                shown.reason.unwrap_or_default()
            ))),
            Err(_) => Ok(vec![format!(
                "the repair of database {database:?} is not over; get_slave_replication_status() shows it"
            )]),
        }
    }

    /// A followed database by name.
    pub(super) fn face(&self, name: &str) -> Result<Arc<Face>, Refused> {
        let faces: Vec<_> = self.shared.faces().into_iter().filter(|face| !face.is_ended()).collect();
        // A name that begins anew has two histories for a while.
        let here = self.shared.engine.version().database(name).map(|database| database.id);
        let named = || faces.iter().filter(|face| face.name == name);
        let found = named().find(|face| Some(face.history) == here).or_else(|| named().next());
        found.cloned().ok_or_else(|| {
            let names: Vec<&str> = faces.iter().map(|face| face.name.as_str()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Refused::new(format!("no database {name:?} is followed here")).hint(format!("followed are: {known}"))
        })
    }

    fn failing_face(&self) -> Result<Arc<Face>, Refused> {
        let mut failing: Vec<_> = self.shared.faces().into_iter().filter(|face| face.failed_task().is_some()).collect();
        match (failing.pop(), failing.len()) {
            (None, _) => Err(Refused::new("no task of a followed database fails: there is nothing to skip")),
            (Some(face), 0) => Ok(face),
            (Some(face), _) => {
                failing.push(face);
                let names: Vec<&str> = failing.iter().map(|face| face.name.as_str()).collect();
                Err(Refused::new(format!("several databases fail: {}", names.join(", "))).hint("name one of them"))
            }
        }
    }

    async fn ask(
        &self,
        face: &Face,
        command: impl FnOnce(oneshot::Sender<Result<(), Refused>>) -> Command,
    ) -> Result<(), Refused> {
        let (reply, answer) = oneshot::channel();
        self.shared.tell(face.history, command(reply));
        answer.await.unwrap_or_else(|_| {
            Err(Refused::new(format!("database {:?} is being repaired, or the node stops", face.name))
                .hint("try again when that is over"))
        })
    }

    pub(super) fn shown(&self, face: &Face) -> Option<FollowedDatabaseStatus> {
        self.status().databases.into_iter().find(|shown| shown.history == face.history)
    }
}

impl Database {
    /// The task that an error is of: the next one. `None` where skipping it would change nothing.
    pub(super) fn task_of(&self, error: &EngineError) -> Option<Seq> {
        let is_of_node = error.is_full()
            || matches!(
                error,
                EngineError::Closed
                    | EngineError::Forked(_)
                    | EngineError::DatabaseStopped { .. }
                    | EngineError::TransactionTooLarge { .. }
                    | EngineError::Log(LogError::Poisoned { .. } | LogError::Forked { .. } | LogError::Closed)
            );
        self.applier.as_ref().filter(|_| !is_of_node).map(|applier| applier.position().0.seq.next())
    }

    pub(super) fn skip_statement(&self, task: Seq) -> String {
        format!("CALL skip_cluster_replication_task('{}', {task})", self.face.name)
    }

    /// Takes a request to leave out tasks; a start remembers it.
    pub(super) async fn skip_durably(&mut self, tasks: Vec<Seq>) -> Result<(), Refused> {
        self.skip(tasks)?;
        self.keep_skips().await.map_err(|error| {
            self.skips.clone_from(&self.kept_skips);
            Refused::new(format!(
                "it could not be noted that tasks of database {:?} are to be skipped: {error}",
                self.face.name
            ))
        })
    }

    /// Keeps what is to be skipped, where that has changed.
    pub(super) async fn keep_skips(&mut self) -> Result<(), EngineError> {
        if self.kept_skips != self.skips {
            self.shared.engine.ask_skips(self.face.history, self.skips.clone()).await?;
            self.kept_skips.clone_from(&self.skips);
        }
        Ok(())
    }

    /// Takes a request to leave out tasks, which are in order.
    fn skip(&mut self, tasks: Vec<Seq>) -> Result<(), Refused> {
        let name = &self.face.name;
        let Some(failed) = self.failed_task else {
            let why = "only a task that fails can be skipped";
            return Err(Refused::new(format!("no task of database {name:?} fails now: {why}")));
        };
        if failed == Seq(1) {
            let reason = format!("task 1 of database {name:?} begins it and cannot be skipped");
            return Err(
                Refused::new(reason).hint("leave it out of [replication.replica] databases if it is not wanted")
            );
        }
        let hint = self.skip_statement(failed);
        for (task, expected) in tasks.iter().zip(failed.0..) {
            if task.0 != expected {
                let reason = if expected == failed.0 {
                    format!("task {task} of database {name:?} is not the one that fails: that is task {failed}")
                } else {
                    format!("tasks are skipped in order: in database {name:?}, task {expected} comes before {task}")
                };
                return Err(Refused::new(reason).hint(hint));
            }
        }
        let end = self.face.primary_seq();
        if let Some(beyond) = tasks.iter().find(|task| end.is_some_and(|end| **task > end)) {
            let end = end.unwrap_or_default();
            let reason = format!("database {name:?} has no task {beyond} at the primary, the last is {end}");
            return Err(Refused::new(reason).hint(hint));
        }
        let reason = self.face.reason().unwrap_or_default();
        for task in tasks {
            let reason = match task == failed {
                true => reason.clone(),
                false => format!("skipped together with task {failed}"),
            };
            tracing::warn!(database = self.face.name, %task, reason, "a task is to be skipped");
            self.skips.insert(task, reason);
        }
        self.pipeline.restart();
        self.retry();
        Ok(())
    }

    /// Takes a request to repair the database as a whole.
    pub(super) fn ask_for_repair(&mut self) -> Result<(), Refused> {
        let name = &self.face.name;
        let reason = match self.phase {
            Phase::NameTaken => format!("database {name:?} here is this cluster's own and is not replaced"),
            Phase::Unoffered => format!("the primary does not offer database {name:?} now"),
            Phase::Ended => format!("database {name:?} has ended"),
            Phase::Closed | Phase::Open | Phase::Blocked => {
                if self.link.is_none() {
                    let reason = format!("database {name:?} cannot be repaired now: no primary is connected");
                    return Err(Refused::new(reason).hint("get_database_cluster_replication_status() says why"));
                }
                self.repair_asked = true;
                self.retry();
                self.set_state(ReplicationState::Enabled, Some(REPAIRING.to_owned()), None);
                return Ok(());
            }
        };
        Err(Refused::new(reason).hint(format!("if that has changed: {RETRY}")))
    }

    pub(super) fn is_to_repair(&self) -> bool {
        let can = self.link.is_some() && self.resume_at.is_none() && !self.stopping && !self.ended;
        self.repair_asked && can && matches!(self.phase, Phase::Closed | Phase::Open)
    }

    /// The feed is closed, nothing is applied, and the primary's copy takes the place of this one.
    pub(super) async fn repair_as_asked(&mut self) {
        let Some(link) = self.link.clone() else { return };
        self.say(Event::CloseFeed { history: self.face.history });
        self.phase = Phase::Closed;
        self.pipeline.clear();
        self.face.board.lock().clear();
        self.drain().await;
        if self.has_applier(&link).await {
            self.set_state(ReplicationState::Enabled, Some(REPAIRING.to_owned()), None);
            self.repair_now().await;
        }
    }
}
