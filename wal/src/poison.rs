//! Poison: after a failed write or sync nothing is acknowledged any more.

use std::sync::{Arc, OnceLock};

use crate::LogError;

/// Set once, for ever.
#[derive(Debug, Default)]
pub(crate) struct Poison {
    reason: OnceLock<Arc<str>>,
}

impl Poison {
    /// Poisons, unless it is already: the first reason counts.
    pub(crate) fn set(&self, reason: &LogError) -> LogError {
        let reason = self.reason.get_or_init(|| {
            tracing::error!("the log stops: {reason}");
            reason.to_string().into()
        });
        LogError::Poisoned { reason: reason.clone() }
    }

    /// The error that every caller gets from now on.
    pub(crate) fn get(&self) -> Option<LogError> {
        self.reason.get().map(|reason| LogError::Poisoned { reason: reason.clone() })
    }
}
