//! How a database's replication stands, seen from this cluster.

use tailrace_engine::{DatabaseVersion, Role};
use tailrace_replicator::ReplicationState;
use tailrace_wal::CommitTime;

use crate::Instance;

/// State of one database's replication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DatabaseState {
    /// `primary` or `replica`.
    pub(crate) role: &'static str,
    /// The primary cluster, on a replica.
    pub(crate) primary: Option<String>,
    /// One of the documented states.
    pub(crate) state: &'static str,
    /// For any state but ENABLED.
    pub(crate) reason: Option<String>,
    /// Statement or setting that remedies it.
    pub(crate) remedy: Option<String>,
    /// Since when, where that is known.
    pub(crate) since: Option<CommitTime>,
    /// Failures in a row of what fails now.
    pub(crate) attempts: u32,
    /// When it is tried again by itself.
    pub(crate) next_try: Option<CommitTime>,
}

/// The state of a database.
pub(crate) fn database_state(instance: &Instance, database: &DatabaseVersion) -> DatabaseState {
    let (role, primary) = match &database.role {
        Role::Primary => ("primary", None),
        Role::Replica { primary } => ("replica", Some(primary.clone())),
    };
    let make = |state: ReplicationState, reason: Option<String>, remedy: Option<String>| DatabaseState {
        role,
        primary: primary.clone(),
        state: state.name(),
        reason,
        remedy,
        since: None,
        attempts: 0,
        next_try: None,
    };
    if let Some(reason) = &database.stopped {
        let remedy = primary.as_ref().map(|_| format!("CALL repair_database('{}')", database.name));
        return make(ReplicationState::Stopped, Some(reason.clone()), remedy);
    }
    match &database.role {
        Role::Replica { .. } => {
            let Some(follower) = &instance.follower else {
                let reason = "[replication.replica] is not configured".to_owned();
                return make(ReplicationState::Disabled, Some(reason), Some("set [replication.replica]".to_owned()));
            };
            let status = follower.status();
            let followed = status.databases.into_iter().find(|followed| followed.history == database.id);
            match followed {
                Some(followed) => DatabaseState {
                    since: Some(followed.since),
                    attempts: followed.attempts,
                    next_try: followed.next_try,
                    ..make(followed.state, followed.reason, followed.remedy)
                },
                None => {
                    let reason = status.last_error.unwrap_or_else(|| "the primary was not heard of yet".to_owned());
                    make(status.state, Some(reason), None)
                }
            }
        }
        Role::Primary => {
            let disabled =
                |reason: &str, remedy: String| make(ReplicationState::Disabled, Some(reason.to_owned()), Some(remedy));
            if !database.replicated {
                let remedy = format!("CALL set_database_for_cluster_replication('{}', true)", database.name);
                disabled("replication of this database is off", remedy)
            } else if instance.publisher.is_none() {
                disabled("[replication.primary] is not configured", "set [replication.primary]".to_owned())
            } else if !instance.engine.replication_switches().primary {
                disabled("replication of the cluster was stopped", "CALL start_cluster_replication()".to_owned())
            } else {
                make(ReplicationState::Enabled, None, None)
            }
        }
    }
}
