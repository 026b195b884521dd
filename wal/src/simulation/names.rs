//! Folders and their entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use rand::{Rng, rngs::StdRng};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Dir,
    /// The number of a file.
    File(usize),
}

/// Something done to a folder's entries and not synced yet.
#[derive(Debug, Clone)]
struct Change {
    dir: PathBuf,
    /// A name that goes.
    removes: Option<PathBuf>,
    /// A name that comes, or stands for something else now.
    adds: Option<(PathBuf, Entry)>,
}

/// All names: as they are seen, and as they are certain to survive.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    seen: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    unsynced: Vec<Change>,
}

impl Names {
    pub(super) fn file(&self, path: &Path) -> Option<usize> {
        match self.seen.get(path)? {
            Entry::File(file) => Some(*file),
            Entry::Dir => None,
        }
    }

    /// All files, by name.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, usize)> {
        self.seen.iter().filter_map(|(path, entry)| match entry {
            Entry::File(file) => Some((path.as_path(), *file)),
            Entry::Dir => None,
        })
    }

    pub(super) fn is_dir(&self, path: &Path) -> bool {
        is_root(path) || self.seen.get(path) == Some(&Entry::Dir)
    }

    pub(super) fn is_dirty(&self) -> bool {
        !self.unsynced.is_empty()
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.check_dir(dir)?;
        Ok(self.seen.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    pub(super) fn create(&mut self, path: &Path, entry: Entry) -> io::Result<()> {
        let dir = self.dir_of(path)?;
        if self.seen.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.change(Change { dir, removes: None, adds: Some((path.into(), entry)) });
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let dir = self.dir_of(path)?;
        if !self.seen.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        self.change(Change { dir, removes: Some(path.into()), adds: None });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, to_dir) = (self.dir_of(from)?, self.dir_of(to)?);
        let entry = *self.seen.get(from).ok_or(ErrorKind::NotFound)?;
        let adds = Some((to.to_path_buf(), entry));
        if from_dir == to_dir {
            self.change(Change { dir: to_dir, removes: Some(from.into()), adds });
        } else {
            self.change(Change { dir: to_dir, removes: None, adds });
            self.change(Change { dir: from_dir, removes: Some(from.into()), adds: None });
        }
        Ok(())
    }

    /// The entries of one folder become durable.
    pub(super) fn sync(&mut self, dir: &Path) -> io::Result<()> {
        self.check_dir(dir)?;
        for change in self.unsynced.extract_if(.., |change| change.dir == dir) {
            change.apply(&mut self.durable);
        }
        Ok(())
    }

    /// Loses power: of each folder's changes, any may be there. Returns whether any is not.
    pub(super) fn crash(&mut self, random: &mut StdRng) -> bool {
        let dirs: BTreeSet<_> = self.unsynced.iter().map(|change| change.dir.clone()).collect();
        let mut lost = false;
        for dir in dirs {
            let changes: Vec<_> = self.unsynced.iter().filter(|change| change.dir == dir).collect();
            let (first, chance) = match random.random_range(0..4) {
                0 => (0, 0.0),
                1 => (changes.len(), 1.0),
                2 => (random.random_range(0..=changes.len()), 1.0),
                _ => (changes.len(), 0.5),
            };
            for (at, change) in changes.into_iter().enumerate() {
                if at < first && random.random_bool(chance) {
                    change.apply(&mut self.durable);
                } else {
                    lost = true;
                }
            }
        }
        self.unsynced.clear();
        // What lies in a folder that is not there is not there.
        loop {
            let durable = &self.durable;
            let is_orphan = |path: &&PathBuf| {
                path.parent().is_some_and(|dir| !is_root(dir) && durable.get(dir) != Some(&Entry::Dir))
            };
            let orphans: Vec<_> = durable.keys().filter(is_orphan).cloned().collect();
            if orphans.is_empty() {
                break;
            }
            orphans.iter().for_each(|path| {
                self.durable.remove(path);
            });
        }
        self.seen = self.durable.clone();
        lost
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.unsynced.push(change);
    }

    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        match self.seen.get(dir) {
            _ if self.is_dir(dir) => Ok(()),
            Some(_) => Err(ErrorKind::NotADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn dir_of(&self, path: &Path) -> io::Result<PathBuf> {
        let dir = path.parent().ok_or(ErrorKind::InvalidInput)?;
        self.check_dir(dir)?;
        Ok(dir.into())
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Entry>) {
        if let Some(path) = &self.removes {
            names.remove(path);
        }
        if let Some((path, entry)) = &self.adds {
            names.insert(path.clone(), *entry);
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.as_os_str().is_empty() || path == Path::new("/") || path == Path::new(".")
}
