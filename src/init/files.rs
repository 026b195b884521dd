//! Durable files and folders.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::{Error, Result};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Mode 0644.
    Everyone,
    /// Mode 0600: keys.
    Owner,
}

/// Creates a folder and its missing ancestors, each made durable in its parent.
pub(super) fn create_dir_all(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    create_dir_all(parent)?;
    std::fs::create_dir(dir).map_err(Error::io("create", dir))?;
    sync_dir(parent)
}

/// Writes and syncs a file that must not exist yet. The folder's entry is durable after [`sync_dir`].
pub(super) fn write(path: &Path, text: &str, access: Access) -> Result<()> {
    let mode = if access == Access::Owner { 0o600 } else { 0o644 };
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(Error::io("create", path))?;
    file.write_all(text.as_bytes()).map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))
}

/// Makes a folder's entries durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io("sync", dir))
}
