//! What only simulations use: an engine that is driven by hand, bugs that can be switched on, and reads of a disk that
//! exists in memory.
//!
//! The disk, the clock and the faults are those of `tailrace_wal::simulation`.

mod forgetful;
pub mod fuzz;
mod newer;
mod planted;
mod reader;
mod tampered;

use std::sync::Arc;

use tailrace_wal::Disk;

pub use planted::PlantedBug;
pub(crate) use reader::DiskReader;

use crate::{
    Engine, Result,
    garbage::{self, GarbageReceiver},
};
use forgetful::{ForgetfulDisk, Forgets};

/// What simulations change in an engine.
#[derive(Debug, Clone, Default)]
pub struct Simulation {
    /// A bug that is switched on, to see that tests find it.
    pub planted: Option<PlantedBug>,
    /// Background work is left to [`Engine::work_by_hand`], datafiles are written one after the other, and fragments are
    /// waited for: the same calls make the same trace of the disk.
    pub by_hand: bool,
    /// The manifest is cut into pieces, segments and checkpoints of a few KiB.
    pub small_manifest: bool,
}

impl Simulation {
    /// The disk beneath the store.
    pub(crate) fn forgetful(&self, disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
        match self.planted {
            Some(PlantedBug::NamesUnsyncedDatafile) => ForgetfulDisk::shared(disk, Forgets::Files),
            Some(PlantedBug::DoesNotSyncFolders) => ForgetfulDisk::shared(disk, Forgets::Folders),
            _ => disk,
        }
    }
}

impl Engine {
    /// What the background would do now: idle transactions, moved pins, files that nothing names any more.
    pub async fn work_by_hand(&self) {
        self.keep_house().await;
        let mut paths = Vec::new();
        if let Some(left) = &mut *self.left.lock().await {
            while let Ok(path) = left.try_recv() {
                paths.push(path);
            }
        }
        paths.sort_by(|a, b| a.0.cmp(&b.0));
        for path in paths {
            garbage::remove(&self.store, &path).await;
        }
    }

    /// Keeps what is to be removed, where that is done by hand.
    pub(crate) fn take_over(&self, receiver: GarbageReceiver) -> Option<GarbageReceiver> {
        if !self.config.is_by_hand() {
            return Some(receiver);
        }
        match self.left.try_lock() {
            Ok(mut left) => *left = Some(receiver),
            Err(_) => return Some(receiver),
        }
        None
    }

    /// The bug of a position that is stored without its data.
    pub(crate) async fn keep_position_apart(&self, database: &Arc<crate::database::Database>) -> Result<()> {
        if self.config.simulation.planted != Some(PlantedBug::KeepsPositionApart) {
            return Ok(());
        }
        let version = database.version();
        if let Some(mut known) = self.manifest.history(version.id).await {
            (known.position, known.restart_seq) = (version.position, version.restart_seq);
            (known.commit_time, known.epochs) = (version.commit_time, version.epochs.clone());
            self.manifest.append(crate::manifest::Edit::Install(Box::new(known))).await?;
        }
        Ok(())
    }

    /// The bug of a replay that applies what is flushed.
    pub(crate) fn replay_again(&self, database: &Arc<crate::database::Database>, frame: &tailrace_wal::Frame) {
        if self.config.simulation.planted != Some(PlantedBug::ReplaysFlushed) {
            return;
        }
        let version = database.version();
        let effects = crate::effect::decode_effects(&version, &frame.payload, crate::effect::Origin::Log);
        database.alter(
            |version, changes| {
                for effect in effects.into_iter().flatten() {
                    if let crate::effect::Effect::Append(append) = effect {
                        let _ = crate::apply::append_rows(version, append, frame.header.seq, changes);
                    }
                }
            },
            |version, ended| self.publish(version, ended),
        );
    }
}
