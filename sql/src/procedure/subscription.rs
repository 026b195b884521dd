//! `create_subscription(name, table [, from_seq])`, `advance_subscription(name, seq)`, `drop_subscription(name)`.

use std::sync::Arc;

use tailrace_wal::Seq;

use super::arguments::{Arguments, Parameter, Type};
use crate::{Instance, Result, Session, SqlError, feed::table_name};

pub(super) const CREATE: &[Parameter] = &[
    Parameter::required("name", Type::Text),
    Parameter::required("table", Type::Text),
    Parameter::optional("from_seq", Type::Int),
];
pub(super) const ADVANCE: &[Parameter] =
    &[Parameter::required("name", Type::Text), Parameter::required("seq", Type::Int)];
pub(super) const DROP: &[Parameter] = &[Parameter::required("name", Type::Text)];

/// Begins with `from_seq`, or with what is committed from now on.
pub(super) async fn create(session: &Session, arguments: &Arguments) -> Result<Vec<String>> {
    let (name, table) = (arguments.text(0)?, table_name(arguments.text(1)?)?);
    let from = arguments.optional_int(2)?.map(|from| seq("from_seq", from)).transpose()?;
    let (database, table) = session.resolve_table(&table)?;
    let engine = &session.instance().engine;
    let status = engine.create_subscription(name, &database, &table.table.name, from).await?;
    Ok(vec![format!("subscription {name:?} begins after seq {}", status.pin.acknowledged)])
}

/// Everything up to `seq` was taken.
pub(super) async fn advance(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let (name, wanted) = (arguments.text(0)?, seq("seq", arguments.int(1)?)?);
    let acknowledged = instance.engine.advance_subscription(name, wanted).await?;
    Ok(match acknowledged == wanted {
        true => Vec::new(),
        false => vec![format!("subscription {name:?} has acknowledged seq {acknowledged} already")],
    })
}

/// Its log is free.
pub(super) async fn drop(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    instance.engine.drop_subscription(arguments.text(0)?).await?;
    Ok(Vec::new())
}

fn seq(argument: &str, value: i64) -> Result<Seq> {
    let wrong = |_| SqlError::new("22023", format!("{argument} cannot be {value}: transactions count from 1"));
    u64::try_from(value).map(Seq).map_err(wrong)
}
