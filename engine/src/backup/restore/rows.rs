//! Rows of Parquet files and of partitions, as batches of a table.

use std::{collections::HashMap, sync::Arc};

use arrow_array::{ArrayRef, BooleanArray, RecordBatch, new_null_array};
use arrow_row::{RowConverter, SortField};
use arrow_schema::SchemaRef;
use arrow_select::filter::filter_record_batch;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{ObjectStore, ObjectStoreExt as _, memory::InMemory, path::Path as ObjectPath};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask, async_reader::AsyncFileReader};
use xxhash_rust::xxh3::xxh3_128;

use super::Restore;
use crate::{
    Chunk, EngineError, PartitionVersion, Result, TableVersion,
    backup::{
        copy::{measure, read_file},
        manifest::BackupFile,
        sealed::SealedFile,
    },
    digest::read::open_parquet,
};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 16 << 10;
/// Longest file that is read into memory at once, bytes. Longer ones are read where they lie, after a check.
const WHOLE_BYTES: u64 = 64 << 20;

/// Batches in the order of their file.
pub(in crate::backup) type Batches = BoxStream<'static, Result<RecordBatch>>;

impl Restore<'_> {
    /// The rows of a file of the backup, with the columns of a table: by name, NULL where the file lacks one. Nothing
    /// comes before length and hash have been checked.
    pub(super) async fn rows_of(&self, file: &BackupFile, schema: &SchemaRef) -> Result<Batches> {
        let task = &self.running.task;
        let shown = format!("{} of backups at {}", file.name, self.location);
        if file.bytes > WHOLE_BYTES {
            let found = measure(self.location, &file.name, task).await?;
            if found.is_none_or(|found| found.bytes != file.bytes || found.hash != file.hash) {
                let reason = "it is missing or damaged: its length or hash is not that of the manifest".to_owned();
                return Err(self.location.wrong(&file.name, reason));
            }
            if let (Some(_), Some(identities)) = (&self.manifest.encryption, &self.request.identities) {
                return read_sealed(SealedFile::open(self.location, file, identities).await?, shown, schema).await;
            }
            return read(self.location.store(), self.location.object(&file.name)?, file.bytes, shown, schema).await;
        }
        let mut pieces = read_file(self.location, file, self.request.identities.as_ref())?;
        let mut bytes = Vec::with_capacity(usize::try_from(file.bytes.min(WHOLE_BYTES)).unwrap_or_default());
        while let Some(piece) = pieces.recv().await {
            let piece = piece?;
            task.passed(piece.len() as u64);
            bytes.extend_from_slice(&piece);
        }
        let (memory, object) = (Arc::new(InMemory::new()), ObjectPath::from("file"));
        let length = bytes.len() as u64;
        memory.put(&object, bytes.into()).await.map_err(|error| self.location.failed("hold", &file.name, &error))?;
        read(&(memory as Arc<dyn ObjectStore>), object, length, shown, schema).await
    }

    /// The rows of a partition that is here.
    pub(super) async fn rows_here(&self, table: &TableVersion, partition: &PartitionVersion) -> Result<Batches> {
        let mut all: Vec<Batches> = Vec::new();
        for file in &partition.datafiles {
            let shown = format!("datafile {}", file.path().0);
            all.push(
                read(&self.engine.store, file.path().object_path()?, file.meta.bytes, shown, &table.schema).await?,
            );
        }
        let chunks: Vec<Arc<Chunk>> = partition.chunks.clone();
        let hot = futures::stream::iter(chunks).map(|chunk| Ok(chunk.batch.clone()));
        Ok(futures::stream::iter(all).flatten().chain(hot).boxed())
    }
}

/// The rows of a Parquet file with the columns of a schema: by name, NULL where the file lacks one.
pub(in crate::backup) async fn read(
    store: &Arc<dyn ObjectStore>,
    object: ObjectPath,
    bytes: u64,
    shown: String,
    schema: &SchemaRef,
) -> Result<Batches> {
    let failed = move |reason: String| EngineError::Storage { operation: "read", object: shown.clone(), reason };
    let builder = open_parquet(store, object, bytes).await.map_err(&failed)?;
    batches(builder, failed, schema)
}

/// The same of an encrypted file.
async fn read_sealed(file: SealedFile, shown: String, schema: &SchemaRef) -> Result<Batches> {
    let failed = move |reason: String| EngineError::Storage { operation: "read", object: shown.clone(), reason };
    let opened = ParquetRecordBatchStreamBuilder::new(file).await;
    batches(opened.map_err(|error| failed(error.to_string()))?, failed, schema)
}

fn batches<R: AsyncFileReader + Unpin + Send + 'static>(
    builder: ParquetRecordBatchStreamBuilder<R>,
    failed: impl Fn(String) -> EngineError + Send + 'static,
    schema: &SchemaRef,
) -> Result<Batches> {
    let fields = builder.schema().fields();
    let roots: Vec<usize> = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| schema.index_of(field.name()).is_ok())
        .map(|(index, _)| index)
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
    let stream = stream.map_err(|error| failed(error.to_string()))?;
    let schema = schema.clone();
    Ok(stream
        .map(move |batch| {
            let batch = batch.map_err(|error| failed(error.to_string()))?;
            under(&schema, &batch).map_err(&failed)
        })
        .boxed())
}

/// A batch's columns as those of a schema, by name.
fn under(schema: &SchemaRef, batch: &RecordBatch) -> std::result::Result<RecordBatch, String> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
        Some(column) => Err(format!("column {:?} is {}, not {}", field.name(), column.data_type(), field.data_type())),
        None if field.is_nullable() => Ok(new_null_array(field.data_type(), batch.num_rows())),
        None => Err(format!("it has no column {:?}", field.name())),
    });
    let columns: Vec<ArrayRef> = columns.collect::<std::result::Result<_, _>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(|error| error.to_string())
}

/// Rows as a multiset: a hash of each, and how often it occurs. 32 bytes or so for each different row.
pub(super) struct Counted {
    converter: RowConverter,
    counts: HashMap<u128, u32>,
}

impl Counted {
    pub(super) fn new(schema: &SchemaRef) -> Result<Self> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let converter = RowConverter::new(fields.collect()).map_err(|error| EngineError::Invalid(error.to_string()))?;
        Ok(Self { converter, counts: HashMap::new() })
    }

    pub(super) async fn add_all(&mut self, mut batches: Batches) -> Result<()> {
        while let Some(batch) = batches.try_next().await? {
            for hash in self.hashes(&batch)? {
                *self.counts.entry(hash).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Takes the rows of a batch away, and returns those that were not there.
    pub(super) fn missing(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let hashes = self.hashes(batch)?;
        let is_missing: Vec<bool> = hashes
            .into_iter()
            .map(|hash| match self.counts.get_mut(&hash).filter(|count| **count > 0) {
                Some(count) => {
                    *count -= 1;
                    false
                }
                None => true,
            })
            .collect();
        filter_record_batch(batch, &BooleanArray::from(is_missing))
            .map_err(|error| EngineError::Invalid(error.to_string()))
    }

    fn hashes(&self, batch: &RecordBatch) -> Result<Vec<u128>> {
        let rows = self.converter.convert_columns(batch.columns());
        let rows = rows.map_err(|error| EngineError::Invalid(error.to_string()))?;
        Ok(rows.iter().map(|row| xxh3_128(row.as_ref())).collect())
    }
}
