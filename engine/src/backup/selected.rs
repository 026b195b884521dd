//! Rows that a query selects, as they come, into files of their partitions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::{Stream, TryStreamExt as _};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};

use super::{
    BackupLocation,
    cancel::unless_cancelled,
    copy::Outgoing,
    location::data_name,
    manifest::{
        BackupDatabase, BackupFile, BackupId, BackupManifest, BackupPartition, BackupScope, BackupTable, SelectedRows,
        partition_name,
    },
    mark::Mark,
    progress::{BackupKind, BackupTask, Running},
    write::{BackupReport, BackupRequest},
};
use crate::{
    Column, ColumnId, DatabaseVersion, Digest, Engine, EngineError, PartitionKey, PartitionScheme, Result, RowHasher,
    SchemaVersion, Table, TableVersion, ids::unique, partition::datafile_path,
};

/// Rows that wait for their file, bytes. Beyond it the largest partition is written.
const WAITING_BYTES: usize = 128 << 20;
/// Rows of a row group.
const ROW_GROUP_ROWS: usize = 256 << 10;

/// What a query reads.
#[derive(Debug, Clone)]
pub struct SelectedSource {
    /// The database, at the position that the query reads.
    pub database: Arc<DatabaseVersion>,
    /// The one table.
    pub table: Arc<TableVersion>,
    /// What the query returns.
    pub schema: SchemaRef,
}

/// A partition's rows on their way.
#[derive(Default)]
struct Part {
    waiting: Vec<RecordBatch>,
    bytes: usize,
    digest: Digest,
    files: Vec<BackupFile>,
}

impl Engine {
    /// Backs up the rows of a query, as selected, written by partition where the table's partition columns are among
    /// them. Memory holds 128 MiB of rows and a file being written.
    pub async fn backup_rows(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: BackupRequest,
        source: SelectedSource,
        rows: impl Stream<Item = Result<RecordBatch>> + Unpin + Send,
    ) -> Result<BackupReport> {
        let id = BackupId::new(self.clock.now(), self.clock.random());
        let running = self.backups.begin(BackupKind::Backup, id.as_str(), &location.to_string(), &self.clock);
        running.end(self.backup_rows_here(location, request, source, rows, id, &running).await)
    }

    async fn backup_rows_here(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: BackupRequest,
        source: SelectedSource,
        rows: impl Stream<Item = Result<RecordBatch>> + Unpin + Send,
        id: BackupId,
        running: &Running,
    ) -> Result<BackupReport> {
        self.check_open()?;
        let mark = self.mark_backup(location, &id, &request.cancel).await?;
        let made = self.backup_rows_marked(location, &request, source, rows, (id, running, &mark)).await;
        mark.release().await;
        made
    }

    async fn backup_rows_marked(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: &BackupRequest,
        source: SelectedSource,
        mut rows: impl Stream<Item = Result<RecordBatch>> + Unpin + Send,
        (id, running, mark): (BackupId, &Running, &Mark),
    ) -> Result<BackupReport> {
        let BackupScope::Query(query) = request.scope.clone() else {
            return Err(EngineError::Invalid("rows come with their query".to_owned()));
        };
        let (started, begun) = (self.clock.now(), self.clock.monotonic());
        let table = selected_table(&source.table.table, &source.schema)?;
        let mut writer = Writer {
            engine: self,
            location,
            request,
            database: &source.database.name,
            scheme: PartitionScheme::new(&table)?,
            schema: table.schema(),
            hasher: RowHasher::of_table(&table)?,
            table: &table,
            task: &running.task,
            parts: BTreeMap::new(),
            waiting: 0,
        };
        let partitions = unless_cancelled(&request.cancel, "the backup", async {
            self.check_not_pruned(location).await?;
            while let Some(batch) = rows.try_next().await? {
                writer.take(batch).await?;
                mark.keep(&*self.clock).await?;
            }
            let partitions = writer.finish().await?;
            // What was read is in the backup only once it cannot be lost here any more.
            self.log.sync().await?;
            Ok(partitions)
        })
        .await?;
        let version = &source.database;
        let count = |of: fn(&BackupPartition) -> u64| partitions.iter().map(of).sum::<u64>();
        let bytes = partitions.iter().flat_map(|partition| &partition.files).map(|file| file.bytes).sum();
        let files = count(|partition| partition.files.len() as u64);
        let report = BackupReport {
            id: id.clone(),
            databases: vec![(version.name.clone(), version.position)],
            partitions: partitions.len() as u64,
            written_partitions: partitions.len() as u64,
            files,
            written_files: files,
            resumed_files: 0,
            rows: count(|partition| partition.rows),
            bytes,
            written_bytes: bytes,
            elapsed: Duration::ZERO,
        };
        let selected = Some(SelectedRows { query });
        let mut manifest = BackupManifest {
            format: BackupManifest::FORMAT,
            id,
            started,
            finished: started,
            node: self.node,
            scope: request.scope.clone(),
            encryption: request.recipients.as_ref().map(|recipients| recipients.hash().to_owned()),
            written_bytes: bytes,
            databases: vec![BackupDatabase {
                name: version.name.clone(),
                position: version.position,
                restart_seq: version.restart_seq,
                commit_time: version.commit_time,
                epochs: version.epochs.clone(),
                next_table: version.next_table,
                is_whole: false,
                tables: vec![BackupTable { table: table.clone(), is_whole: false, selected, partitions }],
            }],
        };
        self.publish_backup(location, &mut manifest).await?;
        Ok(BackupReport { elapsed: self.clock.monotonic().saturating_sub(begun), ..report })
    }
}

