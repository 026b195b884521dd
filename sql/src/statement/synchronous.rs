//! `synchronous_commit`: who must have a transaction before its client is answered.

use std::time::Duration;

use tailrace_engine::{Durability, Receipt};
use tailrace_replicator::ReplicaStage;

use super::guard::Guard;
use crate::{Notice, Result, Session, SqlError};

/// Values of the setting that stand for themselves; those of [`parse`] that are left out mean one of these.
pub(crate) const VALUES: [&str; 5] = ["on", "local", "off", "remote_write", "remote_apply"];

/// Longest time to wait for replicas, unless the session says otherwise.
pub(crate) const TIMEOUT: &str = "10s";

/// What the session wants of its next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SynchronousCommit {
    /// On this node; `None`: the server's default.
    pub(crate) here: Option<Durability>,
    /// On replicas, too.
    pub(crate) remote: Option<Remote>,
}

/// What replicas must have done, how many, and for how long to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Remote {
    stage: ReplicaStage,
    replicas: u32,
    timeout: Duration,
}

/// The setting's value as it is kept; `None` for one that does not exist.
pub(super) fn parse(value: &str) -> Option<&'static str> {
    let value = value.to_lowercase();
    match value.as_str() {
        "true" | "yes" | "1" => Some("on"),
        "false" | "no" | "0" => Some("off"),
        _ => VALUES.into_iter().find(|known| *known == value),
    }
}

impl SynchronousCommit {
    /// Of the settings' values; without `value` the server's default holds.
    pub(super) fn of(value: Option<&str>, replicas: u32, timeout: Duration) -> Self {
        let remote = |stage| Some(Remote { stage, replicas, timeout });
        match value {
            None => Self { here: None, remote: None },
            Some("off") => Self { here: Some(Durability::Written), remote: None },
            Some("remote_write") => Self { here: Some(Durability::Durable), remote: remote(ReplicaStage::Durable) },
            Some("remote_apply") => Self { here: Some(Durability::Durable), remote: remote(ReplicaStage::Applied) },
            Some(_) => Self { here: Some(Durability::Durable), remote: None },
        }
    }

    /// Refuses, before anything is committed, what no replica could ever acknowledge.
    pub(crate) fn check(&self, session: &Session, database: &str) -> Result<()> {
        if self.remote.is_none() {
            return Ok(());
        }
        let instance = session.instance();
        let refuse = |reason: String, hint: String| {
            Err(SqlError::new("55000", format!("synchronous_commit waits for replicas, and {reason}"))
                .detail("Nothing was committed.")
                .hint(hint))
        };
        let Some(publisher) = &instance.publisher else {
            return refuse(
                "this cluster has none".into(),
                "add section [replication.primary], or SET synchronous_commit = local".into(),
            );
        };
        let version = instance.engine.version();
        match version.database(database) {
            Some(found) if !publisher.is_replicated(found.id) => refuse(
                format!("database {database:?} is not replicated"),
                format!(
                    "CALL set_database_for_cluster_replication('{database}', true), or SET synchronous_commit = local"
                ),
            ),
            _ => Ok(()),
        }
    }

    /// Waits for replicas after a commit here. What they did not do in time is a warning: the transaction is committed.
    pub(crate) async fn wait(&self, session: &Session, receipt: &Receipt, guard: &mut Guard) -> Option<Notice> {
        let remote = self.remote?;
        let publisher = session.instance().publisher.as_ref()?;
        let position = receipt.position;
        let waiting =
            publisher.wait_for_replicas(position.history, position.seq, remote.stage, remote.replicas, remote.timeout);
        let why = match guard.run(async { Ok(waiting.await) }).await {
            Ok(reached) if reached >= remote.replicas => return None,
            Ok(reached) if publisher.is_replicated(position.history) => {
                format!(
                    "{reached} of {} replicas have {} it after {:?}",
                    remote.replicas,
                    remote.done(),
                    remote.timeout
                )
            }
            Ok(_) => "its replication was switched off meanwhile".to_owned(),
            Err(_) => "the wait for replicas was cancelled".to_owned(),
        };
        let name = session.instance().engine.history(position.history).map(|history| history.name).unwrap_or_default();
        Some(Notice::warning(format!(
            "transaction {} of database {name:?} is committed here, but {why}: it may be lost with this node (position \
             {position})",
            position.seq
        )))
    }
}

impl Remote {
    fn done(&self) -> &'static str {
        match self.stage {
            ReplicaStage::Durable => "stored",
            ReplicaStage::Applied => "applied",
        }
    }
}
