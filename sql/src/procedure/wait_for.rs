//! `wait_for(database, seq [, timeout])`: returns when readers here see the transaction with that number. Read your writes on
//! a replica: the primary says how far it is, the replica is asked to wait for it.

use std::{sync::Arc, time::Duration};

use tailrace_wal::Seq;

use super::arguments::{Arguments, Parameter, Type};
use crate::{Instance, Result, SqlError};

/// `timeout` is in milliseconds; without it only `statement_timeout` and a cancel end the wait.
pub(super) const PARAMETERS: &[Parameter] = &[
    Parameter::required("database", Type::Text),
    Parameter::required("seq", Type::Int),
    Parameter::optional("timeout", Type::Int),
];

pub(super) async fn run(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    let (name, seq) = (arguments.text(0)?, arguments.int(1)?);
    let below = |what: &str| SqlError::new("22023", format!("{what} of wait_for is below 0"));
    let seq = Seq(u64::try_from(seq).map_err(|_| below("argument \"seq\""))?);
    let timeout = arguments.optional_int(2)?.map(u64::try_from).transpose();
    let timeout = timeout.map_err(|_| below("argument \"timeout\""))?.map(Duration::from_millis);
    let reached = reached(instance, name, seq);
    match timeout {
        None => reached.await?,
        Some(timeout) => match tokio::time::timeout(timeout, reached).await {
            Ok(done) => done?,
            Err(_) => return Err(too_late(instance, name, seq, timeout)),
        },
    }
    Ok(Vec::new())
}

async fn reached(instance: &Arc<Instance>, name: &str, seq: Seq) -> Result<()> {
    let mut applied = instance.engine.watch_applied();
    loop {
        applied.borrow_and_update();
        let version = instance.engine.version();
        let Some(database) = version.database(name) else {
            return Err(SqlError::new("3D000", format!("database {name:?} does not exist")));
        };
        if database.position.seq >= seq {
            return Ok(());
        }
        if let Some(reason) = &database.stopped {
            let what = format!("database {name:?} does not go on to {seq}: {reason}");
            return Err(SqlError::new("55000", what));
        }
        if applied.changed().await.is_err() {
            return Err(SqlError::new("57P01", "the server ends"));
        }
    }
}

fn too_late(instance: &Arc<Instance>, name: &str, seq: Seq, timeout: Duration) -> SqlError {
    let at = instance.engine.version().database(name).map_or(Seq::ZERO, |database| database.position.seq);
    let what = format!("database {name:?} is at {at}, not at {seq}, after {} ms", timeout.as_millis());
    SqlError::new("57014", what).hint("system.followed and get_slave_replication_status() say what it waits for")
}
