//! What becomes of a dead letter: it is applied after all, or given up. Either is one edit of the manifest, made while the
//! database stands still and everything of it is flushed; replay has nothing to do with it.

use std::{collections::BTreeMap, sync::Arc};

use tailrace_wal::Seq;

use super::Skipped;
use crate::{
    Chunk, DatabaseVersion, Datafile, DatafileMeta, Engine, EngineError, PartitionKey, PartitionVersion, Result, Role,
    TableId, TableVersion, WriteRequest,
    effect::{Append, Effect, Origin, check_ordinals, decode_effects},
    ids::unique,
    manifest::{Edit, SettleEdit, surely_not_written},
    partition::datafile_path,
    write_datafile,
};

impl Engine {
    /// Applies a skipped task now, with its own identities: its rows get the seq and ordinals that they have on the
    /// primary, so that the database is equal to its primary's when the last of them was applied. DDL, and rows whose
    /// table is not there as it was, are refused with the reason. Durable on return.
    pub async fn retry_dead_letter(self: &Arc<Self>, database: &str, seq: Seq) -> Result<()> {
        let (engine, name) = (self.clone(), database.to_owned());
        self.to_the_end(async move { engine.settle(name, seq, Settling::Retry).await }).await
    }

    /// Gives up a skipped task's payload. The database stays DIVERGED until it is repaired. Durable on return.
    pub async fn discard_dead_letter(self: &Arc<Self>, database: &str, seq: Seq) -> Result<()> {
        let (engine, name) = (self.clone(), database.to_owned());
        self.to_the_end(async move { engine.settle(name, seq, Settling::Discard).await }).await
    }

    async fn settle(self: Arc<Self>, name: String, seq: Seq, settling: Settling) -> Result<()> {
        let database = self.database_named(&name)?;
        check_letter(&database.version(), seq)?;
        // Nothing of this database is appended, applied or replaced meanwhile.
        let _following = database.following.lock().await;
        let _latch = database.latch.write().await;
        let version = database.version();
        check_letter(&version, seq)?;
        // The manifest has to know the skip before it can know what became of it.
        self.clone().flush_all().await?;
        let rows = match settling {
            Settling::Retry => self.rows_of(&version, seq).await?,
            Settling::Discard => Vec::new(),
        };
        let _flushing = self.flushing.lock().await;
        let _gate = self.gate.read().await;
        self.check_open()?;
        let stands = self.manifest.history(database.id).await.is_some_and(|state| state.position == version.position);
        if !stands || database.applying.lock().ended {
            return Err(EngineError::Conflict(format!("database {name:?} changed meanwhile")));
        }
        let mut skipped = Skipped::clone(&version.skipped);
        match settling {
            Settling::Retry => drop(skipped.remove(&seq)),
            Settling::Discard => {
                if let Some(letter) = skipped.get_mut(&seq) {
                    letter.discarded = true;
                }
            }
        }
        let files = self.write_rows(&version, seq, rows).await?;
        let added: Vec<_> = files.iter().map(|(table, key, meta)| (*table, key.clone(), meta.clone())).collect();
        let edit = SettleEdit { history: database.id, skipped: skipped.values().cloned().collect(), added };
        if let Err(error) = self.manifest.append(Edit::Settle(Box::new(edit))).await {
            // Where the edit may have been written all the same, the files stay, and the next start knows.
            if surely_not_written(&error) {
                files.into_iter().for_each(|(.., meta)| self.garbage.remove(meta.path));
            }
            return Err(error);
        }
        let skipped = Arc::new(skipped);
        database.alter(
            |version, _| {
                version.skipped = skipped;
                for (table, key, meta) in files {
                    add_file(version, table, key, Datafile::new(meta, self.garbage.clone()));
                }
            },
            |version, ended| self.publish(version, ended),
        );
        let (letters, history) = (self.letters.clone(), database.id);
        if let Err(error) = tokio::task::spawn_blocking(move || letters.remove(history, seq)).await {
            tracing::error!(%error, "a dead letter was not removed");
        }
        self.databases_changed();
        self.applied_changed();
        tracing::info!(database = name, task = %seq, ?settling, "settled a dead letter");
        Ok(())
    }

