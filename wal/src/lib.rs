//! The write-ahead log of Tailrace: segments of frames, written by one thread with group commit.

mod clock;
mod config;
mod disk;
mod error;
mod ids;
mod log;
mod payload;
mod pin;
mod position;
mod record;
mod tail;

pub use clock::{Clock, SystemClock};
pub use config::LogConfig;
pub use disk::{Disk, DiskFile};
pub use error::LogError;
pub use ids::{
    Chain, CommitTime, Epoch, FileOffset, FragmentNumber, HistoryId, Lsn, NodeId, PartHash, PayloadHash, Seq,
    TransactionNumber,
};
pub use log::{Appending, HistoryEnd, Log, LogStatus, Persistence, RecoveredHistory, Recovery, Written};
pub use payload::{Directory, FRAME_BYTES_MAX, PART_ALIGNMENT, Part, PartEntry, Payload};
pub use pin::{Pin, PinKey, PinState, PinStatus};
pub use position::Position;
pub use record::{Frame, HistoryHeader, Record, RecordKind, VerbatimRecord};
pub use tail::Tail;
