//! Where the log is archived.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

/// A URL of a folder or of a bucket in an S3-compatible store. Credentials never stand in it: settings are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveUrl(pub Url);

impl Serialize for ArchiveUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ArchiveUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ArchiveUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"file:///folder\" or \"s3://bucket/prefix\", without credentials")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ArchiveUrl, E> {
                match text.parse::<Url>() {
                    Ok(url) if is_archive(&url) => Ok(ArchiveUrl(url)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

fn is_archive(url: &Url) -> bool {
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.port().is_none();
    match url.scheme() {
        "file" => url.to_file_path().is_ok(),
        "s3" => is_plain && url.host_str().is_some_and(|bucket| !bucket.is_empty()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_buckets() {
        for good in ["file:///mnt/archive", "s3://bucket", "s3://bucket/a/b"] {
            assert!(is_archive(&good.parse().unwrap()), "{good}");
        }
        for bad in ["s3:///a", "s3://key:secret@bucket", "s3://bucket:1/x", "gs://bucket", "file://host/x"] {
            assert!(!is_archive(&bad.parse().unwrap()), "{bad}");
        }
    }
}
