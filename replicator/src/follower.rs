//! The replica's side: pulls, prepares, applies, acknowledges.

use std::{sync::Arc, time::Duration};

use tailrace_engine::Engine;

use crate::{FollowerConfig, FollowerStatus, ReplicaTask, ReplicationMetrics, Result};

/// Follows a primary's databases into this cluster's engine.
#[derive(Debug)]
pub struct Follower {
    _private: (),
}

impl Follower {
    /// Begins to follow, unless the cluster's replica switch is off. A primary that is not there is tried again for ever.
    pub async fn start(_engine: Arc<Engine>, _config: FollowerConfig) -> Result<Arc<Self>> {
        todo!()
    }

    /// What is followed, and how it stands.
    pub fn status(&self) -> FollowerStatus {
        todo!()
    }

    /// Finished tasks first (the latest 10,000, oldest first), then unfinished, oldest first.
    pub fn tasks(&self) -> Vec<ReplicaTask> {
        todo!()
    }

    /// Figures over the last `window`, or since replication was enabled.
    pub fn metrics(&self, _window: Option<Duration>) -> ReplicationMetrics {
        todo!()
    }

    /// Forgets failure counts and tries everything that failed again, at once. `start_cluster_replication` calls it
    /// after the engine's switch.
    pub fn retry(&self) {
        todo!()
    }

    /// Ends it; what is in progress is completed.
    pub async fn shutdown(&self) {
        todo!()
    }
}
