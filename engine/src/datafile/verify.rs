//! Checks a datafile that came from elsewhere.

use std::sync::Arc;

use object_store::{ObjectStore, ObjectStoreExt, path::Path};
use parquet::{
    arrow::arrow_reader::ArrowReaderMetadata,
    errors::ParquetError,
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};

use super::{DatafileMeta, writer::file_schema};
use crate::{EngineError, Result, Table};

/// Bytes read first from a file's end; most footers fit.
const TAIL_BYTES: u64 = 64 << 10;

/// Whether the file at `meta.path` is a datafile of `table` as `meta` describes it: footer, columns with their types and
/// field ids, rows. Its length and hash were checked while it came in.
pub(crate) async fn verify_datafile(store: &Arc<dyn ObjectStore>, table: &Table, meta: &DatafileMeta) -> Result<()> {
    let wrong =
        |reason: String| EngineError::Storage { operation: "verify datafile", object: meta.path.0.clone(), reason };
    let footer = read_footer(store, &meta.path.object_path()?, meta.bytes).await;
    let footer = footer
        .and_then(|footer| {
            ArrowReaderMetadata::try_new(Arc::new(footer), Default::default()).map_err(|error| error.to_string())
        })
        .map_err(|error| wrong(format!("its footer cannot be read: {error}")))?;
    let expected = file_schema(table);
    if footer.schema().fields() != expected.fields() {
        return Err(wrong(format!("it has other columns than table {:?}", table.name)));
    }
    let rows = footer.metadata().file_metadata().num_rows();
    if u64::try_from(rows) != Ok(meta.rows) {
        return Err(wrong(format!("it has {rows} rows instead of {}", meta.rows)));
    }
    Ok(())
}

/// The footer of the file there, which has so many bytes.
pub(crate) async fn read_footer(
    store: &Arc<dyn ObjectStore>,
    path: &Path,
    bytes: u64,
) -> Result<ParquetMetaData, String> {
    let mut wanted = TAIL_BYTES.min(bytes);
    loop {
        let tail = store.get_range(path, bytes - wanted..bytes).await.map_err(|error| error.to_string())?;
        let mut reader = ParquetMetaDataReader::new();
        match reader.try_parse_sized(&tail, bytes) {
            Ok(()) => return reader.finish().map_err(|error| error.to_string()),
            Err(ParquetError::NeedMoreData(needed)) if wanted < needed as u64 && needed as u64 <= bytes => {
                wanted = needed as u64;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
