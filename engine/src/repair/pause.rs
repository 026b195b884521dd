//! What repairs that were interrupted had fetched: it waits on the disk for the next repair of its history.
//!
//! Nothing names these files but this list: no version shows them, the manifest does not know them, and a start removes
//! them. They go when the next repair does not want them, when the history ends here, when the disk is short of space, and
//! when no repair came for a day.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tailrace_wal::HistoryId;

use crate::{DatafileMeta, PartitionKey, TableId, garbage::Garbage, partition::DatafilePath};

/// How long they wait for the next repair.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct PausedRepairs(Mutex<HashMap<HistoryId, Paused>>);

#[derive(Debug)]
struct Paused {
    files: Vec<PausedFile>,
    /// When it was first looked at for its age, monotonic.
    seen: Option<Duration>,
}

/// A datafile that was fetched and checked against what the primary stated of it. Removed when it is dropped.
#[derive(Debug)]
pub(super) struct PausedFile {
    table: TableId,
    key: PartitionKey,
    /// As the primary stated it.
    stated: DatafileMeta,
    /// Where it is here.
    path: Option<DatafilePath>,
    garbage: Garbage,
}

impl PausedFile {
    pub(super) fn new(
        table: TableId,
        key: PartitionKey,
        stated: DatafileMeta,
        path: DatafilePath,
        garbage: Garbage,
    ) -> Self {
        Self { table, key, stated, path: Some(path), garbage }
    }

    /// Whether it is what a primary states now: length, hash, and what was checked of its content.
    pub(super) fn is(&self, table: TableId, key: &PartitionKey, meta: &DatafileMeta) -> bool {
        let facts = |meta: &DatafileMeta| (meta.bytes, meta.rows, meta.schema_version, meta.digest);
        (self.table, &self.key, &self.stated.hash) == (table, key, &meta.hash) && facts(&self.stated) == facts(meta)
    }

    /// XXH3-128 of its bytes, hexadecimal.
    pub(super) fn hash(&self) -> &str {
        &self.stated.hash
    }

    /// What it is, where it is here.
    pub(super) fn here(&self) -> DatafileMeta {
        let path = self.path.clone().unwrap_or_else(|| self.stated.path.clone());
        DatafileMeta { path, ..self.stated.clone() }
    }

    /// Where it is, for whom it belongs to from here on.
    pub(super) fn take(mut self) -> Option<DatafilePath> {
        self.path.take()
    }
}

impl Drop for PausedFile {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            self.garbage.remove(path);
        }
    }
}

impl PausedRepairs {
    /// Keeps files for the next repair, in the place of those that are kept.
    pub(super) fn put(&self, history: HistoryId, files: Vec<PausedFile>) {
        if !files.is_empty() {
            self.0.lock().insert(history, Paused { files, seen: None });
        }
    }

    /// Gives them to a repair that begins.
    pub(super) fn take(&self, history: HistoryId) -> Vec<PausedFile> {
        self.0.lock().remove(&history).map(|paused| paused.files).unwrap_or_default()
    }

    /// The history has ended here.
    pub(crate) fn forget(&self, history: HistoryId) {
        self.0.lock().remove(&history);
    }

    /// Their space is needed for something else.
    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    /// Lets go of those that nobody came for.
    pub(crate) fn age(&self, now: Duration) {
        self.0.lock().retain(|_, paused| now.saturating_sub(*paused.seen.get_or_insert(now)) < AGE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use tailrace_wal::Seq;

    use super::*;
    use crate::SchemaVersion;

    #[test]
    fn they_wait_for_a_day_and_are_removed() {
        let (garbage, mut removed) = Garbage::new();
        let paused = PausedRepairs::default();
        let path = |name: &str| DatafilePath(name.to_owned());
        let file = |name: &str| {
            let stated = DatafileMeta {
                path: path("there"),
                bytes: 1,
                rows: 1,
                hash: "0".repeat(32),
                schema_version: SchemaVersion(1),
                seqs: (Seq(1), Seq(1)),
                identity_bytes: 0,
                statistics: Vec::new(),
                digest: None,
            };
            PausedFile::new(TableId(1), PartitionKey(bytes::Bytes::new()), stated, path(name), garbage.clone())
        };
        let (one, two) = (HistoryId([1; 16]), HistoryId([2; 16]));
        paused.put(one, vec![file("a"), file("b")]);
        paused.put(two, vec![file("c")]);
        paused.age(Duration::from_secs(100));
        assert!(removed.try_recv().is_err());
        // Another try took what there was: nothing of it is removed.
        let taken: Vec<_> = paused.take(one).into_iter().filter_map(PausedFile::take).collect();
        assert_eq!(taken, [path("a"), path("b")]);
        paused.put(one, vec![file("d")]);
        paused.age(Duration::from_secs(100) + AGE_MAX);
        assert_eq!(removed.try_recv().ok(), Some(path("c")));
        assert!(removed.try_recv().is_err());
        paused.forget(one);
        assert_eq!(removed.try_recv().ok(), Some(path("d")));
        paused.put(one, vec![file("e")]);
        paused.put(one, vec![file("f")]);
        assert_eq!(removed.try_recv().ok(), Some(path("e")));
        paused.clear();
        assert_eq!(removed.try_recv().ok(), Some(path("f")));
    }
}
