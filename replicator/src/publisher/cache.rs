//! Chunks kept for replicas that come to the same place a moment later, of all histories together, within a budget.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use tailrace_wal::HistoryId;

use super::chunk::{Chunk, Cursor};

/// What a chunk costs beside its bytes.
const CHUNK_OVERHEAD: usize = 512;

/// See the module.
#[derive(Debug)]
pub(crate) struct ChunkCache {
    bytes_max: usize,
    state: Mutex<State>,
}

type Key = (HistoryId, Cursor);

#[derive(Debug, Default)]
struct State {
    kept: HashMap<Key, Kept>,
    /// Oldest first. Those that were forgotten are skipped when their turn comes.
    order: VecDeque<(u64, Key)>,
    /// Those that are here in both forms.
    both: BTreeMap<u64, Key>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Kept {
    chunk: Arc<Chunk>,
    number: u64,
    /// What it was counted with: a chunk grows when its compressed form is made.
    bytes: usize,
}

impl ChunkCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, state: Mutex::default() }
    }

    /// The chunk at a place.
    pub(crate) fn get(&self, history: HistoryId, at: Cursor) -> Option<Arc<Chunk>> {
        self.state.lock().kept.get(&(history, at)).map(|kept| kept.chunk.clone())
    }

    /// Lets go of the chunk at a place.
    pub(crate) fn remove(&self, history: HistoryId, at: Cursor) {
        self.state.lock().remove(&(history, at));
    }

    /// Keeps a chunk; the oldest ones go for it. One that is kept already is counted anew.
    pub(crate) fn keep(&self, chunk: &Arc<Chunk>) {
        let mut state = self.state.lock();
        let key = (chunk.first.history, chunk.at);
        let number = match state.remove(&key) {
            Some(number) => number,
            None => {
                state.next += 1;
                let number = state.next;
                state.order.push_back((number, key));
                number
            }
        };
        state.insert(key, chunk.clone(), number);
        state.evict(self.bytes_max);
    }

    /// A chunk's compressed form is taken: it is counted, if the chunk is here, in the place of the raw one when there is
    /// little room. Replicas that take chunks compressed can then be further apart.
    pub(crate) fn grown(&self, chunk: &Arc<Chunk>) {
        let mut state = self.state.lock();
        if state.bytes > self.bytes_max / 2 {
            chunk.shed();
        }
        let key = (chunk.first.history, chunk.at);
        if state.kept.get(&key).is_some_and(|kept| Arc::ptr_eq(&kept.chunk, chunk))
            && let Some(number) = state.remove(&key)
        {
            state.insert(key, chunk.clone(), number);
            state.evict(self.bytes_max);
        }
    }

    /// Drops the chunks of a history.
    pub(crate) fn forget(&self, history: HistoryId) {
        let mut state = self.state.lock();
        let keys: Vec<Key> = state.kept.keys().filter(|(of, _)| *of == history).copied().collect();
        for key in keys {
            state.remove(&key);
        }
        state.order.retain(|(_, (of, _))| *of != history);
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.state.lock().bytes
    }
}

impl State {
    fn insert(&mut self, key: Key, chunk: Arc<Chunk>, number: u64) {
        let bytes = chunk.held_bytes() + CHUNK_OVERHEAD;
        self.bytes += bytes;
        if chunk.has_both() {
            self.both.insert(number, key);
        }
        self.kept.insert(key, Kept { chunk, number, bytes });
    }

    fn remove(&mut self, key: &Key) -> Option<u64> {
        let kept = self.kept.remove(key)?;
        self.bytes -= kept.bytes;
        self.both.remove(&kept.number);
        Some(kept.number)
    }

    /// A chunk in one form is worth more than two in both: to make one again costs a read of the log and a compression.
    fn evict(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max
            && let Some((number, key)) = self.both.pop_first()
            && let Some(chunk) = self.kept.get(&key).map(|kept| kept.chunk.clone())
        {
            chunk.shed();
            self.remove(&key);
            self.insert(key, chunk, number);
        }
        while self.bytes > bytes_max
            && let Some((number, key)) = self.order.pop_front()
        {
            if self.kept.get(&key).is_some_and(|kept| kept.number == number) {
                self.remove(&key);
            }
        }
    }
}