struct Writer<'a> {
    engine: &'a Arc<Engine>,
    location: &'a BackupLocation,
    request: &'a BackupRequest,
    database: &'a str,
    scheme: PartitionScheme,
    schema: SchemaRef,
    hasher: RowHasher,
    table: &'a Table,
    task: &'a BackupTask,
    parts: BTreeMap<PartitionKey, Part>,
    waiting: usize,
}

impl Writer<'_> {
    async fn take(&mut self, batch: RecordBatch) -> Result<()> {
        let batch = RecordBatch::try_new(self.schema.clone(), batch.columns().to_vec())
            .map_err(|error| EngineError::Invalid(format!("the query's rows cannot be backed up: {error}")))?;
        for (key, batch) in self.scheme.split(&batch)? {
            let digest = self.hasher.values(&batch)?;
            let bytes = batch.get_array_memory_size();
            let part = self.parts.entry(key).or_default();
            part.digest += digest;
            part.waiting.push(batch);
            part.bytes += bytes;
            self.waiting += bytes;
        }
        while self.waiting > WAITING_BYTES {
            let largest = self.parts.iter().max_by_key(|(_, part)| part.bytes).map(|(key, _)| key.clone());
            let Some(largest) = largest else { break };
            self.write(&largest).await?;
        }
        Ok(())
    }

    async fn write(&mut self, key: &PartitionKey) -> Result<()> {
        let Some(part) = self.parts.get_mut(key) else { return Ok(()) };
        let batches = std::mem::take(&mut part.waiting);
        self.waiting -= std::mem::take(&mut part.bytes);
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        let schema = self.schema.clone();
        let encoded = tokio::task::spawn_blocking(move || encode(schema, &batches)).await;
        let encoded = encoded
            .map_err(|_| EngineError::Closed)?
            .map_err(|error| EngineError::Invalid(format!("the query's rows cannot be written as Parquet: {error}")))?;
        let path = datafile_path(self.database, &self.table.name, &self.scheme, key, unique(&*self.engine.clock))?;
        let mut name = data_name(&path.0);
        if self.request.recipients.is_some() {
            name.push_str(".age");
        }
        let length = encoded.len() as u64;
        self.task.expect(1, length, rows);
        let mut outgoing = Outgoing::new(self.location, &name, self.request.recipients.as_ref())?;
        outgoing.write(self.location, encoded.into()).await?;
        let stored = outgoing.finish(self.location).await?;
        self.task.passed(length);
        self.task.done(rows);
        let file = BackupFile { name, bytes: stored.bytes, hash: stored.hash, rows, meta: None };
        if let Some(part) = self.parts.get_mut(key) {
            part.files.push(file);
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Vec<BackupPartition>> {
        let keys: Vec<PartitionKey> = self.parts.keys().cloned().collect();
        for key in &keys {
            if self.parts.get(key).is_some_and(|part| !part.waiting.is_empty()) {
                self.write(key).await?;
            }
        }
        let scheme = self.scheme;
        let partitions = self.parts.into_iter().map(|(key, part)| {
            Ok(BackupPartition {
                name: partition_name(&scheme.describe(&key)?),
                key,
                rows: part.digest.rows,
                digest: part.digest,
                files: part.files,
                sealed: None,
            })
        });
        partitions.collect()
    }
}

fn encode(schema: SchemaRef, batches: &[RecordBatch]) -> parquet::errors::Result<Vec<u8>> {
    let properties = WriterProperties::builder()
        .set_created_by("tailrace".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties))?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.into_inner()
}

/// The table that a query's rows are: its columns, those of the source under their ids; the partition fields whose
/// columns are all selected as they are, or none.
fn selected_table(source: &Table, schema: &SchemaRef) -> Result<Table> {
    let mut next = source.columns.iter().map(|column| column.id.0).max().unwrap_or(0);
    let mut taken = BTreeSet::new();
    let columns: Vec<Column> = schema
        .fields()
        .iter()
        .map(|field| {
            let known = source.columns.iter().find(|column| {
                column.name == *field.name() && column.data_type == *field.data_type() && !taken.contains(&column.id)
            });
            let id = known.map_or_else(
                || {
                    next += 1;
                    ColumnId(next)
                },
                |column| column.id,
            );
            taken.insert(id);
            Column {
                id,
                name: field.name().clone(),
                data_type: field.data_type().clone(),
                nullable: field.is_nullable(),
            }
        })
        .collect();
    let is_here = |id: &ColumnId| columns.iter().any(|column| column.id == *id);
    let is_partitioned = source.partition_by.iter().all(|(_, id)| is_here(id));
    let order_by = source.order_by.iter().copied().take_while(is_here).collect();
    let partition_by = if is_partitioned { source.partition_by.clone() } else { Vec::new() };
    let table = Table {
        id: source.id,
        name: source.name.clone(),
        schema_version: SchemaVersion(1),
        columns,
        partition_by,
        order_by,
    };
    table.check()?;
    Ok(table)
}
