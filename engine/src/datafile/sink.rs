//! Objects on their way into the store.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use object_store::{ObjectStore, PutMode, PutOptions, WriteMultipart, path::Path};

/// Size of a part of an upload, bytes; files below it are put at once.
const UPLOAD_PART_BYTES: usize = 8 << 20;
/// Parts under way at once.
const UPLOAD_PARTS: usize = 2;

/// The object being written: small ones are put at once, large ones in parts.
pub(crate) struct Sink {
    store: Arc<dyn ObjectStore>,
    path: Path,
    pending: Vec<Bytes>,
    upload: Option<WriteMultipart>,
}

impl Sink {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, path: Path) -> Self {
        Self { store, path, pending: Vec::new(), upload: None }
    }

    pub(crate) async fn write(&mut self, bytes: Bytes) -> object_store::Result<()> {
        self.pending.push(bytes);
        let pending: usize = self.pending.iter().map(Bytes::len).sum();
        if self.upload.is_none() && pending >= UPLOAD_PART_BYTES {
            let upload = self.store.put_multipart_opts(&self.path, Default::default()).await?;
            self.upload = Some(WriteMultipart::new_with_chunk_size(upload, UPLOAD_PART_BYTES));
        }
        if let Some(upload) = &mut self.upload {
            upload.wait_for_capacity(UPLOAD_PARTS).await?;
            self.pending.drain(..).for_each(|bytes| upload.put(bytes));
        }
        Ok(())
    }

    /// Returns once the object is durable.
    pub(crate) async fn finish(self) -> object_store::Result<()> {
        match self.upload {
            Some(upload) => upload.finish().await?,
            None => {
                let create = PutOptions { mode: PutMode::Create, ..Default::default() };
                self.store.put_opts(&self.path, self.pending.into_iter().collect(), create).await?
            }
        };
        Ok(())
    }
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("path", &self.path).finish_non_exhaustive()
    }
}
