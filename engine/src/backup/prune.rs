//! Removes old backups, and files that no backup needs any more.
//!
//! Manifests go first, files afterwards: interrupted between the two, it leaves files that nothing names, which the next
//! prune removes. No backup begins while it runs, and it does not begin while one is made.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectStoreExt as _;
use tailrace_wal::CommitTime;

use super::{
    BackupLocation,
    location::manifest_name,
    manifest::BackupId,
    mark::{Mark, Work, living, occupied},
    parallel,
    progress::{BackupKind, Running},
};
use crate::{Engine, EngineError, Result, store::STAGING};

/// Age at which what a writer left half written is removed.
const STAGED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Which backups stay.
#[derive(Debug, Clone)]
pub struct PruneRequest {
    /// So many of the newest stay, whatever their age. At least 1.
    pub keep: usize,
    /// Of the others only those go that are older.
    pub older_than: Option<Duration>,
    /// Only says what it would do.
    pub dry_run: bool,
}

/// What a prune removed, or would remove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneReport {
    /// Backups that are gone, oldest first.
    pub removed: Vec<BackupId>,
    /// Backups that stay.
    pub kept: u64,
    /// Files that are gone.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Engine {
    /// Removes backups, and all files that none of the others names.
    ///
    /// # Errors
    /// [`EngineError::Conflict`] while a backup is made there. A manifest that stays and cannot be read is an error as
    /// well: which files it needs is not known. Nothing is removed then.
    pub async fn prune_backups(&self, location: &BackupLocation, request: PruneRequest) -> Result<PruneReport> {
        let id = format!("{:016x}", self.clock.random());
        let running = self.backups.begin(BackupKind::Prune, &id, &location.to_string(), &self.clock);
        running.end(self.prune_here(location, request, &id, &running).await)
    }

    async fn prune_here(
        &self,
        location: &BackupLocation,
        request: PruneRequest,
        id: &str,
        running: &Running,
    ) -> Result<PruneReport> {
        self.check_open()?;
        if request.keep == 0 {
            return Err(EngineError::Invalid("keep => 0 would leave no backup; it is at least 1".to_owned()));
        }
        let mark = Mark::set(location, Work::Prune, id, self.node, &*self.clock).await?;
        let pruned = self.prune_marked(location, request, id, running).await;
        mark.release().await;
        pruned
    }

    async fn prune_marked(
        &self,
        location: &BackupLocation,
        request: PruneRequest,
        id: &str,
        running: &Running,
    ) -> Result<PruneReport> {
        let now = self.clock.now();
        let is_alive = |id: &str| self.backups.is_running(id);
        let marks = living(location, self.node, is_alive, now).await?;
        if let Some(other) = marks.iter().find(|mark| mark.id != id) {
            return Err(occupied(location, other));
        }
        let mut kept = location.backups().await?;
        let beyond = kept.len().saturating_sub(request.keep);
        let mut removed = Vec::new();
        for candidate in kept.drain(..beyond).collect::<Vec<_>>() {
            match is_old(location, &candidate, request.older_than, now).await? {
                true => removed.push(candidate),
                false => kept.push(candidate),
            }
        }
        let mut needed: BTreeSet<String> = BTreeSet::new();
        for id in &kept {
            needed.extend(location.manifest(id).await?.files().map(|(.., file)| file.name.clone()));
        }
        let mut report = PruneReport { removed, kept: kept.len() as u64, files: 0, bytes: 0 };
        if !request.dry_run {
            for id in &report.removed {
                remove(location, &manifest_name(id)).await?;
            }
        }
        let listed = location.listed(&location.data()?, "files").await?;
        let unneeded: Vec<(String, u64)> = listed.into_iter().filter(|(name, _)| !needed.contains(name)).collect();
        running.task.expect(unneeded.len() as u64, unneeded.iter().map(|(_, bytes)| bytes).sum(), 0);
        report.files = unneeded.len() as u64;
        report.bytes = unneeded.iter().map(|(_, bytes)| bytes).sum();
        if !request.dry_run {
            let removing = unneeded.into_iter().map(|(name, bytes)| async move {
                remove(location, &name).await?;
                running.task.passed(bytes);
                running.task.done(0);
                Ok::<_, EngineError>(())
            });
            let removing: Vec<_> = removing.collect();
            stream::iter(removing).buffer_unordered(parallel(None)).try_collect::<()>().await?;
            if let Some(folder) = location.folder() {
                let staging = folder.join(STAGING);
                let cleaned = tokio::task::spawn_blocking(move || clean(&staging, now)).await;
                if let Ok(Err(error)) = cleaned {
                    tracing::warn!(%error, %location, "what was left half written was not removed");
                }
            }
        }
        Ok(report)
    }
}

/// Whether a backup is older than asked for. One that cannot be read is as old as its name says, and goes: nothing can be
/// done with it.
async fn is_old(
    location: &BackupLocation,
    id: &BackupId,
    older_than: Option<Duration>,
    now: CommitTime,
) -> Result<bool> {
    let Some(older_than) = older_than else { return Ok(true) };
    match location.manifest(id).await {
        Ok(manifest) => {
            let age = u128::try_from(now.0.saturating_sub(manifest.started.0)).unwrap_or(0);
            Ok(age > older_than.as_micros())
        }
        Err(EngineError::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

async fn remove(location: &BackupLocation, name: &str) -> Result<()> {
    match location.store().delete(&location.object(name)?).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(location.failed("remove", name, &error)),
    }
}

/// Removes what writers left half written long ago.
fn clean(staging: &Path, now: CommitTime) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(staging) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let modified = entry.metadata()?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = u128::try_from(now.0).unwrap_or(0).saturating_sub(modified.as_micros());
        if age > STAGED_MAX.as_micros() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
