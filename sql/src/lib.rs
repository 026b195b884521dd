//! SQL surface of Tailrace.
//!
//! # Contract
//!
//! - Kinds of statements are an allowlist; everything else is refused by name. Files are read only below the folders
//!   that the settings allow, and never written.
//! - A statement sees every database at one position: the version that was newest when it began.
//! - Errors carry the SQLSTATE that PostgreSQL gives to the same mistake, and what to do.
//!
//! # Data paths, file by file
//!
//! | path | files |
//! |---|---|
//! | connection | `server` → `pgwire/connection` → `pgwire/{startup,reader,frontend}` → `pgwire/{simple,extended}` → `session` → `pgwire/rows` → `pgwire/encode` → socket; cancelling: `pgwire/cancel` |
//! | write | `session` → `statement/parse` → `statement/insert` (literals: `statement/values`) or `statement/copy` → `statement/cast` → `statement/transaction` → engine |
//! | read | `session` (pins a version) → `statement/query` → `provider/catalog` → `provider/table` → `provider/pruning` → `provider/hot` and `provider/cold`; run by `execution/threads`, small ones where they are asked for: `execution/small` |
//! | feed | `session` → `statement/query` → `feed/planner` → `feed/provider` → `feed/rows` → the engine's `changes` |
//! | Flight SQL | `flight` → `flight/listener` (certificates) → `flight/service` → `flight/statement` → `session`; errors: `flight/status` |
//! | remote clusters | `remote/catalog` (while planning) → `remote/table` (with `remote/filter`, `remote/aggregate`) → `remote/scan` → `remote/cluster` |
//! | synchronization | `procedure/synchronize` → `synchronize` (`shape`, `predicate`) → `system/function/partition_digests` on both sides → `synchronize/plan` → `synchronize/partition` (`provider/partition_rows` there) → the engine's `replace_partition` |
//! | job | `procedure/job` → the engine's facts → `job` (a task) → `job/decide` (with `job/schedule`) → `job/run` → `session` |
//! | status | `system/schema` → `system/computed` → `system/table/…`; functions: `system/function/…`; CALL: `procedure/…` |
//!
//! Errors of other layers become SQL errors in `error/{engine,datafusion,arrow,parser}`.

mod error;
mod execution;
mod feed;
mod flight;
mod function;
mod instance;
mod job;
mod pgwire;
mod procedure;
mod provider;
mod remote;
mod server;
mod session;
mod statement;
pub mod synchronize;
mod system;

pub use error::{Result, SqlError};
pub use feed::parse_table_name;
pub use flight::FlightServer;
pub use instance::{Instance, SqlConfig};
pub use job::Jobs;
pub use remote::{Remote, Remotes};
pub use server::Server;
pub use session::{Notice, Outcome, Session, SessionFactory};
pub use statement::Statement;
