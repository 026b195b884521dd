//! Writes a datafile.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow_array::{Array, ArrayRef, RecordBatch, UInt64Array};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use arrow_select::interleave::interleave;
use bytes::Bytes;
use object_store::ObjectStore;
use parking_lot::Mutex;
use parquet::{
    arrow::{
        ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata,
        arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
    },
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{
        metadata::SortingColumn,
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnPath,
};
use xxhash_rust::xxh3::Xxh3;

use super::{
    ColumnStatistics, DatafileMeta, ORDINAL_COLUMN, ORDINAL_FIELD_ID, SEQ_COLUMN, SEQ_FIELD_ID, encoding, identity,
    order::{self, RowAddress},
    sink::Sink,
    statistics::Accumulator,
};
use crate::{
    Chunk, ColumnId, Digest, EngineError, FIELD_ID_KEY, Result, RowHasher, SchemaVersion, Table,
    partition::DatafilePath, space::is_no_space,
};

/// Rows of a row group. Fewer: finer pruning and less memory while writing; more: longer dictionaries are shared.
const ROW_GROUP_ROWS: usize = 256 << 10;
/// Rows of a page, the finest grain of pruning.
const PAGE_ROWS: usize = 16 << 10;
/// Most threads that encode one file.
const THREADS_MAX: usize = 4;

/// What to write.
#[derive(Debug)]
pub struct WriteRequest<'a> {
    /// Whose rows.
    pub table: &'a Table,
    /// Where; unique.
    pub path: DatafilePath,
    /// The rows of one partition, in identity order.
    pub chunks: &'a [Chunk],
}

/// Sorts the rows by the table's ORDER BY (ties and tables without one: by identity), writes them as Parquet (zstd 1,
/// page statistics, field ids) with the two identity columns, and returns once the object is durable. CPU work runs
/// on blocking threads, one row group at a time, its columns in parallel; rows that are in order are not sorted again.
pub async fn write_datafile(store: &Arc<dyn ObjectStore>, request: WriteRequest<'_>) -> Result<DatafileMeta> {
    let WriteRequest { table, path, chunks } = request;
    let object = path.object_path()?;
    let failed = |reason: String| EngineError::Storage { operation: "write datafile", object: path.0.clone(), reason };
    let stored = |error: object_store::Error| match is_no_space(&error) {
        true => EngineError::Full { object: format!("datafile {}", path.0), reason: error.to_string() },
        false => failed(error.to_string()),
    };
    let (table, chunks) = (table.clone(), chunks.to_vec());
    let mut encoder = blocking(move || Encoder::new(&table, chunks)).await.map_err(failed)?;
    let mut sink = Sink::new(Arc::clone(store), object);
    loop {
        let (back, more) = blocking(move || {
            let more = encoder.next_row_group()?;
            Ok((encoder, more))
        })
        .await
        .map_err(failed)?;
        encoder = back;
        if !more {
            break;
        }
        sink.write(encoder.output.take()).await.map_err(stored)?;
    }
    let output = Arc::clone(&encoder.output);
    let mut meta = blocking(move || encoder.finish()).await.map_err(failed)?;
    sink.write(output.take()).await.map_err(stored)?;
    sink.finish().await.map_err(stored)?;
    (meta.bytes, meta.hash) = output.summary();
    meta.path = path;
    Ok(meta)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ParquetError> + Send + 'static,
) -> Result<T, String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Parquet bytes between the encoder and the upload.
#[derive(Debug, Default)]
struct Output {
    state: Mutex<OutputState>,
}

#[derive(Default)]
struct OutputState {
    pending: Vec<u8>,
    bytes: u64,
    hash: Xxh3,
}

impl std::fmt::Debug for OutputState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutputState").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Output {
    fn take(&self) -> Bytes {
        std::mem::take(&mut self.state.lock().pending).into()
    }

    /// Length, and hash as the manifest holds it.
    fn summary(&self) -> (u64, String) {
        let state = self.state.lock();
        (state.bytes, format!("{:032x}", state.hash.digest128()))
    }
}

struct OutputWriter(Arc<Output>);

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        state.pending.extend_from_slice(bytes);
        state.bytes += bytes.len() as u64;
        state.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Encodes row groups on demand.
struct Encoder {
    writer: SerializedFileWriter<OutputWriter>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    columns: Arc<Vec<Vec<ArrayRef>>>,
    /// `None`: as the chunks are.
    order: Option<Vec<RowAddress>>,
    rows: usize,
    written: usize,
    row_groups: usize,
    statistics: Vec<(ColumnId, Accumulator)>,
    threads: usize,
    output: Arc<Output>,
    schema_version: SchemaVersion,
    seqs: (tailrace_wal::Seq, tailrace_wal::Seq),
    /// The rows as they were handed over, and the digest of those before `written`: it is of what was to be written, so
    /// that a file that is read again proves itself.
    chunks: Vec<Chunk>,
    hasher: RowHasher,
    digest: Digest,
}

