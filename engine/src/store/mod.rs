//! The object store that holds datafiles, made durable.
//!
//! `object_store`'s own local store never syncs. This one writes a staging file, syncs it, links it under its name
//! (which never replaces a file) and syncs the folder, after every folder that leads there was synced into its parent.
//! All of that goes through the disk seam, like log and manifest.

mod folders;
mod late;
mod reader;
mod upload;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, path::Path as ObjectPath,
};
use tailrace_wal::Disk;
use url::Url;

use crate::{EngineError, Result};
use folders::Folders;
pub(crate) use late::LateFolder;
use reader::Reader;
use upload::Staged;

/// Folder below the root where files are written before they get their name.
pub(crate) const STAGING: &str = ".staging";
const STORE: &str = "store";
/// Files removed at a time.
const REMOVERS: usize = 10;

/// Opens the store on `disk`: `None` is the folder `data_dir/store`, else a `file:///` URL. Other schemes are refused by
/// name for now. Puts and completed multipart uploads return only after the file and every folder created for it are
/// synced; names are created, never overwritten. The folder is created durably, and what an earlier process left half
/// written is removed. Blocks.
pub fn open_store(url: Option<&Url>, data_dir: &Path, disk: Arc<dyn Disk>) -> Result<Arc<dyn ObjectStore>> {
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
    open_folder(&root, disk)
}

/// Opens or creates a durable store in a folder. See [`open_store`].
pub(crate) fn open_folder(root: &Path, disk: Arc<dyn Disk>) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(DurableStore::open(root, disk, Sharing::Alone)?))
}

/// The same in a folder that other processes write to at the same time: what they have half written stays.
pub(crate) fn open_shared_folder(root: &Path, disk: Arc<dyn Disk>) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(DurableStore::open(root, disk, Sharing::Shared)?))
}

/// Who writes to a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    Shared,
}

/// A folder of immutable files.
#[derive(Debug)]
struct DurableStore {
    reader: Reader,
    staging: PathBuf,
    folders: Arc<Folders>,
}

impl DurableStore {
    fn open(root: &Path, disk: Arc<dyn Disk>, sharing: Sharing) -> Result<Self> {
        let failed = |operation: &'static str, path: &Path, reason: String| EngineError::Storage {
            operation,
            object: path.display().to_string(),
            reason,
        };
        let mut root = std::path::absolute(root).map_err(|error| failed("open store", root, error.to_string()))?;
        let folders = Arc::new(Folders::new(Arc::clone(&disk), sharing));
        folders.create_root(&root).map_err(|error| failed("create folder", &root, error.to_string()))?;
        if disk.is_local() {
            // Paths are compared as the file store builds them.
            root = root.canonicalize().map_err(|error| failed("open store", &root, error.to_string()))?;
            folders.create_root(&root).map_err(|error| failed("create folder", &root, error.to_string()))?;
        }
        let staging = root.join(STAGING);
        folders.create(&staging).map_err(|error| failed("create folder", &staging, error.to_string()))?;
        if sharing == Sharing::Alone {
            clean_staging(&*disk, &staging).map_err(|error| failed("clean folder", &staging, error.to_string()))?;
        }
        let reader = Reader::open(&root, disk).map_err(|error| failed("open store", &root, error.to_string()))?;
        Ok(Self { reader, staging, folders })
    }

    fn staged(&self, location: &ObjectPath) -> object_store::Result<Staged> {
        let destination = self.reader.path(location)?;
        Ok(Staged::new(&self.staging, destination, Arc::clone(&self.folders)))
    }
}

/// Removes what was being written when an earlier process ended: nothing refers to it.
fn clean_staging(disk: &dyn Disk, staging: &Path) -> io::Result<()> {
    disk.list(staging)?.iter().try_for_each(|path| disk.remove(path))
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
        write!(f, "durable {}", self.reader)
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
        self.reader.get_opts(location, options).await
    }

    async fn get_ranges(
        &self,
        location: &ObjectPath,
        ranges: &[std::ops::Range<u64>],
    ) -> object_store::Result<Vec<bytes::Bytes>> {
        self.reader.get_ranges(location, ranges).await
    }

    /// An unlinked name may come back after a power loss; nothing refers to it then either.
    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<ObjectPath>>,
    ) -> BoxStream<'static, object_store::Result<ObjectPath>> {
        let folders = Arc::clone(&self.folders);
        let reader = self.reader.clone();
        let removals = locations.map(move |location| {
            let (folders, reader) = (Arc::clone(&folders), reader.clone());
            async move {
                let location = location?;
                let path = reader.path(&location)?;
                blocking(move || folders.disk.remove(&path).map_err(|source| io_error("remove", &path, source)))
                    .await?;
                Ok(location)
            }
        });
        removals.buffered(REMOVERS).boxed()
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let published = |meta: &object_store::Result<ObjectMeta>| {
            let hidden = meta.as_ref().is_ok_and(|meta| is_staging(&meta.location));
            futures::future::ready(!hidden)
        };
        self.reader.list(prefix).filter(published).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        let mut listed = self.reader.list_with_delimiter(prefix).await?;
        listed.objects.retain(|meta| !is_staging(&meta.location));
        listed.common_prefixes.retain(|prefix| !is_staging(prefix));
        Ok(listed)
    }

    /// Links: both names share one immutable file.
    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> object_store::Result<()> {
        if options.mode != CopyMode::Create {
            return Err(unsupported("copy over an existing name"));
        }
        let (from, to) = (self.reader.path(from)?, self.reader.path(to)?);
        let folders = Arc::clone(&self.folders);
        blocking(move || folders.link(&from, &to)).await
    }
}

