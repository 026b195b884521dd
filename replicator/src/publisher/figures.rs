//! What the publisher has done since its start, and how fast this node compresses.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

/// Compressions of fewer bytes say little about speed.
const SPEED_BYTES_MIN: usize = 64 << 10;
/// Weight of the newest compression in the mean.
const NEWEST: f64 = 0.2;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Bytes sent, as on the wire.
    pub(crate) sent_wire: AtomicU64,
    /// The same, uncompressed.
    pub(crate) sent_raw: AtomicU64,
    /// Chunks read from the log.
    pub(crate) chunks: AtomicU64,
    /// Chunks compressed.
    compressions: AtomicU64,
    speed: Mutex<Option<CompressionSpeed>>,
}

/// What compressing brings and costs on this node, as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct CompressionSpeed {
    /// Uncompressed bytes per second on one thread.
    pub(crate) bytes_per_second: f64,
    /// Uncompressed bytes per compressed byte.
    pub(crate) ratio: f64,
    /// When it was measured last, monotonic.
    pub(crate) measured: Duration,
}

impl Figures {
    /// A chunk was compressed.
    pub(crate) fn compressed(&self, raw: usize, compressed: usize, took: Duration, now: Duration) {
        self.compressions.fetch_add(1, Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        if raw < SPEED_BYTES_MIN || seconds <= 0.0 {
            return;
        }
        let newest = (raw as f64 / seconds, raw as f64 / compressed.max(1) as f64);
        let mut speed = self.speed.lock();
        let mean = |before: f64, newest: f64| before + NEWEST * (newest - before);
        let (bytes_per_second, ratio) = match *speed {
            Some(before) => (mean(before.bytes_per_second, newest.0), mean(before.ratio, newest.1)),
            None => newest,
        };
        *speed = Some(CompressionSpeed { bytes_per_second, ratio, measured: now });
    }

    /// Chunks compressed since start.
    pub(crate) fn compressions(&self) -> u64 {
        self.compressions.load(Ordering::Relaxed)
    }

    /// `None` before a chunk of some size was compressed.
    pub(crate) fn speed(&self) -> Option<CompressionSpeed> {
        *self.speed.lock()
    }

    /// Something was sent.
    pub(crate) fn sent(&self, wire: usize, raw: u32) {
        self.sent_wire.fetch_add(wire as u64, Ordering::Relaxed);
        self.sent_raw.fetch_add(u64::from(raw), Ordering::Relaxed);
    }
}
