//! The name of a table in settings.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A table with its database, `market.bars`, as SQL reads it: lower case unless in double quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// `market`.
    pub database: String,
    /// `bars`.
    pub table: String,
    written: String,
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

impl Serialize for TableName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.written)
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = String::deserialize(deserializer)?;
        let (database, table) = tailrace_sql::parse_table_name(&written).map_err(de::Error::custom)?;
        Ok(Self { database, table, written })
    }
}
