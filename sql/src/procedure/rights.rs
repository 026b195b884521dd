//! `grant_right(user, database, right)` and `revoke_right(…)`: what the user of `replication.replica.apply_user` may apply
//! here.

use std::sync::Arc;

use tailrace_engine::{GrantedRight, Right};

use super::arguments::{Arguments, Parameter, Type};
use crate::{Instance, Result, SqlError};

pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("user", Type::Text),
    Parameter::required("database", Type::Text),
    Parameter::required("right", Type::Text),
];

pub(super) async fn set(instance: &Arc<Instance>, arguments: &Arguments, has: bool) -> Result<Vec<String>> {
    let (user, database, named) = (arguments.text(0)?, arguments.text(1)?, arguments.text(2)?);
    let right = Right::from_name(named).ok_or_else(|| {
        let all = Right::ALL.map(Right::name).join(", ");
        SqlError::new("22023", format!("{named:?} is no right")).hint(format!("rights are: {all}"))
    })?;
    let granted = GrantedRight { user: user.to_owned(), database: database.to_owned(), right };
    instance.engine.set_right(granted, has).await?;
    tracing::info!(user, database, right = right.name(), has, "a right was changed on request");
    Ok(Vec::new())
}
