//! A disk that says it has synced and has not.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use tailrace_wal::{Disk, DiskFile, DiskLock};

/// What is not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forgets {
    Files,
    Folders,
}

#[derive(Debug)]
pub(super) struct ForgetfulDisk {
    below: Arc<dyn Disk>,
    forgets: Forgets,
}

#[derive(Debug)]
struct ForgetfulFile {
    below: Arc<dyn DiskFile>,
}

impl ForgetfulDisk {
    pub(super) fn shared(below: Arc<dyn Disk>, forgets: Forgets) -> Arc<dyn Disk> {
        Arc::new(Self { below, forgets })
    }
}

impl Disk for ForgetfulDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let below = self.below.create(path)?;
        Ok(if self.forgets == Forgets::Files { Arc::new(ForgetfulFile { below }) } else { below })
    }
    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.below.open(path, write)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
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
        if self.forgets == Forgets::Folders { Ok(()) } else { self.below.sync_dir(path) }
    }
    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.below.lock(path)
    }
}

impl DiskFile for ForgetfulFile {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.below.write_all_vectored_at(slices, offset)
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.below.read_at(buffer, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }
}
