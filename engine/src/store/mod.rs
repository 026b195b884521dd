//! The object store that holds datafiles, made durable.
//!
//! `object_store`'s own local store never syncs. This one writes a staging file, syncs it, links it under its name
//! (which never replaces a file) and syncs the folder, after every folder that leads there was synced into its parent.

mod folders;
mod upload;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, local::LocalFileSystem, path::Path as ObjectPath,
};
use url::Url;

use crate::{EngineError, Result};
use folders::{Durability, Folders, SystemDurability};
use upload::Staged;

/// Folder below the root where files are written before they get their name.
const STAGING: &str = ".staging";
const STORE: &str = "store";

/// Opens the store: `None` is the folder `data_dir/store`, else a `file:///` URL. Other schemes are refused by name for
/// now. Puts and completed multipart uploads return only after the file and every folder created for it are synced;
/// names are created, never overwritten. The folder is created durably, and what an earlier process left half written
/// is removed. Blocks.
pub fn open_store(url: Option<&Url>, data_dir: &Path) -> Result<Arc<dyn ObjectStore>> {
    let root = match url {
        None => data_dir.join(STORE),
        Some(url) if url.scheme() == "file" => url.to_file_path().map_err(|()| {
            EngineError::Invalid(format!("storage.url {url} is no absolute path on this machine; write file:///folder"))
        })?,
        Some(url) => {
            let scheme = url.scheme();
            return Err(EngineError::Unsupported(format!("storage.url with scheme {scheme:?} (file:/// is)")));
        }
    };
    open_folder(&root)
}

/// Opens or creates a durable store in a folder. See [`open_store`].
pub(crate) fn open_folder(root: &Path) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(DurableStore::open(root, Arc::new(SystemDurability))?))
}

/// A folder of immutable files.
#[derive(Debug)]
struct DurableStore {
    files: LocalFileSystem,
    staging: PathBuf,
    folders: Arc<Folders>,
}

impl DurableStore {
    fn open(root: &Path, durability: Arc<dyn Durability>) -> Result<Self> {
        let failed = |operation: &'static str, path: &Path, reason: String| EngineError::Storage {
            operation,
            object: path.display().to_string(),
            reason,
        };
        let root = std::path::absolute(root).map_err(|error| failed("open store", root, error.to_string()))?;
        let folders = Arc::new(Folders::new(durability));
        folders.create_root(&root).map_err(|error| failed("create folder", &root, error.to_string()))?;
        // Paths are compared as the file store builds them.
        let root = root.canonicalize().map_err(|error| failed("open store", &root, error.to_string()))?;
        folders.create_root(&root).map_err(|error| failed("create folder", &root, error.to_string()))?;
        let staging = root.join(STAGING);
        folders.create(&staging).map_err(|error| failed("create folder", &staging, error.to_string()))?;
        clean_staging(&staging).map_err(|error| failed("clean folder", &staging, error.to_string()))?;
        let files =
            LocalFileSystem::new_with_prefix(&root).map_err(|error| failed("open store", &root, error.to_string()))?;
        Ok(Self { files, staging, folders })
    }

    fn staged(&self, location: &ObjectPath) -> object_store::Result<Staged> {
        let destination = self.files.path_to_filesystem(location)?;
        Ok(Staged::new(&self.staging, destination, Arc::clone(&self.folders)))
    }
}

/// Removes what was being written when an earlier process ended: nothing refers to it.
fn clean_staging(staging: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(staging)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Runs blocking work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> object_store::Result<T> + Send + 'static,
) -> object_store::Result<T> {
    tokio::task::spawn_blocking(work).await?
}

fn unsupported(operation: &str) -> Error {
    Error::NotImplemented { operation: operation.to_owned(), implementer: "the store of datafiles".to_owned() }
}

impl fmt::Display for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "durable {}", self.files)
    }
}

