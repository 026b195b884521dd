//! The archive of this node's log: where it lies, and what its claim on the log is made with.

use std::{path::Path, sync::Arc, time::Duration};

use object_store::{
    ObjectStore,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    client::SpawnedReqwestConnector,
    path::Path as ObjectPath,
};
use tailrace_wal::{Archive, Archiver, ArchiverConfig, Log, NodeId, SystemDisk};
use url::Url;

use crate::{EngineError, Result, store::LateFolder};

/// Where and how often the log is archived.
#[derive(Debug, Clone)]
pub struct ArchiveConfig {
    /// `file:///folder` or `s3://bucket/prefix`. Each node has a place of its own below it, so that several can share
    /// one. For S3, endpoint, region and credentials come from the environment (`AWS_ENDPOINT_URL`, `AWS_REGION`,
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, …); an `http://` endpoint is taken as it is.
    pub url: Url,
    /// Longest time that a record waits in a segment that does not fill up: so far the archive is behind at most, as
    /// long as its store keeps up. Default 5 minutes.
    pub interval: Duration,
}

impl ArchiveConfig {
    /// Defaults for a place.
    pub fn new(url: Url) -> Self {
        Self { url, interval: ArchiverConfig::default().interval }
    }
}

/// The archive of `node`'s log at `url`, for readers. Nothing is created and nothing is read before
/// [`Archive::refresh`].
///
/// # Errors
/// When the URL or the environment is no complete description of a store.
pub fn open_archive(url: &Url, node: NodeId) -> Result<Archive> {
    let (store, prefix): (Arc<dyn ObjectStore>, _) = match place(url)? {
        Place::Folder(folder) => {
            let files = object_store::local::LocalFileSystem::new_with_prefix(folder.join(node.to_string()));
            (Arc::new(files.map_err(|error| failed(url, &error))?), ObjectPath::default())
        }
        Place::S3 => open_s3(url, node)?,
    };
    Ok(Archive::new(store, prefix, node, Archive::TIMEOUT))
}

/// Claims the log for its archive. The archive itself is not touched: a store that does not answer, or a folder that is not
/// there, stops nobody from starting; `system.archive` shows it and it is tried again.
pub(crate) fn claim(config: &ArchiveConfig, log: &Log, node: NodeId) -> Result<Archiver> {
    let url = &config.url;
    let (store, prefix) = match place(url)? {
        // A store of its own: opening one removes what an earlier process left half written.
        Place::Folder(folder) => {
            let folder = LateFolder::new(folder.join(node.to_string()), SystemDisk::shared());
            (Arc::new(folder) as Arc<dyn ObjectStore>, ObjectPath::default())
        }
        Place::S3 => open_s3(url, node)?,
    };
    let archive = Archive::new(store, prefix, node, Archive::TIMEOUT);
    Ok(Archiver::new(log, archive, ArchiverConfig { interval: config.interval, ..ArchiverConfig::default() }))
}

enum Place<'a> {
    Folder(std::borrow::Cow<'a, Path>),
    S3,
}

fn place(url: &Url) -> Result<Place<'_>> {
    match url.scheme() {
        "file" => match url.to_file_path() {
            Ok(folder) => Ok(Place::Folder(folder.into())),
            Err(()) => Err(EngineError::Invalid(format!(
                "wal.archive {url} is no absolute path on this machine; write file:///folder"
            ))),
        },
        "s3" if url.host_str().is_some_and(|bucket| !bucket.is_empty()) => Ok(Place::S3),
        "s3" => Err(EngineError::Invalid(format!("wal.archive {url} names no bucket; write s3://bucket/prefix"))),
        scheme => Err(EngineError::Unsupported(format!("wal.archive with scheme {scheme:?} (file:/// and s3:// are)"))),
    }
}

fn open_s3(url: &Url, node: NodeId) -> Result<(Arc<dyn ObjectStore>, ObjectPath)> {
    let (store, prefix) = open_bucket(url)?;
    Ok((store, prefix.join(node.to_string())))
}

/// The store of an `s3` URL and the prefix in it; all else comes from the environment.
pub(crate) fn open_bucket(url: &Url) -> Result<(Arc<dyn ObjectStore>, ObjectPath)> {
    bucket(AmazonS3Builder::from_env(), url)
}

fn bucket(builder: AmazonS3Builder, url: &Url) -> Result<(Arc<dyn ObjectStore>, ObjectPath)> {
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let is_http = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let builder = if is_http { builder.with_allow_http(true) } else { builder };
    // Connections are shared by all who use the store, so they live where it was opened: a query has threads that compute.
    let builder = match tokio::runtime::Handle::try_current() {
        Ok(home) => builder.with_http_connector(SpawnedReqwestConnector::new(home)),
        Err(_) => builder,
    };
    let bucket = url.host_str().unwrap_or_default();
    let store = builder.with_bucket_name(bucket).build().map_err(|error| failed(url, &error))?;
    let prefix = ObjectPath::from_url_path(url.path()).map_err(|error| failed(url, &error))?;
    Ok((Arc::new(store), prefix))
}

fn failed(url: &Url, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Storage { operation: "open", object: url.to_string(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn places() {
        let (_, prefix) = bucket(AmazonS3Builder::new().with_region("r"), &url("s3://bucket/a/b")).unwrap();
        assert_eq!(prefix.to_string(), "a/b");
        let (store, prefix) = bucket(AmazonS3Builder::new().with_region("r"), &url("s3://bucket")).unwrap();
        assert_eq!(prefix.to_string(), "");
        assert!(store.to_string().contains("bucket"));
        for (text, wanted) in [("s3:///x", "bucket"), ("gs://bucket/x", "\"gs\""), ("file://host/x", "file:///")] {
            let error = place(&url(text)).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
