//! Files that nothing names any more: removed in the background, never before the manifest has let go of them.

use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::sync::mpsc;

use crate::partition::DatafilePath;

/// Where the last holder of an obsolete datafile leaves its path.
#[derive(Debug, Clone)]
pub(crate) struct Garbage {
    sender: mpsc::UnboundedSender<DatafilePath>,
}

/// The other end, for the task that removes.
pub(crate) type GarbageReceiver = mpsc::UnboundedReceiver<DatafilePath>;

impl Garbage {
    pub(crate) fn new() -> (Self, GarbageReceiver) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self { sender }, receiver)
    }

    /// After shutdown nobody listens; the next start finds the file unnamed and removes it.
    pub(crate) fn remove(&self, path: DatafilePath) {
        let _ = self.sender.send(path);
    }
}

/// Removes what is left until the last sender is gone.
pub(crate) async fn collect(mut receiver: GarbageReceiver, store: Arc<dyn ObjectStore>) {
    while let Some(path) = receiver.recv().await {
        remove(&store, &path).await;
    }
}

/// Removes one file. A failure leaves it to the next start.
pub(crate) async fn remove(store: &Arc<dyn ObjectStore>, path: &DatafilePath) {
    let Ok(object) = path.object_path() else { return };
    match store.delete(&object).await {
        Ok(()) => tracing::debug!(path = path.0, "removed a datafile that nothing names any more"),
        Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => tracing::warn!(path = path.0, %error, "an unused datafile stays until the next start"),
    }
}

/// Whether a file in the store has a name of this program's making: 32 hexadecimal digits. Nothing else is removed.
pub(crate) fn is_own_name(path: &str) -> bool {
    let name = path.rsplit('/').next().and_then(|name| name.strip_suffix(".parquet"));
    name.is_some_and(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
}
