//! `tailrace serve`: a node until SIGTERM or SIGINT.

use std::io::{IsTerminal, Write};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{Error, Result, compose::Node, config::Settings};

/// Logs to stderr. `RUST_LOG` overrides `default`.
pub fn trace(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    // Fails only when a subscriber is set already, which then serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

/// Runs a node. Prints a line `listening <what> <address>` on stdout for each listener once all are ready.
///
/// # Errors
/// Whatever keeps the node from starting; [`Error::LogStopped`] when its log or manifest fails while it runs.
pub async fn serve(settings: Settings) -> Result<()> {
    // Before anything else, so that a signal during recovery ends the process by a clean stop, too.
    let mut signals = Signals::listen()?;
    let node = Node::start(&settings).await?;
    if let Some(address) = settings.listen.http {
        tracing::warn!("listen.http = \"{address}\" is accepted, but not served yet");
    }
    announce(&node)?;

    let stopped = tokio::select! {
        name = signals.next() => {
            tracing::info!("{name}: stopping");
            None
        }
        failure = node.engine().stopped() => {
            tracing::error!("{failure}");
            Some(failure)
        }
    };
    let closed = node.shutdown().await;
    if let Some(failure) = stopped {
        return Err(Error::LogStopped(failure));
    }
    closed?;
    tracing::info!("stopped; the log is synced");
    Ok(())
}

/// Waits for SIGTERM or SIGINT.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|error| Error::Configuration(format!("cannot listen for signals: {error}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

fn announce(node: &Node) -> Result<()> {
    let mut lines = format!("listening pgwire {}\n", node.pgwire());
    if let Some(flight) = node.flight() {
        lines.push_str(&format!("listening flight {flight}\n"));
    }
    if let Some(publisher) = node.publisher() {
        lines.push_str(&format!("listening replication {}\n", publisher.local_addr()));
    }
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()).map_err(Error::io("write", "stdout"))
}
