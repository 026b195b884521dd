//! A reserve: a file of real bytes that is given back when the disk is full, so that what leads out of a full disk
//! (a checkpoint, a flush, a truncation) finds space.

use std::{
    io::{self, ErrorKind, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::{Clock, CommitTime, Disk, LogError, error::io_error};

/// Of the file system at most this part is reserved: a small one is there for data.
const PART_OF_DISK: u64 = 16;
/// The reserve is made only where this many times its size is free: beside it, the node needs some to go on.
const FREE_FACTOR: u64 = 2;
const BLOCK_BYTES: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub struct Reserve {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    folder: PathBuf,
    wanted: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes of the file; 0 when there is none.
    held: u64,
    /// Since when and why there is none, if that is for want of space.
    released: Option<(CommitTime, String)>,
}

/// A reserve, for `system.disk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReserveStatus {
    /// Its file.
    pub path: PathBuf,
    /// Bytes that are there.
    pub held_bytes: u64,
    /// Bytes that the settings ask for; of a small file system a part of it only is taken.
    pub wanted_bytes: u64,
    /// Since when and why it is not there, if the disk is full.
    pub released: Option<(CommitTime, String)>,
}

impl Reserve {
    /// The reserve in a folder, as an earlier run left it. `bytes` is what the settings ask for, 0 for none. Nothing is
    /// written: [`Reserve::make`] does that. Without a reserve and without space for one it is released. Blocks.
    pub fn open(disk: Arc<dyn Disk>, clock: Arc<dyn Clock>, folder: &Path, bytes: u64) -> Self {
        let path = folder.join(NAME);
        let held = disk.open(&path, false).and_then(|file| file.len()).unwrap_or(0);
        let mut state = State { held, released: None };
        // Known at once, so that a start does not take for its clients what an earlier run gave back.
        if held == 0
            && bytes > 0
            && let Ok(space) = disk.space(folder)
            && space.available < FREE_FACTOR * bytes.min(space.total / PART_OF_DISK)
        {
            let why = format!("{} had {} bytes free at this node's start", folder.display(), space.available);
            state.released = Some((clock.now(), why));
        }
        let state = Mutex::new(state);
        Self { disk, clock, folder: folder.to_owned(), wanted: bytes, state }
    }

    /// Gives the space back. `true` when there was some. Writes nothing; blocks.
    pub fn release(&self, why: &str) -> bool {
        let mut state = self.state.lock();
        if self.wanted == 0 && state.held == 0 {
            return false;
        }
        if state.released.is_none() {
            state.released = Some((self.clock.now(), why.to_owned()));
        }
        if state.held == 0 {
            return false;
        }
        let path = self.path();
        match self.disk.remove(&path).and_then(|()| self.disk.sync_dir(&self.folder)) {
            Ok(()) => {
                tracing::warn!(
                    "the reserve {} of {} bytes is released: {why}; writes of clients are refused until there is space",
                    path.display(),
                    state.held
                );
                state.held = 0;
                true
            }
            Err(error) => {
                tracing::error!("the reserve {} could not be released: {error}", path.display());
                false
            }
        }
    }

    /// Makes the reserve where it is not there and there is space for it. Returns whether all is as it should be.
    /// Blocks while it writes.
    pub fn make(&self) -> Result<bool, LogError> {
        let mut state = self.state.lock();
        let space = self.disk.space(&self.folder).ok();
        let size = space.map_or(self.wanted, |space| self.wanted.min(space.total / PART_OF_DISK));
        if state.held == size {
            state.released = None;
            return Ok(true);
        }
        let path = self.path();
        if state.held > 0 && size == 0 {
            self.disk.remove(&path).map_err(|error| io_error("remove", &path, error))?;
            (state.held, state.released) = (0, None);
            return Ok(true);
        }
        if let Some(space) = space
            && space.available + state.held < FREE_FACTOR * size
        {
            let why = format!(
                "{} has {} bytes free, less than {FREE_FACTOR} times the reserve of {size}",
                self.folder.display(),
                space.available
            );
            if state.held == 0 && state.released.is_none() {
                tracing::warn!("no reserve is made: {why}; writes of clients are refused until there is space");
                state.released = Some((self.clock.now(), why));
            }
            return Ok(state.released.is_none());
        }
        match self.write(&path, size) {
            Ok(()) => {
                tracing::info!("the reserve {} of {size} bytes is there", path.display());
                (state.held, state.released) = (size, None);
                Ok(true)
            }
            Err(error) if is_no_space(&error) => {
                if state.released.is_none() {
                    tracing::warn!("no reserve is made: {}: {error}", path.display());
                    state.released = Some((self.clock.now(), format!("there was no space to make it: {error}")));
                }
                Ok(false)
            }
            Err(error) => Err(io_error("make", &path, error)),
        }
    }

    /// Whether it is not there for want of space.
    pub fn is_released(&self) -> bool {
        self.state.lock().released.is_some()
    }

    /// How it stands.
    pub fn status(&self) -> ReserveStatus {
        let state = self.state.lock();
        ReserveStatus {
            path: self.path(),
            held_bytes: state.held,
            wanted_bytes: self.wanted,
            released: state.released.clone(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// Writes the file under another name first: what has the name is whole.
    fn write(&self, path: &Path, size: u64) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let made = (|| {
            match self.disk.remove(&temporary) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = self.disk.create(&temporary)?;
            let mut at = 0;
            while at < size {
                let block = content(at, BLOCK_BYTES.min(size - at));
                file.write_all_vectored_at(&mut [IoSlice::new(&block)], at)?;
                at += block.len() as u64;
            }
            file.sync_all()?;
            self.disk.rename(&temporary, path)?;
            self.disk.sync_dir(&self.folder)
        })();
        if made.is_err() {
            // What is in the way of the next attempt is removed by it.
            let _ = self.disk.remove(&temporary);
        }
        made
    }
}

/// Name of the file in its folder.
const NAME: &str = "reserve";

/// Bytes that no file system compresses or leaves out.
fn content(at: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len as usize + 16);
    let mut counter = at;
    while (bytes.len() as u64) < len {
        bytes.extend_from_slice(&xxh3_128_with_seed(b"reserve", counter).to_le_bytes());
        counter += 16;
    }
    bytes.truncate(len as usize);
    bytes
}

/// Whether a call failed for want of space.
pub(crate) fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SystemClock, SystemDisk};

    fn reserve(folder: &Path, bytes: u64) -> Reserve {
        Reserve::open(SystemDisk::shared(), SystemClock::shared(), folder, bytes)
    }

    #[test]
    fn it_is_made_of_real_bytes_released_once_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(NAME);
        let held = reserve(dir.path(), 3 << 20);
        assert!(!file.exists() && !held.is_released());
        assert!(held.make().unwrap() && held.make().unwrap());
        use std::os::unix::fs::MetadataExt as _;
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 3 << 20);
        assert!(metadata.blocks() * 512 >= 3 << 20, "it is sparse");
        assert!(held.release("the disk is full"));
        assert!(!held.release("the disk is full"), "only once");
        assert!(!file.exists() && held.is_released());
        assert_eq!(held.status().released.unwrap().1, "the disk is full");
        assert!(held.make().unwrap());
        assert!(file.exists() && !held.is_released());
        // A restart finds it, and another size is another file.
        assert_eq!(reserve(dir.path(), 3 << 20).status().held_bytes, 3 << 20);
        assert!(reserve(dir.path(), 1 << 20).make().unwrap());
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        assert!(reserve(dir.path(), 0).make().unwrap());
        assert!(!file.exists());
        assert!(!reserve(dir.path(), 0).release("none") && !reserve(dir.path(), 0).is_released());
    }
}