    /// The rows of a letter as they would be applied now.
    async fn rows_of(&self, version: &Arc<DatabaseVersion>, seq: Seq) -> Result<Vec<Append>> {
        let (letters, version) = (self.letters.clone(), version.clone());
        let read = tokio::task::spawn_blocking(move || {
            let records = letters.read(version.id, seq)?;
            check_ordinals(records.iter().map(|(_, payload)| &payload.directory))?;
            let mut rows = Vec::new();
            for (_, payload) in &records {
                for effect in decode_effects(&version, payload, Origin::Peer)? {
                    match effect {
                        Effect::Append(append) => rows.push(append),
                        Effect::DropPartition(_) => {
                            return Err(EngineError::Invalid(format!(
                                "task {seq} drops a partition of database {:?} and cannot be applied behind those that \
                                 followed it; CALL repair_database('{}')",
                                version.name, version.name
                            )));
                        }
                        Effect::LeftOut { .. } => {}
                        _ => {
                            return Err(EngineError::Invalid(format!(
                                "task {seq} changes the tables of database {:?} and cannot be applied behind those that \
                                 followed it; CALL repair_database('{}')",
                                version.name, version.name
                            )));
                        }
                    }
                }
            }
            if let Some(letter) = version.skipped.get(&seq) {
                let gone = |append: &Append| {
                    letter.dropped.iter().any(|(table, key)| *table == append.table && *key == append.key)
                };
                rows.retain(|append| !gone(append));
            }
            Ok(rows)
        });
        read.await.map_err(|_| EngineError::Closed)?
    }

    /// Writes rows of one transaction, a datafile per partition.
    async fn write_rows(
        &self,
        version: &DatabaseVersion,
        seq: Seq,
        rows: Vec<Append>,
    ) -> Result<Vec<(TableId, PartitionKey, DatafileMeta)>> {
        let mut partitions: BTreeMap<(TableId, PartitionKey), Vec<Chunk>> = BTreeMap::new();
        for append in rows.into_iter().filter(|append| append.batch.num_rows() > 0) {
            let chunk = Chunk::new(append.batch, seq, append.first_ordinal);
            partitions.entry((append.table, append.key)).or_default().push(chunk);
        }
        let mut files: Vec<(TableId, PartitionKey, DatafileMeta)> = Vec::new();
        for ((id, key), chunks) in partitions {
            let written = async {
                let gone = || EngineError::Invalid(version.missing_table(id));
                let table = version.table_by_id(id).ok_or_else(gone)?;
                let id = unique(&*self.clock);
                let path = datafile_path(&version.name, &table.table.name, &table.scheme, &key, id)?;
                write_datafile(&self.store, WriteRequest { table: &table.table, path, chunks: &chunks }).await
            };
            match written.await {
                Ok(meta) => files.push((id, key, meta)),
                Err(error) => {
                    files.into_iter().for_each(|(.., meta)| self.garbage.remove(meta.path));
                    return Err(error);
                }
            }
        }
        Ok(files)
    }
}

#[derive(Debug, Clone, Copy)]
enum Settling {
    Retry,
    Discard,
}

fn check_letter(version: &DatabaseVersion, seq: Seq) -> Result<()> {
    if let Some(reason) = &version.stopped {
        return Err(EngineError::DatabaseStopped { database: version.name.clone(), reason: reason.clone() });
    }
    if version.role == Role::Primary {
        let name = &version.name;
        return Err(EngineError::Invalid(format!("database {name:?} is written here: nothing of it is skipped")));
    }
    if version.dead_letters().any(|letter| letter.seq == seq) {
        return Ok(());
    }
    let known: Vec<String> = version.dead_letters().map(|letter| letter.seq.to_string()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    Err(EngineError::Invalid(format!(
        "task {seq} of database {:?} is no dead letter; system.dead_letters lists them: {known}",
        version.name
    )))
}

fn add_file(version: &mut DatabaseVersion, table: TableId, key: PartitionKey, file: Arc<Datafile>) {
    let Some(held) = version.tables.get(&table) else { return };
    let mut held = TableVersion::clone(held);
    let mut partition = held.partitions.get(&key).map(|held| PartitionVersion::clone(held)).unwrap_or_default();
    partition.datafiles.push(file);
    held.partitions.insert_mut(key, Arc::new(partition));
    version.tables.insert_mut(table, Arc::new(held));
}
