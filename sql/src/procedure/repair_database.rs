//! `repair_database(database)`: a followed database is replaced by its primary's copy, although the log reaches back. What
//! was skipped in it is there then.

use std::sync::Arc;

use tailrace_replicator::{Follower, Refused};

use super::arguments::{Arguments, Parameter, Type};
use crate::{
    Instance, Result, SqlError,
    system::{CONFIGURE, not_configured},
};

pub(super) const PARAMETERS: &[Parameter] = &[Parameter::required("database", Type::Text)];

pub(super) async fn run(instance: &Arc<Instance>, arguments: &Arguments) -> Result<Vec<String>> {
    follower(instance)?.repair(arguments.text(0)?).await.map_err(refused)
}

/// The replica's side of this cluster.
pub(super) fn follower(instance: &Instance) -> Result<&Arc<Follower>> {
    instance.follower.as_ref().ok_or_else(|| match instance.publisher {
        None => not_configured("This cluster is neither a primary nor a replica.", CONFIGURE),
        Some(_) => not_configured("This cluster is a primary, not a replica.", "run it on the replica"),
    })
}

/// `55000`: not in this state.
pub(super) fn refused(refused: Refused) -> SqlError {
    let error = SqlError::new("55000", refused.reason);
    match refused.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}
