//! Rows that are not those of the history.

use std::sync::Arc;

use arrow_array::RecordBatch;

use crate::{Chunk, Engine, EngineError, PartitionKey, PartitionVersion, Result, TableVersion};

impl Engine {
    /// Changes rows in memory, as a bug would: those of the first chunk of a partition become others, of the same number and
    /// schema.
    pub fn tamper(
        &self,
        database: &str,
        table: &str,
        partition: &PartitionKey,
        change: impl FnOnce(&RecordBatch) -> RecordBatch,
    ) -> Result<()> {
        let missing = || EngineError::NotFound { kind: "partition in memory", name: format!("{partition:?}") };
        let database = self.database_named(database)?;
        let version = database.version();
        let held = version.table(table).ok_or_else(missing)?;
        let mut changed = PartitionVersion::clone(held.partition(partition).ok_or_else(missing)?);
        let chunk = changed.chunks.first_mut().ok_or_else(missing)?;
        *chunk = Arc::new(Chunk { batch: change(&chunk.batch), identities: chunk.identities.clone() });
        let mut table = TableVersion::clone(held);
        table.partitions.insert_mut(partition.clone(), Arc::new(changed));
        database.alter(
            |version, _| {
                version.tables.insert_mut(table.table.id, Arc::new(table));
            },
            |version, ended| self.publish(version, ended),
        );
        Ok(())
    }
}
