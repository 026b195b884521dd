//! Brings backups back.
//!
//! `plan` compares what is wanted with what is here, and names every conflict before anything changes. A whole database
//! that is not here is put in place by `install`, as files and with one edit of the manifest; `replay` brings it to a
//! later point of its history before that. Tables and partitions come through a transaction: `table`, which reads with
//! `rows`.

mod install;
mod plan;
mod replay;
mod rows;
mod table;

use std::{fmt, sync::Arc, time::Duration};

use tailrace_wal::{CommitTime, Position, Seq};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    BackupLocation, PartitionChoice,
    cancel::unless_cancelled,
    encryption::Identities,
    manifest::{BackupId, BackupManifest},
    parallel,
    progress::{BackupKind, Running},
};
use crate::{Engine, EngineError, Result};

use plan::{Plan, Step};
pub(super) use rows::read as read_rows;

/// What to bring back, and how.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// Which backup; the newest by default, and for a point in time the newest before it.
    pub backup: Option<BackupId>,
    /// What of it.
    pub what: RestoreScope,
    /// Another name: of the database where one is restored, of database and table where a table is.
    pub into: Option<RestoreTarget>,
    /// Databases and tables that are not here are made.
    pub create: bool,
    /// What happens with partitions that are here and differ.
    pub mode: RestoreMode,
    /// Only says what it would do.
    pub dry_run: bool,
    /// Files under way at once; `None`: 4.
    pub parallel: Option<usize>,
    /// Who can read an encrypted backup.
    pub identities: Option<Identities>,
    /// Goes on from the backup with the archived log.
    pub until: Option<PointInTime>,
    /// Ends it early: databases and tables that are done stay, of the one under way nothing does.
    pub cancel: CancellationToken,
}

/// What of a backup.
#[derive(Debug, Clone, Default)]
pub enum RestoreScope {
    /// All that is in it.
    #[default]
    Everything,
    /// One database.
    Database(String),
    /// One table, or those of its partitions that all filters pick.
    Table {
        /// Its database.
        database: String,
        /// Its name.
        table: String,
        /// Which partitions.
        partitions: Vec<PartitionChoice>,
    },
}

/// Another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RestoreTarget {
    /// Of a database.
    Database(String),
    /// Of a table.
    Table {
        /// Its database.
        database: String,
        /// Its name.
        table: String,
    },
}

/// What happens with partitions that are here and differ from the backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RestoreMode {
    /// Each is a conflict.
    #[default]
    Fail,
    /// They become as they are in the backup.
    Replace,
    /// Rows of the backup that they lack are added; what is there stays.
    Merge,
}

/// A point of a history behind a backup.
#[derive(Debug, Clone)]
pub struct PointInTime {
    /// Which.
    pub target: RestorePoint,
    /// The archive of the log, as `wal.archive` names it; `None`: this node's log and archive.
    pub archive: Option<Url>,
}

/// How a point of a history is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestorePoint {
    /// After this transaction.
    Seq(Seq),
    /// After the last transaction that was committed at this moment or before.
    Time(CommitTime),
}

impl fmt::Display for RestorePoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seq(seq) => write!(f, "seq {seq}"),
            Self::Time(time) => {
                let time = chrono::DateTime::from_timestamp_micros(time.0).unwrap_or_default();
                write!(f, "{}", time.format("%Y-%m-%d %H:%M:%S.%6f UTC"))
            }
        }
    }
}

/// What a restore did, or would do.
#[derive(Debug, Clone)]
pub struct RestoreReport {
    /// The backup.
    pub backup: BackupId,
    /// A line per database and table: what was, or would be, done with it.
    pub steps: Vec<String>,
    /// Databases that were put in place as a whole, with their new positions.
    pub installed: Vec<(String, Position)>,
    /// Partitions that were written.
    pub partitions: u64,
    /// Partitions that were equal already.
    pub skipped_partitions: u64,
    /// Rows that were written.
    pub rows: u64,
    /// Bytes of the backup that were read.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl Engine {
    /// Brings back what a backup holds. Databases are put in place, tables changed, one after the other, each at once;
    /// run again after an interruption, it goes on with what is missing, and does nothing where nothing is.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] lists everything that stands against it; nothing was changed then. A table that somebody
    /// else changes meanwhile is an [`EngineError::Conflict`]: what came before it stays restored, and so with
    /// [`EngineError::Cancelled`] when `request.cancel` fired.
    pub async fn restore(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: RestoreRequest,
    ) -> Result<RestoreReport> {
        let name = request.backup.as_ref().map_or("", BackupId::as_str);
        let running = self.backups.begin(BackupKind::Restore, name, &location.to_string(), &self.clock);
        running.end(self.restore_here(location, request, &running).await)
    }

