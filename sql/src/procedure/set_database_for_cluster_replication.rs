//! `set_database_for_cluster_replication(database, enabled)`: switches a database's replication, on the primary; on a
//! replica, whether it is passed on from here.

use std::sync::Arc;

use tailrace_engine::Role;

use super::arguments::{Arguments, Parameter, Type};
use crate::{
    Instance, Result, SqlError,
    system::{CONFIGURE, not_configured},
};

pub(super) const PARAMETERS: &[Parameter] =
    &[Parameter::required("database", Type::Text), Parameter::required("enabled", Type::Bool)];

pub(super) async fn run(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let (database, enabled) = (arguments.text(0)?, arguments.bool(1)?);
    let version = instance.engine.version();
    let Some(found) = version.database(database) else {
        let names = version.databases().map(|database| database.name.as_str());
        return Err(
            SqlError::new("3D000", format!("database {database:?} does not exist")).did_you_mean(database, names)
        );
    };
    if instance.publisher.is_none()
        && let Role::Replica { primary } = &found.role
    {
        return Err(SqlError::new("25006", format!("database {database:?} is a replica here")).hint(format!(
            "switch its replication on its primary, {primary:?}; to pass it on from here, add section [replication.primary]"
        )));
    }
    if enabled && instance.publisher.is_none() {
        return Err(not_configured("This cluster is not a primary.", CONFIGURE));
    }
    instance.engine.set_database_replication(database, enabled).await?;
    Ok(Vec::new())
}
