//! Reads of the store.

use std::{
    fmt,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    GetOptions, GetResult, ListResult, ObjectMeta, ObjectStore, local::LocalFileSystem, path::Path as ObjectPath,
};
use tailrace_wal::Disk;

#[cfg(feature = "simulation")]
use crate::simulation::DiskReader;

/// Where files are read: beside the seam where they are this machine's own, so that readers get at them by themselves.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    Local(Arc<LocalFileSystem>),
    #[cfg(feature = "simulation")]
    Simulated(DiskReader),
}

impl Reader {
    pub(super) fn open(root: &Path, disk: Arc<dyn Disk>) -> object_store::Result<Self> {
        #[cfg(feature = "simulation")]
        if !disk.is_local() {
            return Ok(Self::Simulated(DiskReader::new(root, disk)));
        }
        drop(disk);
        Ok(Self::Local(Arc::new(LocalFileSystem::new_with_prefix(root)?)))
    }

    pub(super) fn path(&self, location: &ObjectPath) -> object_store::Result<PathBuf> {
        match self {
            Self::Local(files) => files.path_to_filesystem(location),
            #[cfg(feature = "simulation")]
            Self::Simulated(files) => Ok(files.path(location)),
        }
    }

    pub(super) async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> object_store::Result<GetResult> {
        match self {
            Self::Local(files) => files.get_opts(location, options).await,
            #[cfg(feature = "simulation")]
            Self::Simulated(files) => files.get(location, options),
        }
    }

    pub(super) async fn get_ranges(
        &self,
        location: &ObjectPath,
        ranges: &[Range<u64>],
    ) -> object_store::Result<Vec<Bytes>> {
        match self {
            Self::Local(files) => files.get_ranges(location, ranges).await,
            #[cfg(feature = "simulation")]
            Self::Simulated(files) => ranges.iter().map(|range| files.read(location, range.clone())).collect(),
        }
    }

    pub(super) fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self {
            Self::Local(files) => files.list(prefix),
            #[cfg(feature = "simulation")]
            Self::Simulated(files) => files.list(prefix),
        }
    }

    pub(super) async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> object_store::Result<ListResult> {
        match self {
            Self::Local(files) => files.list_with_delimiter(prefix).await,
            #[cfg(feature = "simulation")]
            Self::Simulated(_) => Err(object_store::Error::NotImplemented {
                operation: "list with delimiter".to_owned(),
                implementer: "the simulated store".to_owned(),
            }),
        }
    }
}

impl fmt::Display for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(files) => files.fmt(f),
            #[cfg(feature = "simulation")]
            Self::Simulated(files) => files.fmt(f),
        }
    }
}
