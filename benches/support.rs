//! What the groups share: an engine in a temporary folder and the tutorial's rows.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use arrow_array::RecordBatch;
use arrow_schema::DataType;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tailrace_engine::{
    ColumnDefinition, CommitOptions, Durability, Engine, EngineConfig, EngineSeams, TableDefinition,
    partition::Transform,
};
use tailrace_replicator::{FollowerConfig, PublisherConfig, ReplicaFlow, TlsConfig};
use tailrace_wal::{SystemClock, SystemDisk};

/// Rows of the tutorial: 5,000 securities, 242 minutes.
pub(crate) const ROWS: usize = 1_210_000;

/// An engine in a temporary folder.
pub(crate) struct Bed {
    pub(crate) engine: Arc<Engine>,
    _dir: tempfile::TempDir,
}

impl Bed {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let (engine, _) = Engine::open(EngineConfig::new(dir.path()), seams).await.unwrap();
        Self { engine, _dir: dir }
    }

    /// `market.bars`, empty.
    pub(crate) async fn with_table() -> Self {
        let bed = Self::new().await;
        bed.engine.create_database("market").await.unwrap();
        bed.engine.create_table("market", bars_definition()).await.unwrap();
        bed
    }

    /// One transaction.
    pub(crate) async fn load(&self, batches: &[RecordBatch], durability: Durability) {
        let mut transaction = self.engine.begin("market").unwrap();
        for batch in batches {
            transaction.append("bars", batch.clone()).await.unwrap();
        }
        let options = CommitOptions { durability: Some(durability), ..CommitOptions::default() };
        transaction.commit(options).await.unwrap();
    }
}

/// The tutorial's rows, the same for every run.
pub(crate) fn bars() -> Vec<RecordBatch> {
    tailrace::demo::generator::batches(ROWS as u64).collect::<Result<_, _>>().unwrap()
}

/// The tutorial's table.
pub(crate) fn bars_definition() -> TableDefinition {
    let schema = tailrace::demo::generator::schema();
    let columns = schema.fields().iter().map(|field| ColumnDefinition {
        name: field.name().clone(),
        data_type: field.data_type().clone(),
        nullable: field.is_nullable(),
    });
    let columns: Vec<_> = columns.collect();
    assert!(matches!(columns[1].data_type, DataType::Timestamp(..)));
    TableDefinition {
        name: "bars".into(),
        columns,
        partition_by: vec![(Transform::Day, "datetime".into())],
        order_by: vec!["security_id".into(), "datetime".into()],
    }
}

/// An authority and what it signs.
pub(crate) struct Certificates {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.crt"), ca.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(ca, key) }
    }

    /// Good for a primary on loopback and for a replica of this name.
    pub(crate) fn issue(&self, name: &str) -> TlsConfig {
        let key = KeyPair::generate().unwrap();
        let mut node = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        node.subject_alt_names.push(SanType::URI(format!("tailrace://replica/{name}").try_into().unwrap()));
        let write = |suffix: &str, text: String| -> PathBuf {
            let path = self.dir.path().join(format!("{name}.{suffix}"));
            std::fs::write(&path, text).unwrap();
            path
        };
        TlsConfig {
            ca: self.dir.path().join("ca.crt"),
            certificate: write("crt", node.signed_by(&key, &self.issuer).unwrap().pem()),
            key: write("key", key.serialize_pem()),
        }
    }
}

/// A primary on a free port of loopback.
pub(crate) fn publisher_config(tls: TlsConfig, flow: ReplicaFlow) -> PublisherConfig {
    PublisherConfig {
        name: "primary".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        tls,
        max_replicas: 16,
        replicas: None,
        flow,
        cache_bytes: PublisherConfig::CACHE_BYTES,
        send_bytes: PublisherConfig::SEND_BYTES,
    }
}

/// A replica with the settings that a server has by default.
pub(crate) fn follower_config(name: &str, tls: TlsConfig, primary: SocketAddr) -> FollowerConfig {
    FollowerConfig {
        name: name.into(),
        primary_addresses: vec![primary.to_string()],
        databases: None,
        tables: Default::default(),
        apply_workers: 2,
        receive_bytes: FollowerConfig::RECEIVE_BYTES,
        apply_user: None,
        tls,
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(5),
        task_failures_max: 30,
    }
}
