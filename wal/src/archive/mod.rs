//! The archive: sealed segments of one node's log, compressed once, in a folder or an object store.
//!
//! # Contract
//!
//! - Only durable records are archived: a segment is taken once the log has begun the next one, which states all of it
//!   durable. Every record is checked first, so damage on the log's disk is named and not archived.
//! - Something counts as archived when its manifest entry is durable in the store, after its object. A crash at any
//!   moment leaves at most an object that no entry names; the next attempt takes it over or replaces it.
//! - The log keeps what is not archived, within a pin's budget. When the budget is used up the log goes on without the
//!   archive, and what is missing becomes a gap: an entry of the manifest, with its LSNs and seqs.
//! - [`ArchiveTail`] reads what the log no longer holds from the archive and the rest from the log. It returns every
//!   record, or an error that names what is missing.
//!
//! # Files
//!
//! `store` (names, limits, time-outs of the object store) ← `object` (bytes of an archived segment) ← `entry`,
//! `manifest` (what is archived) ← `pack` (a segment on its way in), `open` (a segment read back) ← `archiver` (what
//! happens when), `tail` (readers). `claim` is what truncation asks.

mod archiver;
mod claim;
mod entry;
#[cfg(feature = "simulation")]
pub(crate) mod fuzz;
mod manifest;
mod object;
mod open;
mod pack;
mod store;
mod tail;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use object_store::{ObjectStore, path::Path as ObjectPath};
use parking_lot::RwLock;

use crate::{HistoryId, Log, LogError, Lsn, NodeId, Seq};

pub use archiver::{ArchiveState, ArchiveStatus, Archiver, ArchiverConfig};
pub(crate) use claim::ArchiveClaim;
pub use entry::{ArchiveEntry, ArchiveGap, ArchivedHistory, ArchivedSegment, GapHistory};
pub use tail::ArchiveTail;

use manifest::Manifest;
use open::ArchivedFile;
use store::ArchiveStore;

/// The archive of one node's log. Cheap to clone; clones share what is known of the manifest.
#[derive(Debug, Clone)]
pub struct Archive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: ArchiveStore,
    node: NodeId,
    manifest: RwLock<Manifest>,
    /// Somebody who shares this adds all entries: what is in memory is what is in the store.
    is_current: AtomicBool,
    /// Held while the manifest is read or added to.
    changing: tokio::sync::Mutex<()>,
}

impl Archive {
    /// Longest time that one call of the store may take, unless said otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(60);

    /// The archive of `node` below `prefix` in `store`. Nothing is read before [`Archive::refresh`]. What the store
    /// says it has put must be durable.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: ObjectPath, node: NodeId, timeout: Duration) -> Self {
        let store = ArchiveStore::new(store, prefix, timeout);
        let inner = Inner {
            store,
            node,
            manifest: RwLock::default(),
            is_current: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Reads the manifest: what has been archived until now.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] names a manifest object that does not check; [`LogError::Archive`] means that the store
    /// did not answer or lacks an object, and the call may be tried again.
    pub async fn refresh(&self) -> Result<(), LogError> {
        let _alone = self.inner.changing.lock().await;
        let manifest = Manifest::load(&self.inner.store, self.inner.node).await?;
        *self.inner.manifest.write() = manifest;
        Ok(())
    }

    /// The first record that the archive knows of.
    pub fn first(&self) -> Option<Lsn> {
        self.inner.manifest.read().entries().first().map(|entry| entry.first())
    }

    /// Last record that is archived or in a gap; [`Lsn::ZERO`] when there is none.
    pub fn archived(&self) -> Lsn {
        self.inner.manifest.read().end()
    }

    /// Everything in the manifest, in LSN order.
    pub fn entries(&self) -> Vec<Arc<ArchiveEntry>> {
        self.inner.manifest.read().entries().to_vec()
    }

    /// What is missing, in LSN order.
    pub fn gaps(&self) -> Vec<ArchiveGap> {
        let manifest = self.inner.manifest.read();
        let gaps = manifest.entries().iter().filter_map(|entry| match &**entry {
            ArchiveEntry::Gap(gap) => Some(gap.clone()),
            ArchiveEntry::Segment(_) => None,
        });
        gaps.collect()
    }

    /// Reads one history from the first record after the commit of `after` on, from the archive and, where one is
    /// given, the live log. Fragments, aborts and commits, as [`Log::tail`]; pass the restart seq of a position.
    ///
    /// # Errors
    /// [`LogError::ArchiveGap`] when the record lies in a gap, [`LogError::Truncated`] when it lies before everything
    /// that archive and log hold.
    pub async fn tail(&self, log: Option<&Log>, history: HistoryId, after: Seq) -> Result<ArchiveTail, LogError> {
        ArchiveTail::of_history(self.clone(), log, history, after).await
    }

    /// Reads all histories from the first record after `after` on.
    pub fn replay(&self, log: Option<&Log>, after: Lsn) -> ArchiveTail {
        ArchiveTail::of_all(self.clone(), log, after)
    }

    /// Reads every block of an archived segment and checks it.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] with the object and the offset in it.
    pub async fn verify(&self, segment: &ArchivedSegment) -> Result<(), LogError> {
        ArchivedFile::open(&self.inner.store, segment).await?.verify().await
    }

    pub(crate) fn store(&self) -> &ArchiveStore {
        &self.inner.store
    }

    /// The entry that covers a record.
    pub(crate) fn covering(&self, lsn: Lsn) -> Option<Arc<ArchiveEntry>> {
        self.inner.manifest.read().covering(lsn).cloned()
    }

    /// Reads what somebody else may have archived since.
    async fn look_again(&self) -> Result<(), LogError> {
        if self.inner.is_current.load(Ordering::Acquire) { Ok(()) } else { self.refresh().await }
    }

    /// From now on all entries come through here, or no longer.
    fn set_current(&self, is_current: bool) {
        self.inner.is_current.store(is_current, Ordering::Release);
    }

    /// The last seq of each history that is archived or in a gap.
    fn ends(&self) -> std::collections::BTreeMap<HistoryId, Seq> {
        self.inner.manifest.read().ends()
    }

    /// Adds an entry, durably.
    async fn append(&self, entry: ArchiveEntry) -> Result<(), LogError> {
        let _alone = self.inner.changing.lock().await;
        let mut manifest = self.inner.manifest.read().clone();
        manifest.append(&self.inner.store, self.inner.node, entry).await?;
        *self.inner.manifest.write() = manifest;
        Ok(())
    }
}
