//! What the node does when its disk is full: it gives a reserve back, refuses its clients' writes so that nobody else
//! takes that space, flushes and truncates, and takes writes again once the reserve is there again.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tailrace_wal::{Clock, Disk, DiskSpace, HistoryId, Log, Reserve, ReserveStatus, TransactionNumber};
use tokio::sync::Notify;

use crate::{Engine, EngineConfig, EngineError, Result};

/// Time between flushes that are made for want of space alone.
const PRESSED_PAUSE: Duration = Duration::from_secs(1);
/// Without a reserve, the disk counts as full until so many bytes of it are free, or this part of a small one.
const LOW_BYTES: u64 = 4 << 20;
const LOW_PART: u64 = 16;
/// Looks of the housekeeping that find no space before a pin is given up: a feed that lives has moved by then.
const PATIENCE: u64 = 5;

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    /// The data folder, and the log's where that is elsewhere.
    folders: Vec<PathBuf>,
    /// One in each of them.
    reserves: Vec<Reserve>,
    log: OnceLock<Log>,
    /// A write found no space, and no flush has been made since.
    pressed: AtomicBool,
    /// Monotonic microseconds of the last flush under pressure, plus one.
    pressed_flush: AtomicU64,
    /// A client's write found no space since the last look.
    starved: AtomicBool,
    /// Some write found no space, and none was seen since.
    full: AtomicBool,
    /// Looks that found no space, in a row.
    short: AtomicU64,
    /// The reserve could not be made the last time, for another reason than space.
    failing: AtomicBool,
    /// Wakes whoever flushes when a flush is due.
    pub(crate) changed: Arc<Notify>,
    /// Wakes it out of its pause after a failure when there is space again.
    pub(crate) freed: Arc<Notify>,
}

impl Space {
    /// Looks at what an earlier run left. Blocks.
    pub(crate) fn open(config: &EngineConfig, disk: Arc<dyn Disk>, clock: Arc<dyn Clock>) -> Self {
        let mut folders = vec![config.data_dir.as_path()];
        if !config.wal.dir.starts_with(&config.data_dir) {
            folders.push(&config.wal.dir);
        }
        let reserve = |folder| Reserve::open(disk.clone(), clock.clone(), folder, config.wal.reserve_bytes);
        Self {
            reserves: folders.iter().copied().map(reserve).collect(),
            folders: folders.into_iter().map(Path::to_owned).collect(),
            disk: disk.clone(),
            clock: clock.clone(),
            log: OnceLock::new(),
            pressed: AtomicBool::new(false),
            pressed_flush: AtomicU64::new(0),
            starved: AtomicBool::new(false),
            full: AtomicBool::new(false),
            short: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            changed: Arc::default(),
            freed: Arc::default(),
        }
    }

    /// The log is open: from here on it refuses clients while there is no reserve.
    pub(crate) fn attach(&self, log: Log) {
        let _ = self.log.set(log);
        self.apply();
    }

    /// Runs a write that leads out of a full disk. If it finds no space, the reserve is given back and it runs once more.
    pub(crate) async fn needed<T, F: Future<Output = Result<T>>>(
        &self,
        what: &str,
        mut work: impl FnMut() -> F,
    ) -> Result<T> {
        match work().await {
            Err(error) if error.is_full() => {
                self.full.store(true, Ordering::Release);
                if self.release(&format!("{what} found no space")) { work().await } else { Err(error) }
            }
            outcome => outcome,
        }
    }

    /// A write of a client found no space. From here on the disk counts as full: smaller writes that might still fit
    /// would only put off what has to be done. Not for writes that were refused because it counts as full already: the
    /// last of those may come after the reserve is there again, and would give it back for ever.
    pub(crate) fn starve(&self) {
        self.starved.store(true, Ordering::Release);
        self.full.store(true, Ordering::Release);
        if !self.is_short() {
            self.release("a write found no space");
        }
    }

    /// What can be flushed and truncated is.
    pub(crate) fn press(&self) {
        if !self.pressed.swap(true, Ordering::AcqRel) {
            self.changed.notify_one();
        }
    }

    /// Whether a flush for want of space is due.
    pub(crate) fn is_pressed(&self) -> bool {
        let last = self.pressed_flush.load(Ordering::Acquire);
        let now = micros(self.clock.monotonic());
        self.pressed.load(Ordering::Acquire) && (last == 0 || now + 1 >= last + micros(PRESSED_PAUSE))
    }

