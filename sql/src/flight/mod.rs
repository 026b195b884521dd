//! The Arrow Flight SQL server: gRPC over mutual TLS 1.3, for other clusters and for clients such as ADBC.
//!
//! Who may connect is decided by certificate, before a byte of HTTP is read ([`listener`]): one that the node's authority
//! signed and that carries `tailrace://replica/<name>`. The name is the user of its statements. Each call has a session of
//! its own; statements pass the same allowlist as PostgreSQL clients', and what changes something needs a right that was
//! granted to that user ([`statement`]). Prepared statements are kept per server, bounded ([`prepared`]). [`metadata`] tells of
//! catalogs, schemas and tables; [`status`] is how errors travel.

mod listener;
mod metadata;
mod prepared;
mod service;
mod statement;
pub(crate) mod status;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use arrow_flight::flight_service_server::FlightServiceServer;
use futures::stream;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{prepared::PreparedStatements, service::Service};
use crate::{Result, SessionFactory, SqlError};

/// The protocol that is spoken over TLS.
pub(crate) const ALPN: &[u8] = b"h2";

/// Largest message that is taken, bytes: the longest statement or row of parameters.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Largest message that is sent, bytes. Batches are divided at 2 MiB; a single row may be larger.
pub(crate) const SENT_BYTES_MAX: usize = 64 << 20;

/// Most calls of one connection at a time.
const STREAMS_MAX: u32 = 64;

/// Most statements of all connections at a time.
const STATEMENTS_MAX: usize = 256;

/// Longest headers of a call, bytes.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// How long a silent peer is thought to be there; then it is asked, and has as long again to answer.
const SILENCE_MAX: Duration = Duration::from_secs(20);

/// How long clients have to read their last answers at shutdown.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A running Flight SQL server.
#[derive(Debug)]
pub struct FlightServer {
    local_addr: SocketAddr,
    stop: CancellationToken,
    kill: CancellationToken,
    accepting: JoinHandle<()>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl FlightServer {
    /// Binds and serves on `address` with the node's certificates, in sessions of that factory: its limits hold for all who use
    /// it together.
    ///
    /// # Errors
    /// `F0000` without certificates or with wrong ones, `58030` where the address cannot be listened on.
    pub async fn start(sessions: SessionFactory, address: SocketAddr) -> Result<Self> {
        let configuration = |reason: String| SqlError::new("F0000", format!("listen.flight = {address}: {reason}"));
        let Some(tls) = &sessions.instance().config.tls else {
            return Err(configuration("there are no certificates".to_owned()).hint("add the section [tls]"));
        };
        let tls = tailrace_replicator::server_tls(tls, ALPN).map_err(|error| configuration(error.to_string()))?;
        let failed = |what: &str, error: std::io::Error| {
            SqlError::new("58030", format!("listen.flight = {address}: {what}: {error}"))
                .hint("is another server listening there? choose another port, or 0 for any")
        };
        let listener = TcpListener::bind(address).await.map_err(|error| failed("cannot listen", error))?;
        let local_addr = listener.local_addr().map_err(|error| failed("cannot tell the address", error))?;

        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let (proven, mut incoming) = mpsc::channel(16);
        let accepting =
            listener::accept(listener, TlsAcceptor::from(Arc::new(tls)), proven, stop.clone(), kill.clone());
        let accepting = tokio::spawn(accepting);
        let service = Service {
            factory: sessions,
            prepared: Arc::new(PreparedStatements::default()),
            running: Arc::new(Semaphore::new(STATEMENTS_MAX)),
            stop: stop.clone(),
        };
        let service = FlightServiceServer::new(service)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(SENT_BYTES_MAX);
        let serving = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .http2_keepalive_interval(Some(SILENCE_MAX))
            .http2_keepalive_timeout(Some(SILENCE_MAX))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .add_service(service)
            .serve_with_incoming_shutdown(
                stream::poll_fn(move |context| incoming.poll_recv(context)),
                stop.clone().cancelled_owned(),
            );
        let serving = tokio::spawn(serving);
        Ok(Self { local_addr, stop, kill, accepting, serving })
    }

    /// Address bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, cancels what runs, ends connections. A commit in progress runs to its end.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.accepting.await.ok();
        let mut serving = self.serving;
        if tokio::time::timeout(LAST_WORDS, &mut serving).await.is_err() {
            self.kill.cancel();
            serving.await.ok();
        }
    }
}
