//! One node's place in an object store: names, limits and time-outs of every call. See `FORMAT.md`, chapter 'Archive'.

use std::{fmt, future::Future, ops::Range, path::PathBuf, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use object_store::{
    Error as StoreError, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    PutPayload, path::Path as ObjectPath,
};

use crate::{LogError, Lsn, frame::Salt};

const SEGMENTS: &str = "segments";
const SEGMENT_EXTENSION: &str = ".wal.archive";
const MANIFEST: &str = "manifest";
const MANIFEST_EXTENSION: &str = ".manifest";

/// Name of an object of the archive, made and taken apart in this file only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ObjectName(ObjectPath);

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Numbers of the manifest entries in one object: first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PageName {
    pub(crate) last: u64,
    pub(crate) first: u64,
}

/// What a put-if-absent did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Created {
    /// The object is there.
    Now,
    /// An object of that name was there before.
    Before,
}

/// An object store below one prefix. No call waits longer than its time-out.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveStore {
    store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    timeout: Duration,
}

impl ArchiveStore {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, prefix: ObjectPath, timeout: Duration) -> Self {
        Self { store, prefix, timeout }
    }

    /// Name of the segment that starts with `first`. The salt tells segments of two lives of a node apart.
    pub(crate) fn segment(&self, first: Lsn, salt: Salt) -> ObjectName {
        let name = format!("{:020}-{:016x}{SEGMENT_EXTENSION}", first.0, salt.0);
        ObjectName(self.prefix.clone().join(SEGMENTS).join(name))
    }

    /// Name of the manifest object with these entries.
    pub(crate) fn manifest(&self, page: PageName) -> ObjectName {
        let name = format!("{:012}-{:012}{MANIFEST_EXTENSION}", page.first, page.last);
        ObjectName(self.prefix.clone().join(MANIFEST).join(name))
    }

    /// Manifest objects, in no order. Other names are passed over.
    pub(crate) async fn list_manifest(&self) -> Result<Vec<PageName>, LogError> {
        let folder = self.prefix.clone().join(MANIFEST);
        let mut listed = self.store.list(Some(&folder));
        let mut pages = Vec::new();
        loop {
            let next = self.within("list", &folder, async { listed.try_next().await }).await?;
            let Some(meta) = next else { return Ok(pages) };
            pages.extend(meta.location.filename().and_then(page_of));
        }
    }

    /// All of an object of at most `bytes_max` bytes; `None` when it does not exist.
    pub(crate) async fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Option<Bytes>, LogError> {
        match self.fetch(name, None, bytes_max).await {
            Ok((bytes, _)) => Ok(Some(bytes)),
            Err(Fetch::Missing) => Ok(None),
            Err(Fetch::Failed(error)) => Err(error),
        }
    }

    /// The last `bytes` of an object, or all of it where it is shorter, and its length; `None` when it does not exist.
    /// `len` is its length where that is known. Never asks for a suffix by its length alone: some stores refuse one that
    /// is longer than the object.
    pub(crate) async fn get_end(
        &self,
        name: &ObjectName,
        bytes: u64,
        len: Option<u64>,
    ) -> Result<Option<(Bytes, u64)>, LogError> {
        let len = match len {
            Some(len) => len,
            None => match self.attempt(self.store.head(&name.0)).await {
                Ok(meta) => meta.size,
                Err(Attempt::Store(StoreError::NotFound { .. })) => return Ok(None),
                Err(attempt) => return Err(self.failed("read", &name.0, attempt)),
            },
        };
        if len == 0 {
            return Ok(Some((Bytes::new(), 0)));
        }
        let range = GetRange::Bounded(len.saturating_sub(bytes)..len);
        match self.fetch(name, Some(range), bytes).await {
            Ok(found) => Ok(Some(found)),
            Err(Fetch::Missing) => Ok(None),
            Err(Fetch::Failed(error)) => Err(error),
        }
    }

    /// A range of an object, exactly.
    pub(crate) async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, LogError> {
        let wanted = range.end.saturating_sub(range.start);
        let bytes = match self.fetch(name, Some(GetRange::Bounded(range.clone())), wanted).await {
            Ok((bytes, _)) => bytes,
            Err(Fetch::Missing) => return Err(self.failed("read", &name.0, "the object is missing")),
            Err(Fetch::Failed(error)) => return Err(error),
        };
        if bytes.len() as u64 != wanted {
            let reason = format!("{} bytes came for {range:?}", bytes.len());
            return Err(self.failed("read", &name.0, reason));
        }
        Ok(bytes)
    }

    /// Puts an object that is not there yet.
    pub(crate) async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Created, LogError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.store.put_opts(&name.0, PutPayload::from_bytes(bytes), options);
        match self.attempt(put).await {
            Ok(_) => Ok(Created::Now),
            Err(Attempt::Store(StoreError::AlreadyExists { .. } | StoreError::Precondition { .. })) => {
                Ok(Created::Before)
            }
            Err(attempt) => Err(self.failed("put", &name.0, attempt)),
        }
    }

    /// Removes an object; one that is missing already is fine.
    pub(crate) async fn remove(&self, name: &ObjectName) -> Result<(), LogError> {
        match self.attempt(self.store.delete(&name.0)).await {
            Ok(()) | Err(Attempt::Store(StoreError::NotFound { .. })) => Ok(()),
            Err(attempt) => Err(self.failed("remove", &name.0, attempt)),
        }
    }

    /// Begins an upload in parts.
    pub(crate) async fn begin(&self, name: &ObjectName) -> Result<Box<dyn MultipartUpload>, LogError> {
        self.within("upload", &name.0, self.store.put_multipart(&name.0)).await
    }

    /// Waits for one step of an upload.
    pub(crate) async fn step<T>(
        &self,
        name: &ObjectName,
        step: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, LogError> {
        self.within("upload", &name.0, step).await
    }

    /// The store and an object in it, as errors name them.
    pub(crate) fn place(&self, name: &ObjectName) -> PathBuf {
        PathBuf::from(name.0.to_string())
    }

    /// An error of this store.
    pub(crate) fn error(&self, operation: &'static str, name: &ObjectName, reason: impl fmt::Display) -> LogError {
        self.failed(operation, &name.0, reason)
    }

    async fn fetch(&self, name: &ObjectName, range: Option<GetRange>, bytes_max: u64) -> Result<(Bytes, u64), Fetch> {
        let failed = |attempt: Attempt| match attempt {
            Attempt::Store(StoreError::NotFound { .. }) => Fetch::Missing,
            attempt => Fetch::Failed(self.failed("read", &name.0, attempt)),
        };
        let options = GetOptions { range, ..GetOptions::default() };
        let result = self.attempt(self.store.get_opts(&name.0, options)).await.map_err(failed)?;
        let (len, expected) = (result.meta.size, result.range.end.saturating_sub(result.range.start));
        let too_long =
            || Fetch::Failed(self.failed("read", &name.0, format!("more than {bytes_max} bytes were sent for it")));
        if expected > bytes_max {
            return Err(too_long());
        }
        let mut stream = result.into_stream();
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.attempt(async { stream.next().await.transpose() }).await.map_err(failed)? {
            if (bytes.len() + piece.len()) as u64 > bytes_max {
                return Err(too_long());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((bytes.freeze(), len))
    }

    async fn within<T>(
        &self,
        operation: &'static str,
        path: &ObjectPath,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, LogError> {
        self.attempt(call).await.map_err(|attempt| self.failed(operation, path, attempt))
    }

    async fn attempt<T>(&self, call: impl Future<Output = object_store::Result<T>>) -> Result<T, Attempt> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Attempt::Store(error)),
            Err(_) => Err(Attempt::TimedOut(self.timeout)),
        }
    }

    fn failed(&self, operation: &'static str, path: &ObjectPath, reason: impl fmt::Display) -> LogError {
        LogError::Archive { operation, object: format!("{path} in {}", self.store), reason: reason.to_string() }
    }
}

