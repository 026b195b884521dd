//! The pgwire server: own accept loop, a session per connection.

use std::{net::SocketAddr, sync::Arc};

use crate::{Instance, Result};

/// A running pgwire server.
#[derive(Debug)]
pub struct Server {
    _private: (),
}

impl Server {
    /// Binds and serves. Any address but loopback is refused: there are no passwords yet.
    pub async fn start(_instance: Arc<Instance>) -> Result<Self> {
        todo!()
    }

    /// Address bound.
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }

    /// Stops accepting, cancels what runs, ends connections.
    pub async fn shutdown(self) {
        todo!()
    }
}
