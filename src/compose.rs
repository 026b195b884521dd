//! A node from its settings: engine → publisher → follower → SQL server → jobs, started bottom up, stopped top down.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc};

use tailrace_engine::{ArchiveConfig, Engine, EngineConfig, EngineSeams, StartReport, TableChoice};
use tailrace_replicator::{
    CompressionPolicy, Follower, FollowerConfig, Publisher, PublisherConfig, ReplicaFlow, ReplicaGrant, TlsConfig,
};
use tailrace_sql::{FlightServer, Instance, Jobs, Remotes, Server, SqlConfig};
use tailrace_wal::{LogConfig, Persistence, SystemClock, SystemDisk};

use crate::{
    Error, Result,
    config::{
        Compression, ListenAddress, PrimarySettings, ReplicaSettings, Settings, WalPersistence, is_bucket, listing,
    },
};

/// A running node.
#[derive(Debug)]
pub struct Node {
    instance: Arc<Instance>,
    server: Server,
    flight: Option<FlightServer>,
}

impl Node {
    /// Recovers the node's folder and starts its parts. When one of them fails, those already up are stopped again.
    /// Must run within a tokio runtime.
    ///
    /// # Errors
    /// The failing part's.
    pub async fn start(settings: &Settings) -> Result<Self> {
        // Settings that can be wrong come first: nothing is recovered for nothing.
        let files_allow = canonical(&settings.files.allow)?;
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let (engine, report) = Engine::open(engine_config(settings), seams).await?;

        log_recovery(&report);

        let mut started = Started { engine: Arc::clone(&engine), publisher: None, follower: None };
        match started.raise(settings, files_allow).await {
            Ok(node) => Ok(node),
            Err(error) => {
                // The first failure is the one to report.
                let _ = stop(&engine, started.publisher.as_deref(), started.follower.as_deref()).await;
                Err(error)
            }
        }
    }

    /// The storage engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.instance.engine
    }

    /// The primary's side, if configured.
    pub fn publisher(&self) -> Option<&Publisher> {
        self.instance.publisher.as_deref()
    }

    /// The replica's side, if configured.
    pub fn follower(&self) -> Option<&Follower> {
        self.instance.follower.as_deref()
    }

    /// Where PostgreSQL clients connect.
    pub fn pgwire(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Where Flight SQL clients and other clusters connect, if configured.
    pub fn flight(&self) -> Option<SocketAddr> {
        self.flight.as_ref().map(FlightServer::local_addr)
    }

    /// Ends jobs, closes listeners and connections, ends replication, and closes the log: everything written is durable on
    /// return.
    ///
    /// # Errors
    /// The engine's, when the log or the manifest could not be closed cleanly.
    pub async fn shutdown(self) -> Result<()> {
        self.instance.jobs.shutdown().await;
        if let Some(flight) = self.flight {
            flight.shutdown().await;
        }
        self.server.shutdown().await;
        stop(&self.instance.engine, self.instance.publisher.as_deref(), self.instance.follower.as_deref()).await
    }
}

/// What is up while a node starts.
struct Started {
    engine: Arc<Engine>,
    publisher: Option<Arc<Publisher>>,
    follower: Option<Arc<Follower>>,
}

impl Started {
    async fn raise(&mut self, settings: &Settings, files_allow: Vec<PathBuf>) -> Result<Node> {
        if let Some(primary) = &settings.replication.primary {
            let config = publisher_config(settings, primary)?;
            self.publisher = Some(Publisher::start(Arc::clone(&self.engine), config).await?);
        }
        if let Some(replica) = &settings.replication.replica {
            let config = follower_config(settings, replica)?;
            self.follower = Some(Follower::start(Arc::clone(&self.engine), config).await?);
        }
        let config = sql_config(settings, files_allow);
        // Checked when it was read.
        let jobs_max = NonZeroUsize::new(settings.jobs.max_running).unwrap_or(NonZeroUsize::MIN);
        let remotes = Remotes::new(Arc::clone(&self.engine), config.tls.clone(), config.files_allow.clone());
        let instance = Arc::new(Instance {
            engine: Arc::clone(&self.engine),
            publisher: self.publisher.clone(),
            follower: self.follower.clone(),
            remotes: Arc::new(remotes),
            jobs: Jobs::new(Arc::clone(&self.engine), jobs_max),
            config,
        });
        let server = Server::start(Arc::clone(&instance)).await?;
        let flight = match settings.listen.flight {
            None => None,
            Some(address) => match FlightServer::start(server.sessions(), address.0).await {
                Ok(flight) => Some(flight),
                Err(error) => {
                    server.shutdown().await;
                    return Err(error.into());
                }
            },
        };
        instance.jobs.start(server.sessions()).await;
        Ok(Node { instance, server, flight })
    }
}

async fn stop(engine: &Engine, publisher: Option<&Publisher>, follower: Option<&Follower>) -> Result<()> {
    if let Some(follower) = follower {
        follower.shutdown().await;
    }
    if let Some(publisher) = publisher {
        publisher.shutdown().await;
    }
    Ok(engine.shutdown().await?)
}

fn log_recovery(report: &StartReport) {
    for torn in &report.torn {
        tracing::warn!("{torn}");
    }
    for (database, reason) in &report.stopped {
        tracing::error!(database, reason, "a database is stopped");
    }
    tracing::info!(replayed = report.replayed, "recovered");
}

