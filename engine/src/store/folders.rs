//! Folders whose entries are durable.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use object_store::Error;
use parking_lot::Mutex;
use tailrace_wal::Disk;

use super::Sharing;

/// A call that failed. The cause stays what it is: want of space is told from other failures by it.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {path}: {source}", path = .path.display())]
struct Failed {
    operation: String,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn failed(operation: &str, path: &Path, source: io::Error) -> Error {
    let failed = Failed { operation: operation.to_owned(), path: path.to_owned(), source };
    Error::Generic { store: "durable", source: Box::new(failed) }
}

/// Creates folders and links files into them, and knows which folders are durable already.
#[derive(Debug)]
pub(super) struct Folders {
    pub(super) disk: Arc<dyn Disk>,
    /// Folders whose own names were synced since start. One that merely exists may have been created by another
    /// upload a moment ago, whose sync is still to come.
    durable: Mutex<HashSet<PathBuf>>,
    /// Random where others stage in the same folder.
    writer: u64,
    staged: AtomicU64,
}

impl Folders {
    pub(super) fn new(disk: Arc<dyn Disk>, sharing: Sharing) -> Self {
        let writer = match sharing {
            Sharing::Alone => 0,
            Sharing::Shared => rand::random(),
        };
        Self { disk, durable: Mutex::default(), writer, staged: AtomicU64::new(0) }
    }

    /// A name that no other staging file has: those of earlier processes are gone, or have another first half.
    pub(super) fn staging_name(&self) -> String {
        format!("{:016x}{:016x}#1", self.writer, self.staged.fetch_add(1, Ordering::Relaxed))
    }

    /// Creates the root and its missing ancestors, each synced into its parent. A root that exists is synced into its
    /// parent too: the process that created it may have ended before it did that.
    pub(super) fn create_root(&self, root: &Path) -> io::Result<()> {
        self.disk.create_dir_all(root)?;
        if let Some(parent) = root.parent() {
            self.disk.sync_dir(parent)?;
        }
        self.durable.lock().insert(root.to_owned());
        Ok(())
    }

    /// Creates a folder below the root and its missing ancestors, each synced into its parent.
    pub(super) fn create(&self, folder: &Path) -> io::Result<()> {
        let unknown: Vec<&Path> = {
            let durable = self.durable.lock();
            folder.ancestors().take_while(|ancestor| !durable.contains(*ancestor)).collect()
        };
        unknown.into_iter().rev().try_for_each(|folder| self.create_one(folder))
    }

    fn create_one(&self, folder: &Path) -> io::Result<()> {
        match self.disk.create_dir(folder) {
            // A file may have that name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => drop(self.disk.list(folder)?),
            created => created?,
        }
        if let Some(parent) = folder.parent() {
            self.disk.sync_dir(parent)?;
        }
        self.durable.lock().insert(folder.to_owned());
        Ok(())
    }

    /// Gives a synced file one more name, durably; an existing name is an error.
    pub(super) fn link(&self, from: &Path, to: &Path) -> object_store::Result<()> {
        let failed = |source: io::Error| failed("link", to, source);
        let folder = to.parent().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        self.create(folder).map_err(failed)?;
        self.disk.link(from, to).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::AlreadyExists { path: to.display().to_string(), source: source.into() }
            }
            io::ErrorKind::NotFound => Error::NotFound { path: from.display().to_string(), source: source.into() },
            _ => failed(source),
        })?;
        self.disk.sync_dir(folder).map_err(failed)
    }
}
