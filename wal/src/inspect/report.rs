//! What an inspection finds.

use std::{fmt, path::PathBuf};

use crate::{Chain, CommitTime, Epoch, FileOffset, HistoryId, Lsn, NodeId, Seq, TransactionNumber, frame::Salt};

/// The first place of a file that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// Where the damage begins: a frame, or a field of header or footer.
    pub offset: FileOffset,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is damaged at byte {}: {}; {}", self.path.display(), self.offset, self.reason, self.remedy)
    }
}

/// How a segment ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// With its footer.
    Sealed,
    /// With its last frame, or zeros behind it: it is being written, or its writer was killed.
    Active,
    /// With bytes that are no frame and that nothing states durable: a write under way, or one that a crash cut short.
    /// The next start cuts them off.
    Tail {
        /// Where they begin.
        offset: FileOffset,
        /// Up to the end of the file.
        bytes: u64,
        /// Why they are no frame.
        reason: String,
    },
    /// With frames that the next segment does not count: a start was interrupted after it had written them anew. The
    /// next start cuts them off.
    Superseded {
        /// Where they begin.
        offset: FileOffset,
    },
    /// Damaged.
    Damaged(Damage),
}

/// One segment.
#[derive(Debug, Clone)]
pub struct SegmentReport {
    /// Its file.
    pub path: PathBuf,
    /// Length of the file, bytes.
    pub bytes: u64,
    /// Format version; `None` where the header is damaged, as in all that follows.
    pub version: Option<u32>,
    /// Who wrote it.
    pub node: Option<NodeId>,
    /// Seed of its checksums.
    pub salt: Option<Salt>,
    /// LSN of its first record, by its name.
    pub first: Lsn,
    /// The last record read; `first` - 1 when there is none.
    pub last: Lsn,
    /// Records read.
    pub records: u64,
    /// Highest durable LSN that its header, frames and footer state.
    pub durable: Lsn,
    /// Whether it follows the segment before it; `None` when there is none.
    pub follows: Option<bool>,
    /// How it ends.
    pub condition: Condition,
}

impl SegmentReport {
    /// The damage, if there is any.
    pub fn damage(&self) -> Option<&Damage> {
        match &self.condition {
            Condition::Damaged(damage) => Some(damage),
            _ => None,
        }
    }
}

/// One history, as far as the records read tell.
#[derive(Debug, Clone)]
pub struct HistoryReport {
    /// Which.
    pub id: HistoryId,
    /// Its records.
    pub records: u64,
    /// Its frames, bytes.
    pub bytes: u64,
    /// Its first commit, if it has any.
    pub first_seq: Option<Seq>,
    /// Its last commit.
    pub last_seq: Option<Seq>,
    /// Epochs of its commits.
    pub epochs: u64,
    /// Epoch of its last commit.
    pub epoch: Epoch,
    /// Chain after its last commit.
    pub chain: Chain,
    /// Commit time of its last commit.
    pub commit_time: CommitTime,
    /// Where a reader at its end starts: the restart seq of its last record.
    pub restart_seq: Seq,
    /// How often its records did not continue those before, because a repair replaced them.
    pub breaks: u64,
    /// Transactions with fragments and neither commit nor abort.
    pub open: Vec<OpenReport>,
}

/// A transaction with fragments and neither commit nor abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenReport {
    /// Epoch that it was begun in.
    pub epoch: Epoch,
    /// Its number there.
    pub number: TransactionNumber,
    /// Of its first fragment that is retained.
    pub first_fragment: Lsn,
    /// Fragments read.
    pub fragments: u32,
}
