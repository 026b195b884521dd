//! `retry_dead_letter(database, task)` and `discard_dead_letter(database, task)`: what becomes of a task that was skipped.

use std::sync::Arc;

use tailrace_wal::Seq;

use super::arguments::{Arguments, Parameter, Type};
use crate::{Instance, Result, SqlError};

pub(super) const PARAMETERS: &[Parameter] =
    &[Parameter::required("database", Type::Text), Parameter::required("task", Type::Int)];

pub(super) async fn retry(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let database = arguments.text(0)?;
    instance.engine.retry_dead_letter(database, task(arguments.int(1)?)?).await?;
    Ok(Vec::new())
}

pub(super) async fn discard(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let database = arguments.text(0)?;
    instance.engine.discard_dead_letter(database, task(arguments.int(1)?)?).await?;
    Ok(vec![format!("database {database:?} stays DIVERGED until CALL repair_database('{database}')")])
}

/// A task id.
pub(super) fn task(id: i64) -> Result<Seq> {
    match u64::try_from(id) {
        Ok(id) if id > 0 => Ok(Seq(id)),
        _ => Err(SqlError::new("22023", format!("{id} is no task id: they begin with 1"))),
    }
}
