//! Records that build on each other.

use std::sync::{Arc, OnceLock};

use crate::LogError;

/// A run of records from a feed, which build on each other: once one of them is refused, for whatever reason, every later
/// one is refused for the same. So the log has the beginning of a run and never a piece from behind a gap, however the
/// writer takes them together and whenever there is space again. After a refusal the feed goes on with a new run, from
/// what was written.
///
/// Clones are the same run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    refused: Arc<OnceLock<LogError>>,
}

impl Run {
    /// A run of which nothing was refused.
    pub fn new() -> Self {
        Self::default()
    }

    /// Why a record of it was refused, if one was.
    pub fn refused(&self) -> Option<&LogError> {
        self.refused.get()
    }

    /// The first reason stays.
    pub(crate) fn refuse(&self, error: &LogError) {
        let _ = self.refused.set(error.clone());
    }
}
