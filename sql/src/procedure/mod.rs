//! Procedures: what `CALL name(…)` does, one file each.

mod arguments;
mod backup;
mod cluster_replication;
mod dead_letter;
mod flush;
mod forget_pin;
mod job;
mod partition_condition;
pub(crate) mod place;
mod prune_backups;
mod remote_cluster;
mod repair_database;
mod restore;
mod rights;
mod set_database_for_cluster_replication;
mod skip_cluster_replication_task;
mod subscription;
mod synchronize;
mod verify_database;
mod wait_for;

use datafusion::{arrow::datatypes::SchemaRef, common::ScalarValue};
use tokio_util::sync::CancellationToken;

use self::arguments::{Arguments, Parameter};
use crate::{Outcome, Result, Session, SqlError};

/// An argument of a call, already evaluated.
#[derive(Debug, Clone)]
pub(crate) struct Argument {
    /// Its name in `name => value`.
    pub(crate) name: Option<String>,
    /// Its value.
    pub(crate) value: ScalarValue,
}

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Procedure {
    AdvanceSubscription,
    Backup,
    CreateRemoteCluster,
    CreateSubscription,
    DeleteJob,
    DropRemoteCluster,
    DropSubscription,
    DiscardDeadLetter,
    Flush,
    ForgetPin,
    GrantRight,
    PauseJob,
    PruneBackups,
    RepairDatabase,
    ResumeJob,
    Restore,
    RetryDeadLetter,
    RevokeRight,
    RunJob,
    ScheduleJob,
    SetDatabaseForClusterReplication,
    SkipClusterReplicationTask,
    StartClusterReplication,
    StopClusterReplication,
    Synchronize,
    VerifyDatabase,
    WaitFor,
}

impl Procedure {
    const ALL: [Self; 27] = [
        Self::AdvanceSubscription,
        Self::Backup,
        Self::CreateRemoteCluster,
        Self::CreateSubscription,
        Self::DeleteJob,
        Self::DropRemoteCluster,
        Self::DropSubscription,
        Self::DiscardDeadLetter,
        Self::Flush,
        Self::ForgetPin,
        Self::GrantRight,
        Self::PauseJob,
        Self::PruneBackups,
        Self::RepairDatabase,
        Self::ResumeJob,
        Self::Restore,
        Self::RetryDeadLetter,
        Self::RevokeRight,
        Self::RunJob,
        Self::ScheduleJob,
        Self::SetDatabaseForClusterReplication,
        Self::SkipClusterReplicationTask,
        Self::StartClusterReplication,
        Self::StopClusterReplication,
        Self::Synchronize,
        Self::VerifyDatabase,
        Self::WaitFor,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AdvanceSubscription => "advance_subscription",
            Self::Backup => "backup",
            Self::CreateRemoteCluster => "create_remote_cluster",
            Self::CreateSubscription => "create_subscription",
            Self::DropRemoteCluster => "drop_remote_cluster",
            Self::DropSubscription => "drop_subscription",
            Self::DiscardDeadLetter => "discard_dead_letter",
            Self::Flush => "flush",
            Self::ForgetPin => "forget_pin",
            Self::DeleteJob => "delete_job",
            Self::PauseJob => "pause_job",
            Self::ResumeJob => "resume_job",
            Self::RunJob => job::RUN_JOB,
            Self::ScheduleJob => "schedule_job",
            Self::GrantRight => "grant_right",
            Self::RevokeRight => "revoke_right",
            Self::PruneBackups => "prune_backups",
            Self::RepairDatabase => "repair_database",
            Self::Restore => "restore",
            Self::RetryDeadLetter => "retry_dead_letter",
            Self::SetDatabaseForClusterReplication => "set_database_for_cluster_replication",
            Self::SkipClusterReplicationTask => skip_cluster_replication_task::NAME,
            Self::StartClusterReplication => "start_cluster_replication",
            Self::StopClusterReplication => "stop_cluster_replication",
            Self::Synchronize => "synchronize",
            Self::VerifyDatabase => "verify_database",
            Self::WaitFor => "wait_for",
        }
    }

    fn parameters(self) -> &'static [Parameter] {
        match self {
            Self::Flush | Self::StartClusterReplication | Self::StopClusterReplication => &[],
            Self::AdvanceSubscription => subscription::ADVANCE,
            Self::Backup => backup::PARAMETERS,
            Self::CreateRemoteCluster => remote_cluster::CREATE,
            Self::CreateSubscription => subscription::CREATE,
            Self::DropRemoteCluster => remote_cluster::DROP,
            Self::DropSubscription => subscription::DROP,
            Self::DiscardDeadLetter | Self::RetryDeadLetter => dead_letter::PARAMETERS,
            Self::ForgetPin => forget_pin::PARAMETERS,
            Self::GrantRight | Self::RevokeRight => rights::PARAMETERS,
            Self::DeleteJob | Self::PauseJob | Self::ResumeJob => job::NAME,
            Self::RunJob => job::RUN,
            Self::ScheduleJob => job::SCHEDULE,
            Self::PruneBackups => prune_backups::PARAMETERS,
            Self::RepairDatabase => repair_database::PARAMETERS,
            Self::Restore => restore::PARAMETERS,
            // As many ids as are given: it looks at its arguments itself.
            Self::SkipClusterReplicationTask => &[],
            Self::SetDatabaseForClusterReplication => set_database_for_cluster_replication::PARAMETERS,
            Self::Synchronize => synchronize::PARAMETERS,
            Self::VerifyDatabase => verify_database::PARAMETERS,
            Self::WaitFor => wait_for::PARAMETERS,
        }
    }
}

