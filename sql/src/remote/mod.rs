//! Clusters elsewhere: declared once, then read as catalogs, `siteb.market.bars`.
//!
//! [`Remotes`] knows them by name; [`Remote`] speaks Flight SQL to one over mutual TLS ([`connect`] makes the connection,
//! trying its addresses in turn). For queries, [`catalog`] finds tables when a statement is planned, [`table`] decides what of
//! it is done there, in SQL ([`filter`] for what has the same meaning on both sides, [`aggregate`] for whole sums), and
//! [`scan`] reads the rows as they come.

mod aggregate;
mod catalog;
mod cluster;
mod connect;
mod filter;
mod scan;
mod table;

pub(crate) use aggregate::PushDownAggregate;
pub(crate) use catalog::{Catalogs, check_names};
pub use cluster::Remote;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use tailrace_engine::{Engine, RemoteCluster};
use tailrace_replicator::TlsConfig;
use tokio::runtime::Handle;

use crate::{Result, SqlError, synchronize::Synchronizations};

/// The clusters that are declared on this node, and what is open to them.
#[derive(Debug)]
pub struct Remotes {
    engine: Arc<Engine>,
    certificates: Certificates,
    /// Where connections live.
    home: Option<Handle>,
    open: Mutex<HashMap<String, Arc<Remote>>>,
    /// What was read from them into tables here, since the start.
    pub(crate) synchronizations: Synchronizations,
}

/// Which certificates may be used towards others.
#[derive(Debug, Clone)]
pub(crate) struct Certificates {
    /// The node's own, where a declaration names no others.
    pub(crate) own: Option<TlsConfig>,
    /// Folders (absolute, canonical) under which declarations may name files.
    pub(crate) allow: Vec<PathBuf>,
}

impl Remotes {
    /// Those of an engine's system history. `own`: the node's certificates, used where a declaration names no others;
    /// `allow`: folders (absolute, canonical) under which declarations may name files. Connections live in the tokio runtime in
    /// which this is called, whoever needs them first.
    pub fn new(engine: Arc<Engine>, own: Option<TlsConfig>, allow: Vec<PathBuf>) -> Self {
        let certificates = Certificates { own, allow };
        let home = Handle::try_current().ok();
        Self { engine, certificates, home, open: Mutex::default(), synchronizations: Synchronizations::default() }
    }

    /// A declared cluster. Nothing is connected yet; the connection is shared by all who ask for it and kept.
    ///
    /// # Errors
    /// `42704` names the nearest of those that are declared.
    pub fn get(&self, name: &str) -> Result<Arc<Remote>> {
        let mut open = self.open.lock();
        let Some(declared) = self.engine.remote_cluster(name) else {
            open.remove(name);
            let declared = self.engine.remote_clusters();
            let error = SqlError::new("42704", format!("remote cluster {name:?} does not exist"));
            return Err(match declared.is_empty() {
                true => error.hint(format!("declare it: CALL create_remote_cluster('{name}', '<host>:50051')")),
                false => error.did_you_mean(name, declared.keys().map(String::as_str)),
            });
        };
        if let Some(remote) = open.get(name)
            && *remote.declared() == declared
        {
            return Ok(Arc::clone(remote));
        }
        let remote = Arc::new(Remote::new(name, declared, self.certificates.clone(), self.home.clone()));
        open.insert(name.to_owned(), Arc::clone(&remote));
        Ok(remote)
    }

    /// Declares a cluster after a look at its certificates; whether it can be reached is not asked. Durable on return.
    pub(crate) async fn create(&self, name: &str, cluster: RemoteCluster) -> Result<()> {
        connect::check(&cluster, &self.certificates)?;
        Ok(self.engine.create_remote_cluster(name, cluster).await?)
    }

    /// Forgets a cluster. What reads from it runs to its end.
    pub(crate) async fn forget(&self, name: &str) -> Result<()> {
        self.engine.drop_remote_cluster(name).await?;
        self.open.lock().remove(name);
        Ok(())
    }
}
