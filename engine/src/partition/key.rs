//! Partition keys: what the log's directory and the manifest call a partition.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Canonical encoding of one partition's values, in the order of the table's partition fields. Equal values, equal
/// bytes; NULL is a value of its own; keys of one table order as their values do. Empty for an unpartitioned table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionKey(#[serde(with = "hex")] pub Bytes);

/// Keys stand in the manifest as hexadecimal text.
mod hex {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(_bytes: &Bytes, _serializer: S) -> Result<S::Ok, S::Error> {
        todo!()
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let _text = String::deserialize(deserializer)?;
        todo!()
    }
}
