//! Folders whose entries are durable.

use std::{
    collections::HashSet,
    fmt::Debug,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use object_store::Error;
use parking_lot::Mutex;

/// The two calls that make files and names durable.
pub(super) trait Durability: Debug + Send + Sync + 'static {
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()>;
    fn sync_folder(&self, path: &Path) -> io::Result<()>;
}

#[derive(Debug)]
pub(super) struct SystemDurability;

impl Durability for SystemDurability {
    fn sync_file(&self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// Creates folders and links files into them, and knows which folders are durable already.
#[derive(Debug)]
pub(super) struct Folders {
    durability: Arc<dyn Durability>,
    /// Folders whose own names were synced since start. One that merely exists may have been created by another
    /// upload a moment ago, whose sync is still to come.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Folders {
    pub(super) fn new(durability: Arc<dyn Durability>) -> Self {
        Self { durability, durable: Mutex::default() }
    }

    pub(super) fn sync_file(&self, file: &File, path: &Path) -> io::Result<()> {
        self.durability.sync_file(file, path)
    }

    /// Creates the root and its missing ancestors, each synced into its parent. A root that exists is synced into its
    /// parent too: the process that created it may have ended before it did that.
    pub(super) fn create_root(&self, root: &Path) -> io::Result<()> {
        let missing = root.ancestors().take_while(|ancestor| !ancestor.is_dir());
        let mut chain: Vec<&Path> = missing.collect();
        if chain.is_empty() {
            chain.push(root);
        }
        chain.into_iter().rev().try_for_each(|folder| self.create_one(folder))
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
        match fs::create_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !folder.is_dir() => return Err(error),
            _ => {}
        }
        if let Some(parent) = folder.parent() {
            self.durability.sync_folder(parent)?;
        }
        self.durable.lock().insert(folder.to_owned());
        Ok(())
    }

    /// Gives a synced file one more name, durably; an existing name is an error.
    pub(super) fn link(&self, from: &Path, to: &Path) -> object_store::Result<()> {
        let failed = |source: io::Error| Error::Generic {
            store: "durable",
            source: format!("link {} to {}: {source}", from.display(), to.display()).into(),
        };
        let folder = to.parent().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        self.create(folder).map_err(failed)?;
        fs::hard_link(from, to).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::AlreadyExists { path: to.display().to_string(), source: source.into() }
            }
            io::ErrorKind::NotFound => Error::NotFound { path: from.display().to_string(), source: source.into() },
            _ => failed(source),
        })?;
        self.durability.sync_folder(folder).map_err(failed)
    }
}
