//! Where backups lie, and the names of everything there.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use object_store::{ObjectStore, local::LocalFileSystem, memory::InMemory, path::Path as ObjectPath};
use tailrace_wal::SystemDisk;
use url::Url;

use super::manifest::BackupId;
use crate::{EngineError, Result, archive::open_bucket, space::is_no_space, store::open_shared_folder};

/// Folder of the Parquet files, below it `<database>/<table>/<partition>/<file>.parquet`.
const DATA: &str = "data";
/// Folder of the manifests.
const BACKUPS: &str = "backups";
/// Folder of what is under way.
const RUNNING: &str = "running";
const MANIFEST_EXTENSION: &str = ".json";

/// A folder or a prefix in a bucket that holds backups.
#[derive(Debug, Clone)]
pub struct BackupLocation {
    shown: String,
    store: Arc<dyn ObjectStore>,
    prefix: ObjectPath,
    folder: Option<PathBuf>,
}

impl BackupLocation {
    /// Opens a location for writing; a folder is created. `file:///folder` or `s3://bucket/prefix`, the latter with
    /// endpoint and credentials from the environment as for `wal.archive`. Blocks.
    pub fn create(url: &Url) -> Result<Self> {
        match folder_of(url)? {
            Some(folder) => {
                let store = open_shared_folder(&folder, SystemDisk::shared())?;
                Ok(Self { shown: url.to_string(), store, prefix: ObjectPath::default(), folder: Some(folder) })
            }
            None => Self::bucket(url),
        }
    }

    /// Opens a location for reading. A folder has to be there. Blocks.
    pub fn open(url: &Url) -> Result<Self> {
        match folder_of(url)? {
            Some(folder) => {
                let store = LocalFileSystem::new_with_prefix(&folder).map_err(|error| EngineError::Storage {
                    operation: "open backups",
                    object: url.to_string(),
                    reason: error.to_string(),
                })?;
                let store = Arc::new(store) as Arc<dyn ObjectStore>;
                Ok(Self { shown: url.to_string(), store, prefix: ObjectPath::default(), folder: Some(folder) })
            }
            None => Self::bucket(url),
        }
    }

    /// Opens a location for looking: one that is not there has nothing. Blocks.
    pub fn look(url: &Url) -> Result<Self> {
        match folder_of(url)? {
            Some(folder) if !folder.exists() => Ok(Self::over(Arc::new(InMemory::new()), url.to_string())),
            _ => Self::open(url),
        }
    }

    /// A location in any store. What the store says it has put must be durable, and `PutMode::Create` must never
    /// replace anything.
    pub fn over(store: Arc<dyn ObjectStore>, shown: impl Into<String>) -> Self {
        Self { shown: shown.into(), store, prefix: ObjectPath::default(), folder: None }
    }

    fn bucket(url: &Url) -> Result<Self> {
        let (store, prefix) = open_bucket(url)?;
        Ok(Self { shown: url.to_string(), store, prefix, folder: None })
    }

    pub(super) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Where it is on this machine.
    pub(super) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The object under a name of this location.
    pub(super) fn object(&self, name: &str) -> Result<ObjectPath> {
        let wrong = || EngineError::Invalid(format!("{name:?} is no name of a file of a backup"));
        let whole = match self.prefix.as_ref() {
            "" => name.to_owned(),
            prefix => format!("{prefix}/{name}"),
        };
        // `Path::from` would escape the escapes of partitions once more.
        ObjectPath::parse(&whole).ok().filter(|path| path.as_ref() == whole).ok_or_else(wrong)
    }

    /// The name of an object of this location.
    pub(super) fn name(&self, object: &ObjectPath) -> Option<String> {
        let whole = object.as_ref();
        match self.prefix.as_ref() {
            "" => Some(whole.to_owned()),
            prefix => Some(whole.strip_prefix(prefix)?.strip_prefix('/')?.to_owned()),
        }
    }

    pub(super) fn data(&self) -> Result<ObjectPath> {
        self.object(DATA)
    }