    async fn restore_here(
        self: &Arc<Self>,
        location: &BackupLocation,
        request: RestoreRequest,
        running: &Running,
    ) -> Result<RestoreReport> {
        self.check_open()?;
        let begun = self.clock.monotonic();
        let manifest = unless_cancelled(&request.cancel, "the restore", choose(location, &request)).await?;
        running.name(manifest.id.as_str());
        if manifest.encryption.is_some() && request.identities.is_none() {
            return Err(EngineError::Invalid(format!(
                "backup {} is encrypted; name the file of its key: key => '/folder/identity.txt'",
                manifest.id
            )));
        }
        let plan = unless_cancelled(&request.cancel, "the restore", Plan::make(self, &manifest, &request)).await?;
        let mut report = RestoreReport {
            backup: manifest.id.clone(),
            steps: plan.describe(),
            installed: Vec::new(),
            partitions: 0,
            skipped_partitions: plan.skipped_partitions(),
            rows: 0,
            bytes: 0,
            elapsed: Duration::ZERO,
        };
        if !request.dry_run {
            plan.expect(&running.task);
            let restore = Restore { engine: self, location, manifest: &manifest, request: &request, running };
            let steps = plan.steps.len();
            let mut made = None;
            for (done, step) in plan.steps.into_iter().enumerate() {
                let makes = match &step {
                    Step::CreateDatabase(name) => Some(name.clone()),
                    _ => None,
                };
                if let Err(error) = restore.step(step, &mut report).await {
                    restore.clear(made.as_deref()).await;
                    return Err(match error {
                        EngineError::Cancelled(what) => EngineError::Cancelled(format!(
                            "{what}: {done} of {steps} steps were done and stay, the others were not; run it again to go on"
                        )),
                        error => error,
                    });
                }
                made = makes.or(made);
            }
        }
        report.elapsed = self.clock.monotonic().saturating_sub(begun);
        Ok(report)
    }
}

/// A restore under way.
struct Restore<'a> {
    engine: &'a Arc<Engine>,
    location: &'a BackupLocation,
    manifest: &'a BackupManifest,
    request: &'a RestoreRequest,
    running: &'a Running,
}

impl Restore<'_> {
    /// After a failure a database that was made for tables goes again, unless there are some.
    async fn clear(&self, made: Option<&str>) {
        let Some(name) = made else { return };
        let version = self.engine.version();
        let is_empty = version.database(name).is_some_and(|database| database.tables().next().is_none());
        drop(version);
        if is_empty && let Err(error) = self.engine.drop_empty_database(name).await {
            tracing::warn!(%error, database = name, "a database that was made for a restore was not dropped again");
        }
    }

    async fn step(&self, step: Step<'_>, report: &mut RestoreReport) -> Result<()> {
        match step {
            Step::Install { database, name } => {
                let (position, rows, bytes) = self.install(database, &name).await?;
                report.partitions += database.tables.iter().map(|table| table.partitions.len() as u64).sum::<u64>();
                report.rows += rows;
                report.bytes += bytes;
                report.installed.push((name, position));
                Ok(())
            }
            Step::CreateDatabase(name) => self.engine.create_database(&name).await.map(drop),
            Step::Table(table) => self.table(table, report).await,
        }
    }

    fn parallel(&self) -> usize {
        parallel(self.request.parallel)
    }
}

/// The backup that is named; else the newest, and for a point in time the newest that is not behind it.
async fn choose(location: &BackupLocation, request: &RestoreRequest) -> Result<BackupManifest> {
    let Some(until) = request.until.as_ref().filter(|_| request.backup.is_none()) else {
        return location.chosen(request.backup.as_ref()).await;
    };
    let RestoreScope::Database(name) = &request.what else {
        return location.chosen(None).await;
    };
    let mut oldest = None;
    for id in location.backups().await?.into_iter().rev() {
        let manifest = match location.manifest(&id).await {
            Ok(manifest) => manifest,
            Err(error) => {
                tracing::warn!(backup = %id, %error, "a backup cannot be read; an earlier one is looked for");
                continue;
            }
        };
        let Some(database) = manifest.databases.iter().find(|database| database.name == *name && database.is_whole)
        else {
            continue;
        };
        let is_before = match until.target {
            RestorePoint::Seq(seq) => database.position.seq <= seq,
            RestorePoint::Time(time) => database.commit_time <= time,
        };
        if is_before {
            return Ok(manifest);
        }
        oldest = Some((id, database.position.seq, database.commit_time));
    }
    Err(match oldest {
        None => EngineError::NotFound { kind: "backup", name: format!("of database {name:?} at {location}") },
        Some((id, seq, time)) => EngineError::Invalid(format!(
            "{} lies before the oldest backup of database {name:?} at {location}: {id} is at seq {seq}, {}",
            until.target,
            RestorePoint::Time(time)
        )),
    })
}
