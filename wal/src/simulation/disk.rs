//! A disk in memory that fails where it is told to and loses what was not synced.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, ErrorKind, IoSlice},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    content::{Content, File},
    fault::{Failure, FaultClass, FaultCounts},
    names::{Entry, Names},
};
use crate::{Disk, DiskFile, DiskLock, FileOffset};

/// Contents of earlier files that may turn up in new ones.
const STALE_MAX: usize = 24;

/// A call of the seam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the names of the calls")]
pub enum CallKind {
    Create,
    Open,
    CreateDir,
    Link,
    List,
    Remove,
    Rename,
    SyncDir,
    Lock,
    Write,
    Read,
    SyncData,
    SyncAll,
    Len,
    SetLen,
}

/// One call, as the trace keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Number of the call since the disk was made, from 0.
    pub number: u64,
    /// Which.
    pub kind: CallKind,
    /// Its file or folder; of a rename, the new name.
    pub path: PathBuf,
    /// Where in the file; of `SetLen`, the new length.
    pub offset: FileOffset,
    /// Bytes to be written or read.
    pub len: usize,
    /// XXH3-64 of the bytes to be written.
    pub hash: u64,
}

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

#[derive(Debug, Clone)]
struct State {
    /// By number; files without a name stay for those who have them open.
    files: Vec<File>,
    names: Names,
    random: StdRng,
    calls: u64,
    plan: Option<Plan>,
    /// The first call that the plan failed.
    fired: Option<CallKind>,
    /// Bytes that files with names may have together.
    capacity: Option<u64>,
    counts: FaultCounts,
    trace_hash: u64,
    trace: Option<Vec<Call>>,
    stale: Vec<Content>,
    locks: BTreeSet<PathBuf>,
    /// Counts losses of power: handles from before one do nothing any more.
    boot: u64,
    is_off: bool,
}

/// Calls that will fail.
#[derive(Debug, Clone, Copy)]
struct Plan {
    failure: Failure,
    /// Calls of the kinds concerned that still succeed.
    after: u64,
    /// All later ones fail too.
    lasts: bool,
}

#[derive(Debug)]
struct Handle {
    disk: SimulatedDisk,
    path: PathBuf,
    file: usize,
    is_writable: bool,
    boot: u64,
}

/// Gives a lock back.
#[derive(Debug)]
struct Locked {
    disk: SimulatedDisk,
    path: PathBuf,
    boot: u64,
}

/// Whether a call goes on, and how much of it.
enum Fate {
    Done,
    Fails(io::Error, Failure),
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

    /// Records a call, shows it, and decides whether it fails.
    fn call(&self, kind: CallKind, path: &Path, offset: u64, bytes: Result<&[u8], usize>) -> Fate {
        let (len, hash) = match bytes {
            Ok(bytes) => (bytes.len(), xxh3_64(bytes)),
            Err(len) => (len, 0),
        };
        let call = {
            let mut state = self.shared.state.lock();
            if state.is_off {
                return Fate::Fails(io::Error::other("the power is off"), Failure::Broken);
            }
            let call = Call { number: state.calls, kind, path: path.into(), offset: FileOffset(offset), len, hash };
            state.note(&call);
            call
        };
        if kind.changes() {
            let observer = self.shared.observer.lock().clone();
            if let Some(observer) = observer {
                observer(self, &call);
            }
        }
        self.shared.state.lock().decide(kind)
    }

    /// As [`SimulatedDisk::call`], of a call that does nothing when it fails.
    fn check(&self, kind: CallKind, path: &Path) -> io::Result<()> {
        match self.call(kind, path, 0, Err(0)) {
            Fate::Done => Ok(()),
            Fate::Fails(error, _) => Err(error),
        }
    }

    fn handle(&self, path: &Path, file: usize, is_writable: bool, boot: u64) -> Arc<dyn DiskFile> {
        Arc::new(Handle { disk: self.clone(), path: path.into(), file, is_writable, boot })
    }
}

impl CallKind {
    /// Whether it may change the disk.
    pub fn changes(self) -> bool {
        !matches!(self, Self::Open | Self::List | Self::Read | Self::Len | Self::Lock)
    }

    fn needs_space(self) -> bool {
        matches!(self, Self::Create | Self::CreateDir | Self::Write)
    }
}

impl State {
    fn note(&mut self, call: &Call) {
        self.calls += 1;
        let seed = self.trace_hash ^ call.hash.rotate_left(17) ^ call.offset.0.rotate_left(41) ^ call.len as u64;
        let kind = [call.kind as u8];
        self.trace_hash = xxh3_64_with_seed(call.path.as_os_str().as_encoded_bytes(), seed ^ xxh3_64(&kind));
        if let Some(trace) = &mut self.trace {
            trace.push(call.clone());
        }
    }