impl Encoder {
    fn new(table: &Table, chunks: Vec<Chunk>) -> Result<Self, ParquetError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let batches: Vec<RecordBatch> = chunks.iter().map(|chunk| chunk.batch.clone()).collect();
        check(table, &batches)?;
        let keys = table.order_by.iter().filter_map(|id| table.columns.iter().position(|column| column.id == *id));
        let keys: Vec<usize> = keys.collect();
        let order = order::sorted(&batches, &keys, threads)?;

        let schema = file_schema(table);
        let mut columns: Vec<Vec<ArrayRef>> = (0..table.columns.len())
            .map(|index| batches.iter().map(|batch| batch.column(index).clone()).collect())
            .collect();
        let (seqs, ordinals): (Vec<UInt64Array>, Vec<UInt64Array>) = chunks.iter().map(identity::columns).unzip();
        columns.push(seqs.into_iter().map(|array| Arc::new(array) as ArrayRef).collect());
        columns.push(ordinals.into_iter().map(|array| Arc::new(array) as ArrayRef).collect());

        let mut properties = properties(&keys, &schema, &columns);
        add_encoded_arrow_schema_to_metadata(&schema, &mut properties);
        let parquet_schema = ArrowSchemaConverter::new().convert(&schema)?;
        let output = Arc::new(Output::default());
        let writer = SerializedFileWriter::new(
            OutputWriter(Arc::clone(&output)),
            parquet_schema.root_schema_ptr(),
            Arc::new(properties),
        )?;
        let factory = ArrowRowGroupWriterFactory::new(&writer, Arc::clone(&schema));
        let statistics = table.columns.iter().map(|column| (column.id, Accumulator::new(column.data_type.clone())));
        Ok(Self {
            writer,
            factory,
            schema,
            columns: Arc::new(columns),
            order,
            rows: batches.iter().map(RecordBatch::num_rows).sum(),
            written: 0,
            row_groups: 0,
            statistics: statistics.collect(),
            threads,
            output,
            schema_version: table.schema_version,
            seqs: identity::seqs(&chunks),
            hasher: RowHasher::of_table(table).map_err(|error| ParquetError::General(error.to_string()))?,
            digest: Digest::default(),
            chunks,
        })
    }

    /// Encodes one more row group into the output; `false` when all rows are written.
    fn next_row_group(&mut self) -> Result<bool, ParquetError> {
        let end = self.rows.min(self.written + ROW_GROUP_ROWS);
        if self.written == end {
            return Ok(false);
        }
        let writers = self.factory.create_column_writers(self.row_groups)?;
        let hidden = self.columns.len() - self.statistics.len();
        let accumulators = self.statistics.iter_mut().map(|(_, accumulator)| Some(accumulator));
        let jobs: Vec<Mutex<Option<Job<'_>>>> = writers
            .into_iter()
            .zip(accumulators.chain((0..hidden).map(|_| None)))
            .map(|(writer, statistics)| Mutex::new(Some(Job { writer, statistics })))
            .collect();
        let encoded: Vec<Mutex<Option<Result<ArrowColumnChunk, ParquetError>>>> =
            jobs.iter().map(|_| Mutex::new(None)).collect();
        let (columns, schema, order) = (&self.columns, &self.schema, self.order.as_deref());
        let rows = self.written..end;
        let (hasher, chunks, digest) = (&self.hasher, &self.chunks, Mutex::new(None));
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                // The longest job first.
                let Some(index) = index.checked_sub(1) else {
                    *digest.lock() = Some(digest_of(hasher, chunks, rows.clone()));
                    continue;
                };
                let Some(job) = jobs.get(index).and_then(|job| job.lock().take()) else { break };
                let arrays = select(&columns[index], order, rows.clone());
                let result =
                    arrays.map_err(ParquetError::from).and_then(|arrays| job.run(schema.field(index), &arrays));
                *encoded[index].lock() = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..self.threads.min(jobs.len() + 1) {
                scope.spawn(work);
            }
            work();
        });
        let lost = || ParquetError::General("a column was not encoded".to_owned());
        let digest = digest.into_inner().ok_or_else(lost)?;
        self.digest += digest.map_err(|error| ParquetError::General(error.to_string()))?;
        let mut group = self.writer.next_row_group()?;
        for chunk in encoded {
            chunk.into_inner().ok_or_else(lost)??.append_to_row_group(&mut group)?;
        }
        group.close()?;
        self.written = end;
        self.row_groups += 1;
        Ok(true)
    }

    /// Writes the footer. Length, hash and path are added by the caller.
    fn finish(self) -> Result<DatafileMeta, ParquetError> {
        let metadata = self.writer.close()?;
        let visible = self.statistics.len();
        let hidden = metadata.row_groups().iter().flat_map(|group| &group.columns()[visible..]);
        let identity_bytes = hidden.map(|column| u64::try_from(column.compressed_size()).unwrap_or(0)).sum();
        let statistics = self.statistics.into_iter().map(|(id, accumulator)| (id, accumulator.finish()));
        Ok(DatafileMeta {
            path: DatafilePath(String::new()),
            bytes: 0,
            rows: self.rows as u64,
            hash: String::new(),
            schema_version: self.schema_version,
            seqs: self.seqs,
            identity_bytes,
            statistics: statistics.collect::<Vec<(ColumnId, ColumnStatistics)>>(),
            digest: Some(self.digest),
        })
    }
}

