//! The disk behind the log's seam: every call is recorded, shown, and done or failed.

use std::{
    io::{self, ErrorKind, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use rand::Rng;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    super::{
        content::File,
        fault::{Failure, FaultClass},
        names::Entry,
    },
    SimulatedDisk,
    call::{Call, CallKind},
    state::{Fate, State},
};
use crate::{Disk, DiskFile, DiskLock, FileOffset};

#[derive(Debug)]
struct Handle {
    disk: SimulatedDisk,
    path: PathBuf,
    file: usize,
    is_writable: bool,
    boot: u64,
}

/// Gives a lock back.
#[derive(Debug)]
struct Locked {
    disk: SimulatedDisk,
    path: PathBuf,
    boot: u64,
}

impl SimulatedDisk {
    /// Records a call, shows it, and decides whether it fails.
    fn call(&self, kind: CallKind, path: &Path, offset: u64, bytes: Result<&[u8], usize>) -> Fate {
        let (len, hash) = match bytes {
            Ok(bytes) => (bytes.len(), xxh3_64(bytes)),
            Err(len) => (len, 0),
        };
        let call = {
            let mut state = self.shared.state.lock();
            if state.is_off {
                return Fate::Fails(io::Error::other("the power is off"), Failure::Broken);
            }
            let call = Call { number: state.calls, kind, path: path.into(), offset: FileOffset(offset), len, hash };
            state.note(&call);
            call
        };
        if kind.changes() {
            let observer = self.shared.observer.lock().clone();
            if let Some(observer) = observer {
                observer(self, &call);
            }
        }
        self.shared.state.lock().decide(kind)
    }

    /// As [`SimulatedDisk::call`], of a call that does nothing when it fails.
    fn check(&self, kind: CallKind, path: &Path) -> io::Result<()> {
        match self.call(kind, path, 0, Err(0)) {
            Fate::Done => Ok(()),
            Fate::Fails(error, _) => Err(error),
        }
    }

    fn handle(&self, path: &Path, file: usize, is_writable: bool, boot: u64) -> Arc<dyn DiskFile> {
        Arc::new(Handle { disk: self.clone(), path: path.into(), file, is_writable, boot })
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.check(CallKind::Create, path)?;
        let mut state = self.shared.state.lock();
        if state.reserve(1).is_err() {
            return Err(ErrorKind::StorageFull.into());
        }
        let file = state.files.len();
        state.names.create(path, Entry::File(file))?;
        state.files.push(File::default());
        Ok(self.handle(path, file, true, state.boot))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.check(CallKind::Open, path)?;
        let state = self.shared.state.lock();
        Ok(self.handle(path, state.file_of(path)?, write, state.boot))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let (missing, there): (Vec<_>, Vec<_>) = {
            let state = self.shared.state.lock();
            path.ancestors().map(Path::to_path_buf).partition(|ancestor| !state.names.is_dir(ancestor))
        };
        if let Some(parent) = there.first().and_then(|there| there.parent()) {
            self.sync_dir(parent)?;
        }
        for folder in missing.iter().rev() {
            self.check(CallKind::CreateDir, folder)?;
            self.shared.state.lock().names.create(folder, Entry::Dir)?;
            self.sync_dir(folder.parent().unwrap_or(Path::new("")))?;
        }
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check(CallKind::CreateDir, path)?;
        self.shared.state.lock().names.create(path, Entry::Dir)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(CallKind::Link, to)?;
        let mut state = self.shared.state.lock();
        let file = state.file_of(from)?;
        state.names.create(to, Entry::File(file))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.check(CallKind::List, path)?;
        self.shared.state.lock().names.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check(CallKind::Remove, path)?;
        let mut state = self.shared.state.lock();
        let file = state.file_of(path)?;
        state.names.remove(path)?;
        let content = state.files[file].cached.clone();
        state.release(content);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(CallKind::Rename, to)?;
        let mut state = self.shared.state.lock();
        let replaced = state.names.file(to);
        state.names.rename(from, to)?;
        if let Some(file) = replaced {
            let content = state.files[file].cached.clone();
            state.release(content);
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(CallKind::SyncDir, path)?;
        self.shared.state.lock().names.sync(path)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.check(CallKind::Lock, path)?;
        let mut state = self.shared.state.lock();
        if !state.locks.insert(path.into()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(DiskLock::of(Locked { disk: self.clone(), path: path.into(), boot: state.boot }))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut state = self.disk.shared.state.lock();
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

impl Handle {
    /// Does `change` to the file, unless it was opened before a loss of power.
    fn with<R>(&self, change: impl FnOnce(&mut State, usize) -> io::Result<R>) -> io::Result<R> {
        let mut state = self.disk.shared.state.lock();
        if state.boot != self.boot {
            return Err(io::Error::other("opened before a loss of power"));
        }
        change(&mut state, self.file)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }

    fn sync(&self, kind: CallKind) -> io::Result<()> {
        match self.disk.call(kind, &self.path, 0, Err(0)) {
            Fate::Done => self.with(|state, file| {
                state.files[file].sync();
                Ok(())
            }),
            Fate::Fails(error, Failure::DropsPages) => {
                self.with(|state, file| {
                    let State { files, random, counts, .. } = state;
                    if files[file].drop_pages(random) {
                        counts.add(FaultClass::DroppedPages);
                    }
                    Ok(())
                })?;
                Err(error)
            }
            Fate::Fails(error, _) => Err(error),
        }
    }
}

impl DiskFile for Handle {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        let fate = self.disk.call(CallKind::Write, &self.path, offset, Ok(&bytes));
        self.with(|state, file| {
            let mut result = Ok(());
            if let Fate::Fails(error, _) = fate {
                bytes.truncate(state.random.random_range(0..=bytes.len()));
                result = Err(error);
            }
            let more = (offset + bytes.len() as u64).saturating_sub(state.files[file].cached.len);
            if let Err(free) = state.reserve(more) {
                bytes.truncate(bytes.len() - (more - free) as usize);
                result = Err(ErrorKind::StorageFull.into());
            }
            let call = state.calls;
            state.files[file].write(&bytes, offset, call);
            result
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.disk.call(CallKind::Read, &self.path, offset, Err(buffer.len())) {
            Fate::Done => self.with(|state, file| Ok(state.files[file].cached.read(buffer, offset))),
            Fate::Fails(error, _) => Err(error),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(CallKind::SyncData)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(CallKind::SyncAll)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.check(CallKind::Len, &self.path)?;
        self.with(|state, file| Ok(state.files[file].cached.len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        match self.disk.call(CallKind::SetLen, &self.path, len, Err(0)) {
            Fate::Done => self.with(|state, file| {
                let before = state.files[file].cached.clone();
                if len < before.len {
                    state.release(before);
                } else if state.reserve(len - before.len).is_err() {
                    return Err(ErrorKind::StorageFull.into());
                }
                state.files[file].set_len(len);
                Ok(())
            }),
            Fate::Fails(error, _) => Err(error),
        }
    }
}
