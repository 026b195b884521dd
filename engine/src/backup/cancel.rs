//! Work that ends early when it is asked to.

use tokio_util::sync::CancellationToken;

use crate::{EngineError, Result};

/// Does `work` until `cancel` fires; then it is dropped where it stands. `what` is for the error.
///
/// What must not be left in its middle (a manifest put, a commit) comes after it.
pub(super) async fn unless_cancelled<T>(
    cancel: &CancellationToken,
    what: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(EngineError::Cancelled(format!("{what} was cancelled"))),
        done = work => done,
    }
}
