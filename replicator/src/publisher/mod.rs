//! The primary's side: serves feeds and repairs.

mod bucket;
mod cache;
mod catalog;
mod chunk;
mod connection;
mod feed;
mod figures;
mod form;
mod link;
mod reader;
mod repair;
mod replicas;
mod schedule;
#[cfg(test)]
mod stalled;
mod verify;
mod wait;

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::NonZero,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use quinn::{Connection, Endpoint};
use tailrace_engine::Engine;
use tailrace_wal::HistoryId;
use tokio::runtime::{Builder, EnterGuard, Runtime};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    cache::ChunkCache, catalog::EngineCatalog, figures::Figures, link::ReplicaLink, reader::HistoryReader,
    replicas::Replicas,
};
use crate::{
    PublisherConfig, PublisherFigures, ReplicaFeedStatus, ReplicationError, ReplicationState, Result, tls, transport,
    watchdog,
};
pub use wait::ReplicaStage;

/// How long sessions may take to say good-bye.
const SHUTDOWN_MAX: Duration = Duration::from_secs(3);
/// How long the last packets may take; a peer that is gone learns of the end by its idle timeout.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// Serves this cluster's replicated databases to replicas, on threads of its own: what it does for them stands in no
/// session's way. Ends with its last handle; [`Publisher::shutdown`] says good-bye before.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    local: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Held for its drop, which ends all tasks.
    _threads: Threads,
}

/// What all sessions share.
#[derive(Debug)]
pub(crate) struct Shared {
    engine: Arc<Engine>,
    config: PublisherConfig,
    catalog: EngineCatalog,
    replicas: Replicas,
    readers: Mutex<HashMap<HistoryId, Arc<HistoryReader>>>,
    cache: Arc<ChunkCache>,
    figures: Arc<Figures>,
}

impl Publisher {
    /// Binds and begins to serve. Databases whose replication is on, and the cluster's switch, come from the engine and
    /// are followed as they change.
    pub async fn start(engine: Arc<Engine>, config: PublisherConfig) -> Result<Arc<Self>> {
        let threads = Threads::start()?;
        let entered = threads.enter();
        let mut server = tls::server_config(&config.tls)?;
        server.transport_config(transport::transport(false));
        server.migration(false);
        // Handshakes under way; each costs a signature. Whoever is not authenticated can hold no more than this.
        server.max_incoming(64);
        server.incoming_buffer_size_total(4 << 20);
        let listen = config.listen;
        let endpoint = transport::listen(&config.tls, server, listen)?;
        let local = endpoint
            .local_addr()
            .map_err(|error| ReplicationError::Connection { address: listen.to_string(), reason: error.to_string() })?;
        let shared = Arc::new(Shared {
            catalog: EngineCatalog::new(engine.clone()),
            engine,
            cache: Arc::new(ChunkCache::new(usize::try_from(config.cache_bytes).unwrap_or(usize::MAX))),
            config,
            replicas: Replicas::default(),
            readers: Mutex::default(),
            figures: Arc::default(),
        });
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        // Not one of the tasks that shutdown waits for: it ends with the endpoint.
        tokio::spawn(accept(shared.clone(), endpoint.clone(), stop.clone(), tasks.clone()));
        tasks.spawn(watch_switches(shared.clone(), stop.clone()));
        let watched = shared.clone();
        tasks.spawn(watchdog::watch(stop.clone(), move || watched.stuck()));
        drop(entered);
        Ok(Arc::new(Self { shared, endpoint, local, stop, tasks, _threads: threads }))
    }

    /// Address bound (port 0 picks one).
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// A row per replica and database, connected or pinned.
    pub fn feeds(&self) -> Vec<ReplicaFeedStatus> {
        self.shared.replicas.feeds(&self.shared.engine)
    }

    /// Forgets what is shown of a feed whose pins were forgotten ([`Engine::forget_pins`]).
    pub fn forget_feed(&self, feed: &str, history: Option<HistoryId>) {
        if let Some(replica) = feed.strip_prefix(replicas::FEED_PREFIX) {
            self.shared.replicas.forget_replica(replica, history);
        }
    }

