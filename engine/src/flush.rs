//! Flush: the memtable at one LSN becomes datafiles, in one manifest edit.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use tailrace_wal::{HistoryId, Lsn, Seq};

use crate::{
    Chunk, DatabaseVersion, Datafile, DatafileMeta, Engine, IdentityRun, PartitionKey, PartitionVersion, Receipt,
    Result, Table, TableId, TableVersion, WriteRequest,
    apply::Changes,
    config::planted,
    database::Database,
    ids::unique,
    manifest::{Edit, FlushEdit, FlushedHistory, KeyRecord, surely_not_written},
    partition::datafile_path,
    system::{SYSTEM_HISTORY, System},
    write_datafile,
};

/// Datafiles written at a time: each takes a blocking thread for sorting and compressing.
const WRITERS: usize = 4;

/// Everything that is applied at one moment, when nothing was written and not applied.
struct Frozen {
    /// Everything up to here is in it, nothing after.
    lsn: Lsn,
    /// Where replay has to start.
    replay_from: Lsn,
    databases: Vec<FrozenDatabase>,
    system: System,
    /// Databases that have ended, with the datafiles that the manifest still names for them.
    ended: Vec<(HistoryId, Vec<Arc<Datafile>>)>,
}

struct FrozenDatabase {
    database: Arc<Database>,
    version: Arc<DatabaseVersion>,
    changes: Changes,
    replay_after: Lsn,
    complete_from: Seq,
}

/// A datafile that was written for a partition.
struct Written {
    history: HistoryId,
    table: TableId,
    key: PartitionKey,
    meta: DatafileMeta,
    chunks: Arc<[Arc<Chunk>]>,
}

impl Engine {
    /// One flush, alone.
    pub(crate) async fn flush_all(self: Arc<Self>) -> Result<Lsn> {
        let _one_at_a_time = self.flushing.lock().await;
        self.check_open()?;
        if self.space.take_pressure() {
            // What is flushed lies in sealed segments then, and can go as a whole.
            let rolled = self.space.needed("sealing a segment", || async { Ok(self.log.roll().await?) }).await;
            if let Err(error) = rolled {
                tracing::debug!(%error, "the segment was not sealed; the flush goes on");
            }
        }
        let mut frozen = self.freeze().await;
        match self.write_frozen(&mut frozen).await {
            Ok(()) => Ok(frozen.lsn),
            Err(error) => {
                self.thaw(frozen);
                self.memtable.failing(error.clone());
                Err(error)
            }
        }
    }

    async fn freeze(&self) -> Frozen {
        let _gate = self.gate.write().await;
        let lsn = self.log.status().appended;
        let mut replay_from = lsn.next();
        let mut databases = Vec::new();
        for database in self.databases.read().values() {
            let mut applying = database.applying.lock();
            if applying.version.stopped.is_some() {
                // What it could not apply is to be tried again at the next start.
                replay_from = replay_from.min(applying.applied.next());
            }
            databases.push(FrozenDatabase {
                database: database.clone(),
                version: applying.version.clone(),
                changes: std::mem::take(&mut applying.changes),
                replay_after: applying.replay_after,
                complete_from: applying.complete_from,
            });
        }
        databases.sort_by_key(|frozen| frozen.database.id);
        self.memtable.freeze();
        let mut system = self.system.lock();
        let frozen_system = system.clone();
        system.moved = false;
        Frozen {
            lsn,
            replay_from: self
                .open
                .first()
                .filter(|_| !planted!(self.config, ForgetsOpenTransactions))
                .map_or(replay_from, |first| first.min(replay_from)),
            databases,
            system: frozen_system,
            ended: std::mem::take(&mut *self.retired.lock()),
        }
    }

    /// A flush failed: everything is as it was, and waits for the next one.
    fn thaw(&self, frozen: Frozen) {
        for FrozenDatabase { database, changes, .. } in frozen.databases {
            let ended = {
                let mut applying = database.applying.lock();
                applying.changes.restore(changes);
                applying.ended.then(|| std::mem::take(&mut applying.changes.retired))
            };
            if let Some(files) = ended {
                self.retired.lock().push((database.id, files));
            }
        }
        self.retired.lock().extend(frozen.ended);
        self.system.lock().moved |= frozen.system.moved;
        self.memtable.thaw();
    }

