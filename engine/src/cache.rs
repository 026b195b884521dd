//! The Arrow of recently flushed datafiles, kept under a budget: the oldest goes first.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::{Chunk, Datafile, chunk::slice_bytes};

/// Which datafiles hold their rows in memory.
#[derive(Debug)]
pub(crate) struct DatafileCache {
    budget: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    files: VecDeque<(Weak<Datafile>, u64)>,
}

impl DatafileCache {
    pub(crate) fn new(budget: u64) -> Self {
        Self { budget, held: Mutex::default() }
    }

    /// Keeps a new datafile's rows, and lets go of the oldest ones beyond the budget.
    pub(crate) fn keep(&self, file: &Arc<Datafile>, chunks: Arc<[Arc<Chunk>]>) {
        let bytes: u64 = chunks.iter().map(|chunk| slice_bytes(chunk) as u64).sum();
        if bytes > self.budget {
            return;
        }
        let mut held = self.held.lock();
        held.bytes += bytes;
        file.set_cached(Some(chunks));
        held.files.push_back((Arc::downgrade(file), bytes));
        while held.bytes > self.budget
            && let Some((oldest, bytes)) = held.files.pop_front()
        {
            held.bytes -= bytes;
            if let Some(oldest) = oldest.upgrade() {
                oldest.set_cached(None);
            }
        }
    }
}
