//! Datafiles: immutable, sorted Parquet files of one partition, with two hidden identity columns.

mod encoding;
mod identity;
mod order;
mod sink;
mod statistics;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

pub(crate) use sink::Sink;
pub use statistics::ColumnStatistics;
pub(crate) use verify::{read_footer, verify_datafile};
pub use writer::{WriteRequest, write_datafile};

use serde::{Deserialize, Serialize};
use tailrace_wal::Seq;

use crate::{ColumnId, Digest, SchemaVersion, partition::DatafilePath};

/// Hidden column with a row's seq (UINT64, DELTA_BINARY_PACKED, no dictionary), after the table's columns.
pub const SEQ_COLUMN: &str = "_seq";
/// Hidden column with a row's ordinal.
pub const ORDINAL_COLUMN: &str = "_ordinal";
/// Field ids of the hidden columns, beyond any column id.
pub const SEQ_FIELD_ID: i32 = i32::MAX - 201;
/// See [`SEQ_FIELD_ID`].
pub const ORDINAL_FIELD_ID: i32 = i32::MAX - 202;

/// What the manifest and a repair say of a datafile.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatafileMeta {
    /// Where it lies.
    pub path: DatafilePath,
    /// Length, bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// XXH3-128 of the whole file, hexadecimal: a repair checks what it fetched.
    pub hash: String,
    /// Schema it was written with.
    pub schema_version: SchemaVersion,
    /// Smallest and largest seq in it.
    pub seqs: (Seq, Seq),
    /// Bytes of the two identity columns, compressed.
    pub identity_bytes: u64,
    /// Per column, exact.
    pub statistics: Vec<(ColumnId, ColumnStatistics)>,
    /// Of the rows as they were handed to the writer; files of manifests before format 3 have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}
