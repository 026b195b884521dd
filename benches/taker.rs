//! A replica that only takes: it speaks the protocol, counts what arrives and drops it. Or it takes nothing at all.

#![allow(clippy::disallowed_methods, reason = "a benchmark takes the time")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tailrace_replicator::TlsConfig;
use tailrace_wal::{Position, Seq};
use tokio::sync::mpsc;

/// Length of a data stream's header, and where its number and the seq of its last record stand (`replicator/PROTOCOL.md`).
const HEADER: usize = 128;
const NUMBER: usize = 16;
const LAST_SEQ: usize = 80;
/// Chunks on their way at a time, as replicas have them.
const CREDIT: u32 = 16;

/// An open feed.
pub(crate) struct Taker {
    control: SendStream,
    chunks: mpsc::UnboundedReceiver<Arrived>,
    _answers: RecvStream,
    _connection: Connection,
    _endpoint: Endpoint,
}

/// A chunk.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    bytes: u64,
    number: u64,
    last: Seq,
}

/// What arrived.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    pub(crate) wire_bytes: u64,
    pub(crate) chunks: u64,
    /// From the first pull until the first whole chunks of a MiB together.
    pub(crate) first_mib: Duration,
}

impl Taker {
    /// Attached and opened after `position`; nothing comes before it pulls.
    pub(crate) async fn attach(name: &str, tls: &TlsConfig, primary: std::net::SocketAddr, position: Position) -> Self {
        Self::attach_with(name, tls, primary, position, transport(), true).await
    }

    /// Has given credit and reads nothing; the primary's end of the connection fills up at once.
    pub(crate) async fn stalled(
        name: &str,
        tls: &TlsConfig,
        primary: std::net::SocketAddr,
        position: Position,
    ) -> Self {
        let mut narrow = transport();
        narrow.receive_window((128u32 << 10).into()).stream_receive_window((64u32 << 10).into());
        narrow.max_concurrent_uni_streams(2u32.into());
        let mut taker = Self::attach_with(name, tls, primary, position, narrow, false).await;
        taker.pull(1_000).await;
        taker
    }

    async fn attach_with(
        name: &str,
        tls: &TlsConfig,
        primary: std::net::SocketAddr,
        position: Position,
        transport: TransportConfig,
        reads: bool,
    ) -> Self {
        let mut client = client(tls);
        client.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let connection = endpoint.connect_with(client, primary, "localhost").unwrap().await.unwrap();
        let (mut control, answers) = connection.open_bi().await.unwrap();
        let hello = format!(
            r#"{{"type":"hello","protocol":1,"version":"0","cluster":"{name}","node":"{:032x}"}}"#,
            u128::from(rand::random::<u64>())
        );
        send(&mut control, &hello).await;
        let position_json = serde_json::to_string(&position).unwrap();
        let restart = position.seq.0;
        let open =
            format!(r#"{{"type":"open","feed":1,"position":{position_json},"restart_seq":{restart},"filter":null}}"#);
        send(&mut control, &open).await;
        let (arrived, chunks) = mpsc::unbounded_channel();
        if reads {
            tokio::spawn(accept(connection.clone(), arrived));
        }
        Self { control, chunks, _answers: answers, _connection: connection, _endpoint: endpoint }
    }

    /// Takes everything up to `seq`, or until the primary goes.
    pub(crate) async fn take_until(&mut self, seq: Seq) -> Taken {
        let began = Instant::now();
        self.pull(CREDIT).await;
        let mut taken = Taken::default();
        // Chunks may overtake one another: it has all when the last one and as many as its number says are here.
        let mut chunks_wanted = u64::MAX;
        while taken.chunks < chunks_wanted {
            // The end of the connection is the end of it.
            let Some(chunk) = self.chunks.recv().await else { break };
            taken.wire_bytes += chunk.bytes;
            taken.chunks += 1;
            if taken.first_mib.is_zero() && taken.wire_bytes >= 1 << 20 {
                taken.first_mib = began.elapsed();
            }
            if chunk.last >= seq {
                chunks_wanted = chunks_wanted.min(chunk.number + 1);
            }
            self.pull(1).await;
        }
        taken
    }

    async fn pull(&mut self, chunks: u32) {
        send(&mut self.control, &format!(r#"{{"type":"pull","feed":1,"chunks":{chunks}}}"#)).await;
    }
}

/// The limits that replicas have, `replicator/src/transport.rs`.
pub(crate) fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .receive_window((64u32 << 20).into())
        .stream_receive_window((16u32 << 20).into())
        .send_window(64 << 20)
        .max_concurrent_uni_streams(256u32.into())
        .initial_rtt(Duration::from_millis(50))
        .keep_alive_interval(Some(Duration::from_millis(500)))
        .datagram_receive_buffer_size(None);
    transport
}

fn client(tls: &TlsConfig) -> ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&tls.ca).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_file(&tls.certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(&tls.key).unwrap();
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"tailrace-replication/1".to_vec()];
    ClientConfig::new(Arc::new(quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap()))
}

async fn accept(connection: Connection, arrived: mpsc::UnboundedSender<Arrived>) {
    while let Ok(stream) = connection.accept_uni().await {
        let arrived = arrived.clone();
        tokio::spawn(async move {
            if let Some(chunk) = read(stream).await {
                let _ = arrived.send(chunk);
            }
        });
    }
}

async fn read(mut stream: RecvStream) -> Option<Arrived> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await.ok()?;
    let mut bytes = HEADER as u64;
    while let Some(chunk) = stream.read_chunk(usize::MAX, true).await.ok()? {
        bytes += chunk.bytes.len() as u64;
    }
    let field = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    Some(Arrived { bytes, number: field(NUMBER)?, last: Seq(field(LAST_SEQ)?) })
}

async fn send(control: &mut SendStream, json: &str) {
    let mut message = (json.len() as u32).to_le_bytes().to_vec();
    message.push(1);
    message.extend_from_slice(json.as_bytes());
    control.write_all(&message).await.unwrap();
}
