//! Entries of the archive's manifest: a segment that is there, or a gap.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::object::{ObjectHash, ObjectHeader, ObjectTail};
use crate::{
    CommitTime, HistoryId, Lsn, NodeId, Seq,
    codec::Encoder,
    frame::{FrameChecksum, Salt},
    index::{Floor, LargeCommit},
};

/// One entry. Entries follow each other by LSN without holes: what is missing is an entry too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ArchiveEntry {
    /// Records that the archive holds.
    Segment(ArchivedSegment),
    /// Records that it does not hold and never will.
    Gap(ArchiveGap),
}

/// A sealed segment in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedSegment {
    /// Its first record.
    pub first: Lsn,
    /// Its last record.
    pub last: Lsn,
    /// Bytes of the segment file.
    pub raw_bytes: u64,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// When it was archived.
    pub archived_at: CommitTime,
    /// Histories with records in it.
    pub histories: Vec<ArchivedHistory>,
    #[serde(with = "hex")]
    pub(crate) salt: u64,
    /// Checksum of the frame before `first` and of the frame `last`.
    #[serde(with = "hex")]
    pub(crate) predecessor: u64,
    #[serde(with = "hex")]
    pub(crate) last_checksum: u64,
    /// Hash of the segment file.
    #[serde(with = "hex")]
    pub(crate) raw_hash: u64,
    pub(crate) object_hash: ObjectHash,
}

/// One history within an archived segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchivedHistory {
    /// Which.
    pub history: HistoryId,
    /// Last seq committed before its first record here.
    pub after: Seq,
    /// Last seq committed after its last record here.
    pub upto: Seq,
    /// Its first record here.
    pub first: Lsn,
    /// Its last record here.
    pub last: Lsn,
    /// Where it was last begun anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) broken: Option<Floor>,
    /// Commits here whose fragments begin in an earlier segment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) spanning: Vec<LargeCommit>,
}

/// Records that the archive does not hold: they were truncated before they were archived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveGap {
    /// The first missing record.
    pub from: Lsn,
    /// The last one.
    pub to: Lsn,
    /// When it was found.
    pub found_at: CommitTime,
    /// Why the records are missing.
    pub reason: String,
    /// Transactions that are missing, by history.
    pub histories: Vec<GapHistory>,
}

/// Transactions of one history in a gap: those after `after` up to and including `upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GapHistory {
    /// Which.
    pub history: HistoryId,
    /// The last transaction before the gap.
    pub after: Seq,
    /// The last transaction in the gap.
    pub upto: Seq,
}

/// Running hash of a manifest's entries, so that none can be left out, changed or put elsewhere unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct EntryChain(#[serde(with = "hex")] pub(crate) u64);

impl ArchiveEntry {
    /// Its first record.
    pub fn first(&self) -> Lsn {
        match self {
            Self::Segment(segment) => segment.first,
            Self::Gap(gap) => gap.from,
        }
    }

    /// Its last record.
    pub fn last(&self) -> Lsn {
        match self {
            Self::Segment(segment) => segment.last,
            Self::Gap(gap) => gap.to,
        }
    }

    /// The chain after this entry; its bytes are drawn in `FORMAT.md`.
    pub(crate) fn follow(&self, chain: EntryChain, node: NodeId) -> EntryChain {
        let mut out = Encoder::with_capacity(96);
        out.u64(chain.0);
        out.bytes(&node.0);
        out.u64(self.first().0);
        out.u64(self.last().0);
        match self {
            Self::Segment(segment) => {
                out.u64(1);
                out.u64(segment.salt);
                out.u64(segment.predecessor);
                out.u64(segment.last_checksum);
                out.u64(segment.raw_hash);
                out.u64(segment.object_hash.0);
            }
            Self::Gap(_) => {
                out.u64(2);
                out.zeros(40);
            }
        }
        EntryChain(xxh3_64(out.as_slice()))
    }
}

impl ArchivedSegment {
    /// The entry of an object.
    pub(crate) fn of(
        header: &ObjectHeader,
        tail: ObjectTail,
        object_hash: ObjectHash,
        stored_bytes: u64,
        archived_at: CommitTime,
    ) -> Self {
        Self {
            first: header.first,
            last: header.last,
            raw_bytes: header.raw_bytes,
            stored_bytes,
            archived_at,
            histories: tail.histories,
            salt: header.salt.0,
            predecessor: header.predecessor.0,
            last_checksum: header.last_checksum.0,
            raw_hash: tail.raw_hash,
            object_hash,
        }
    }

    pub(crate) fn salt(&self) -> Salt {
        Salt(self.salt)
    }

    pub(crate) fn last_checksum(&self) -> FrameChecksum {
        FrameChecksum(self.last_checksum)
    }

    /// A history's part of it.
    pub(crate) fn history(&self, history: HistoryId) -> Option<&ArchivedHistory> {
        self.histories.iter().find(|held| held.history == history)
    }
}

impl ArchiveGap {
    /// A history's part of it.
    pub(crate) fn history(&self, history: HistoryId) -> Option<&GapHistory> {
        self.histories.iter().find(|missing| missing.history == history)
    }
}

/// Hashes as 16 hexadecimal digits: JSON numbers of 64 bits are not safe with every reader.
pub(crate) mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u64::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        value.ok_or_else(|| de::Error::custom(format!("{text:?} is not 16 hexadecimal digits")))
    }
}
