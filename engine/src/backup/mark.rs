//! Marks: who works in a location now. What a prune removes must not be what a backup relies on.
//!
//! Whoever begins sets its mark first and looks for those of others then: of two that begin at once, one at least sees
//! the other. A mark that nobody renews is dead after a day; those of this node that it knows nothing of are dead at once.

use std::time::Duration;

use futures::TryStreamExt as _;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions};
use parking_lot::Mutex;
use tailrace_wal::{Clock, CommitTime, NodeId};

use super::location::{BackupLocation, mark_name};
use crate::{EngineError, Result};

/// How long a mark of another node counts that is not renewed.
const DEAD_AFTER: Duration = Duration::from_secs(24 * 3600);
/// How often a mark is renewed.
const RENEW_AFTER: Duration = Duration::from_secs(3600);

/// Who marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Backup,
    Prune,
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Prune => "prune",
        }
    }
}

/// How long a place has to take a mark away; beyond that it dies of age.
pub(super) const RELEASE_MAX: Duration = Duration::from_secs(2);

/// A mark of this process; dropping it takes it away in the background.
#[derive(Debug)]
pub(super) struct Mark {
    location: BackupLocation,
    /// Without its number.
    stem: String,
    set: Mutex<(u64, Duration)>,
    renewing: tokio::sync::Mutex<()>,
    released: bool,
}

/// A mark that was found.
#[derive(Debug)]
pub(super) struct FoundMark {
    pub(super) work: Work,
    pub(super) id: String,
    node: String,
    name: String,
    modified: CommitTime,
}

impl Mark {
    pub(super) async fn set(
        location: &BackupLocation,
        work: Work,
        id: &str,
        node: NodeId,
        clock: &dyn Clock,
    ) -> Result<Self> {
        let stem = format!("{}_{id}_{node}", work.name());
        let mut mark = Self {
            location: location.clone(),
            stem,
            set: Mutex::new((0, clock.monotonic())),
            renewing: tokio::sync::Mutex::default(),
            released: false,
        };
        match mark.put(0).await {
            Ok(()) => Ok(mark),
            Err(error) => {
                mark.released = true;
                Err(error)
            }
        }
    }

    /// Renews it where that is due.
    pub(super) async fn keep(&self, clock: &dyn Clock) -> Result<()> {
        let _alone = self.renewing.lock().await;
        let (number, at) = *self.set.lock();
        let now = clock.monotonic();
        if now.saturating_sub(at) < RENEW_AFTER {
            return Ok(());
        }
        self.put(number + 1).await?;
        *self.set.lock() = (number + 1, now);
        self.remove(number).await;
        Ok(())
    }

    /// Takes it away. Where that fails, or takes long, it dies of age.
    pub(super) async fn release(mut self) {
        self.released = true;
        let number = self.set.lock().0;
        if tokio::time::timeout(RELEASE_MAX, self.remove(number)).await.is_err() {
            tracing::warn!(location = %self.location, "a mark was not removed in time; it counts until it is a day old");
        }
    }

    async fn put(&self, number: u64) -> Result<()> {
        let name = self.name(number);
        let create = PutOptions { mode: PutMode::Create, ..Default::default() };
        let put = self.location.store().put_opts(&self.location.object(&name)?, "{}".into(), create).await;
        put.map_err(|error| self.location.failed("write", &name, &error)).map(drop)
    }

    async fn remove(&self, number: u64) {
        remove(&self.location, &self.name(number)).await;
    }

    fn name(&self, number: u64) -> String {
        mark_name(&format!("{}_{number}", self.stem))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.released {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let number = self.set.get_mut().0;
        let (location, name) = (self.location.clone(), self.name(number));
        runtime.spawn(async move { remove(&location, &name).await });
    }
}

/// Marks that count. Dead ones are removed.
pub(super) async fn living(
    location: &BackupLocation,
    node: NodeId,
    is_mine_alive: impl Fn(&str) -> bool,
    now: CommitTime,
) -> Result<Vec<FoundMark>> {
    let mut living = Vec::new();
    for mark in found(location).await? {
        let is_mine = mark.node == node.to_string();
        let age = now.0.saturating_sub(mark.modified.0);
        let is_old = u128::try_from(age).is_ok_and(|age| age > DEAD_AFTER.as_micros());
        if is_old || (is_mine && !is_mine_alive(&mark.id)) {
            remove(location, &mark.name).await;
        } else {
            living.push(mark);
        }
    }
    Ok(living)
}

/// The error of whoever meets a mark.
pub(super) fn occupied(location: &BackupLocation, mark: &FoundMark) -> EngineError {
    let (what, id, node) = (mark.work.name(), &mark.id, &mark.node);
    EngineError::Conflict(format!(
        "{what} {id} of node {node} is under way at {location}; wait for its end (what a killed node left counts for a day \
         without a sign of life, its own restart ends it at once)"
    ))
}

async fn found(location: &BackupLocation) -> Result<Vec<FoundMark>> {
    let failed = |error: object_store::Error| location.failed("list", "marks", &error);
    let metas: Vec<_> = location.store().list(Some(&location.running()?)).try_collect().await.map_err(failed)?;
    let marks = metas.into_iter().filter_map(|meta| {
        let name = location.name(&meta.location)?;
        let file = name.rsplit('/').next()?.to_owned();
        let mut fields = file.split('_');
        let work = match fields.next()? {
            "backup" => Work::Backup,
            "prune" => Work::Prune,
            _ => return None,
        };
        let (id, node) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        Some(FoundMark { work, id, node, name, modified: CommitTime(meta.last_modified.timestamp_micros()) })
    });
    Ok(marks.collect())
}

async fn remove(location: &BackupLocation, name: &str) {
    let Ok(object) = location.object(name) else { return };
    match location.store().delete(&object).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
        Err(error) => {
            tracing::warn!(%error, name, %location, "a mark was not removed; it counts until it is a day old")
        }
    }
}
