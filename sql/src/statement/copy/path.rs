//! Which files COPY may read: those under the configured folders, wherever links lead.

use std::{
    fs::File,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::Source;
use crate::{Result, SqlError};

/// Opens a file if it lies, links resolved, under one of the `allow`ed folders. A file outside them is refused the same
/// way whether it exists or not.
pub(crate) fn open(path: &Path, allow: &[PathBuf]) -> Result<Source> {
    let name = path.display().to_string();
    if !path.is_absolute() {
        return Err(SqlError::new("22023", format!("{name} is not an absolute path")).hint("start it with /"));
    }
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if is_under(path, allow) => {
            let state = if error.kind() == std::io::ErrorKind::NotFound { "58P01" } else { "58030" };
            return Err(SqlError::new(state, format!("{name} cannot be read: {error}")));
        }
        Err(_) => return Err(refused(&name, allow)),
    };
    if !is_under(&real, allow) {
        return Err(refused(&name, allow));
    }
    let unreadable = |error: std::io::Error| SqlError::new("58030", format!("{name} cannot be read: {error}"));
    // Opening a pipe would wait for a writer: look at what it is first.
    if !std::fs::metadata(&real).map_err(unreadable)?.is_file() {
        return Err(SqlError::new("42809", format!("{name} is not a regular file")));
    }
    let file = File::open(&real).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    Ok(Source { file: Arc::new(file), name, length })
}

fn is_under(path: &Path, allow: &[PathBuf]) -> bool {
    !path.components().any(|component| component == Component::ParentDir)
        && allow.iter().any(|folder| path.starts_with(folder))
}

fn refused(name: &str, allow: &[PathBuf]) -> SqlError {
    let error = SqlError::new("42501", format!("COPY may not read {name}"));
    match allow {
        [] => error
            .detail("no folder is open to COPY")
            .hint("set [files] allow = [\"/folder\"] on the server and restart it"),
        folders => {
            let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            error.hint(format!("put the file under {}, or add its folder to [files] allow", folders.join(" or ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_under_the_allowed_folders_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let (open_, shut) = (root.join("open"), root.join("shut"));
        std::fs::create_dir_all(&open_).unwrap();
        std::fs::create_dir_all(&shut).unwrap();
        std::fs::write(open_.join("a.csv"), "1\n").unwrap();
        std::fs::write(shut.join("b.csv"), "1\n").unwrap();
        std::os::unix::fs::symlink(shut.join("b.csv"), open_.join("link.csv")).unwrap();
        let allow = [open_.clone()];

        assert_eq!(open(&open_.join("a.csv"), &allow).unwrap().length, 2);
        let state = |path: PathBuf, allow: &[PathBuf]| open(&path, allow).unwrap_err().sqlstate.into_owned();
        assert_eq!(state(shut.join("b.csv"), &allow), "42501");
        assert_eq!(state(shut.join("missing.csv"), &allow), "42501");
        assert_eq!(state(open_.join("link.csv"), &allow), "42501");
        assert_eq!(state(open_.join("../shut/b.csv"), &allow), "42501");
        assert_eq!(state(open_.join("missing.csv"), &allow), "58P01");
        assert_eq!(state(open_.clone(), &allow), "42809");
        assert_eq!(state(PathBuf::from("a.csv"), &allow), "22023");
        let error = open(&open_.join("a.csv"), &[]).unwrap_err();
        assert!(error.hint.unwrap().contains("[files] allow"));
    }
}
