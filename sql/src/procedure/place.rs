//! Where backups may lie: folders and bucket prefixes under `[files] allow`.

use std::{
    ffi::OsString,
    io::Read as _,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use tailrace_engine::BackupLocation;
use url::Url;

use crate::{Instance, Result, SqlError, statement::copy::open_allowed};

/// How a bucket's URL begins.
const BUCKET: &str = "s3://";
/// Longest file of keys, bytes.
const KEYS_MAX: u64 = 1 << 20;

/// Opens a location. Only who writes creates its folder.
pub(crate) async fn location(instance: &Arc<Instance>, text: &str, create: bool) -> Result<BackupLocation> {
    let url = allowed_url(instance, text).await?;
    let open = if create { BackupLocation::create } else { BackupLocation::open };
    blocking(move || Ok(open(&url)?)).await
}

/// Opens a location for looking: what is not there is empty, and not made.
pub(super) async fn look(instance: &Arc<Instance>, text: &str) -> Result<BackupLocation> {
    let url = allowed_url(instance, text).await?;
    blocking(move || Ok(BackupLocation::look(&url)?)).await
}

/// The URL of a folder, given as a path or a `file` URL, or of a prefix in a bucket, where it may be used.
pub(crate) async fn allowed_url(instance: &Arc<Instance>, text: &str) -> Result<Url> {
    let (text, allow) = (text.to_owned(), instance.config.files_allow.clone());
    blocking(move || resolve(&text, &allow)).await
}

/// The text of a small file of the server: keys.
pub(crate) async fn key_file(instance: &Arc<Instance>, path: &str) -> Result<String> {
    let (path, allow) = (PathBuf::from(path), instance.config.files_allow.clone());
    blocking(move || {
        let source = open_allowed(&path, &allow)?;
        let mut text = String::new();
        let read = (&*source.file).take(KEYS_MAX).read_to_string(&mut text);
        read.map_err(|_| SqlError::new("58030", format!("{} cannot be read as a file of keys", path.display())))?;
        Ok(text)
    })
    .await
}

fn resolve(text: &str, allow: &[PathBuf]) -> Result<Url> {
    if text.starts_with('/') {
        return folder(Path::new(text), allow);
    }
    // Its text may hold a secret: it is not repeated before that is known.
    let url: Url = text.parse().map_err(|_| {
        SqlError::new("22023", "the place of a backup is a folder, /…, or a URL, file:///… or s3://bucket/prefix")
    })?;
    if url.scheme() == "file" {
        let path = url.to_file_path().map_err(|()| SqlError::new("22023", "write file:///folder, an absolute path"))?;
        return folder(&path, allow);
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(SqlError::new("22023", "the URL of a backup holds credentials or parameters").hint(
            "they belong into the server's environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        ));
    }
    let is_allowed = allow.iter().filter_map(|allowed| allowed.to_str()).any(|allowed| {
        let Ok(allowed) = allowed.parse::<Url>() else { return false };
        let below = |path: &str| match path.trim_end_matches('/') {
            "" => true,
            prefix => url.path() == prefix || url.path().starts_with(&format!("{prefix}/")),
        };
        allowed.scheme() == url.scheme() && allowed.host_str() == url.host_str() && below(allowed.path())
    });
    if is_allowed { Ok(url) } else { Err(refused(url.as_str(), allow)) }
}

/// A folder that may not be there yet: what there is of the way to it is resolved.
fn folder(path: &Path, allow: &[PathBuf]) -> Result<Url> {
    let name = path.display().to_string();
    if !path.is_absolute() || path.components().any(|component| component == Component::ParentDir) {
        return Err(SqlError::new("22023", format!("{name} is not an absolute path without `..`")));
    }
    let mut rest: Vec<OsString> = Vec::new();
    let mut there = path;
    let real = loop {
        match (there.canonicalize(), there.parent(), there.file_name()) {
            (Ok(real), ..) => break real,
            (Err(_), Some(parent), Some(last)) => {
                rest.push(last.to_owned());
                there = parent;
            }
            (Err(_), ..) => return Err(refused(&name, allow)),
        }
    };
    let real: PathBuf = std::iter::once(real.into_os_string()).chain(rest.into_iter().rev()).collect();
    if !allow.iter().any(|folder| real.starts_with(folder)) {
        return Err(refused(&name, allow));
    }
    Url::from_file_path(&real).map_err(|()| SqlError::new("22023", format!("{name} is not an absolute path")))
}

fn refused(name: &str, allow: &[PathBuf]) -> SqlError {
    let error = SqlError::new("42501", format!("backups may not lie at {name}"));
    match allow {
        [] => error
            .detail("no folder and no bucket is open to backups")
            .hint(format!("set [files] allow = [\"/folder\", \"{BUCKET}bucket/prefix\"] on the server and restart it")),
        allow => {
            let allow: Vec<_> = allow.iter().map(|place| place.display().to_string()).collect();
            error.hint(format!("choose a place under {}, or add another to [files] allow", allow.join(" or ")))
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(SqlError::internal(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_under_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (open, shut) = (root.join("open"), root.join("shut"));
        std::fs::create_dir_all(&open).unwrap();
        std::fs::create_dir_all(&shut).unwrap();
        std::os::unix::fs::symlink(&shut, open.join("out")).unwrap();
        let allow = [open.clone(), PathBuf::from("s3://bucket/backups")];
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let url = resolve(&text(&open.join("a/b")), &allow).unwrap();
        assert_eq!(url.to_file_path().unwrap(), open.join("a/b"));
        resolve(url.as_str(), &allow).unwrap();
        for good in ["s3://bucket/backups", "s3://bucket/backups/x/y"] {
            assert_eq!(resolve(good, &allow).unwrap().as_str(), good);
        }
        for bad in [
            text(&shut.join("a")),
            text(&open.join("out/a")),
            text(&open.join("../shut")),
            "s3://bucket/backups2".to_owned(),
            "s3://bucket/backups/../other".to_owned(),
            "s3://other/backups".to_owned(),
            "relative".to_owned(),
            "s3://key:secret@bucket/backups".to_owned(),
            "s3://bucket/backups?secret=1".to_owned(),
        ] {
            let error = resolve(&bad, &allow).unwrap_err();
            let shown = format!("{error:?}");
            assert!(!shown.contains("secret@") && !shown.contains("secret=1"), "{shown}");
        }
        assert_eq!(resolve("/etc", &[]).unwrap_err().sqlstate, "42501");
    }
}
