//! `start_cluster_replication()` and `stop_cluster_replication()`: the cluster's own switches, as a primary, as a
//! replica, or both, whichever it is configured to be.

use std::sync::Arc;

use tailrace_engine::ReplicationSwitches;

use crate::{
    Instance, Result,
    system::{CONFIGURE, not_configured},
};

pub(super) async fn switch(instance: &Arc<Instance>, on: bool) -> Result<Vec<String>> {
    if instance.publisher.is_none() && instance.follower.is_none() {
        return Err(not_configured("This cluster is neither a primary nor a replica.", CONFIGURE));
    }
    let now = instance.engine.replication_switches();
    let switches = ReplicationSwitches {
        primary: if instance.publisher.is_some() { on } else { now.primary },
        replica: if instance.follower.is_some() { on } else { now.replica },
    };
    instance.engine.set_replication_switches(switches).await?;
    if let Some(follower) = instance.follower.as_ref().filter(|_| on) {
        follower.retry();
    }
    Ok(Vec::new())
}