    /// A flush under pressure begins.
    pub(crate) fn take_pressure(&self) -> bool {
        self.pressed_flush.store(micros(self.clock.monotonic()) + 1, Ordering::Release);
        self.pressed.swap(false, Ordering::AcqRel)
    }

    /// Whether clients' writes are refused for want of space.
    pub(crate) fn is_short(&self) -> bool {
        self.reserves.iter().any(Reserve::is_released)
    }

    /// Without a reserve: whether a write found no space and there is hardly any still, whoever asks for it now. Blocks.
    fn is_still_full(&self) -> bool {
        let is_low = |folder: &PathBuf| {
            let space = self.disk.space(folder).ok();
            space.is_some_and(|space| space.available < LOW_BYTES.min(space.total / LOW_PART))
        };
        let full = self.full.load(Ordering::Acquire) && self.folders.iter().any(is_low);
        if !full {
            self.full.store(false, Ordering::Release);
        }
        full
    }

    /// Makes what is missing of the reserves, if there is space. Blocks.
    fn make(&self) {
        for reserve in &self.reserves {
            match reserve.make() {
                Ok(_) => self.failing.store(false, Ordering::Relaxed),
                // Tried every second; told once.
                Err(error) if !self.failing.swap(true, Ordering::Relaxed) => {
                    tracing::warn!(%error, "the reserve was not made; it is tried again");
                }
                Err(_) => {}
            }
        }
        self.apply();
    }

    fn release(&self, why: &str) -> bool {
        let mut any = false;
        for reserve in &self.reserves {
            any |= reserve.release(why);
        }
        self.apply();
        self.press();
        any
    }

    fn apply(&self) {
        if let Some(log) = self.log.get() {
            log.refuse_writes(self.is_short());
        }
    }
}

impl Engine {
    /// The reserves, for `system.disk`.
    pub fn reserves(&self) -> Vec<ReserveStatus> {
        self.space.reserves.iter().map(Reserve::status).collect()
    }

    /// How much space the file system of a folder has; `None` where that cannot be known. Blocks.
    pub fn disk_space(&self, folder: &std::path::Path) -> Option<DiskSpace> {
        self.space.disk.space(folder).ok()
    }

    /// Looks after the space: makes the reserve where it is missing, and under want of it flushes, and gives up the claim
    /// on the log, a feed's or the archive's, that holds most.
    pub(crate) async fn mind_space(self: &Arc<Self>) {
        let was_short = self.space.is_short();
        let starved = self.space.starved.swap(false, Ordering::AcqRel);
        let is_none = |reserve: &Reserve| reserve.status().wanted_bytes == 0 && reserve.status().held_bytes == 0;
        let has_none = self.space.reserves.iter().all(is_none);
        let space = self.space.clone();
        let looked = tokio::task::spawn_blocking(move || {
            if !has_none {
                space.make();
            }
            has_none && space.is_still_full()
        });
        let still_full = match looked.await {
            Ok(still_full) => still_full,
            Err(error) => {
                tracing::error!(%error, "the reserve was not made");
                false
            }
        };
        if !self.space.is_short() && !starved && !still_full {
            self.space.short.store(0, Ordering::Relaxed);
            if was_short {
                tracing::info!("there is space again: writes of clients are taken");
                self.space.freed.notify_one();
            }
            return;
        }
        // A repair that goes on later fetches again what it had; a client's write does not wait for it.
        self.paused_repairs.clear();
        let looks = self.space.short.fetch_add(1, Ordering::Relaxed) + 1;
        if looks.is_multiple_of(PATIENCE) {
            self.log.give_up_claim("the disk is full");
            self.space.press();
        }
    }

    /// Ends transactions whose abort record found no space.
    pub(crate) async fn retry_aborts(&self) {
        let left: Vec<(HistoryId, TransactionNumber)> = std::mem::take(&mut *self.unaborted.lock());
        for (history, number) in left {
            self.abort_transaction(history, number).await;
        }
    }
}

impl EngineError {
    /// Whether it failed for want of space: it can be tried again once there is some.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Log(error) => error.is_full(),
            Self::Full { .. } => true,
            _ => false,
        }
    }
}

/// Whether an error of a store, or what caused it, is want of space.
pub(crate) fn is_no_space(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && matches!(io.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
