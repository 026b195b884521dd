//! Errors of replication.

use tailrace_engine::EngineError;

/// Why replication failed to start or a session ended.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicationError {
    /// A setting, certificate or address is wrong; the message says which and what to do.
    #[error("{0}")]
    Configuration(String),
    /// The connection failed; it is tried again.
    #[error("{address}: {reason}")]
    Connection {
        /// The peer.
        address: String,
        /// What happened.
        reason: String,
    },
    /// The peer broke the protocol; the session ends.
    #[error("protocol violation by {peer}: {reason}")]
    Protocol {
        /// The peer.
        peer: String,
        /// What it did.
        reason: String,
    },
    /// The peer refused us, and says why.
    #[error("refused by {peer}: {reason}")]
    Refused {
        /// The peer.
        peer: String,
        /// Its words.
        reason: String,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A request about replication that cannot be granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// What cannot be done, and why.
    pub reason: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl Refused {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Result of a replication call.
pub type Result<T, E = ReplicationError> = std::result::Result<T, E>;