fn is_staging(path: &ObjectPath) -> bool {
    path.parts().next().is_some_and(|part| part.as_ref() == STAGING)
}

fn io_error(operation: &str, path: &Path, source: io::Error) -> Error {
    match source.kind() {
        io::ErrorKind::NotFound => Error::NotFound { path: path.display().to_string(), source: source.into() },
        _ => Error::Generic { store: "durable", source: format!("{operation} {}: {source}", path.display()).into() },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use futures::TryStreamExt;
    use object_store::{ObjectStoreExt, WriteMultipart};
    use parking_lot::Mutex;
    use tailrace_wal::{DiskFile, DiskLock, SystemDisk};

    use super::*;

    /// The machine's disk, which remembers what was synced, and fails on request.
    #[derive(Debug)]
    struct Recorder {
        below: Arc<dyn Disk>,
        state: Arc<State>,
    }

    #[derive(Debug, Default)]
    struct State {
        synced: Mutex<Vec<PathBuf>>,
        fail: Mutex<Option<PathBuf>>,
    }

    #[derive(Debug)]
    struct RecordedFile {
        below: Arc<dyn DiskFile>,
        path: PathBuf,
        state: Arc<State>,
    }

    impl State {
        fn record(&self, path: &Path) -> io::Result<()> {
            if self.fail.lock().as_deref().is_some_and(|prefix| path.starts_with(prefix)) {
                return Err(io::Error::other("injected"));
            }
            self.synced.lock().push(path.to_owned());
            Ok(())
        }

        fn take(&self) -> Vec<PathBuf> {
            std::mem::take(&mut self.synced.lock())
        }
    }

    impl Disk for Recorder {
        fn is_local(&self) -> bool {
            true
        }
        fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
            let below = self.below.create(path)?;
            Ok(Arc::new(RecordedFile { below, path: path.to_owned(), state: Arc::clone(&self.state) }))
        }
        fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
            self.below.open(path, write)
        }
        fn create_dir_all(&self, path: &Path) -> io::Result<()> {
            for folder in path.ancestors().take_while(|folder| !folder.exists()) {
                self.state.record(folder.parent().unwrap())?;
            }
            self.below.create_dir_all(path)
        }
        fn create_dir(&self, path: &Path) -> io::Result<()> {
            self.below.create_dir(path)
        }
        fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.below.link(from, to)
        }
        fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
            self.below.list(path)
        }
        fn remove(&self, path: &Path) -> io::Result<()> {
            self.below.remove(path)
        }
        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.below.rename(from, to)
        }
        fn sync_dir(&self, path: &Path) -> io::Result<()> {
            self.below.sync_dir(path)?;
            self.state.record(path)
        }
        fn lock(&self, path: &Path) -> io::Result<DiskLock> {
            self.below.lock(path)
        }
    }

    impl DiskFile for RecordedFile {
        fn write_all_vectored_at(&self, slices: &mut [io::IoSlice<'_>], offset: u64) -> io::Result<()> {
            self.below.write_all_vectored_at(slices, offset)
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            self.below.read_at(buffer, offset)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.below.sync_data()
        }
        fn sync_all(&self) -> io::Result<()> {
            self.below.sync_all()?;
            self.state.record(&self.path)
        }
        fn len(&self) -> io::Result<u64> {
            self.below.len()
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.below.set_len(len)
        }
    }

    fn store(dir: &Path) -> (DurableStore, Arc<State>) {
        let state = Arc::new(State::default());
        let disk = Recorder { below: SystemDisk::shared(), state: Arc::clone(&state) };
        (DurableStore::open(&dir.join("a/b/store"), Arc::new(disk), Sharing::Alone).unwrap(), state)
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
        assert!(open_store(Some(&url), dir.path(), SystemDisk::shared()).unwrap_err().to_string().contains("\"s3\""));
        let url = Url::from_directory_path(dir.path().join("elsewhere")).unwrap();
        open_store(Some(&url), dir.path(), SystemDisk::shared()).unwrap();
        assert!(dir.path().join("elsewhere").is_dir());
    }
}
