//! An encrypted Parquet file, decrypted where it is read: memory holds what is asked for.

use std::{
    fmt,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    sync::Arc,
};

use age::stream::StreamReader;
use bytes::{Buf, Bytes};
use futures::{FutureExt as _, future::BoxFuture};
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as ObjectPath};
use parking_lot::Mutex;
use parquet::{
    arrow::{arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
    errors::{ParquetError, Result as ParquetResult},
    file::metadata::{ParquetMetaData, ParquetMetaDataReader},
};
use tokio::runtime::Handle;

use super::{BackupLocation, encryption::Identities, manifest::BackupFile};
use crate::{EngineError, Result};

/// Encrypted bytes fetched with one call.
const PIECE_BYTES: u64 = 1 << 20;

/// The plain bytes of an encrypted file, by their offsets. Every piece of 64 KiB is authenticated; whether the object is
/// the one that a manifest names is for others to check.
pub(super) struct SealedFile {
    plain: Arc<Mutex<StreamReader<Object>>>,
    /// Plain bytes.
    bytes: u64,
}

impl SealedFile {
    pub(super) async fn open(location: &BackupLocation, file: &BackupFile, identities: &Identities) -> Result<Self> {
        let object = Object {
            store: Arc::clone(location.store()),
            object: location.object(&file.name)?,
            runtime: Handle::current(),
            bytes: file.bytes,
            at: 0,
            piece: Bytes::new(),
        };
        let identities = identities.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let mut plain = identities.reader(object)?;
            let bytes = plain.seek(SeekFrom::End(0))?;
            Ok::<_, io::Error>(Self { plain: Arc::new(Mutex::new(plain)), bytes })
        });
        opened.await.map_err(|_| EngineError::Closed)?.map_err(|error| EngineError::Storage {
            operation: "decrypt",
            object: format!("{} of backups at {location}", file.name),
            reason: error.to_string(),
        })
    }
}

impl AsyncFileReader for SealedFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let (plain, bytes) = (self.plain.clone(), self.bytes);
        async move {
            let length = range.end.checked_sub(range.start).filter(|_| range.end <= bytes);
            let length = length.and_then(|length| usize::try_from(length).ok()).ok_or_else(|| {
                ParquetError::General(format!("bytes {range:?} are wanted of a file of {bytes} bytes"))
            })?;
            let read = tokio::task::spawn_blocking(move || {
                let mut plain = plain.lock();
                plain.seek(SeekFrom::Start(range.start))?;
                let mut found = vec![0; length];
                plain.read_exact(&mut found)?;
                Ok::<_, io::Error>(found)
            });
            let read = read.await.map_err(|error| ParquetError::External(Box::new(error)))?;
            Ok(read.map_err(|error| ParquetError::External(Box::new(error)))?.into())
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        async move {
            let bytes = self.bytes;
            Ok(Arc::new(ParquetMetaDataReader::new().load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

impl fmt::Debug for SealedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedFile").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// An object of a store for who reads it on a thread of its own.
struct Object {
    store: Arc<dyn ObjectStore>,
    object: ObjectPath,
    runtime: Handle,
    bytes: u64,
    /// Where the next byte is read.
    at: u64,
    /// What was fetched from there on.
    piece: Bytes,
}

impl Read for Object {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.at < self.bytes {
            let end = self.bytes.min(self.at + PIECE_BYTES);
            let fetched = self.runtime.block_on(self.store.get_range(&self.object, self.at..end));
            self.piece = fetched.map_err(io::Error::other)?;
            if self.piece.len() as u64 != end - self.at {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the object ends before its length"));
            }
        }
        let length = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..length]);
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Object {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "a seek before the object's begin");
        let to = match to {
            SeekFrom::Start(to) => to,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or_else(wrong)?,
            SeekFrom::End(by) => self.bytes.checked_add_signed(by).ok_or_else(wrong)?,
        };
        match to.checked_sub(self.at).and_then(|ahead| usize::try_from(ahead).ok()) {
            Some(ahead) if ahead <= self.piece.len() => self.piece.advance(ahead),
            _ => self.piece.clear(),
        }
        self.at = to;
        Ok(to)
    }
}

#[cfg(test)]
mod tests {
    use age::{secrecy::ExposeSecret as _, x25519};
    use arrow_array::{Int64Array, RecordBatch, StringArray};
    use arrow_schema::{DataType, Field, Schema};
    use futures::TryStreamExt as _;
    use object_store::memory::InMemory;
    use parquet::arrow::{ArrowWriter, ParquetRecordBatchStreamBuilder, ProjectionMask};

    use super::*;
    use crate::backup::Recipients;

    #[tokio::test]
    async fn rows_come_from_where_they_lie_and_damage_is_an_error() {
        let fields = vec![Field::new("id", DataType::Int64, false), Field::new("note", DataType::Utf8, false)];
        let schema = Arc::new(Schema::new(fields));
        let ids: Vec<i64> = (0..60_000).map(|id: i64| id.wrapping_mul(6_364_136_223_846_793_005)).collect();
        let notes: Vec<String> = ids.iter().map(|id| format!("note {id:x}")).collect();
        let columns: Vec<arrow_array::ArrayRef> =
            vec![Arc::new(Int64Array::from(ids.clone())), Arc::new(StringArray::from(notes))];
        let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), schema, None).unwrap();
        writer.write(&batch).unwrap();
        let plain = writer.into_inner().unwrap();
        assert!(plain.len() as u64 > PIECE_BYTES, "{} bytes are more than one piece", plain.len());

        let key = x25519::Identity::generate();
        let recipients = Recipients::parse(&key.to_public().to_string()).unwrap();
        let identities = Identities::parse(key.to_string().expose_secret()).unwrap();
        let sealed = recipients.seal(&plain).unwrap();
        let store = Arc::new(InMemory::new());
        let location = BackupLocation::over(store.clone(), "memory");
        let name = "data/a.parquet.age".to_owned();
        let file = BackupFile { name, bytes: sealed.len() as u64, hash: String::new(), rows: 60_000, meta: None };
        let put = async |bytes: Vec<u8>| {
            store.put(&location.object(&file.name).unwrap(), bytes.into()).await.unwrap();
        };
        let read = async || -> std::result::Result<Vec<RecordBatch>, String> {
            let opened = SealedFile::open(&location, &file, &identities).await.map_err(|error| error.to_string())?;
            let builder = ParquetRecordBatchStreamBuilder::new(opened).await.map_err(|error| error.to_string())?;
            let mask = ProjectionMask::roots(builder.parquet_schema(), [0]);
            let rows = builder.with_projection(mask).build().map_err(|error| error.to_string())?;
            rows.try_collect().await.map_err(|error| error.to_string())
        };
        put(sealed.clone()).await;
        let batches = read().await.unwrap();
        let found: Vec<i64> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec())
            .collect();
        assert_eq!(found, ids);
        // Of the first column, of the footer, and an object that is too short.
        for at in [300_000, sealed.len() - 100] {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            put(flipped).await;
            read().await.unwrap_err();
        }
        put(sealed[..sealed.len() - 1].to_vec()).await;
        read().await.unwrap_err();
    }
}
