//! Backup: databases, tables and partitions as plain Parquet in a folder or an object store, and back.
//!
//! # Contract
//!
//! - A location holds any number of backups. Files are immutable and shared between them; a backup is its manifest,
//!   which is written last, under a name that is never written twice: it is there whole, or not at all. Everything that it
//!   names is durable before.
//! - Each database is at one position, which is durable here. Nobody waits: datafiles are held, not copied under a lock.
//! - A partition that an earlier backup of the location holds in the same state is not written again. What an interrupted
//!   backup had finished is taken over by the next one, after its hash was checked.
//! - What is read back is checked against length and hash before it is believed.
//! - Backup and restore end soon when their request's `cancel` fires, and leave what a failure leaves: no backup, no part of a
//!   database or of a table.
//! - A restore names every conflict before it changes anything. A database that is not here is installed with one edit of
//!   the manifest; rows of a table that is here come in one transaction. Run again, it finds nothing to do.
//!
//! # Files
//!
//! `location` (where, and under which names) ← `manifest` (what a backup is) ← `catalog` (the backups of a location) ←
//! `copy` (files, checked on their way; `encryption`; `sealed`, read where they lie), `mark` (who works there now) ← `hold` (what is wanted), `earlier` (what is
//! there already) ← `write` (a backup of datafiles), `estimate` (what it would write),
//! `selected` (one of a query's rows), `check`, `prune`, `restore`. Both ways `choice` picks partitions, by `pattern` or
//! condition. `progress` is what `get_backup_status()` shows. The layout is described in `docs/backup.md`.

mod cancel;
mod catalog;
mod check;
mod choice;
mod copy;
mod earlier;
mod encryption;
mod estimate;
mod hold;
mod location;
mod manifest;
mod mark;
mod pattern;
mod progress;
mod prune;
mod restore;
mod sealed;
mod selected;
mod write;

pub use catalog::{BackupFacts, BackupSummary};
pub use check::{BackupFault, CheckReport, FaultPlace};
pub use choice::{PartitionChoice, PartitionCondition};
pub use encryption::{Identities, Recipients};
pub use estimate::{BackupEstimate, EstimatedTable};
pub use location::BackupLocation;
pub use manifest::{
    BackupDatabase, BackupFile, BackupId, BackupManifest, BackupPartition, BackupScope, BackupTable, SelectedRows,
};
pub use pattern::PartitionPattern;
pub(crate) use progress::BackupBoard;
pub use progress::{BackupKind, BackupState, BackupStatus};
pub use prune::{PruneReport, PruneRequest};
pub use restore::{PointInTime, RestoreMode, RestorePoint, RestoreReport, RestoreRequest, RestoreScope, RestoreTarget};
pub use selected::SelectedSource;
pub use write::{BackupReport, BackupRequest};

/// Backups, restores and files under way at once, where nothing else is said.
const PARALLEL: usize = 4;
/// Most of them.
const PARALLEL_MAX: usize = 64;

/// How many files may be under way.
fn parallel(asked: Option<usize>) -> usize {
    asked.unwrap_or(PARALLEL).clamp(1, PARALLEL_MAX)
}
