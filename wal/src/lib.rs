//! The write-ahead log of Tailrace: segments of frames, written by one thread with group commit.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod clock;
mod codec;
mod config;
mod directory;
mod disk;
mod error;
mod footer;
mod frame;
mod history;
mod ids;
mod index;
mod log;
mod marks;
mod payload;
mod pin;
mod poison;
mod position;
mod queue;
mod record;
mod recovery;
mod retention;
mod segment;
mod shared;
mod tail;
mod writer;

pub use clock::{Clock, SystemClock};
pub use config::LogConfig;
pub use disk::{Disk, DiskFile, DiskLock, SystemDisk};
pub use error::LogError;
pub use ids::{
    Chain, CommitTime, Epoch, FileOffset, FragmentNumber, HistoryId, Lsn, NodeId, PartHash, PayloadHash, Seq,
    TransactionNumber,
};
pub use log::{Appending, HistoryEnd, Log, LogStatus, Persistence, RecoveredHistory, Recovery, Written};
pub use payload::{
    Directory, FRAME_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PART_ALIGNMENT, PARTITION_BYTES_MAX, Part, PartEntry,
    Payload,
};
pub use pin::{Pin, PinKey, PinState, PinStatus};
pub use position::Position;
pub use record::{Frame, HistoryHeader, Record, RecordKind, VerbatimRecord};
pub use tail::Tail;
