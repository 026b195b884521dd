//! `replication`: the tutorial's rows to a replica over QUIC on loopback, beside bare quinn moving the same number of
//! bytes; and the time from a durable commit to the row being readable on the replica.

use std::{sync::Arc, time::Duration};

use criterion::{Criterion, Throughput};
use tailrace_engine::Durability;
use tailrace_replicator::{Follower, Publisher, ReplicaFlow};
use tokio::runtime::Runtime;

use crate::support::{Bed, Certificates, ROWS, bars, follower_config, publisher_config};

pub(crate) fn group(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    catch_up(criterion, &runtime);
    lag(criterion, &runtime);
}

/// From the first byte written on the primary until the replica shows all rows.
fn catch_up(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("replication/tutorial_rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.measurement_time(Duration::from_secs(15));
    let batches = bars();
    let bytes: usize = batches.iter().map(arrow_array::RecordBatch::get_array_memory_size).sum();

    group.bench_function("baseline_quinn_same_bytes", |bencher| {
        // In a runtime: it binds a socket.
        let server = runtime.block_on(async { bare::Server::new() });
        let link = runtime.block_on(server.connect());
        let memory = bytes::Bytes::from(vec![7; bytes]);
        bencher.iter(|| runtime.block_on(link.transfer(&memory)));
    });
    for (name, durability) in [("sync", Durability::Durable), ("async", Durability::Written)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || runtime.block_on(Pair::new()),
                |pair| {
                    runtime.block_on(async {
                        pair.primary.load(&batches, durability).await;
                        pair.wait_for_rows(ROWS as u64).await;
                    });
                    pair
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// One row: from its commit's acknowledgement until it is readable on the replica, commit included.
fn lag(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("replication/one_row_visible");
    let row = vec![bars()[0].slice(0, 1)];
    for (name, durability) in [("sync", Durability::Durable), ("async", Durability::Written)] {
        group.bench_function(name, |bencher| {
            let pair = runtime.block_on(Pair::new());
            let mut rows = 0;
            bencher.iter(|| {
                rows += 1;
                runtime.block_on(async {
                    pair.primary.load(&row, durability).await;
                    pair.wait_for_rows(rows).await;
                });
            });
        });
    }
    group.finish();
}

/// A primary and a replica that has attached.
struct Pair {
    primary: Bed,
    replica: Bed,
    _publisher: Arc<Publisher>,
    _follower: Arc<Follower>,
    _certificates: Certificates,
}

impl Pair {
    async fn new() -> Self {
        let certificates = Certificates::new();
        let tls = certificates.issue("replica");
        let primary = Bed::with_table().await;
        primary.engine.set_database_replication("market", true).await.unwrap();
        let publisher =
            Publisher::start(Arc::clone(&primary.engine), publisher_config(tls.clone(), ReplicaFlow::default()))
                .await
                .unwrap();
        let replica = Bed::new().await;
        let follower =
            Follower::start(Arc::clone(&replica.engine), follower_config("replica", tls, publisher.local_addr()))
                .await
                .unwrap();
        let pair = Self { primary, replica, _publisher: publisher, _follower: follower, _certificates: certificates };
        pair.wait_until(|replica| {
            replica.engine.version().database("market").is_some_and(|database| database.table("bars").is_some())
        })
        .await;
        pair
    }

    async fn wait_for_rows(&self, rows: u64) {
        self.wait_until(|replica| {
            let version = replica.engine.version();
            let table = version.database("market").and_then(|database| database.table("bars"));
            table.is_some_and(|table| table.rows() >= rows)
        })
        .await;
    }

    async fn wait_until(&self, reached: impl Fn(&Bed) -> bool) {
        let mut applied = self.replica.engine.watch_applied();
        while !reached(&self.replica) {
            applied.changed().await.unwrap();
        }
    }
}

/// quinn alone, with limits like ours.
pub(crate) mod bare {
    use std::{net::SocketAddr, sync::Arc};

    use bytes::Bytes;
    use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    /// Bytes of one write.
    const PIECE: usize = 1 << 20;

    /// Who serves.
    pub(crate) struct Server {
        endpoint: Endpoint,
        client: ClientConfig,
    }

    /// A connection, with a socket of its own where it is received.
    pub(crate) struct Link {
        sends: Connection,
        receives: Connection,
        _client: Endpoint,
    }

    impl Server {
        pub(crate) fn new() -> Self {
            let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let certificate = CertificateDer::from(certified.cert);
            let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let server_tls = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.clone()], key.into())
                .unwrap();
            let mut roots = rustls::RootCertStore::empty();
            roots.add(certificate).unwrap();
            let client_tls = rustls::ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let transport = Arc::new(crate::taker::transport());

            let server_tls = quinn::crypto::rustls::QuicServerConfig::try_from(server_tls).unwrap();
            let mut server_config = ServerConfig::with_crypto(Arc::new(server_tls));
            server_config.transport_config(Arc::clone(&transport));
            let endpoint = Endpoint::server(server_config, ([127, 0, 0, 1], 0).into()).unwrap();
            let client_tls = quinn::crypto::rustls::QuicClientConfig::try_from(client_tls).unwrap();
            let mut client = ClientConfig::new(Arc::new(client_tls));
            client.transport_config(transport);
            Self { endpoint, client }
        }

        /// A connection that has carried nothing yet.
        pub(crate) async fn connect(&self) -> Link {
            let address: SocketAddr = self.endpoint.local_addr().unwrap();
            let client = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
            let connecting = client.connect_with(self.client.clone(), address, "localhost").unwrap();
            let accepting = async { self.endpoint.accept().await.unwrap().await.unwrap() };
            let (receives, sends) = tokio::join!(connecting, accepting);
            Link { sends, receives: receives.unwrap(), _client: client }
        }
    }

    impl Link {
        /// Sends what is in memory; over when the last of it has arrived.
        pub(crate) async fn transfer(&self, memory: &Bytes) {
            let (connection, mut left) = (self.sends.clone(), memory.clone());
            tokio::spawn(async move {
                let mut stream = connection.open_uni().await.unwrap();
                while !left.is_empty() {
                    stream.write_chunk(left.split_to(left.len().min(PIECE))).await.unwrap();
                }
                stream.finish().unwrap();
                let _ = stream.stopped().await;
            });
            let mut stream = self.receives.accept_uni().await.unwrap();
            let mut arrived = 0;
            while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.unwrap() {
                arrived += chunk.bytes.len();
            }
            assert_eq!(arrived, memory.len());
        }
    }
}
