//! Connections: accepted, proven by certificate, and only then given to gRPC.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tailrace_replicator::replica_name;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// Most connections, those that are still proving themselves included.
const CONNECTIONS_MAX: usize = 128;

/// How long a peer has for its handshake.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// Who is at the other end, by its certificate.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The name in its certificate: the user of its statements.
    pub(super) name: Arc<str>,
    /// Where it connects from.
    pub(super) address: SocketAddr,
}

/// Accepts until `stop` fires; connections that have proven themselves go to `proven`. They break when `kill` fires.
pub(super) async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    proven: mpsc::Sender<io::Result<Connection>>,
    stop: CancellationToken,
    kill: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let (socket, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer left already: later connections may do better.
                tracing::warn!(%error, "a Flight connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(%address, "too many Flight connections ({CONNECTIONS_MAX}), dropped");
            continue;
        };
        let (acceptor, proven, kill) = (acceptor.clone(), proven.clone(), kill.clone());
        let stop = stop.clone();
        tokio::spawn(async move {
            let proof = tokio::select! {
                proof = tokio::time::timeout(HANDSHAKE_TIME_MAX, prove(socket, address, &acceptor)) => proof,
                () = stop.cancelled() => return,
            };
            match proof.unwrap_or_else(|_| Err("it took too long".to_owned())) {
                Ok((stream, peer)) => {
                    tracing::debug!(%address, name = %peer.name, "a Flight client connected");
                    let kill = Box::pin(kill.cancelled_owned());
                    let connection = Connection { stream, peer, kill, _slot: slot };
                    // The server may have stopped meanwhile.
                    proven.send(Ok(connection)).await.ok();
                }
                Err(reason) => tracing::warn!(%address, "a Flight connection was refused: {reason}"),
            }
        });
    }
}

async fn prove(
    socket: TcpStream,
    address: SocketAddr,
    acceptor: &TlsAcceptor,
) -> Result<(TlsStream<TcpStream>, Peer), String> {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%address, %error, "TCP_NODELAY was not set");
    }
    let stream = acceptor.accept(socket).await.map_err(|error| error.to_string())?;
    let (_, session) = stream.get_ref();
    let name = replica_name(session.peer_certificates().unwrap_or_default())?;
    Ok((stream, Peer { name: name.into(), address }))
}

/// A proven connection.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    kill: Pin<Box<WaitForCancellationFutureOwned>>,
    _slot: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.kill.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
