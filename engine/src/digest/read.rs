//! Datafiles read again, for their digest and their bytes.

use std::{collections::HashMap, ops::Range, sync::Arc};

use arrow_schema::{Field, Schema};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
        async_reader::AsyncFileReader,
    },
    errors::ParquetError,
    file::metadata::ParquetMetaData,
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::Xxh3;

use super::{Digest, RowHasher};
use crate::{
    DatafileMeta, EngineError, FIELD_ID_KEY, ORDINAL_COLUMN, Result, SEQ_COLUMN, Table, datafile::read_footer,
};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 16 << 10;
/// Bytes read at a time where a file is only hashed.
const PIECE_BYTES: u64 = 4 << 20;

/// The rows of a datafile, as columns of the table as it is now: found by id, named as they are named now. A column that the
/// file does not have is NULL there. Decodes on this thread.
pub(super) async fn digest(
    store: &Arc<dyn ObjectStore>,
    table: &Table,
    hasher: &RowHasher,
    meta: &DatafileMeta,
    stop: &CancellationToken,
) -> Result<Digest> {
    let failed =
        |reason: String| EngineError::Storage { operation: "read datafile", object: meta.path.0.clone(), reason };
    let path = meta.path.object_path()?;
    let builder = open_parquet(store, path, meta.bytes).await.map_err(failed)?;
    let ids: HashMap<String, &crate::Column> =
        table.columns.iter().map(|column| (column.id.to_string(), column)).collect();
    let (mut roots, mut fields) = (Vec::new(), Vec::new());
    for (index, field) in builder.schema().fields().iter().enumerate() {
        if [SEQ_COLUMN, ORDINAL_COLUMN].contains(&field.name().as_str()) {
            roots.push(index);
        } else if let Some(column) = field.metadata().get(FIELD_ID_KEY).and_then(|id| ids.get(id)) {
            roots.push(index);
            fields.push(Field::new(&column.name, field.data_type().clone(), true));
        }
    }
    // The table's own where they are the same: no keys to be made again.
    let own = match fields.len() == table.columns.len() {
        true => None,
        false => Some(RowHasher::new(&Schema::new(fields))?),
    };
    let hasher = own.as_ref().unwrap_or(hasher);
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let stream = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
    let mut stream = stream.map_err(|error| failed(error.to_string()))?;
    let mut digest = Digest::default();
    while let Some(batch) = stream.next().await {
        if stop.is_cancelled() {
            return Err(EngineError::Closed);
        }
        let batch = batch.map_err(|error| failed(error.to_string()))?;
        digest += hasher.with_identity_columns(&batch).map_err(|error| failed(error.to_string()))?;
    }
    Ok(digest)
}

/// Opens a Parquet file of `bytes` bytes: reads its footer.
pub(crate) async fn open_parquet(
    store: &Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
) -> Result<ParquetRecordBatchStreamBuilder<Reader>, String> {
    let footer = Arc::new(read_footer(store, &path, bytes).await?);
    let metadata = ArrowReaderMetadata::try_new(footer.clone(), ArrowReaderOptions::new());
    let metadata = metadata.map_err(|error| error.to_string())?;
    let reader = Reader { store: store.clone(), path, footer };
    Ok(ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata))
}

/// A Parquet file in a store, whose footer is known.
pub(crate) struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
    footer: Arc<ParquetMetaData>,
}

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes, ParquetError>> {
        async move { self.store.get_range(&self.path, range).await.map_err(external) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>, ParquetError>> {
        async move { self.store.get_ranges(&self.path, &ranges).await.map_err(external) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>, ParquetError>> {
        let footer = self.footer.clone();
        async move { Ok(footer) }.boxed()
    }
}

fn external(error: object_store::Error) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// Whether a file has the bytes that were written. The reason is for people.
pub(crate) async fn check_bytes(store: &Arc<dyn ObjectStore>, meta: &DatafileMeta) -> Result<(), String> {
    let path = meta.path.object_path().map_err(|error| error.to_string())?;
    let length = store.head(&path).await.map_err(|error| error.to_string())?.size;
    if length != meta.bytes {
        return Err(format!("it has {length} bytes, written were {}", meta.bytes));
    }
    let mut hash = Xxh3::new();
    let mut start = 0;
    while start < length {
        let end = length.min(start + PIECE_BYTES);
        hash.update(&store.get_range(&path, start..end).await.map_err(|error| error.to_string())?);
        start = end;
    }
    let found = format!("{:032x}", hash.digest128());
    if found != meta.hash {
        return Err(format!("its bytes have hash {found}, written were {}", meta.hash));
    }
    Ok(())
}