    /// What was sent and made since start, and what is kept.
    pub fn figures(&self) -> PublisherFigures {
        let figures = &self.shared.figures;
        PublisherFigures {
            wire_bytes: figures.sent_wire.load(Ordering::Relaxed),
            raw_bytes: figures.sent_raw.load(Ordering::Relaxed),
            chunks: figures.chunks.load(Ordering::Relaxed),
            compressions: figures.compressions(),
            cache_bytes: self.shared.cache.bytes() as u64,
        }
    }

    /// Ends sessions and closes the socket.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(SHUTDOWN_MAX, self.tasks.wait()).await;
        self.endpoint.close(transport::CODE_DONE, b"the primary is shutting down");
        let _ = tokio::time::timeout(FAREWELL_MAX, self.endpoint.wait_idle()).await;
        self.shared.readers.lock().clear();
    }
}

/// The publisher's runtime, on half of the processors. A sync wakes the feeds together with the sessions whose commits it
/// covers; on one runtime a session waited for its turn behind eight feeds.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Threads {
    fn start() -> Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let runtime = Builder::new_multi_thread()
            .worker_threads((processors / 2).max(1))
            .thread_name("publisher")
            .enable_all()
            .build()
            .map_err(|error| {
                ReplicationError::Configuration(format!("cannot start the publisher's threads: {error}"))
            })?;
        Ok(Self(Some(runtime)))
    }

    fn enter(&self) -> Option<EnterGuard<'_>> {
        self.0.as_ref().map(Runtime::enter)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Waits for nothing: what drops it may be a task, which must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// Feeds of connected replicas that acknowledge nothing although there is something.
    fn stuck(&self) -> Vec<((String, HistoryId), String, Duration)> {
        let feeds = self.replicas.feeds(&self.engine).into_iter();
        let running = feeds.filter(|feed| feed.address.is_some() && feed.state == ReplicationState::Enabled);
        let stuck = running.filter_map(|feed| {
            let what = format!(
                "replica {:?} acknowledges nothing of database {:?} after seq {}, {} transactions wait",
                feed.replica, feed.database, feed.acknowledged, feed.lag_tasks
            );
            Some(((feed.replica, feed.history), what, feed.stuck?))
        });
        stuck.collect()
    }

    /// The way to a replica.
    fn link(&self, connection: Connection, replica: &str) -> Arc<ReplicaLink> {
        let (clock, figures) = (self.engine.clock().clone(), self.figures.clone());
        ReplicaLink::new(connection, clock, figures, self.config.flow_of(replica), self.config.send_bytes)
    }

    /// The reader of a history, one for all feeds.
    fn reader(&self, history: HistoryId) -> Arc<HistoryReader> {
        let make = || HistoryReader::new(self.engine.clone(), history, self.cache.clone(), self.figures.clone());
        self.readers.lock().entry(history).or_insert_with(make).clone()
    }
}

async fn accept(shared: Arc<Shared>, endpoint: Endpoint, stop: CancellationToken, tasks: TaskTracker) {
    while let Some(incoming) = endpoint.accept().await {
        if stop.is_cancelled() {
            // Told at once, so that the replica tries the next address instead of waiting here.
            incoming.refuse();
            continue;
        }
        // Replaced and refused connections linger for a moment beside the admitted ones.
        if endpoint.open_connections() > 2 * shared.config.max_replicas as usize + 16 {
            incoming.refuse();
            continue;
        }
        tasks.spawn(connection::serve(shared.clone(), incoming, stop.clone()));
    }
}

/// A history whose replication is off holds no log for anyone, whether its replicas are here or not.
async fn watch_switches(shared: Arc<Shared>, stop: CancellationToken) {
    let mut databases = shared.engine.watch_databases();
    loop {
        for history in shared.replicas.histories(&shared.engine) {
            if !shared.catalog.is_on(history) {
                shared.replicas.forget(&shared.engine, history);
                shared.readers.lock().remove(&history);
            }
        }
        tokio::select! {
            changed = databases.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
    }
}