    fn decide(&mut self, kind: CallKind) -> Fate {
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

    fn file_of(&self, path: &Path) -> io::Result<usize> {
        self.names.file(path).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn used(&self) -> u64 {
        self.names.files().map(|(_, file)| self.files[file].cached.len).sum()
    }

    /// Fails when there is no space for `more` bytes. Returns how many there are.
    fn reserve(&mut self, more: u64) -> Result<(), u64> {
        let Some(capacity) = self.capacity else { return Ok(()) };
        let free = capacity.saturating_sub(self.used());
        if more > free {
            self.counts.add(FaultClass::Full);
            return Err(free);
        }
        Ok(())
    }

    /// Space of these bytes is given back: they may turn up again.
    fn release(&mut self, content: Content) {
        if content.len > 0 {
            if self.stale.len() >= STALE_MAX {
                self.stale.remove(0);
            }
            self.stale.push(content);
        }
    }

    fn crash(&mut self, random: &mut StdRng) {
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

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.check(CallKind::Create, path)?;
        let mut state = self.shared.state.lock();
        if state.reserve(1).is_err() {
            return Err(ErrorKind::StorageFull.into());
        }
        let file = state.files.len();
        state.names.create(path, Entry::File(file))?;
        state.files.push(File::default());
        Ok(self.handle(path, file, true, state.boot))
    }

    fn open(&self, path: &Path, write: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.check(CallKind::Open, path)?;
        let state = self.shared.state.lock();
        Ok(self.handle(path, state.file_of(path)?, write, state.boot))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let (missing, there): (Vec<_>, Vec<_>) = {
            let state = self.shared.state.lock();
            path.ancestors().map(Path::to_path_buf).partition(|ancestor| !state.names.is_dir(ancestor))
        };
        if let Some(parent) = there.first().and_then(|there| there.parent()) {
            self.sync_dir(parent)?;
        }
        for folder in missing.iter().rev() {
            self.check(CallKind::CreateDir, folder)?;
            self.shared.state.lock().names.create(folder, Entry::Dir)?;
            self.sync_dir(folder.parent().unwrap_or(Path::new("")))?;
        }
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check(CallKind::CreateDir, path)?;
        self.shared.state.lock().names.create(path, Entry::Dir)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(CallKind::Link, to)?;
        let mut state = self.shared.state.lock();
        let file = state.file_of(from)?;
        state.names.create(to, Entry::File(file))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.check(CallKind::List, path)?;
        self.shared.state.lock().names.list(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.check(CallKind::Remove, path)?;
        let mut state = self.shared.state.lock();
        let file = state.file_of(path)?;
        state.names.remove(path)?;
        let content = state.files[file].cached.clone();
        state.release(content);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(CallKind::Rename, to)?;
        let mut state = self.shared.state.lock();
        let replaced = state.names.file(to);
        state.names.rename(from, to)?;
        if let Some(file) = replaced {
            let content = state.files[file].cached.clone();
            state.release(content);
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(CallKind::SyncDir, path)?;
        self.shared.state.lock().names.sync(path)
    }

    fn lock(&self, path: &Path) -> io::Result<DiskLock> {
        self.check(CallKind::Lock, path)?;
        let mut state = self.shared.state.lock();
        if !state.locks.insert(path.into()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        Ok(DiskLock::of(Locked { disk: self.clone(), path: path.into(), boot: state.boot }))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut state = self.disk.shared.state.lock();
        if state.boot == self.boot {
            state.locks.remove(&self.path);
        }
    }
}

impl Handle {
    /// Does `change` to the file, unless it was opened before a loss of power.
    fn with<R>(&self, change: impl FnOnce(&mut State, usize) -> io::Result<R>) -> io::Result<R> {
        let mut state = self.disk.shared.state.lock();
        if state.boot != self.boot {
            return Err(io::Error::other("opened before a loss of power"));
        }
        change(&mut state, self.file)
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable { Ok(()) } else { Err(ErrorKind::PermissionDenied.into()) }
    }

    fn sync(&self, kind: CallKind) -> io::Result<()> {
        match self.disk.call(kind, &self.path, 0, Err(0)) {
            Fate::Done => self.with(|state, file| {
                state.files[file].sync();
                Ok(())
            }),
            Fate::Fails(error, Failure::DropsPages) => {
                self.with(|state, file| {
                    let State { files, random, counts, .. } = state;
                    if files[file].drop_pages(random) {
                        counts.add(FaultClass::DroppedPages);
                    }
                    Ok(())
                })?;
                Err(error)
            }
            Fate::Fails(error, _) => Err(error),
        }
    }
}

impl DiskFile for Handle {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
        let fate = self.disk.call(CallKind::Write, &self.path, offset, Ok(&bytes));
        self.with(|state, file| {
            let mut result = Ok(());
            if let Fate::Fails(error, _) = fate {
                bytes.truncate(state.random.random_range(0..=bytes.len()));
                result = Err(error);
            }
            let more = (offset + bytes.len() as u64).saturating_sub(state.files[file].cached.len);
            if let Err(free) = state.reserve(more) {
                bytes.truncate(bytes.len() - (more - free) as usize);
                result = Err(ErrorKind::StorageFull.into());
            }
            let call = state.calls;
            state.files[file].write(&bytes, offset, call);
            result
        })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self.disk.call(CallKind::Read, &self.path, offset, Err(buffer.len())) {
            Fate::Done => self.with(|state, file| Ok(state.files[file].cached.read(buffer, offset))),
            Fate::Fails(error, _) => Err(error),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(CallKind::SyncData)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(CallKind::SyncAll)
    }

    fn len(&self) -> io::Result<u64> {
        self.disk.check(CallKind::Len, &self.path)?;
        self.with(|state, file| Ok(state.files[file].cached.len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        match self.disk.call(CallKind::SetLen, &self.path, len, Err(0)) {
            Fate::Done => self.with(|state, file| {
                let before = state.files[file].cached.clone();
                if len < before.len {
                    state.release(before);
                } else if state.reserve(len - before.len).is_err() {
                    return Err(ErrorKind::StorageFull.into());
                }
                state.files[file].set_len(len);
                Ok(())
            }),
            Fate::Fails(error, _) => Err(error),
        }
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk").finish_non_exhaustive()
    }
}