#[async_trait::async_trait]
impl ObjectStore for DurableStore {
    /// `PutMode::Overwrite`, the default, creates as well: names are unique, an existing one is an error.
    async fn put_opts(
        &self,
        location: &ObjectPath,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            return Err(unsupported("put with an update or attributes"));
        }
        let staged = self.staged(location)?;
        blocking(move || {
            let mut offset = 0;
            for slice in payload.iter() {
                staged.write_at(slice, offset)?;
                offset += slice.len() as u64;
            }
            staged.publish()
        })
        .await
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        if !options.attributes.is_empty() {
            return Err(unsupported("multipart upload with attributes"));
        }
        Ok(Box::new(upload::Upload::new(self.staged(location)?)))
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &ObjectPath,
        ranges: &[std::ops::Range<u64>],
    ) -> object_store::Result<Vec<bytes::Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    /// An unlinked name may come back after a power loss; nothing refers to it then either.
    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let published = |meta: &object_store::Result<ObjectMeta>| {
            let hidden = meta.as_ref().is_ok_and(|meta| is_staging(&meta.location));
            futures::future::ready(!hidden)
        };
        self.files.list(prefix).filter(published).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        let mut listed = self.files.list_with_delimiter(prefix).await?;
        listed.objects.retain(|meta| !is_staging(&meta.location));
        listed.common_prefixes.retain(|prefix| !is_staging(prefix));
        Ok(listed)
    }

    /// Links: both names share one immutable file.
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> object_store::Result<()> {
        if options.mode != CopyMode::Create {
            return Err(unsupported("copy over an existing name"));
        }
        let from = self.files.path_to_filesystem(from)?;
        let to = self.files.path_to_filesystem(to)?;
        let folders = Arc::clone(&self.folders);
        blocking(move || folders.link(&from, &to)).await
    }
}