/// Whether a procedure may end at any time, by a cancel or `statement_timeout`, because it changes nothing, or
/// because whoever does the work for it notices.
pub(crate) fn only_waits(name: &str) -> bool {
    [Procedure::WaitFor, Procedure::VerifyDatabase, Procedure::RunJob].iter().any(|procedure| procedure.name() == name)
}

/// Whether a procedure may end at any time: it changes nothing, or whole transactions alone.
pub(crate) fn may_end(name: &str) -> bool {
    only_waits(name) || name == Procedure::Synchronize.name()
}

/// Columns of the rows that a procedure gives; `None` for those that give none.
pub(crate) fn result_schema(name: &str) -> Option<SchemaRef> {
    match name {
        job::RUN_JOB => Some(job::run_columns()),
        _ if name == Procedure::Synchronize.name() => Some(synchronize::schema()),
        _ if name == Procedure::VerifyDatabase.name() => Some(verify_database::schema()),
        _ => None,
    }
}

/// Runs a procedure. `name` is in lower case unless it was quoted. Backup and restore end soon when `stop` fires.
pub(crate) async fn call(
    session: &Session,
    name: &str,
    arguments: Vec<Argument>,
    stop: &CancellationToken,
) -> Result<Outcome> {
    let Some(procedure) = Procedure::ALL.into_iter().find(|procedure| procedure.name() == name) else {
        let names = Procedure::ALL.map(Procedure::name);
        return Err(SqlError::new("42883", format!("procedure {name:?} does not exist")).did_you_mean(name, names));
    };
    let instance = session.instance();
    if procedure == Procedure::SkipClusterReplicationTask {
        let notices = skip_cluster_replication_task::run(instance, arguments).await?;
        return Ok(done(notices));
    }
    let arguments = Arguments::check(procedure.name(), procedure.parameters(), arguments)?;
    let notices = match procedure {
        // Boxed: what it holds would stand on the stack of every statement.
        Procedure::Synchronize => return Box::pin(synchronize::run(session, &arguments)).await,
        Procedure::VerifyDatabase => return verify_database::run(instance, &arguments).await,
        Procedure::AdvanceSubscription => subscription::advance(instance, &arguments).await?,
        Procedure::Backup => backup::run(session, &arguments, stop).await?,
        Procedure::CreateRemoteCluster => remote_cluster::create(instance, &arguments).await?,
        Procedure::CreateSubscription => subscription::create(session, &arguments).await?,
        Procedure::DropRemoteCluster => remote_cluster::drop(instance, &arguments).await?,
        Procedure::DropSubscription => subscription::drop(instance, &arguments).await?,
        Procedure::DiscardDeadLetter => dead_letter::discard(instance, &arguments).await?,
        Procedure::DeleteJob => job::delete(session, &arguments).await?,
        Procedure::PauseJob => job::pause(session, &arguments, true).await?,
        Procedure::ResumeJob => job::pause(session, &arguments, false).await?,
        Procedure::RunJob => return job::run(session, &arguments).await,
        Procedure::ScheduleJob => job::schedule(session, &arguments).await?,
        Procedure::GrantRight => rights::set(instance, &arguments, true).await?,
        Procedure::RevokeRight => rights::set(instance, &arguments, false).await?,
        Procedure::PruneBackups => prune_backups::run(instance, &arguments).await?,
        Procedure::Restore => restore::run(session, &arguments, stop).await?,
        Procedure::RepairDatabase => repair_database::run(instance, &arguments).await?,
        Procedure::RetryDeadLetter => dead_letter::retry(instance, &arguments).await?,
        // Above.
        Procedure::SkipClusterReplicationTask => Vec::new(),
        Procedure::Flush => flush::run(instance).await?,
        Procedure::ForgetPin => forget_pin::run(instance, &arguments).await?,
        Procedure::SetDatabaseForClusterReplication => {
            set_database_for_cluster_replication::run(instance, &arguments).await?
        }
        Procedure::StartClusterReplication => cluster_replication::switch(instance, true).await?,
        Procedure::StopClusterReplication => cluster_replication::switch(instance, false).await?,
        Procedure::WaitFor => wait_for::run(instance, &arguments).await?,
    };
    Ok(done(notices))
}

fn done(notices: Vec<String>) -> Outcome {
    Outcome::Done { tag: "CALL".to_owned(), notices: notices.into_iter().map(Into::into).collect() }
}
