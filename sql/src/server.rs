//! The pgwire server: own accept loop, a session per connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Instance, Result, SessionFactory, SqlError,
    pgwire::{CONNECTIONS_MAX, CancelRegistry, ConnectionContext, serve},
};

/// Connections beyond [`CONNECTIONS_MAX`] that are still answered, with a refusal, or may carry a cancel request.
const REFUSALS_MAX: usize = 64;

/// How long clients have to read their last answers at shutdown.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A running pgwire server.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    context: Arc<ConnectionContext>,
    connections: TaskTracker,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Binds and serves. Any address but loopback is refused: there are no passwords yet.
    pub async fn start(instance: Arc<Instance>) -> Result<Self> {
        Self::start_for(instance, CONNECTIONS_MAX).await
    }

    async fn start_for(instance: Arc<Instance>, connections_max: usize) -> Result<Self> {
        let address = instance.config.pgwire;
        if !address.ip().is_loopback() {
            return Err(SqlError::new("F0000", format!("listen.pgwire = {address} is not a loopback address"))
                .detail("There are no passwords yet, so only this machine may connect.")
                .hint(format!("listen on 127.0.0.1:{port}, and reach it from elsewhere through a tunnel, such as ssh -L {port}:127.0.0.1:{port}", port = address.port())));
        }
        let failed = |what: &str, error: std::io::Error| {
            SqlError::new("58030", format!("listen.pgwire = {address}: {what}: {error}"))
                .hint("is another server listening there? choose another port, or 0 for any")
        };
        let factory = SessionFactory::new(instance).await?;
        let listener = TcpListener::bind(address).await.map_err(|error| failed("cannot listen", error))?;
        let local_addr = listener.local_addr().map_err(|error| failed("cannot tell the address", error))?;
        let context = Arc::new(ConnectionContext {
            factory,
            registry: Arc::new(CancelRegistry::default()),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(connections_max)),
        });
        let connections = TaskTracker::new();
        let accepting = tokio::spawn(accept(listener, context.clone(), connections.clone()));
        Ok(Self { local_addr, context, connections, accepting })
    }

    /// Address bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Makes sessions like those of connections, with the same limits for all together.
    pub fn sessions(&self) -> SessionFactory {
        self.context.factory.clone()
    }

    /// Stops accepting, cancels what runs, ends connections. A commit in progress runs to its end.
    pub async fn shutdown(self) {
        self.context.stop.cancel();
        self.accepting.await.ok();
        self.connections.close();
        if tokio::time::timeout(LAST_WORDS, self.connections.wait()).await.is_err() {
            self.context.kill.cancel();
            self.connections.wait().await;
        }
    }
}

/// Accepts until the server stops. A connection takes its slot after its start-up message, as a cancel request needs
/// none.
async fn accept(listener: TcpListener, context: Arc<ConnectionContext>, connections: TaskTracker) {
    let sockets = Arc::new(Semaphore::new(CONNECTIONS_MAX + REFUSALS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = context.stop.cancelled() => return,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer left already: later connections may do better.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(kept) = Arc::clone(&sockets).try_acquire_owned() else {
            tracing::warn!(%peer, "too many connections, dropped");
            continue;
        };
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%peer, %error, "TCP_NODELAY was not set");
        }
        let context = context.clone();
        connections.spawn(async move {
            serve(socket, context).await;
            drop(kept);
        });
    }
}

#[cfg(test)]
mod tests {
    use tailrace_engine::{Engine, EngineConfig, EngineSeams};
    use tailrace_wal::{SystemClock, SystemDisk};
    use tokio_postgres::{Config, NoTls};

    use super::*;
    use crate::SqlConfig;

    #[tokio::test]
    async fn one_connection_too_many_is_told_so_and_may_still_cancel() {
        let folder = tempfile::tempdir().unwrap();
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        let (engine, _) = Engine::open(EngineConfig::new(folder.path()), seams).await.unwrap();
        let config = SqlConfig {
            node_name: "test".to_owned(),
            pgwire: ([127, 0, 0, 1], 0).into(),
            tls: None,
            files_allow: Vec::new(),
            memory_bytes: 64 << 20,
            threads: 1,
            statement_timeout: None,
            settings: Vec::new(),
        };
        let jobs = crate::Jobs::new(engine.clone(), std::num::NonZeroUsize::MIN.saturating_add(3));
        let remotes = Arc::new(crate::Remotes::new(engine.clone(), None, Vec::new()));
        let instance = Arc::new(Instance { engine, publisher: None, follower: None, remotes, jobs, config });
        let server = Server::start_for(instance, 1).await.unwrap();
        let mut config = Config::new();
        config.host("127.0.0.1").port(server.local_addr().port()).user("ann").dbname("tailrace");

        let (client, connection) = config.connect(NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        let error = config.connect(NoTls).await.map(|_| ()).unwrap_err();
        assert_eq!(error.code().unwrap().code(), "53300");
        client.cancel_token().cancel_query(NoTls).await.unwrap();
        client.simple_query("SELECT 1").await.unwrap();

        // The slot is free again when the client has left.
        drop(client);
        connection.await.unwrap().unwrap();
        while config.connect(NoTls).await.is_err() {
            tokio::task::yield_now().await;
        }
        server.shutdown().await;
    }
}
