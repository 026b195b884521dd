//! The disk seam: the few calls that log, manifest and datafiles need, so that tests can put a hostile disk beneath them.

mod system;

use std::{
    fmt::Debug,
    fs::File,
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

pub use system::SystemDisk;

/// A file system, as far as it is used here. All calls block.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Whether paths name files of this machine's own file system, which others can open beside this seam.
    fn is_local(&self) -> bool {
        false
    }
    /// Creates a file that must not exist yet, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file; `write` asks for write access too.
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a folder and its missing ancestors. The folder's entry is durable then, also when it was there before.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Creates one folder in an existing one, without making it durable. `AlreadyExists` when it is there.
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Gives a file one more name, without making it durable. `AlreadyExists` when the name is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let _ = (from, to);
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Files and folders in a folder, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file over another.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the folder's entries durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Creates the file if it is missing and locks it against other processes and other logs of this one, until the
    /// returned guard is dropped. An error of kind `WouldBlock` when it is locked already.
    fn lock(&self, path: &Path) -> io::Result<DiskLock>;
    /// How much space the file system of a folder has. An error of kind `Unsupported` where that cannot be known.
    fn space(&self, _folder: &Path) -> io::Result<DiskSpace> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Space of a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// All of it.
    pub total: u64,
    /// What this process may still write.
    pub available: u64,
}

/// Holds a lock on a file until it is dropped.
#[derive(Debug)]
pub struct DiskLock {
    _guard: Option<Box<dyn Guard>>,
}

/// Anything that ends a lock when it is dropped.
trait Guard: Debug + Send + Sync {}

impl<T: Debug + Send + Sync> Guard for T {}

impl DiskLock {
    /// A guard over a locked file.
    pub fn new(file: File) -> Self {
        Self { _guard: Some(Box::new(file)) }
    }

    /// A guard that ends the lock when `guard` is dropped.
    #[cfg(feature = "simulation")]
    pub(crate) fn of(guard: impl Debug + Send + Sync + 'static) -> Self {
        Self { _guard: Some(Box::new(guard)) }
    }

    /// A guard over nothing, for disks that exist only in memory.
    pub fn none() -> Self {
        Self { _guard: None }
    }
}

/// An open file. Reads and writes carry their offset, so one handle serves many readers.
pub trait DiskFile: Debug + Send + Sync + 'static {
    /// Writes all of `slices` at `offset`. After an error, any part may have been written.
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes at `offset`; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// fdatasync.
    fn sync_data(&self) -> io::Result<()>;
    /// fsync.
    fn sync_all(&self) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
}