    pub(super) fn manifests(&self) -> Result<ObjectPath> {
        self.object(BACKUPS)
    }

    pub(super) fn running(&self) -> Result<ObjectPath> {
        self.object(RUNNING)
    }

    /// An error of this location.
    pub(super) fn failed(&self, operation: &'static str, name: &str, error: &object_store::Error) -> EngineError {
        let object = format!("{name} of backups at {}", self.shown);
        match is_no_space(error) {
            true => EngineError::Full { object, reason: error.to_string() },
            false => EngineError::Storage { operation, object, reason: error.to_string() },
        }
    }
}

impl fmt::Display for BackupLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// Name of a file of rows. `path` is below the root of some store.
pub(super) fn data_name(path: &str) -> String {
    format!("{DATA}/{path}")
}

/// Whether a manifest may name this as a file of rows.
pub(super) fn is_data_name(name: &str) -> bool {
    let below = name.strip_prefix(DATA).and_then(|rest| rest.strip_prefix('/'));
    below.is_some_and(|path| !path.is_empty() && path.len() <= 4096)
}

/// Name of a backup's manifest.
pub(super) fn manifest_name(id: &BackupId) -> String {
    format!("{BACKUPS}/{id}{MANIFEST_EXTENSION}")
}

/// The backup whose manifest has this name.
pub(super) fn backup_of(name: &str) -> Option<BackupId> {
    let file = name.strip_prefix(BACKUPS)?.strip_prefix('/')?;
    file.strip_suffix(MANIFEST_EXTENSION)?.parse().ok()
}

/// Name of a mark.
pub(super) fn mark_name(mark: &str) -> String {
    format!("{RUNNING}/{mark}")
}

/// The folder of a `file` URL; `None` for a bucket.
fn folder_of(url: &Url) -> Result<Option<PathBuf>> {
    match url.scheme() {
        "file" => url.to_file_path().map(Some).map_err(|()| {
            EngineError::Invalid(format!("{url} is no absolute path on this machine; write file:///folder"))
        }),
        "s3" if !url.username().is_empty() || url.password().is_some() || url.query().is_some() => {
            Err(EngineError::Invalid(
                "the URL of a backup holds credentials; they belong into the server's environment (AWS_ACCESS_KEY_ID, \
                 AWS_SECRET_ACCESS_KEY)"
                    .to_owned(),
            ))
        }
        "s3" if url.host_str().is_some_and(|bucket| !bucket.is_empty()) => Ok(None),
        "s3" => Err(EngineError::Invalid(format!("{url} names no bucket; write s3://bucket/prefix"))),
        scheme => {
            Err(EngineError::Unsupported(format!("a backup at a URL with scheme {scheme:?} (file:/// and s3:// are)")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_apart_and_secrets_are_refused_unseen() {
        for (text, wanted) in [
            ("s3:///x", "bucket"),
            ("gs://bucket/x", "\"gs\""),
            ("file://host/x", "file:///"),
            ("s3://key:secret@bucket/x", "credentials"),
            ("s3://bucket/x?sig=secret", "credentials"),
        ] {
            let error = folder_of(&text.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains("secret@") && !error.contains("sig="), "{error}");
        }
        assert_eq!(folder_of(&"file:///a/b".parse().unwrap()).unwrap(), Some("/a/b".into()));
        assert_eq!(folder_of(&"s3://bucket/b".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn names_within_a_prefix() {
        let store = Arc::new(object_store::memory::InMemory::new());
        let mut location = BackupLocation::over(store, "memory");
        location.prefix = ObjectPath::from("a/b");
        let name = data_name("market/bars/v=a%2Fb/0.parquet");
        let object = location.object(&name).unwrap();
        assert_eq!(object.as_ref(), "a/b/data/market/bars/v=a%2Fb/0.parquet");
        assert_eq!(location.name(&object), Some(name));
        for wrong in ["../x", "a//b", "", "/a"] {
            location.object(wrong).unwrap_err();
        }
    }
}
