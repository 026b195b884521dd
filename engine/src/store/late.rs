//! A folder that may not be there yet: on a disk that is mounted later, or away for a while.

use std::{fmt, ops::Range, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, path::Path as ObjectPath,
};
use tailrace_wal::Disk;
use tokio::sync::OnceCell;

use super::open_folder;

/// A durable store in a folder, which is opened with the first call that finds it possible. Calls before fail with the
/// reason.
#[derive(Debug, Clone)]
pub(crate) struct LateFolder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    store: OnceCell<Arc<dyn ObjectStore>>,
}

impl LateFolder {
    /// The store in `folder`, which need not exist. Nothing is touched before the first call.
    pub(crate) fn new(folder: PathBuf, disk: Arc<dyn Disk>) -> Self {
        Self { inner: Arc::new(Inner { folder, disk, store: OnceCell::new() }) }
    }

    async fn store(&self) -> Result<&Arc<dyn ObjectStore>> {
        let opened = self.inner.store.get_or_try_init(|| async {
            let (folder, disk) = (self.inner.folder.clone(), self.inner.disk.clone());
            let opened = tokio::task::spawn_blocking(move || open_folder(&folder, disk)).await?;
            opened.map_err(|error| Error::Generic { store: "folder", source: Box::new(error) })
        });
        opened.await
    }
}

impl fmt::Display for LateFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "durable {}", self.inner.folder.display())
    }
}

#[async_trait::async_trait]
impl ObjectStore for LateFolder {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store().await?.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store().await?.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.store().await?.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &ObjectPath, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.store().await?.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        let this = self.clone();
        let deleted = async move { Ok::<_, Error>(this.store().await?.delete_stream(locations)) };
        stream::once(deleted).try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move { Ok::<_, Error>(this.store().await?.list(prefix.as_ref())) };
        stream::once(listed).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.store().await?.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.store().await?.copy_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;
    use tailrace_wal::SystemDisk;

    use super::*;

    #[tokio::test]
    async fn a_folder_that_comes_later_is_used_then() {
        let dir = tempfile::tempdir().unwrap();
        // Something else is where the folder should be.
        let way = dir.path().join("mount");
        std::fs::write(&way, "in the way").unwrap();
        let store = LateFolder::new(way.join("node"), SystemDisk::shared());
        let name = ObjectPath::from("a/b");
        let refused = store.put(&name, PutPayload::from_static(b"bytes")).await.unwrap_err();
        assert!(refused.to_string().contains("mount"), "{refused}");
        assert!(store.list(None).next().await.unwrap().is_err());
        std::fs::remove_file(&way).unwrap();
        store.put(&name, PutPayload::from_static(b"bytes")).await.unwrap();
        assert_eq!(store.get(&name).await.unwrap().bytes().await.unwrap(), "bytes");
        let listed: Vec<_> = store.list(None).map_ok(|meta| meta.location).try_collect().await.unwrap();
        assert_eq!(listed, std::slice::from_ref(&name));
        store.delete(&name).await.unwrap();
        assert!(store.list(None).next().await.is_none());
    }
}
