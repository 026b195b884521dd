//! The storage engine of Tailrace: histories, value partitions, memtable, datafiles, manifest, versions.

mod admission;
mod apply;
mod background;
mod cache;
mod chunk;
mod commit;
mod config;
mod database;
mod datafile;
mod ddl;
mod effect;
mod engine;
mod error;
mod flush;
mod garbage;
mod held;
mod history;
mod ids;
mod ingest;
mod keys;
mod manifest;
mod memtable;
mod open_transactions;
mod operation;
mod part;
pub mod partition;
mod recovery;
mod repair;
mod replay;
mod replica;
mod scalar;
mod store;
mod system;
mod table;
mod task;
mod transaction;
pub mod types;
mod version;

pub use chunk::{Chunk, IdentityRun};
pub use config::EngineConfig;
pub use datafile::{
    ColumnStatistics, DatafileMeta, ORDINAL_COLUMN, ORDINAL_FIELD_ID, SEQ_COLUMN, SEQ_FIELD_ID, WriteRequest,
    write_datafile,
};
pub use engine::{Engine, EngineSeams, MemoryStatus, ReplicationSwitches, StartReport};
pub use error::{EngineError, Result};
pub use history::{EpochEntry, HistoryInfo};
pub use ids::{ColumnId, Ordinal, SchemaVersion, TableId};
pub use operation::{CreateDatabase, CreateTable, Operation, SystemFact};
pub use part::{decode_part, encode_part};
pub use partition::{PartitionKey, PartitionScheme};
pub use repair::{RepairInstall, RepairManifest, RepairSource, RepairTable};
pub use replica::{Applied, Applier, Prepared};
pub use store::open_store;
pub use table::{
    COLUMNS_MAX, Column, ColumnDefinition, FIELD_ID_KEY, NAME_BYTES_MAX, Table, TableDefinition, check_name,
};
pub use task::{GroupFold, TASKS_KEPT, TaskInfo};
pub use transaction::{CommitOptions, Durability, Receipt, Transaction};
pub use version::{DatabaseVersion, Datafile, PartitionVersion, Role, TableVersion, Version};
