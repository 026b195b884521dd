//! `flush()`: writes the memtable to datafiles now, for operators and tests.

use std::sync::Arc;

use crate::{Instance, Result};

pub(super) async fn run(instance: &Arc<Instance>) -> Result<Vec<String>> {
    let flushed = instance.engine.flush().await?;
    tracing::info!(lsn = %flushed, "flushed on request");
    Ok(Vec::new())
}
