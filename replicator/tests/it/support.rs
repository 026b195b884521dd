//! Sites: an engine with its certificates, as a primary, a replica, or both.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use tailrace_engine::{
    ColumnDefinition, CommitOptions, Engine, EngineConfig, EngineSeams, TableChoice, TableDefinition,
    partition::Transform,
};
use tailrace_replicator::{
    FollowedDatabaseStatus, Follower, FollowerConfig, Publisher, PublisherConfig, ReplicaFlow, ReplicaGrant,
    ReplicationState, TlsConfig,
};
use tailrace_wal::{Position, Seq, SystemClock, SystemDisk};
use tempfile::TempDir;

#[path = "../../../tests/shared/port.rs"]
mod port;
use port::kept_address;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: i64 = 24 * 3600 * 1_000_000;

/// Signs certificates.
pub struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key) }
    }

    /// A certificate for a replica of this name, good for a primary on loopback too.
    pub fn issue(&self, name: &str) -> TlsConfig {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into().unwrap()),
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            SanType::URI(format!("tailrace://replica/{name}").try_into().unwrap()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let file = |suffix: &str| self.dir.path().join(format!("{name}.{suffix}"));
        std::fs::write(file("crt"), params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        TlsConfig { ca: self.dir.path().join("ca.crt"), certificate: file("crt"), key: file("key") }
    }

    /// Another authority's certificate, but this one as the trusted.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }
}

/// A cluster of one node.
pub struct Site {
    pub name: String,
    pub dir: TempDir,
    pub tls: TlsConfig,
    pub engine: Arc<Engine>,
}

impl Site {
    pub async fn new(authority: &Authority, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(&dir).await;
        Self { name: name.to_owned(), tls: authority.issue(name), engine, dir }
    }

    /// With the settings that a server has by default: large fragments and segments.
    pub async fn roomy(authority: &Authority, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let engine = Engine::open(EngineConfig::new(dir.path()), seams).await.unwrap().0;
        Self { name: name.to_owned(), tls: authority.issue(name), engine, dir }
    }

    /// With other settings of the engine than the tests' own; a restart takes those again.
    pub async fn with(authority: &Authority, name: &str, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = small(&dir);
        change(&mut config);
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let engine = Engine::open(config, seams).await.unwrap().0;
        Self { name: name.to_owned(), tls: authority.issue(name), engine, dir }
    }

    /// Closes the engine and opens it again, as after an orderly restart.
    pub async fn restart(&mut self) {
        self.engine.shutdown().await.unwrap();
        self.revive().await;
    }

    /// Opens the engine again, as after its process was killed: who held it is gone.
    pub async fn revive(&mut self) {
        // The folder is free when nobody holds the engine any more: neither publisher nor follower may.
        let elsewhere = tempfile::tempdir().unwrap();
        let closed = Arc::downgrade(&std::mem::replace(&mut self.engine, open(&elsewhere).await));
        eventually("everybody to let go of the engine", || (closed.strong_count() == 0).then_some(())).await;
        self.engine = open(&self.dir).await;
    }

    pub async fn publish(&self) -> Arc<Publisher> {
        self.publish_with(kept_address(), 8, None).await
    }

    pub async fn publish_with(
        &self,
        listen: SocketAddr,
        max_replicas: u32,
        replicas: Option<Vec<ReplicaGrant>>,
    ) -> Arc<Publisher> {
        let config = PublisherConfig { listen, max_replicas, replicas, ..self.publisher_config() };
        self.publish_as(config).await
    }

    /// A port on loopback that stays free, all may pull everything, defaults.
    pub fn publisher_config(&self) -> PublisherConfig {
        PublisherConfig {
            name: self.name.clone(),
            listen: kept_address(),
            tls: self.tls.clone(),
            max_replicas: 8,
            replicas: None,
            flow: ReplicaFlow::default(),
            cache_bytes: PublisherConfig::CACHE_BYTES,
            send_bytes: PublisherConfig::SEND_BYTES,
        }
    }

