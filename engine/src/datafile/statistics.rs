//! Exact statistics of a datafile's columns.

use arrow_array::ArrayRef;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Statistics of one column of one datafile. Strings and binaries may be cut to 64 bytes in `min` (rounded down) and
/// leave out `max` when it cannot be rounded up; `exact` tells.
#[derive(Debug, Clone)]
pub struct ColumnStatistics {
    /// NULLs.
    pub null_count: u64,
    /// Array of one value of the column's type; `None` when all are NULL, or a float column holds NaN.
    pub min: Option<ArrayRef>,
    /// See `min`.
    pub max: Option<ArrayRef>,
    /// Whether `min` and `max` are values of the column, not mere bounds.
    pub exact: bool,
}

impl Serialize for ColumnStatistics {
    fn serialize<S: Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        todo!()
    }
}

impl<'de> Deserialize<'de> for ColumnStatistics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let _value = serde_json::Value::deserialize(deserializer)?;
        todo!()
    }
}
