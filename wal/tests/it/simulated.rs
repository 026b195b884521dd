//! A disk in memory that fails where it is told to and loses what was not synced.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{Rng, rngs::StdRng};
use tailrace_wal::{Disk, DiskFile, DiskLock};

const SECTOR: usize = 512;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The call fails; of a write, a part was done.
    Broken,
    /// A call that needs space fails; of a write, a part was done.
    Full,
}

/// The disk. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<File>,
    names: BTreeMap<PathBuf, usize>,
    names_synced: BTreeMap<PathBuf, usize>,
    calls: usize,
    fault: Option<(usize, Fault)>,
    fired: Option<&'static str>,
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug)]
struct Handle {
    state: Arc<Mutex<State>>,
    file: usize,
}

impl SimulatedDisk {
    /// The changing call number `at`, from 0, fails.
    pub(crate) fn fail_at(&self, at: usize, fault: Fault) {
        let mut state = self.state.lock();
        state.fault = Some((state.calls + at, fault));
        state.fired = None;
    }

    /// Which call failed, if any did.
    pub(crate) fn fired(&self) -> Option<&'static str> {
        self.state.lock().fired
    }

    /// Loses power: of what was not synced, some sectors and names are there, some are not.
    pub(crate) fn crash(&self, random: &mut StdRng) {
        let mut state = self.state.lock();
        state.fault = None;
        if random.random() {
            state.names = state.names_synced.clone();
        }
        state.names_synced = state.names.clone();
        let keep = [0.0, 0.5, 0.9, 1.0][random.random_range(0..4)];
        for file in &mut state.files {
            let (short, long) = (file.bytes.len().min(file.synced.len()), file.bytes.len().max(file.synced.len()));
            let len = match random.random_range(0..3) {
                0 => file.synced.len(),
                1 => file.bytes.len(),
                _ => random.random_range(short..=long),
            };
            let mut after = file.synced.clone();
            after.resize(len, 0);
            for start in (0..len).step_by(SECTOR) {
                let end = (start + SECTOR).min(len).min(file.bytes.len());
                if start < end && random.random_bool(keep) {
                    after[start..end].copy_from_slice(&file.bytes[start..end]);
                }
            }
            file.bytes = after.clone();
            file.synced = after;
        }
    }
}

impl State {
    fn call(&mut self, name: &'static str, needs_space: bool) -> Result<(), io::Error> {
        let at = self.calls;
        self.calls += 1;
        match self.fault {
            Some((when, Fault::Broken)) if when == at => {
                self.fired = Some(name);
                Err(io::Error::other("injected failure"))
            }
            // A disk without space stays so until the next call that needs none of it is past.
            Some((when, Fault::Full)) if at >= when && needs_space && self.fired.is_none() => {
                self.fired = Some(name);
                Err(ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| ErrorKind::NotFound.into())
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        state.call("create", true)?;
        if state.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let file = state.files.len();
        state.files.push(File::default());
        state.names.insert(path.into(), file);
        Ok(Arc::new(Handle { state: self.state.clone(), file }))
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.state.lock().find(path)?;
        Ok(Arc::new(Handle { state: self.state.clone(), file }))
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.state.lock().names.keys().filter(|name| name.parent() == Some(path)).cloned().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call("remove", false)?;
        state.names.remove(path).map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call("rename", false)?;
        let file = state.names.remove(from).ok_or(ErrorKind::NotFound)?;
        state.names.insert(to.into(), file);
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call("sync_dir", false)?;
        state.names_synced = state.names.clone();
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<DiskLock> {
        Ok(DiskLock::none())
    }
}

impl Handle {
    fn sync(&self, name: &'static str) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call(name, false)?;
        let file = &mut state.files[self.file];
        file.synced = file.bytes.clone();
        Ok(())
    }
}

impl DiskFile for Handle {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut bytes = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        let result = state.call("write", true);
        if result.is_err() {
            bytes.truncate(bytes.len() / 2);
        }
        let start = offset as usize;
        let file = &mut state.files[self.file].bytes;
        if file.len() < start + bytes.len() {
            file.resize(start + bytes.len(), 0);
        }
        file[start..start + bytes.len()].copy_from_slice(&bytes);
        result
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.state.lock();
        let file = &state.files[self.file].bytes;
        let start = (offset as usize).min(file.len());
        let count = buffer.len().min(file.len() - start);
        buffer[..count].copy_from_slice(&file[start..start + count]);
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync("sync_data")
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync("sync_all")
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().files[self.file].bytes.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.call("set_len", false)?;
        state.files[self.file].bytes.resize(len as usize, 0);
        Ok(())
    }
}