fn engine_config(settings: &Settings) -> EngineConfig {
    let defaults = EngineConfig::new(&settings.node.data_dir);
    let wal = &settings.wal;
    let engine = &settings.engine;
    EngineConfig {
        storage_url: settings.storage.url.as_ref().map(|url| url.0.clone()),
        wal: LogConfig {
            dir: wal.dir.clone().unwrap_or_else(|| defaults.wal.dir.clone()),
            segment_bytes: wal.segment_bytes.0,
            sync_interval: wal.sync_interval.0,
            async_max_bytes: wal.async_max_bytes.0,
            pin_max_bytes: wal.pin_max_bytes.0,
            pin_max_age: wal.pin_max_age.0,
            reserve_bytes: wal.reserve_bytes.0,
            ..defaults.wal
        },
        archive: wal.archive.as_ref().map(|url| ArchiveConfig { url: url.0.clone(), interval: wal.archive_interval.0 }),
        persistence: match wal.persistence {
            WalPersistence::Sync => Persistence::Sync,
            WalPersistence::Async => Persistence::Async,
        },
        memtable_bytes: engine.memtable_bytes.0,
        cache_bytes: engine.cache_bytes.0,
        flush_age: engine.flush_age.0,
        transaction_max_bytes: engine.transaction_max_bytes.0,
        transaction_max_age: engine.transaction_max_age.0,
        fragment_bytes: defaults.fragment_bytes,
        ..defaults
    }
}

fn publisher_config(settings: &Settings, primary: &PrimarySettings) -> Result<PublisherConfig> {
    Ok(PublisherConfig {
        name: settings.node.name.clone(),
        listen: settings.listen.replication.unwrap_or(ListenAddress::any(7443)).0,
        tls: tls_config(settings)?,
        max_replicas: primary.max_replicas,
        replicas: primary.replicas.as_ref().map(|grants| {
            let grant = |grant: &crate::config::GrantSettings| ReplicaGrant {
                name: grant.name.clone(),
                databases: grant.databases.clone(),
                compression: grant.compression.map(compression_policy),
                rate_limit: grant.rate_limit.map(|rate| rate.0),
            };
            grants.iter().map(grant).collect()
        }),
        flow: ReplicaFlow {
            compression: compression_policy(primary.compression),
            rate_limit: primary.rate_limit.map(|rate| rate.0),
        },
        cache_bytes: primary.cache_bytes.0,
        send_bytes: primary.send_bytes.0,
    })
}

fn compression_policy(compression: Compression) -> CompressionPolicy {
    match compression {
        Compression::Auto => CompressionPolicy::Auto,
        Compression::None => CompressionPolicy::None,
        Compression::Zstd => CompressionPolicy::Zstd,
    }
}

fn follower_config(settings: &Settings, replica: &ReplicaSettings) -> Result<FollowerConfig> {
    Ok(FollowerConfig {
        name: replica.name.clone().unwrap_or_else(|| settings.node.name.clone()),
        primary_addresses: replica.primary_addresses.clone(),
        databases: replica.databases.clone(),
        tables: chosen_tables(replica),
        apply_workers: replica.apply_workers,
        receive_bytes: replica.receive_bytes.0,
        tls: tls_config(settings)?,
        apply_user: replica.apply_user.clone(),
        backoff_min: replica.backoff_min.0,
        backoff_max: replica.backoff_max.0,
        task_failures_max: replica.task_failures_max,
    })
}

/// By database, the tables that are named. Databases of which none is named have all of theirs.
fn chosen_tables(replica: &ReplicaSettings) -> BTreeMap<String, TableChoice> {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for table in replica.tables.iter().flatten() {
        named.entry(table.database.clone()).or_default().push(table.table.clone());
    }
    named.into_iter().map(|(database, tables)| (database, TableChoice::only(tables))).collect()
}

fn tls_config(settings: &Settings) -> Result<TlsConfig> {
    own_certificates(settings).ok_or_else(|| Error::Configuration("replication needs the section [tls]".to_owned()))
}

fn own_certificates(settings: &Settings) -> Option<TlsConfig> {
    let tls = settings.tls.as_ref()?;
    Some(TlsConfig { ca: tls.ca.clone(), certificate: tls.certificate.clone(), key: tls.key.clone() })
}

fn sql_config(settings: &Settings, files_allow: Vec<PathBuf>) -> SqlConfig {
    SqlConfig {
        node_name: settings.node.name.clone(),
        pgwire: settings.listen.pgwire.0,
        tls: own_certificates(settings),
        files_allow,
        memory_bytes: settings.query.memory_bytes.0,
        threads: settings.query.threads,
        statement_timeout: settings.query.statement_timeout.map(|span| span.0),
        settings: listing(settings),
    }
}

/// The folders as the file system knows them, so that no link leads out of one unseen.
fn canonical(folders: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let canonical = |folder: &PathBuf| {
        if is_bucket(folder) {
            return Ok(folder.clone());
        }
        folder.canonicalize().map_err(|error| {
            Error::Configuration(format!(
                "`files.allow` has {}: {error}; make the folder or remove it",
                folder.display()
            ))
        })
    };
    folders.iter().map(canonical).collect()
}
