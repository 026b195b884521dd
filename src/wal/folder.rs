//! What a folder is: a node's, or a log's.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tailrace_engine::ManifestFacts;
use tailrace_wal::{HistoryId, SystemDisk, inspect::Inspector};

use super::output::ToolError;

/// What there is to read in a folder.
#[derive(Debug)]
pub(super) struct Folder {
    /// The log asked for: of a node's folder its own log.
    pub(super) log: PathBuf,
    /// Of a node's folder: its manifest.
    pub(super) manifest: Option<PathBuf>,
}

impl Folder {
    /// Looks what `dir` is.
    pub(super) fn find(dir: &Path) -> Result<Self, ToolError> {
        if !dir.is_dir() {
            return Err(ToolError::Wrong(format!("{} is not a folder", dir.display())));
        }
        // `tailrace init` puts the data folder into the node's.
        for data in [dir.to_owned(), dir.join("data")] {
            let (log, manifest) = (data.join("wal"), data.join("manifest"));
            if holds_segments(&log) {
                return Ok(Self { log, manifest: Some(manifest).filter(|manifest| manifest.is_dir()) });
            }
            if holds_segments(&manifest) {
                return Err(ToolError::Wrong(format!(
                    "{} holds a manifest and no log: the setting wal.dir names another folder; give that one",
                    data.display()
                )));
            }
        }
        match holds_segments(dir) {
            true => Ok(Self { log: dir.to_owned(), manifest: None }),
            false => Err(ToolError::Wrong(format!(
                "{} holds no segments and no folder `wal`; give a node's folder, its data folder or a log's folder",
                dir.display()
            ))),
        }
    }

    /// Reads the manifest, where there is one. It is read before the log, which a running node only makes longer.
    pub(super) fn facts(&self) -> Result<Option<ManifestFacts>, ToolError> {
        Ok(self.manifest.as_deref().map(|dir| ManifestFacts::read(&SystemDisk::shared(), dir)).transpose()?)
    }

    /// A reader of the log, told what the manifest knows.
    pub(super) fn inspector(&self, facts: Option<&ManifestFacts>) -> Inspector {
        let inspector = Inspector::new(SystemDisk::shared(), &self.log);
        let Some(facts) = facts else { return inspector };
        let databases = facts.databases.iter();
        databases.fold(inspector.durable_floor(facts.flushed), |inspector, (id, database)| {
            inspector.replaced(*id, database.replay_after)
        })
    }
}

/// Names of databases by history.
pub(super) fn names(facts: Option<&ManifestFacts>) -> BTreeMap<HistoryId, String> {
    let databases = facts.into_iter().flat_map(|facts| &facts.databases);
    databases.map(|(id, database)| (*id, database.name.clone())).collect()
}

fn holds_segments(dir: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else { return false };
    entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "wal"))
}
