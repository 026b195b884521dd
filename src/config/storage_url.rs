//! Where datafiles lie.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

/// A URL that the engine can open; `file:///…` for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageUrl(pub Url);

impl Serialize for StorageUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StorageUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = StorageUrl;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL such as \"file:///mnt/large/store\"; other schemes are not supported yet")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StorageUrl, E> {
                match text.parse::<Url>() {
                    Ok(url) if url.scheme() == "file" && url.to_file_path().is_ok() => Ok(StorageUrl(url)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}
