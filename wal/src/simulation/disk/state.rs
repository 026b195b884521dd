//! What a disk holds, and which of its calls fail.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use rand::rngs::StdRng;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    super::{
        content::{Content, File},
        fault::{Failure, FaultClass, FaultCounts},
        names::Names,
    },
    call::{Call, CallKind},
};

/// Contents of earlier files that may turn up in new ones.
const STALE_MAX: usize = 24;

#[derive(Debug, Clone)]
pub(super) struct State {
    /// By number; files without a name stay for those who have them open.
    pub(super) files: Vec<File>,
    pub(super) names: Names,
    pub(super) random: StdRng,
    pub(super) calls: u64,
    pub(super) plan: Option<Plan>,
    /// The first call that the plan failed.
    pub(super) fired: Option<CallKind>,
    /// Bytes that files with names may have together.
    pub(super) capacity: Option<u64>,
    pub(super) counts: FaultCounts,
    pub(super) trace_hash: u64,
    pub(super) trace: Option<Vec<Call>>,
    pub(super) stale: Vec<Content>,
    pub(super) locks: BTreeSet<PathBuf>,
    /// Counts losses of power: handles from before one do nothing any more.
    pub(super) boot: u64,
    pub(super) is_off: bool,
}

/// Calls that will fail.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) failure: Failure,
    /// Calls of the kinds concerned that still succeed.
    pub(super) after: u64,
    /// All later ones fail too.
    pub(super) lasts: bool,
}

/// Whether a call goes on, and how much of it.
pub(super) enum Fate {
    Done,
    Fails(io::Error, Failure),
}

impl State {
    pub(super) fn note(&mut self, call: &Call) {
        self.calls += 1;
        let seed = self.trace_hash ^ call.hash.rotate_left(17) ^ call.offset.0.rotate_left(41) ^ call.len as u64;
        let kind = [call.kind as u8];
        self.trace_hash = xxh3_64_with_seed(call.path.as_os_str().as_encoded_bytes(), seed ^ xxh3_64(&kind));
        if let Some(trace) = &mut self.trace {
            trace.push(call.clone());
        }
    }

    pub(super) fn decide(&mut self, kind: CallKind) -> Fate {
        let Some(plan) = &mut self.plan else { return Fate::Done };
        let is_hit = match plan.failure {
            Failure::Broken => true,
            Failure::Full => kind.needs_space(),
            Failure::DropsPages => matches!(kind, CallKind::SyncData | CallKind::SyncAll),
        };
        if !is_hit {
            return Fate::Done;
        }
        if plan.after > 0 {
            plan.after -= 1;
            return Fate::Done;
        }
        let failure = plan.failure;
        if !plan.lasts {
            self.plan = None;
        }
        self.fired.get_or_insert(kind);
        let (class, error) = match failure {
            Failure::Broken => (FaultClass::Broken, io::Error::other("simulated I/O error")),
            Failure::Full => (FaultClass::Full, ErrorKind::StorageFull.into()),
            Failure::DropsPages => (FaultClass::DroppedPages, io::Error::other("simulated failure of a sync")),
        };
        if failure != Failure::DropsPages {
            self.counts.add(class);
        }
        Fate::Fails(error, failure)
    }

    pub(super) fn file_of(&self, path: &Path) -> io::Result<usize> {
        self.names.file(path).ok_or_else(|| ErrorKind::NotFound.into())
    }

    pub(super) fn used(&self) -> u64 {
        self.names.files().map(|(_, file)| self.files[file].cached.len).sum()
    }

    /// Fails when there is no space for `more` bytes. Returns how many there are.
    pub(super) fn reserve(&mut self, more: u64) -> Result<(), u64> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let free = capacity.saturating_sub(self.used());
        if more > free {
            self.counts.add(FaultClass::Full);
            return Err(free);
        }
        Ok(())
    }

    /// Space of these bytes is given back: they may turn up again.
    pub(super) fn release(&mut self, content: Content) {
        if content.len > 0 {
            if self.stale.len() >= STALE_MAX {
                self.stale.remove(0);
            }
            self.stale.push(content);
        }
    }

    pub(super) fn crash(&mut self, random: &mut StdRng) {
        self.plan = None;
        self.fired = None;
        self.capacity = None;
        self.locks.clear();
        self.boot += 1;
        self.is_off = false;
        let before = self.names.clone();
        if self.names.crash(random) {
            self.counts.add(FaultClass::LostEntry);
        }
        let (stale, mut released) = (std::mem::take(&mut self.stale), Vec::new());
        for file in &mut self.files {
            if file.is_dirty() {
                released.push(file.cached.clone());
                *file = file.crash(&stale, random, &mut self.counts);
            } else {
                *file = file.crash(&[], random, &mut FaultCounts::default());
            }
        }
        self.stale = stale;
        // What was written and then lost lies in space that is free again.
        released.into_iter().for_each(|content| self.release(content));
        for (path, file) in before.files() {
            if self.names.file(path) != Some(file) {
                let content = self.files[file].cached.clone();
                self.release(content);
            }
        }
    }
}
