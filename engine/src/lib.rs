//! The storage engine of Tailrace: histories, value partitions, memtable, datafiles, manifest, versions.
//!
//! # Contract
//!
//! - A transaction is one record of its database's history, or fragments and a commit record. It is applied whole, in
//!   the order of the history, and readers see it whole: every [`DatabaseVersion`] is a prefix of its history.
//! - What is logged can be applied: admission comes before the log, and its latches are held until the record is
//!   applied. The live path, replay and followed histories share one apply; the batches applied are those that were
//!   encoded.
//! - [`Receipt`]s tell the position. [`EngineError::Indeterminate`] and a poisoned log are the only answers that leave
//!   open whether a transaction survives; every other error means that nothing was committed.
//! - A database that cannot be replayed stops alone, keeps its records for the next start, and says why.
//! - Costs follow what is touched: versions are persistent maps, a flush looks at changed partitions only.
//!
//! # Data paths, file by file
//!
//! | path | files |
//! |---|---|
//! | write | `transaction` → `ingest` (slices on blocking threads: `partition`, `part`, hashes) → fragments, `open_transactions` → `commit` → `keys`, `memtable` (room), `admission` (latches, gate) → the log → `database` (the queue, in seq order) → `apply`, `chunk` → `engine` (publishes) |
//! | DDL, switches | `ddl` → `admission` → `commit`; facts of the cluster: `system` |
//! | read | `version` (datafiles, their cached Arrow, chunks) |
//! | changes | `changes` (frames of one table, durable and applied) → `changes/source` (log or archive) → `changes/decode` → `changes/rows`; who reads: `subscriptions` → `pins` |
//! | follow | `replica` (prepare: `effect`; a run is checked whole, then appended verbatim) → `held` (fragments) → `database` → `apply` |
//! | flush | `background` (when) → `flush` (freezes at one LSN behind the gate) → `datafile` → `manifest` → versions, `cache` → the log is truncated; `garbage` |
//! | start | `recovery` → `manifest` → `replay` → `apply`; then open transactions, ends, pins, strangers in the store |
//! | skip | `replica` (skip) → `dead_letter` (the payload, before the record) → the log → `apply`; `dead_letter/settle` |
//! | repair | `repair` |
//! | digests | `digest/hasher` (rows), `datafile/writer` (of each file, kept in its meta), `digest/partitions` (of a version) |
//! | backup | `backup` (files, manifest, restore) |
//! | some tables | `choice` (what a followed database holds here) → `effect` (rows are not decoded) → `apply` |
//! | simulation | `simulation` (tests only: background work by hand, planted bugs); the runs are in `tests/simulation` |
//!
//! A new operation: `operation` (its code), `effect` (decode and check), `apply` (both versions before and after it), `ddl`
//! or `transaction` (its producer), `task` (its group). A new durable fact of a history: `manifest/state` and
//! `manifest/edit`, `flush` (writes it), `recovery` (reads it), `repair` (carries it).
//!
//! Lock order: `Engine::flushing` (after a database's locks where a repair installs), `Engine::names`, a database's `ddl`
//! or `following`, its latch, table latches by id, `Engine::gate`, `held`, `applying`, `Engine::publishing`.

mod admission;
mod apply;
mod archive;
mod background;
mod backup;
mod cache;
mod changes;
mod choice;
mod chunk;
mod commit;
mod config;
mod database;
mod datafile;
mod ddl;
mod dead_letter;
mod digest;
mod effect;
mod engine;
mod error;
mod flush;
mod garbage;
mod held;
mod history;
mod ids;
mod ingest;
mod job;
mod keys;
mod manifest;
mod memtable;
mod open_transactions;
mod operation;
mod part;
pub mod partition;
mod pins;
mod recovery;
mod remote_cluster;
mod repair;
mod replay;
mod replica;
mod rights;
mod scalar;
#[cfg(feature = "simulation")]
pub mod simulation;
mod space;
mod store;
mod subscriptions;
mod system;
mod table;
mod task;
mod transaction;
pub mod types;
mod version;

pub use admission::SeenPartition;
pub use archive::{ArchiveConfig, open_archive};
pub use backup::{
    BackupDatabase, BackupEstimate, BackupFacts, BackupFault, BackupFile, BackupId, BackupKind, BackupLocation,
    BackupManifest, BackupPartition, BackupReport, BackupRequest, BackupScope, BackupState, BackupStatus,
    BackupSummary, BackupTable, CheckReport, EstimatedTable, FaultPlace, Identities, PartitionChoice,
    PartitionCondition, PartitionPattern, PointInTime, PruneReport, PruneRequest, Recipients, RestoreMode,
    RestorePoint, RestoreReport, RestoreRequest, RestoreScope, RestoreTarget, SelectedRows, SelectedSource,
};
pub use changes::{
    COMMIT_TIME_COLUMN, Changes, ChangesRequest, DROP_PARTITION, FEED_COLUMNS, INSERT, OPERATION_COLUMN,
    PartitionFilter, feed_schema,
};
pub use choice::{LeftOut, TableChoice};
pub use chunk::{Chunk, IdentityRun};
pub use config::EngineConfig;
pub use datafile::{
    ColumnStatistics, DatafileMeta, ORDINAL_COLUMN, ORDINAL_FIELD_ID, SEQ_COLUMN, SEQ_FIELD_ID, WriteRequest,
    write_datafile,
};
pub use dead_letter::{DeadLetter, Divergence};
pub use digest::{
    ComparedPartition, DamagedDatafile, DatabaseDigests, Difference, Digest, PartitionDigests, PointId, RowHasher,
    ScrubbedPartition, TableDigests, compare_digests,
};
pub use engine::{Engine, EngineSeams, MemoryStatus, ReplicationSwitches, StartReport};
pub use error::{EngineError, Result};
pub use held::OpenFragments;
pub use history::{EpochEntry, HistoryInfo};
pub use ids::{ColumnId, Ordinal, SchemaVersion, TableId};
pub use job::{
    CatchUp, JOB_MESSAGE_BYTES_MAX, JOB_RETRIES_MAX, JOB_RUNS_KEPT_MAX, JOB_RUNS_MAX, JOB_STATEMENT_BYTES_MAX,
    JOBS_MAX, Job, JobBegin, JobDefinition, JobEnd, JobOutcome, JobPause, JobRetry, JobRun, JobTrigger, RunNumber,
    SkippedRuns,
};
pub use manifest::{DatabaseFacts, ManifestFacts};
pub use operation::{CreateDatabase, CreateTable, DigestPoint, Operation, OperationCode, SystemFact};
pub use part::{decode_part, encode_part};
pub use partition::{PartitionKey, PartitionScheme};
pub use remote_cluster::RemoteCluster;
pub use repair::{RepairInstall, RepairManifest, RepairSource, RepairTable};
pub use replica::{Applied, Applier, Prepared};
pub use rights::{GrantedRight, Right};
pub use store::open_store;
pub use subscriptions::{Subscribed, SubscriptionStatus};
pub use table::{
    COLUMNS_MAX, Column, ColumnDefinition, FIELD_ID_KEY, NAME_BYTES_MAX, Table, TableDefinition, check_name,
};
pub use task::{GroupFold, TASKS_KEPT, TaskInfo};
pub use transaction::{CommitOptions, Durability, Receipt, Transaction};
pub use version::{DatabaseVersion, Datafile, PartitionVersion, Role, TableVersion, Version};
