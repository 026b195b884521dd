//! The write-ahead log of Tailrace: one log per node, read as its change stream.
//!
//! # Contract
//!
//! - A record is *written* when the operating system has it and it has its LSN and position, *durable* when it is
//!   synced. Marks only grow: durable ≤ appended. After a failed write or sync nothing is acknowledged any more
//!   ([`LogError::Poisoned`]), and only the next start tells what survived. A refusal that is not `Poisoned` means that
//!   nothing was written.
//! - What was acknowledged as durable is there after any crash; what is there is a prefix of what was written.
//! - LSNs count one node's records without gaps; seqs count one history's commits without holes. A history's records
//!   are the same bytes on every node ([`HistoryHeader`], [`Payload`]), and equal [`Position`]s mean equal histories.
//! - Readers ([`Tail`]) get durable records only, in order, each checked; damage is named by file and offset and never
//!   skipped.
//! - Records go by whole segments ([`Log::truncate`]), never while a [`Pin`] within its budget, the [`Archiver`] within
//!   the same budget, or an open transaction needs them.
//! - The bytes of parts are opaque here. Bytes on disk are drawn in `FORMAT.md`.
//!
//! # Data paths, file by file
//!
//! | path | files |
//! |---|---|
//! | append | `payload` (hashes, by the producer) → `log` → `queue` (whose turn it is) → `writer/turn` (the thread's or the appender's; nobody's during a `writer/sync` that no append waits for) → `writer/mod` (a turn) → `writer/unit` (LSNs, headers by `history`, slices) → `writer/active` (zeros ahead, one write, fdatasync) → `disk`; then `index`, `marks`, and the waiters |
//! | new segment | `writer/mod` → `writer/active` (cut, `footer`, sync; then a `.tmp`, synced and renamed) |
//! | read | `tail` (plans a run over `index`, reads it with one call, checks each `frame` and `payload`) ← `shared` (where a reader starts) ← `segment` (opens a file, reads its `footer`) |
//! | start | `log` → `recovery/mod` (chain of segments, what to cut, keep and write again) → `recovery/scan` (frame by frame) → `history` (the same fold as on writing) |
//! | archive | `archive/archiver` (what when) → `archive/pack` (checks, compresses, uploads) → `archive/manifest`; read back by `archive/tail` ← `archive/open` |
//! | retention | `pin` (a feed's handle) → `retention/claim` (its marks, place, age) → `retention/decide` (budgets, what can go) → `retention/mod` (loses, unlinks) |
//!
//! Change a byte on disk: `FORMAT.md`, then `frame`, `record`, `directory`, `segment` or `footer`. Change what the writer
//! keeps per history: `history`, and `footer` if it has to survive a start without a scan.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod archive;
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
pub mod inspect;
mod log;
mod marks;
mod payload;
mod pin;
mod poison;
mod position;
mod queue;
mod record;
mod recovery;
mod reserve;
mod retention;
mod run;
mod segment;
mod shared;
#[cfg(feature = "simulation")]
pub mod simulation;
mod tail;
mod writer;

pub use archive::{
    Archive, ArchiveEntry, ArchiveGap, ArchiveState, ArchiveStatus, ArchiveTail, ArchivedHistory, ArchivedSegment,
    Archiver, ArchiverConfig, GapHistory,
};
pub use clock::{Clock, SystemClock};
pub use config::LogConfig;
pub use disk::{Disk, DiskFile, DiskLock, DiskSpace, SystemDisk};
pub use error::LogError;
pub use frame::Salt;
pub use ids::{
    Chain, CommitTime, Epoch, FileOffset, FragmentNumber, HistoryId, Lsn, NodeId, PartHash, PayloadHash, Seq,
    TransactionNumber,
};
pub use log::{Appending, HistoryEnd, Log, LogStatus, Persistence, RecoveredHistory, Recovery, Written};
pub use payload::{
    Directory, FRAME_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, PART_ALIGNMENT, PARTITION_BYTES_MAX, Part, PartEntry,
    Payload,
};
pub use pin::{Pin, PinKey, PinState, PinStatus, SavedPin};
pub use position::Position;
pub use record::{Frame, HistoryHeader, Record, RecordKind, VerbatimRecord};
pub use reserve::{Reserve, ReserveStatus};
pub use retention::{LogHolders, OpenTransactionStatus};
pub use run::Run;
pub use tail::Tail;
