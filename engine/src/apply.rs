//! Apply: a committed transaction takes a database from one version to the next. The live path, replay at start and
//! replicas all come through here.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{
    Chunk, DatabaseVersion, Datafile, DeadLetter, EpochEntry, Operation, OperationCode, PartitionKey, PartitionVersion,
    Receipt, Result, SchemaVersion, TableId, TableVersion, TaskInfo,
    chunk::push_chunk,
    dead_letter::Skipped,
    effect::{Append, Committed, DropPartition, Effect, invalid},
};

/// What flushes have to know of the transactions that were applied since the last one.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Partitions with rows in memory.
    pub(crate) partitions: BTreeSet<(TableId, PartitionKey)>,
    /// Partitions that lost their rows: whatever the manifest names for them, or a flush that is under way adds, is of
    /// before that.
    pub(crate) dropped: BTreeSet<(TableId, PartitionKey)>,
    /// Datafiles that no later version names.
    pub(crate) retired: Vec<Arc<Datafile>>,
    /// Idempotency keys with what their transactions got.
    pub(crate) keys: Vec<(Bytes, Receipt)>,
    /// Whether the position or anything else that the manifest holds has moved.
    pub(crate) moved: bool,
}

impl Changes {
    /// Puts back what a failed flush had taken.
    pub(crate) fn restore(&mut self, taken: Self) {
        self.partitions.extend(taken.partitions);
        self.dropped.extend(taken.dropped);
        self.retired.extend(taken.retired);
        let newer = std::mem::replace(&mut self.keys, taken.keys);
        self.keys.extend(newer);
        self.moved |= taken.moved;
    }

    /// The table has no partitions any more.
    pub(crate) fn forget(&mut self, id: TableId) {
        self.partitions.retain(|(table, _)| *table != id);
        self.dropped.retain(|(table, _)| *table != id);
    }
}

/// Applies one transaction. On an error the version is not to be published: the history cannot go on here.
pub(crate) fn apply(version: &mut DatabaseVersion, committed: Committed, changes: &mut Changes) -> Result<Ended> {
    let position = committed.position;
    if position.seq != version.position.seq.next() {
        return Err(invalid(&format!("transaction {} does not follow {}", position.seq, version.position.seq)));
    }
    let mut ended = Ended(false);
    if let Some(letter) = committed.skipped {
        let mut skipped = Skipped::clone(&version.skipped);
        skipped.entry(letter.seq).or_insert(*letter);
        version.skipped = Arc::new(skipped);
    } else {
        for effect in committed.effects {
            match effect {
                Effect::Append(append) => append_rows(version, append, position.seq, changes)?,
                Effect::DropPartition(dropped) => drop_partition(version, dropped, changes)?,
                Effect::LeftOut { table, schema_version, .. } => check_left_out(version, table, schema_version)?,
                Effect::CreateDatabase(body) => {
                    if version.name != body.name {
                        return Err(invalid(&format!(
                            "history {} is of database {:?}, not {:?}",
                            position.history, body.name, version.name
                        )));
                    }
                }
                Effect::DropDatabase => {
                    retire_all(version, changes);
                    ended = Ended(true);
                }
                Effect::CreateTable(table) => {
                    if table.id < version.next_table || version.names.contains_key(&table.name) {
                        return Err(invalid(&format!("table {:?} or its id {} exists already", table.name, table.id)));
                    }
                    version.next_table = TableId(table.id.0.saturating_add(1));
                    version.names.insert_mut(table.name.clone(), table.id);
                    let left_out = !version.choice.selects(&table.name);
                    let table = TableVersion { left_out, ..TableVersion::empty(table)? };
                    version.tables.insert_mut(table.table.id, Arc::new(table));
                }
                // The apply queue remembers the version.
                Effect::DigestPoint(_) => {}
                Effect::DropTable(id) => {
                    let Some(table) = version.tables.get(&id).cloned() else {
                        return Err(invalid(&format!("DROP TABLE: {}", version.missing_table(id))));
                    };
                    changes.retired.extend(datafiles(&table));
                    changes.forget(id);
                    version.names.remove_mut(&table.table.name);
                    version.tables.remove_mut(&id);
                }
            }
        }
    }
    fold_epoch(&mut version.epochs, &version.position, &position);
    version.position = position;
    version.restart_seq = committed.restart_seq;
    version.commit_time = committed.commit_time;
    changes.moved = true;
    Ok(ended)
}

/// Whether the history ended with the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended(pub(crate) bool);

pub(crate) fn append_rows(
    version: &mut DatabaseVersion,
    append: Append,
    seq: tailrace_wal::Seq,
    changes: &mut Changes,
) -> Result<()> {
    let table = version.tables.get(&append.table);
    let Some(table) = table.filter(|table| table.table.schema_version == append.schema_version) else {
        return Err(invalid(&format!("rows for a table: {}", version.unusable_table(append.table))));
    };
    // Left out since the rows were decoded.
    if append.batch.num_rows() == 0 || table.left_out {
        return Ok(());
    }
    let mut table = TableVersion::clone(table);
    let mut partition = table.partitions.get(&append.key).map(|held| PartitionVersion::clone(held)).unwrap_or_default();
    push_chunk(&mut partition.chunks, Chunk::new(append.batch, seq, append.first_ordinal));
    table.partitions.insert_mut(append.key.clone(), Arc::new(partition));
    version.tables.insert_mut(append.table, Arc::new(table));
    changes.partitions.insert((append.table, append.key));
    Ok(())
}

