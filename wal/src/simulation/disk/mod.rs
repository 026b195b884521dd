//! A disk in memory that fails where it is told to and loses what was not synced.
//!
//! | file | what |
//! |---|---|
//! | `call` | the calls of the seam |
//! | `state` | files, names, what fails |
//! | `seam` | how calls are recorded, shown, and done or failed |

mod call;
mod seam;
mod state;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

pub use call::{Call, CallKind};
use state::{Plan, State};

use super::{
    fault::{Failure, FaultClass, FaultCounts},
    names::Names,
};
use crate::{Disk, FileOffset};

/// Sees every call that changes the disk before it happens, when neither the disk nor anything of it is locked: it
/// may take images.
pub type Observer = Arc<dyn Fn(&SimulatedDisk, &Call) + Send + Sync>;

/// A disk in memory: files and folders, a page cache, and what is really on the disk. Clones share it.
///
/// A loss of power ([`SimulatedDisk::crash`], or on a copy, [`SimulatedDisk::image`]) keeps any subset of what was
/// not synced: blocks of 512 bytes in any order and in any of their versions, lengths and a folder's entries by
/// themselves, and bytes of earlier files in space that was allocated and not written. Everything follows from the
/// seeds: the same calls on a disk of the same seed give the same trace.
#[derive(Clone)]
pub struct SimulatedDisk {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    observer: Mutex<Option<Observer>>,
}

impl SimulatedDisk {
    /// An empty disk. What failing calls leave behind follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::of(State {
            files: Vec::new(),
            names: Names::default(),
            random: StdRng::seed_from_u64(seed),
            calls: 0,
            plan: None,
            fired: None,
            capacity: None,
            counts: FaultCounts::default(),
            trace_hash: 0,
            trace: None,
            stale: Vec::new(),
            locks: BTreeSet::new(),
            boot: 0,
            is_off: false,
        })
    }

    fn of(state: State) -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::new(state), observer: Mutex::default() }) }
    }

    /// This disk behind the seam.
    pub fn shared(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// The call number `after`, from 0 and from now on, of those that `failure` can hit, fails; later ones succeed.
    /// [`Failure::Broken`] hits every call, [`Failure::Full`] those that need space, [`Failure::DropsPages`] syncs
    /// of files. Replaces an earlier plan.
    pub fn fail_call(&self, after: u64, failure: Failure) {
        self.plan(Some(Plan { failure, after, lasts: false }));
    }

    /// As [`SimulatedDisk::fail_call`], and every such call after it fails too, until [`SimulatedDisk::heal`].
    pub fn fail_from(&self, after: u64, failure: Failure) {
        self.plan(Some(Plan { failure, after, lasts: true }));
    }

    /// No call fails any more by a plan. A capacity stays.
    pub fn heal(&self) {
        self.plan(None);
    }

    fn plan(&self, plan: Option<Plan>) {
        let mut state = self.shared.state.lock();
        state.plan = plan;
        state.fired = None;
    }

    /// The first call that the last plan failed, if any.
    pub fn fired(&self) -> Option<CallKind> {
        self.shared.state.lock().fired
    }

    /// Limits the bytes that all files may have together; what does not fit fails with ENOSPC. `None`: no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.shared.state.lock().capacity = bytes;
    }

    /// Bytes of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.shared.state.lock().used()
    }

    /// Every call fails from now on, until the next crash: what is left of a process does no more harm. A log with
    /// its own thread is dropped between this and [`SimulatedDisk::crash`].
    pub fn power_off(&self) {
        self.shared.state.lock().is_off = true;
    }

    /// Loses power and comes back. Handles and locks from before are void, plans and the capacity forgotten.
    pub fn crash(&self, random: &mut StdRng) {
        self.shared.state.lock().crash(random);
    }

    /// A copy as a loss of power now would leave it. This disk goes on undisturbed, and counts nothing for it.
    pub fn image(&self, random: &mut StdRng) -> Self {
        let copy = self.fork();
        copy.crash(random);
        copy
    }

    /// A copy with its page cache, as if the process alone had ended. It has no observer, no plan, and counts and
    /// traces from nothing.
    pub fn fork(&self) -> Self {
        let mut state = self.shared.state.lock().clone();
        state.locks.clear();
        state.plan = None;
        state.counts = FaultCounts::default();
        state.trace_hash = 0;
        state.trace = state.trace.map(|_| Vec::new());
        Self::of(state)
    }

    /// The page cache forgets what it need not hold: readers see what a failed sync really left.
    pub fn evict(&self) {
        let mut state = self.shared.state.lock();
        let State { files, counts, .. } = &mut *state;
        for file in files {
            if file.evict() {
                counts.add(FaultClass::Evicted);
            }
        }
    }

    /// Flips one bit of a file, durably. Errors when there is no such file.
    pub fn flip_bit(&self, path: &Path, offset: FileOffset, bit: u8) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let file = state.file_of(path)?;
        state.files[file].flip(offset.0, bit);
        state.counts.add(FaultClass::FlippedBit);
        Ok(())
    }

    /// Flips a bit of some file for which `concerns` is true. Returns which.
    pub fn flip_any(&self, random: &mut StdRng, concerns: impl Fn(&Path) -> bool) -> Option<(PathBuf, FileOffset)> {
        let (path, len) = {
            let state = self.shared.state.lock();
            let found = state.names.files().filter(|(path, _)| concerns(path));
            let found: Vec<_> = found.map(|(path, file)| (path.to_path_buf(), state.files[file].cached.len)).collect();
            let found: Vec<_> = found.into_iter().filter(|(_, len)| *len > 0).collect();
            if found.is_empty() {
                return None;
            }
            found[random.random_range(0..found.len())].clone()
        };
        let offset = FileOffset(random.random_range(0..len));
        self.flip_bit(&path, offset, random.random_range(0..8)).ok()?;
        Some((path, offset))
    }

    /// Files with their lengths, by name.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let state = self.shared.state.lock();
        state.names.files().map(|(path, file)| (path.to_path_buf(), state.files[file].cached.len)).collect()
    }

    /// All bytes of a file, as readers see them.
    pub fn read_all(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.shared.state.lock();
        let content = &state.files[state.file_of(path)?].cached;
        let mut bytes = vec![0; content.len as usize];
        content.read(&mut bytes, 0);
        Ok(bytes)
    }

    /// Whether anything was not synced.
    pub fn is_dirty(&self) -> bool {
        let state = self.shared.state.lock();
        state.names.is_dirty() || state.names.files().any(|(_, file)| state.files[file].is_dirty())
    }

    /// How often each class of faults was active here.
    pub fn counts(&self) -> FaultCounts {
        self.shared.state.lock().counts.clone()
    }

    /// Calls since the disk was made.
    pub fn calls(&self) -> u64 {
        self.shared.state.lock().calls
    }

    /// Keeps every call from now on.
    pub fn keep_trace(&self) {
        self.shared.state.lock().trace = Some(Vec::new());
    }

    /// The calls kept.
    pub fn trace(&self) -> Vec<Call> {
        self.shared.state.lock().trace.clone().unwrap_or_default()
    }

    /// A hash over every call since the disk was made, kept or not.
    pub fn trace_hash(&self) -> u64 {
        self.shared.state.lock().trace_hash
    }

    /// Shows every changing call to `observer` before it happens.
    pub fn observe(&self, observer: Option<Observer>) {
        *self.shared.observer.lock() = observer;
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk").finish_non_exhaustive()
    }
}