/// One column of one row group.
struct Job<'a> {
    writer: ArrowColumnWriter,
    statistics: Option<&'a mut Accumulator>,
}

impl Job<'_> {
    fn run(mut self, field: &Field, arrays: &[ArrayRef]) -> Result<ArrowColumnChunk, ParquetError> {
        for array in arrays {
            if let Some(statistics) = &mut self.statistics {
                statistics.add(array);
            }
            for leaf in compute_leaves(field, array)? {
                self.writer.write(&leaf)?;
            }
        }
        self.writer.close()
    }
}

/// Digest of the rows `rows`, counted through the chunks.
fn digest_of(hasher: &RowHasher, chunks: &[Chunk], rows: std::ops::Range<usize>) -> crate::Result<Digest> {
    let mut first = 0;
    let mut digest = Digest::default();
    for chunk in chunks {
        let length = chunk.batch.num_rows();
        let start = rows.start.clamp(first, first + length);
        let end = rows.end.clamp(first, first + length);
        if start < end {
            digest += hasher.chunk_rows(chunk, start - first..end - first)?;
        }
        first += length;
    }
    Ok(digest)
}

/// A column's rows `rows` of the file.
fn select(
    chunks: &[ArrayRef],
    order: Option<&[RowAddress]>,
    rows: std::ops::Range<usize>,
) -> Result<Vec<ArrayRef>, arrow_schema::ArrowError> {
    if let Some(order) = order {
        let chunks: Vec<&dyn Array> = chunks.iter().map(|chunk| chunk.as_ref()).collect();
        return Ok(vec![interleave(&chunks, &order[rows])?]);
    }
    let mut first = 0;
    let mut selected = Vec::new();
    for chunk in chunks {
        let start = rows.start.clamp(first, first + chunk.len());
        let end = rows.end.clamp(first, first + chunk.len());
        if start < end {
            selected.push(chunk.slice(start - first, end - start));
        }
        first += chunk.len();
    }
    Ok(selected)
}

fn check(table: &Table, batches: &[RecordBatch]) -> Result<(), ParquetError> {
    let wrong = |what: &str| Err(ParquetError::General(format!("the rows of table {:?} {what}", table.name)));
    if batches.iter().all(|batch| batch.num_rows() == 0) {
        return wrong("are none");
    }
    for batch in batches {
        let types = batch.columns().iter().map(|column| column.data_type());
        if !types.eq(table.columns.iter().map(|column| &column.data_type)) {
            return wrong("have other columns than the table");
        }
    }
    Ok(())
}

pub(super) fn file_schema(table: &Table) -> SchemaRef {
    let hidden = |name: &str, id: i32| {
        Arc::new(
            Field::new(name, DataType::UInt64, false).with_metadata([(FIELD_ID_KEY.to_owned(), id.to_string())].into()),
        )
    };
    let mut fields = table.schema().fields().to_vec();
    fields.push(hidden(SEQ_COLUMN, SEQ_FIELD_ID));
    fields.push(hidden(ORDINAL_COLUMN, ORDINAL_FIELD_ID));
    Arc::new(Schema::new(fields))
}

fn properties(keys: &[usize], schema: &Schema, columns: &[Vec<ArrayRef>]) -> WriterProperties {
    let sorting = keys.iter().filter_map(|key| i32::try_from(*key).ok()).map(|column_idx| SortingColumn {
        column_idx,
        descending: order::SORT.descending,
        nulls_first: order::SORT.nulls_first,
    });
    let mut builder = WriterProperties::builder()
        .set_created_by("tailrace".to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1).unwrap_or_default()))
        .set_statistics_enabled(EnabledStatistics::Page)
        .set_data_page_row_count_limit(PAGE_ROWS)
        .set_sorting_columns(Some(sorting.collect()));
    for (field, chunks) in schema.fields().iter().zip(columns) {
        let identity = [SEQ_COLUMN, ORDINAL_COLUMN].contains(&field.name().as_str());
        let plain = if identity { Some(Encoding::DELTA_BINARY_PACKED) } else { encoding::without_dictionary(chunks) };
        if let Some(encoding) = plain {
            let path = ColumnPath::from(vec![field.name().clone()]);
            builder = builder.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, encoding);
        }
    }
    builder.build()
}