    async fn write_frozen(self: &Arc<Self>, frozen: &mut Frozen) -> Result<()> {
        let moved = frozen.system.moved
            || !frozen.ended.is_empty()
            || frozen.databases.iter().any(|database| database.changes.moved)
            || self.log.status().first < frozen.lsn;
        if !moved {
            return Ok(());
        }
        // The manifest must not be ahead of the log.
        if !planted!(self.config, FlushesUndurable) {
            self.sync_upto(frozen.lsn).await?;
        }
        let written = match &self.config.storage_url {
            None => self.space.needed("a flush", || self.write_datafiles(frozen)).await?,
            // The reserve lies elsewhere.
            Some(_) => self.write_datafiles(frozen).await?,
        };
        let edit = self.edit(frozen, &written);
        if planted!(self.config, TruncatesBeforeEdit) {
            let _ = self.log.truncate(frozen.lsn.min(Lsn(frozen.replay_from.0.saturating_sub(1))));
        }
        if let Err(error) = self.manifest.append(edit).await {
            // Where the edit may have been written all the same, the files stay, and the next start knows.
            if surely_not_written(&error) || planted!(self.config, RemovesFilesOfUncertainEdit) {
                written.into_iter().for_each(|written| self.garbage.remove(written.meta.path));
            }
            return Err(error);
        }
        self.install(frozen, written);
        self.flushed.store(frozen.lsn.0, Ordering::Release);
        self.flushes.fetch_add(1, Ordering::Relaxed);
        self.memtable.flushed();
        // The log goes as far as the pins let it; a restart must not ask for more than is kept.
        self.write_pins().await;
        let (log, upto) = (self.log.clone(), frozen.lsn.min(Lsn(frozen.replay_from.0.saturating_sub(1))));
        match tokio::task::spawn_blocking(move || log.truncate(upto)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the log was not truncated; the next flush tries again"),
            Err(error) => tracing::error!(%error, "the log was not truncated"),
        }
        Ok(())
    }

