//! Numbers of the engine, one type each.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A table within its history, from 1, never used again. 0 is the database itself.
    TableId(u32)
);
number!(
    /// A column within its table, from 1, never used again; also its Parquet field id.
    ColumnId(u32)
);
number!(
    /// Version of a table's schema, from 1.
    SchemaVersion(u32)
);
number!(
    /// Number of a row within its transaction, from 0, through all parts in log order.
    Ordinal(u64)
);

/// Bytes that nothing else has.
pub(crate) fn unique(clock: &dyn tailrace_wal::Clock) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&clock.random().to_le_bytes());
    bytes[8..].copy_from_slice(&clock.random().to_le_bytes());
    bytes
}
