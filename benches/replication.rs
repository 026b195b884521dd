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
        let link = runtime.block_on(bare::Link::new());
        bencher.iter(|| runtime.block_on(link.transfer(bytes)));
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
    use std::sync::Arc;

    use quinn::{ClientConfig, Connection, Endpoint, ServerConfig};
    use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

    pub(crate) struct Link {
        _server: Endpoint,
        _client: Endpoint,
        connection: Connection,
    }

    impl Link {
        pub(crate) async fn new() -> Self {
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
            let server = Endpoint::server(server_config, ([127, 0, 0, 1], 0).into()).unwrap();
            let client_tls = quinn::crypto::rustls::QuicClientConfig::try_from(client_tls).unwrap();
            let mut client_config = ClientConfig::new(Arc::new(client_tls));
            client_config.transport_config(transport);
            let client = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
            let accepted = {
                let server = server.clone();
                tokio::spawn(async move { server.accept().await.unwrap().await.unwrap() })
            };
            let address = server.local_addr().unwrap();
            let connection = client.connect_with(client_config, address, "localhost").unwrap().await.unwrap();
            let accepted = accepted.await.unwrap();
            tokio::spawn(async move {
                while let Ok(mut stream) = accepted.accept_uni().await {
                    let mut bytes = 0u64;
                    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.unwrap() {
                        bytes += chunk.bytes.len() as u64;
                    }
                    let mut reply = accepted.open_uni().await.unwrap();
                    reply.write_all(&bytes.to_le_bytes()).await.unwrap();
                    reply.finish().unwrap();
                }
            });
            Self { _server: server, _client: client, connection }
        }

        pub(crate) async fn transfer(&self, bytes: usize) {
            let piece = bytes::Bytes::from(vec![7; 1 << 20]);
            let mut stream = self.connection.open_uni().await.unwrap();
            let mut left = bytes;
            while left > 0 {
                let length = left.min(piece.len());
                stream.write_chunk(piece.slice(..length)).await.unwrap();
                left -= length;
            }
            stream.finish().unwrap();
            let reply = self.connection.accept_uni().await.unwrap().read_to_end(8).await.unwrap();
            assert_eq!(reply, (bytes as u64).to_le_bytes());
        }
    }
}