    /// Writes one datafile per touched partition.
    async fn write_datafiles(self: &Arc<Self>, frozen: &Frozen) -> Result<Vec<Written>> {
        let mut jobs = Vec::new();
        for FrozenDatabase { version, changes, .. } in &frozen.databases {
            for (id, key) in &changes.partitions {
                let table = version.table_by_id(*id);
                let Some((table, partition)) = table.and_then(|table| Some((table, table.partition(key)?))) else {
                    continue;
                };
                if !partition.chunks.is_empty() {
                    jobs.push((version.clone(), table.clone(), key.clone(), partition.clone()));
                }
            }
        }
        let mut written = Vec::with_capacity(jobs.len());
        let mut writing = stream::iter(jobs.into_iter().map(|(version, table, key, partition)| {
            let engine = self.clone();
            async move { engine.write_partition(&version, &table, key, &partition).await }
        }))
        .buffer_unordered(if self.config.is_by_hand() { 1 } else { WRITERS });
        loop {
            match writing.try_next().await {
                Ok(Some(one)) => written.push(one),
                Ok(None) => return Ok(written),
                Err(error) => {
                    // Files that are still being written stay until the next start.
                    for one in &written {
                        self.garbage.remove(one.meta.path.clone());
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn write_partition(
        &self,
        version: &DatabaseVersion,
        table: &TableVersion,
        key: PartitionKey,
        partition: &PartitionVersion,
    ) -> Result<Written> {
        let path = datafile_path(&version.name, &table.table.name, &table.scheme, &key, unique(&*self.clock))?;
        let chunks: Vec<Chunk> = partition.chunks.iter().map(|chunk| Chunk::clone(chunk)).collect();
        let request = WriteRequest { table: &table.table, path, chunks: &chunks };
        let meta = write_datafile(&self.store, request).await?;
        Ok(Written { history: version.id, table: table.table.id, key, meta, chunks: partition.chunks.clone().into() })
    }

    /// The edit: what has moved, and no more.
    fn edit(&self, frozen: &Frozen, written: &[Written]) -> Edit {
        let mut added: BTreeMap<HistoryId, Vec<(TableId, PartitionKey, DatafileMeta)>> = BTreeMap::new();
        for one in written {
            added.entry(one.history).or_default().push((one.table, one.key.clone(), one.meta.clone()));
        }
        let moved = frozen.databases.iter().filter(|frozen| frozen.changes.moved);
        let mut histories: Vec<FlushedHistory> = moved
            .map(|frozen| {
                let version = &frozen.version;
                let mut tables: Vec<Table> = version.tables().map(|table| Table::clone(&table.table)).collect();
                tables.sort_by_key(|table| table.id);
                let left_out = version.tables().filter(|table| table.left_out).map(|table| table.table.id);
                let mut left_out: Vec<TableId> = left_out.collect();
                left_out.sort_unstable();
                FlushedHistory {
                    id: version.id,
                    name: version.name.clone(),
                    position: version.position,
                    restart_seq: if planted!(self.config, LosesRestartSeq) {
                        version.position.seq
                    } else {
                        version.restart_seq
                    },
                    commit_time: version.commit_time,
                    epochs: version.epochs.clone(),
                    next_table: version.next_table,
                    replay_after: frozen.replay_after,
                    complete_from: frozen.complete_from,
                    tables,
                    left_out,
                    dropped: if planted!(self.config, ForgetsDrops) {
                        Vec::new()
                    } else {
                        frozen.changes.dropped.iter().cloned().collect()
                    },
                    added: added.remove(&version.id).unwrap_or_default(),
                    system_facts: Vec::new(),
                    keys: frozen.changes.keys.iter().map(key_record).collect(),
                    skipped: version.skipped.values().cloned().collect(),
                    differences: version.differences.to_vec(),
                }
            })
            .collect();
        let system = &frozen.system;
        if system.moved {
            histories.push(FlushedHistory {
                id: system.position.history,
                name: SYSTEM_HISTORY.to_owned(),
                position: system.position,
                restart_seq: system.restart_seq,
                commit_time: system.commit_time,
                epochs: system.epochs.clone(),
                next_table: TableId(1),
                replay_after: Lsn::ZERO,
                complete_from: Seq::ZERO,
                tables: Vec::new(),
                left_out: Vec::new(),
                dropped: Vec::new(),
                added: Vec::new(),
                system_facts: system.facts(),
                keys: Vec::new(),
                skipped: Vec::new(),
                differences: Vec::new(),
            });
        }
        Edit::Flush(FlushEdit {
            flushed: frozen.lsn,
            replay_from: frozen.replay_from,
            histories,
            ended: frozen.ended.iter().map(|(id, _)| *id).collect(),
        })
    }

    /// Publishes versions with datafiles in the place of the chunks that they were made of.
    fn install(&self, frozen: &mut Frozen, written: Vec<Written>) {
        let mut by_history: BTreeMap<HistoryId, Vec<Written>> = BTreeMap::new();
        for one in written {
            by_history.entry(one.history).or_default().push(one);
        }
        for FrozenDatabase { database, version: frozen, changes, .. } in &mut frozen.databases {
            changes.retired.drain(..).for_each(|file| file.mark_obsolete());
            let Some(written) = by_history.remove(&database.id) else { continue };
            let files: Vec<_> = written
                .into_iter()
                .map(|one| {
                    let file = Datafile::new(one.meta, self.garbage.clone());
                    self.cache.keep(&file, one.chunks);
                    (one.table, one.key, file)
                })
                .collect();
            let mut orphans = Vec::new();
            let mut ended = false;
            database.alter(
                |version, changes| {
                    for (table, key, file) in files {
                        if !replace_chunks(version, table, &key, &file, frozen.position.seq, changes) {
                            orphans.push(file);
                        }
                    }
                    // The next edit takes them out of the manifest.
                    changes.moved |= !orphans.is_empty();
                },
                |version, now_ended| {
                    ended = now_ended;
                    if !now_ended {
                        self.publish(version, false);
                    }
                },
            );
            if ended {
                self.retired.lock().push((database.id, orphans));
            } else if !orphans.is_empty() {
                database.applying.lock().changes.retired.extend(orphans);
            }
        }
        for (_, files) in frozen.ended.drain(..) {
            files.into_iter().for_each(|file| file.mark_obsolete());
        }
    }
}

fn key_record((key, receipt): &(bytes::Bytes, Receipt)) -> KeyRecord {
    KeyRecord {
        key: key.to_vec(),
        position: receipt.position,
        lsn: receipt.lsn,
        commit_time: receipt.commit_time,
        rows: receipt.rows,
    }
}

/// Puts a datafile in the place of all rows up to `upto`. `false` if the table or the partition was dropped, or the
/// table is left out, since; the partition may have newer rows.
fn replace_chunks(
    version: &mut DatabaseVersion,
    table: TableId,
    key: &PartitionKey,
    file: &Arc<Datafile>,
    upto: Seq,
    changes: &mut Changes,
) -> bool {
    let Some(held) = version.tables.get(&table).filter(|held| !held.left_out) else { return false };
    if changes.dropped.contains(&(table, key.clone())) {
        return false;
    }
    let mut table_version = TableVersion::clone(held);
    let mut partition = table_version.partitions.get(key).map(|held| PartitionVersion::clone(held)).unwrap_or_default();
    partition.chunks = partition.chunks.iter().filter_map(|chunk| rows_after(chunk, upto)).collect();
    partition.datafiles.push(file.clone());
    if !partition.chunks.is_empty() {
        changes.partitions.insert((table, key.clone()));
    }
    table_version.partitions.insert_mut(key.clone(), Arc::new(partition));
    version.tables.insert_mut(table, Arc::new(table_version));
    true
}

/// The rows of a chunk that came after `upto`.
fn rows_after(chunk: &Arc<Chunk>, upto: Seq) -> Option<Arc<Chunk>> {
    let first = chunk.identities.iter().position(|run| run.seq > upto)?;
    if first == 0 {
        return Some(chunk.clone());
    }
    let start = chunk.identities[first].start;
    let identities = chunk.identities[first..].iter().map(|run| IdentityRun { start: run.start - start, ..*run });
    let batch = chunk.batch.slice(start, chunk.batch.num_rows() - start);
    Some(Arc::new(Chunk { batch, identities: identities.collect() }))
}
