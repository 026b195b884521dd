//! The machine's file system.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, IoSlice, Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Disk, DiskFile, DiskLock, DiskSpace};

/// The machine's file system.
#[derive(Debug)]
pub struct SystemDisk {
    _private: (),
}

impl SystemDisk {
    /// A handle to it.
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self { _private: () })
    }
}

impl Disk for SystemDisk {
    fn is_local(&self) -> bool {
        true
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(SystemFile { file, cursor: Mutex::new(()) }))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(write).open(path)?;
        Ok(Arc::new(SystemFile { file, cursor: Mutex::new(()) }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let missing = path.ancestors().take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists());
        let missing: Vec<_> = missing.collect();
        // One after the other, so that only the last folder there may not be durable: an earlier attempt got so far,
        // or someone else made it.
        match path.ancestors().nth(missing.len()).map(|there| self.sync_parent(there)) {
            // Not made by this process then.
            Some(Err(error)) if error.kind() == ErrorKind::PermissionDenied => {}
            Some(result) => result?,
            None => {}
        }
        for folder in missing.into_iter().rev() {
            match std::fs::create_dir(folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                result => result?,
            }
            self.sync_parent(folder)?;
        }
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(DiskLock::new(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn space(&self, folder: &Path) -> io::Result<DiskSpace> {
        let found = rustix::fs::statvfs(folder)?;
        Ok(DiskSpace { total: found.f_blocks * found.f_frsize, available: found.f_bavail * found.f_frsize })
    }
}

impl SystemDisk {
    /// Makes a folder's own entry durable.
    fn sync_parent(&self, folder: &Path) -> io::Result<()> {
        match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.sync_dir(parent),
            Some(_) => self.sync_dir(Path::new(".")),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct SystemFile {
    file: File,
    /// Held while the file's own cursor is moved: there is no stable vectored write at an offset.
    cursor: Mutex<()>,
}

impl DiskFile for SystemFile {
    fn write_all_vectored_at(&self, mut slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let _cursor = self.cursor.lock();
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            // The standard library passes at most IOV_MAX slices to the system at once.
            match file.write_vectored(slices) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut slices, count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}
