//! Rows of a backup into a table, as one transaction.

use futures::TryStreamExt as _;

use super::{
    Restore, RestoreReport,
    plan::{Action, TableStep},
    rows::Counted,
};
use crate::{CommitOptions, Durability, EngineError, Result, Transaction, backup::cancel::unless_cancelled};

impl Restore<'_> {
    /// All partitions of a table at once. Memory holds a batch or a file at a time; of a partition that is merged, a hash
    /// per row.
    pub(super) async fn table(&self, step: TableStep<'_>, report: &mut RestoreReport) -> Result<()> {
        let is_new = step.create.is_some();
        if let Some(definition) = &step.create {
            self.engine.create_table(&step.database, definition.clone()).await?;
        }
        if step.partitions.is_empty() {
            return Ok(());
        }
        let filled = self.fill(&step, report).await;
        if filled.is_err() && is_new {
            // As it was; where that fails too, an empty table stays, which a rerun fills.
            if let Err(error) = self.engine.drop_table(&step.database, &step.table).await {
                tracing::warn!(%error, table = step.table, "a table that was made for a restore was not dropped again");
            }
        }
        filled
    }

    async fn fill(&self, step: &TableStep<'_>, report: &mut RestoreReport) -> Result<()> {
        let mut transaction = self.engine.begin(&step.database)?;
        match unless_cancelled(&self.request.cancel, "the restore", self.write(&mut transaction, step)).await {
            Ok(bytes) => {
                let options = CommitOptions { durability: Some(Durability::Durable), idempotency_key: None };
                report.rows += transaction.commit(options).await?.rows;
                report.partitions += step.partitions.len() as u64;
                report.bytes += bytes;
                Ok(())
            }
            Err(error) => {
                transaction.abort().await?;
                Err(error)
            }
        }
    }

    /// Puts all that is to be changed into a transaction. Returns the bytes that were read.
    async fn write(&self, transaction: &mut Transaction, step: &TableStep<'_>) -> Result<u64> {
        let gone = || EngineError::Conflict(format!("table {}.{} was dropped meanwhile", step.database, step.table));
        let version = self.engine.version();
        let table =
            version.database(&step.database).and_then(|database| database.table(&step.table)).ok_or_else(gone)?;
        let mut bytes = 0;
        for partition in &step.partitions {
            let mut counted = None;
            match &partition.action {
                Action::Add => {}
                Action::Replace(seen) => transaction.replace_partition(&step.table, seen.clone()).await?,
                Action::Merge => {
                    let mut here = Counted::new(&table.schema)?;
                    // Where the key is not one of the table's, its rows may belong anywhere.
                    let is_one = table.scheme.describe(&partition.source.key).is_ok();
                    let held = table.partitions().filter(|(key, _)| !is_one || **key == partition.source.key);
                    for (_, held) in held {
                        here.add_all(self.rows_here(table, held).await?).await?;
                    }
                    counted = Some(here);
                }
            }
            for file in &partition.source.files {
                let mut batches = self.rows_of(file, &table.schema).await?;
                while let Some(batch) = batches.try_next().await? {
                    let batch = match &mut counted {
                        None => batch,
                        Some(counted) => counted.missing(&batch)?,
                    };
                    if batch.num_rows() > 0 {
                        transaction.append(&step.table, batch).await?;
                    }
                }
                self.running.task.done(file.rows);
                bytes += file.bytes;
            }
        }
        Ok(bytes)
    }
}
