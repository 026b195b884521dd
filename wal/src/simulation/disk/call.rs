//! The calls of the seam, as they are counted and traced.

use std::path::PathBuf;

use crate::FileOffset;

/// A call of the seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names of the calls")]
pub enum CallKind {
    Create,
    Open,
    CreateDir,
    Link,
    List,
    Remove,
    Rename,
    SyncDir,
    Lock,
    Write,
    Read,
    SyncData,
    SyncAll,
    Len,
    SetLen,
}

/// One call, as the trace keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Number of the call since the disk was made, from 0.
    pub number: u64,
    /// Which.
    pub kind: CallKind,
    /// Its file or folder; of a rename, the new name.
    pub path: PathBuf,
    /// Where in the file; of `SetLen`, the new length.
    pub offset: FileOffset,
    /// Bytes to be written or read.
    pub len: usize,
    /// XXH3-64 of the bytes to be written.
    pub hash: u64,
}

impl CallKind {
    /// Whether it may change the disk.
    pub fn changes(self) -> bool {
        !matches!(self, Self::Open | Self::List | Self::Read | Self::Len | Self::Lock)
    }

    pub(super) fn needs_space(self) -> bool {
        matches!(self, Self::Create | Self::CreateDir | Self::Write)
    }
}