enum Fetch {
    Missing,
    Failed(LogError),
}

#[derive(Debug, thiserror::Error)]
enum Attempt {
    #[error("{0}")]
    Store(StoreError),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
}

fn page_of(name: &str) -> Option<PageName> {
    let (first, last) = name.strip_suffix(MANIFEST_EXTENSION)?.split_once('-')?;
    let is_number = |text: &str| text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(first) || !is_number(last) {
        return None;
    }
    let page = PageName { first: first.parse().ok()?, last: last.parse().ok()? };
    (page.first > 0 && page.first <= page.last).then_some(page)
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[test]
    fn names() {
        let store = ArchiveStore::new(Arc::new(InMemory::new()), ObjectPath::from("a/b"), Duration::from_secs(1));
        assert_eq!(
            store.segment(Lsn(7), Salt(0xfe)).to_string(),
            "a/b/segments/00000000000000000007-00000000000000fe.wal.archive"
        );
        let page = PageName { first: 1, last: 12 };
        let name = store.manifest(page);
        assert_eq!(name.to_string(), "a/b/manifest/000000000001-000000000012.manifest");
        assert_eq!(page_of(name.0.filename().unwrap()), Some(page));
        for other in ["x.manifest", "000000000002-000000000001.manifest", "000000000001-000000000012", "1-2.manifest"] {
            assert_eq!(page_of(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn more_bytes_than_allowed_are_refused() {
        let store = ArchiveStore::new(Arc::new(InMemory::new()), ObjectPath::from("x"), Duration::from_secs(1));
        let name = store.manifest(PageName { first: 1, last: 1 });
        assert!(store.get(&name, 10).await.unwrap().is_none());
        assert_eq!(store.create(&name, Bytes::from_static(b"12345")).await.unwrap(), Created::Now);
        assert_eq!(store.create(&name, Bytes::from_static(b"54321")).await.unwrap(), Created::Before);
        assert_eq!(store.get(&name, 5).await.unwrap().unwrap(), "12345");
        assert!(store.get(&name, 4).await.unwrap_err().to_string().contains("more than 4 bytes"));
        for len in [None, Some(5)] {
            assert_eq!(store.get_end(&name, 2, len).await.unwrap().unwrap(), (Bytes::from_static(b"45"), 5));
            assert_eq!(store.get_end(&name, 9, len).await.unwrap().unwrap(), (Bytes::from_static(b"12345"), 5));
        }
        assert!(store.get_range(&name, 3..9).await.is_err());
    }
}