fn is_staging(path: &ObjectPath) -> bool {
    path.parts().next().is_some_and(|part| part.as_ref() == STAGING)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use futures::TryStreamExt;
    use object_store::{ObjectStoreExt, WriteMultipart};
    use parking_lot::Mutex;

    use super::*;

    /// Syncs, remembers what was synced, and fails on request.
    #[derive(Debug, Default)]
    struct Recorder {
        synced: Mutex<Vec<PathBuf>>,
        fail: Mutex<Option<PathBuf>>,
    }

    impl Recorder {
        fn record(&self, path: &Path) -> std::io::Result<()> {
            if self.fail.lock().as_deref().is_some_and(|prefix| path.starts_with(prefix)) {
                return Err(std::io::Error::other("injected"));
            }
            self.synced.lock().push(path.to_owned());
            Ok(())
        }

        fn take(&self) -> Vec<PathBuf> {
            std::mem::take(&mut self.synced.lock())
        }
    }

    impl Durability for Recorder {
        fn sync_file(&self, file: &std::fs::File, path: &Path) -> std::io::Result<()> {
            SystemDurability.sync_file(file, path)?;
            self.record(path)
        }

        fn sync_folder(&self, path: &Path) -> std::io::Result<()> {
            SystemDurability.sync_folder(path)?;
            self.record(path)
        }
    }

    fn store(dir: &Path) -> (DurableStore, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        let durability: Arc<dyn Durability> = Arc::<Recorder>::clone(&recorder);
        (DurableStore::open(&dir.join("a/b/store"), durability).unwrap(), recorder)
    }

    async fn names(store: &DurableStore) -> BTreeSet<String> {
        store.list(None).map_ok(|meta| meta.location.to_string()).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn file_and_every_new_folder_are_synced_before_a_put_returns() {
        let dir = tempfile::tempdir().unwrap();
        let (store, recorder) = store(dir.path());
        let root = dir.path().join("a/b/store");
        let opened = recorder.take();
        for folder in [dir.path(), &dir.path().join("a"), &dir.path().join("a/b"), &root] {
            assert!(opened.iter().any(|synced| synced == folder), "{folder:?} in {opened:?}");
        }

        store.put(&ObjectPath::from("market/bars/day=1/x.parquet"), "rows".into()).await.unwrap();
        let synced = recorder.take();
        assert!(synced.iter().any(|path| path.parent() == Some(&root.join(STAGING))), "the file itself");
        for folder in ["", "market", "market/bars", "market/bars/day=1"] {
            assert!(synced.contains(&root.join(folder)), "{folder:?} in {synced:?}");
        }
        assert_eq!(synced.last(), Some(&root.join("market/bars/day=1")));

        // Folders that are known to be durable are not synced into their parents again.
        store.put(&ObjectPath::from("market/bars/day=1/y.parquet"), "rows".into()).await.unwrap();
        assert_eq!(recorder.take().len(), 2);
    }

    #[tokio::test]
    async fn multipart_uploads_are_durable_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let (store, recorder) = store(dir.path());
        let path = ObjectPath::from("market/bars/x.parquet");
        let upload = store.put_multipart(&path).await.unwrap();
        let mut upload = WriteMultipart::new_with_chunk_size(upload, 10);
        let content: Vec<u8> = (0..=255).collect();
        upload.write(&content);
        assert!(names(&store).await.is_empty(), "nothing is seen before the end");
        recorder.take();
        upload.finish().await.unwrap();
        let synced = recorder.take();
        assert_eq!(synced.last(), Some(&dir.path().join("a/b/store/market/bars")));
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), Bytes::from(content));
    }

    #[tokio::test]
    async fn names_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = store(dir.path());
        let path = ObjectPath::from("x/y.parquet");
        store.put(&path, "first".into()).await.unwrap();
        let error = store.put(&path, "second".into()).await.unwrap_err();
        assert!(matches!(error, Error::AlreadyExists { .. }), "{error}");
        let mut upload = store.put_multipart(&path).await.unwrap();
        upload.put_part("third".into()).await.unwrap();
        assert!(matches!(upload.complete().await.unwrap_err(), Error::AlreadyExists { .. }));
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "first");
        store.copy_if_not_exists(&path, &ObjectPath::from("z/copy.parquet")).await.unwrap();
        store.copy_if_not_exists(&path, &ObjectPath::from("z/copy.parquet")).await.unwrap_err();
        assert_eq!(names(&store).await, ["x/y.parquet".to_owned(), "z/copy.parquet".to_owned()].into());
        assert_eq!(std::fs::read_dir(&store.staging).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn orphans_are_hidden_and_removed_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = store(dir.path());
        let staging = first.staging.clone();
        let mut upload = first.put_multipart(&ObjectPath::from("x/y.parquet")).await.unwrap();
        upload.put_part("half".into()).await.unwrap();
        assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 1);
        assert!(names(&first).await.is_empty());
        assert!(first.list_with_delimiter(None).await.unwrap().common_prefixes.is_empty());
        std::mem::forget(upload);
        let (_second, _) = store(dir.path());
        assert_eq!(std::fs::read_dir(&staging).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn aborted_and_dropped_uploads_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = store(dir.path());
        let mut upload = store.put_multipart(&ObjectPath::from("x/y.parquet")).await.unwrap();
        upload.put_part("half".into()).await.unwrap();
        upload.abort().await.unwrap();
        let mut upload = store.put_multipart(&ObjectPath::from("x/y.parquet")).await.unwrap();
        upload.put_part("half".into()).await.unwrap();
        drop(upload);
        assert_eq!(std::fs::read_dir(&store.staging).unwrap().count(), 0);
        assert!(names(&store).await.is_empty());
    }

    #[tokio::test]
    async fn a_failed_sync_fails_the_put() {
        let dir = tempfile::tempdir().unwrap();
        let (store, recorder) = store(dir.path());
        let root = dir.path().join("a/b/store");
        for place in [root.join(STAGING), root.join("x"), root.clone()] {
            *recorder.fail.lock() = Some(place);
            let error = store.put(&ObjectPath::from("x/y.parquet"), "rows".into()).await.unwrap_err();
            assert!(error.to_string().contains("injected"), "{error}");
            *recorder.fail.lock() = None;
        }
    }

    #[test]
    fn other_schemes_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let url = Url::parse("s3://bucket/x").unwrap();
        assert!(open_store(Some(&url), dir.path()).unwrap_err().to_string().contains("\"s3\""));
        let url = Url::from_directory_path(dir.path().join("elsewhere")).unwrap();
        open_store(Some(&url), dir.path()).unwrap();
        assert!(dir.path().join("elsewhere").is_dir());
    }
}