/// Takes a partition out of a version with everything in it.
fn drop_partition(version: &mut DatabaseVersion, dropped: DropPartition, changes: &mut Changes) -> Result<()> {
    let DropPartition { table: id, schema_version, key } = dropped;
    let table = version.tables.get(&id);
    let Some(table) = table.filter(|table| table.table.schema_version == schema_version) else {
        return Err(invalid(&format!("a partition of a table: {}", version.unusable_table(id))));
    };
    if table.left_out {
        return Ok(());
    }
    if let Some(partition) = table.partitions.get(&key) {
        changes.retired.extend(partition.datafiles.iter().cloned());
        let mut table = TableVersion::clone(table);
        table.partitions.remove_mut(&key);
        version.tables.insert_mut(id, Arc::new(table));
        changes.partitions.remove(&(id, key.clone()));
        changes.dropped.insert((id, key.clone()));
    }
    note_drop(version, id, &key);
    Ok(())
}

/// What was skipped and is applied later must not bring back what went meanwhile.
fn note_drop(version: &mut DatabaseVersion, id: TableId, key: &PartitionKey) {
    let concerns = |letter: &DeadLetter| {
        let is_of_table = letter.tables.iter().any(|(table, _)| *table == id);
        let is_known = letter.dropped.iter().any(|(table, known)| *table == id && known == key);
        is_of_table && !is_known && !letter.discarded
    };
    if !version.skipped.values().any(concerns) {
        return;
    }
    let mut skipped = Skipped::clone(&version.skipped);
    for letter in skipped.values_mut().filter(|letter| concerns(letter)) {
        letter.dropped.push((id, key.clone()));
    }
    version.skipped = Arc::new(skipped);
}

/// What was left out must belong to a table that holds nothing, or it would lack rows in silence.
pub(crate) fn check_left_out(version: &DatabaseVersion, id: TableId, schema_version: SchemaVersion) -> Result<()> {
    match version.tables.get(&id) {
        Some(table) if table.left_out && table.table.schema_version == schema_version => Ok(()),
        Some(table) if !table.left_out => {
            Err(invalid(&format!("rows of table {:?} were left out, and it has its rows here", table.table.name)))
        }
        _ => Err(invalid(&format!("rows for a table: {}", version.unusable_table(id)))),
    }
}

/// Takes all tables out of a version.
pub(crate) fn retire_all(version: &mut DatabaseVersion, changes: &mut Changes) {
    changes.retired.extend(version.tables().flat_map(|table| datafiles(table)));
    changes.partitions.clear();
    changes.dropped.clear();
    version.tables = rpds::HashTrieMapSync::new_sync();
    version.names = rpds::HashTrieMapSync::new_sync();
}

pub(crate) fn datafiles(table: &TableVersion) -> Vec<Arc<Datafile>> {
    table.partitions.values().flat_map(|partition| partition.datafiles.iter().cloned()).collect()
}

/// The epoch list is a fold of positions.
pub(crate) fn fold_epoch(
    epochs: &mut Vec<EpochEntry>,
    before: &tailrace_wal::Position,
    after: &tailrace_wal::Position,
) {
    if epochs.last().is_none_or(|last| last.epoch != after.epoch) {
        epochs.push(EpochEntry { epoch: after.epoch, first_seq: after.seq, chain_before: before.chain });
    }
}

/// A transaction as task lists show it; `version` is the one before it. The caller adds the group.
pub(crate) fn describe(version: &DatabaseVersion, committed: &Committed) -> TaskInfo {
    let mut tables: Vec<(TableId, String)> = Vec::new();
    let mut add = |id: TableId, name: &str| {
        if !tables.iter().any(|(known, _)| *known == id) {
            tables.push((id, name.to_owned()));
        }
    };
    let name = |id: TableId| version.table_by_id(id).map_or("", |table| table.table.name.as_str());
    for effect in &committed.effects {
        match effect {
            Effect::Append(append) => add(append.table, name(append.table)),
            Effect::DropPartition(dropped) => add(dropped.table, name(dropped.table)),
            Effect::LeftOut { table, .. } => add(*table, name(*table)),
            Effect::CreateTable(table) => add(table.id, &table.name),
            Effect::DropTable(id) => add(*id, name(*id)),
            Effect::CreateDatabase(_) | Effect::DropDatabase | Effect::DigestPoint(_) => {}
        }
    }
    if let Some(letter) = &committed.skipped {
        letter.tables.iter().for_each(|(id, name)| add(*id, name));
    }
    let code = committed.directories.iter().flat_map(|directory| &directory.parts).next().map(|part| part.operation);
    TaskInfo {
        seq: committed.position.seq,
        group: committed.position.seq,
        operation: code.map_or(Operation::Append.into(), OperationCode),
        commit_time: committed.commit_time,
        tables,
        rows: committed.skipped.as_ref().map_or_else(|| committed.rows(), |letter| letter.rows),
        bytes: committed.bytes,
        skipped: committed.skipped.is_some(),
    }
}
