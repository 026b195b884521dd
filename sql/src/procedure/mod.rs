//! Procedures: what `CALL name(…)` does, one file each.

mod arguments;
mod cluster_replication;
mod flush;
mod forget_pin;
mod set_database_for_cluster_replication;
mod subscription;

use datafusion::common::ScalarValue;

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
    CreateSubscription,
    DropSubscription,
    Flush,
    ForgetPin,
    SetDatabaseForClusterReplication,
    StartClusterReplication,
    StopClusterReplication,
}

impl Procedure {
    const ALL: [Self; 8] = [
        Self::AdvanceSubscription,
        Self::CreateSubscription,
        Self::DropSubscription,
        Self::Flush,
        Self::ForgetPin,
        Self::SetDatabaseForClusterReplication,
        Self::StartClusterReplication,
        Self::StopClusterReplication,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::AdvanceSubscription => "advance_subscription",
            Self::CreateSubscription => "create_subscription",
            Self::DropSubscription => "drop_subscription",
            Self::Flush => "flush",
            Self::ForgetPin => "forget_pin",
            Self::SetDatabaseForClusterReplication => "set_database_for_cluster_replication",
            Self::StartClusterReplication => "start_cluster_replication",
            Self::StopClusterReplication => "stop_cluster_replication",
        }
    }

    fn parameters(self) -> &'static [Parameter] {
        match self {
            Self::Flush | Self::StartClusterReplication | Self::StopClusterReplication => &[],
            Self::AdvanceSubscription => subscription::ADVANCE,
            Self::CreateSubscription => subscription::CREATE,
            Self::DropSubscription => subscription::DROP,
            Self::ForgetPin => forget_pin::PARAMETERS,
            Self::SetDatabaseForClusterReplication => set_database_for_cluster_replication::PARAMETERS,
        }
    }
}

/// Procedures of the tutorials that are named here and come later.
const LATER: [&str; 5] = ["skip_cluster_replication_task", "backup", "restore", "schedule_job", "wait_for"];

/// Runs a procedure. `name` is in lower case unless it was quoted.
pub(crate) async fn call(session: &Session, name: &str, arguments: Vec<Argument>) -> Result<Outcome> {
    let Some(procedure) = Procedure::ALL.into_iter().find(|procedure| procedure.name() == name) else {
        if LATER.contains(&name) {
            return Err(SqlError::unsupported(format!("procedure {name}, in this version,")));
        }
        let names = Procedure::ALL.map(Procedure::name);
        return Err(SqlError::new("42883", format!("procedure {name:?} does not exist")).did_you_mean(name, names));
    };
    let arguments = Arguments::check(procedure.name(), procedure.parameters(), arguments)?;
    let instance = session.instance();
    let notices = match procedure {
        Procedure::AdvanceSubscription => subscription::advance(instance, &arguments).await?,
        Procedure::CreateSubscription => subscription::create(session, &arguments).await?,
        Procedure::DropSubscription => subscription::drop(instance, &arguments).await?,
        Procedure::Flush => flush::run(instance).await?,
        Procedure::ForgetPin => forget_pin::run(instance, &arguments).await?,
        Procedure::SetDatabaseForClusterReplication => {
            set_database_for_cluster_replication::run(instance, &arguments).await?
        }
        Procedure::StartClusterReplication => cluster_replication::switch(instance, true).await?,
        Procedure::StopClusterReplication => cluster_replication::switch(instance, false).await?,
    };
    let notices = notices.into_iter().map(Into::into).collect();
    Ok(Outcome::Done { tag: "CALL".to_owned(), notices })
}
