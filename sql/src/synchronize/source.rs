//! The side that is read.

use std::fmt;

use datafusion::execution::SendableRecordBatchStream;
use futures::future::BoxFuture;

use crate::{Remote, Result};

/// Rows as they come. The stream ends with an error where the other side does: an end without one is the end of the rows.
pub(super) type Batches = SendableRecordBatchStream;

/// A cluster that answers queries.
pub trait Source: fmt::Debug + Send + Sync {
    /// What errors and `system.synchronizations` call it.
    fn name(&self) -> &str;

    /// Runs a query there. Errors say where they are from, and are those of the other side or of the way there; those of
    /// the stream are `DataFusionError::External` with a [`crate::SqlError`] in it.
    fn query<'a>(&'a self, sql: &'a str) -> BoxFuture<'a, Result<Batches>>;
}

impl Source for Remote {
    fn name(&self) -> &str {
        Remote::name(self)
    }

    fn query<'a>(&'a self, sql: &'a str) -> BoxFuture<'a, Result<Batches>> {
        Box::pin(Remote::query(self, sql))
    }
}