    pub async fn publish_as(&self, config: PublisherConfig) -> Arc<Publisher> {
        let listen = config.listen;
        // A port that was in use a moment ago is free as soon as its former socket is dropped.
        let mut attempts = 0;
        loop {
            match Publisher::start(self.engine.clone(), config.clone()).await {
                Ok(publisher) => return publisher,
                Err(error) if listen.port() == 0 || attempts > 2_000 => panic!("{error}"),
                Err(_) => attempts += 1,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn follow(&self, primary: SocketAddr) -> Arc<Follower> {
        self.follow_with(vec![primary.to_string()], None).await
    }

    /// Applies under a user's name.
    pub async fn follow_as(&self, primary: SocketAddr, user: &str) -> Arc<Follower> {
        self.follow_in(vec![primary.to_string()], None, Some(user.to_owned()), Default::default()).await
    }

    pub async fn follow_with(&self, addresses: Vec<String>, databases: Option<Vec<String>>) -> Arc<Follower> {
        self.follow_in(addresses, databases, None, Default::default()).await
    }

    /// Follows all databases, `market` with these tables alone.
    pub async fn follow_tables(&self, primary: SocketAddr, tables: &[&str]) -> Arc<Follower> {
        let tables = [("market".to_owned(), TableChoice::only(tables.iter().copied()))];
        self.follow_in(vec![primary.to_string()], None, None, tables.into()).await
    }

    async fn follow_in(
        &self,
        addresses: Vec<String>,
        databases: Option<Vec<String>>,
        apply_user: Option<String>,
        tables: BTreeMap<String, TableChoice>,
    ) -> Arc<Follower> {
        let config = FollowerConfig {
            name: self.name.clone(),
            primary_addresses: addresses,
            databases,
            tables,
            apply_workers: 2,
            receive_bytes: FollowerConfig::RECEIVE_BYTES,
            apply_user,
            tls: self.tls.clone(),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(200),
            task_failures_max: 3,
        };
        Follower::start(self.engine.clone(), config).await.unwrap()
    }

    /// A database with one table `bars`, replicated.
    pub async fn market(&self, name: &str) {
        self.engine.create_database(name).await.unwrap();
        self.engine.create_table(name, bars("bars")).await.unwrap();
        self.engine.set_database_replication(name, true).await.unwrap();
    }

    pub async fn insert(&self, database: &str, table: &str, ids: std::ops::Range<i64>) {
        let mut transaction = self.engine.begin(database).unwrap();
        transaction.append(table, rows(ids)).await.unwrap();
        transaction.commit(CommitOptions::default()).await.unwrap();
    }

    /// Truncates the log, so that nobody can begin to read the database's history at `seq` or before.
    pub async fn truncate(&self, database: &str, seq: Seq) {
        self.engine.log().roll().await.unwrap();
        self.engine.flush().await.unwrap();
        let history = self.position(database).unwrap().history;
        assert!(self.engine.log().retained_after(history).unwrap() > seq, "the test needs a truncated log");
    }

    pub fn position(&self, database: &str) -> Option<Position> {
        self.engine.version().database(database).map(|database| database.position)
    }

    pub fn rows(&self, database: &str, table: &str) -> Option<u64> {
        Some(self.engine.version().database(database)?.table(table)?.rows())
    }

    /// Waits until this site's database is where the other's is.
    pub async fn catches_up(&self, with: &Site, database: &str) {
        let wanted = with.position(database);
        assert!(wanted.is_some(), "{database:?} is not at {}", with.name);
        let mut applied = self.engine.watch_applied();
        let done = tokio::time::timeout(PATIENCE, async {
            while self.position(database) != wanted {
                tokio::select! {
                    _ = applied.changed() => {}
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                }
            }
        });
        if done.await.is_err() {
            panic!("{} is at {:?}, {} at {wanted:?}", self.name, self.position(database), with.name);
        }
    }
}

/// A primary `a` with `market`, and `b`, which follows it.
pub async fn followed(authority: &Authority) -> (Site, Site, Arc<Publisher>, Arc<Follower>) {
    let (primary, replica) = (Site::new(authority, "a").await, Site::new(authority, "b").await);
    let publisher = primary.publish().await;
    let follower = replica.follow(publisher.local_addr()).await;
    primary.market("market").await;
    (primary, replica, publisher, follower)
}

async fn open(dir: &TempDir) -> Arc<Engine> {
    let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
    Engine::open(small(dir), seams).await.unwrap().0
}

fn small(dir: &TempDir) -> EngineConfig {
    let mut config = EngineConfig::new(dir.path());
    config.flush_age = Duration::from_secs(3600);
    config.fragment_bytes = 64 << 10;
    config.wal.segment_bytes = 1 << 20;
    config
}

pub fn bars(name: &str) -> TableDefinition {
    let column = |name: &str, data_type, nullable| ColumnDefinition { name: name.to_owned(), data_type, nullable };
    TableDefinition {
        name: name.to_owned(),
        columns: vec![
            column("id", DataType::Int64, false),
            column("at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
            column("price", DataType::Float64, true),
        ],
        partition_by: vec![(Transform::Day, "at".to_owned())],
        order_by: vec!["id".to_owned()],
    }
}

pub fn rows(ids: std::ops::Range<i64>) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("price", DataType::Float64, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| id % 3 * DAY + id % 1000))),
        Arc::new(Float64Array::from_iter(ids.map(|id| (id % 7 != 0).then_some(id as f64 / 3.0)))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// Waits until a condition holds; says what it waited for if it does not.
pub async fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(value) = condition() {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for: {what}"),
    }
}

/// Waits until a followed database has a state.
pub async fn reaches(follower: &Follower, database: &str, state: ReplicationState) -> FollowedDatabaseStatus {
    eventually(&format!("{database} to be {}", state.name()), || {
        follower
            .status()
            .databases
            .into_iter()
            .find(|followed| followed.database == database && followed.state == state)
    })
    .await
}

/// Waits until the primary knows that a replica holds everything up to `seq`.
pub async fn acknowledged(publisher: &Publisher, replica: &str, database: &str, seq: Seq) {
    eventually(&format!("{replica} to acknowledge {database} up to {seq}"), || {
        let feeds = publisher.feeds();
        let feed = feeds.iter().find(|feed| feed.replica == replica && feed.database == database)?;
        (feed.acknowledged >= seq).then_some(())
    })
    .await;
}
