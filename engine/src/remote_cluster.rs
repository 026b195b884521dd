//! Clusters elsewhere, declared once under a name: facts of this cluster. Nothing here connects to them.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Engine, EngineError, Result, SystemFact, check_name};

/// What errors call one.
const KIND: &str = "remote cluster";

/// How to reach a cluster elsewhere. Files are kept by path: what is in them stays where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteCluster {
    /// Its nodes, `host:port` each, tried in turn.
    pub addresses: Vec<String>,
    /// PEM file of the authority that signed their certificates; `None`: this node's.
    pub ca: Option<String>,
    /// PEM file of the certificate to show there; `None`: this node's.
    pub certificate: Option<String>,
    /// PEM file of its private key; `None`: this node's.
    pub key: Option<String>,
}

impl Engine {
    /// Declares a cluster in the system history; durable on return.
    ///
    /// # Errors
    /// [`EngineError::AlreadyExists`] when the name is taken.
    pub async fn create_remote_cluster(self: &Arc<Self>, name: &str, cluster: RemoteCluster) -> Result<()> {
        check_name(KIND, name)?;
        self.declare(name.to_owned(), Some(cluster)).await
    }

    /// Forgets a cluster; durable on return.
    ///
    /// # Errors
    /// [`EngineError::NotFound`] when none has the name.
    pub async fn drop_remote_cluster(self: &Arc<Self>, name: &str) -> Result<()> {
        self.declare(name.to_owned(), None).await
    }

    /// Those that are declared, by name.
    pub fn remote_clusters(&self) -> BTreeMap<String, RemoteCluster> {
        self.system.lock().remote_clusters.clone()
    }

    /// One of them.
    pub fn remote_cluster(&self, name: &str) -> Option<RemoteCluster> {
        self.system.lock().remote_clusters.get(name).cloned()
    }

    async fn declare(self: &Arc<Self>, name: String, cluster: Option<RemoteCluster>) -> Result<()> {
        let engine = self.clone();
        self.to_the_end(async move {
            match (engine.remote_cluster(&name), &cluster) {
                (Some(_), Some(_)) => return Err(EngineError::AlreadyExists { kind: KIND, name }),
                (None, None) => return Err(EngineError::NotFound { kind: KIND, name }),
                _ => {}
            }
            engine.record_facts(vec![SystemFact::RemoteCluster { name, cluster }]).await
        })
        .await
    }
}
