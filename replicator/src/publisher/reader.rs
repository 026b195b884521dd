//! Reads a history from the log and makes chunks of it, once for all replicas that are at the same place.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tailrace_wal::{Frame, HistoryId, Log, LogError, Lsn, Position, Seq, Tail};
use tokio::sync::{Notify, OnceCell};
use xxhash_rust::xxh3::xxh3_64;

use crate::wire::{Compression, RecordsEncoder, compress};

/// Encoded bytes of chunks kept for other replicas that are at the same place.
const CACHE_BYTES: usize = 48 << 20;
/// Below this a body is not worth compressing.
const COMPRESS_MIN: usize = 256;
/// Chunks up to this size are made where the feed runs: handing them to another thread would take longer.
const INLINE_BYTES: usize = 16 << 10;

/// A place in a history's records in this node's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cursor {
    /// Last record of the history that was read; 0 at the beginning of a feed.
    lsn: Lsn,
    /// A reader that starts after this commit and drops what lies at or before `lsn` is at the cursor.
    restart: Seq,
}

impl Cursor {
    /// After the commit of `restart`.
    pub(crate) fn after(restart: Seq) -> Self {
        Self { lsn: Lsn::ZERO, restart }
    }
}

/// Consecutive records of a history.
#[derive(Debug)]
pub(crate) struct Chunk {
    at: Cursor,
    /// Where the next one begins.
    pub(crate) next: Cursor,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) records: u32,
    raw: Bytes,
    encoded: OnceCell<Encoded>,
}

/// A chunk's body as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) compression: Compression,
    pub(crate) body: Bytes,
    pub(crate) hash: u64,
}

impl Chunk {
    /// Uncompressed length.
    pub(crate) fn raw_len(&self) -> u32 {
        self.raw.len() as u32
    }

    /// The body, made by the first who asks; on a blocking thread unless it is small.
    pub(crate) async fn encoded(self: Arc<Self>) -> Result<Encoded, String> {
        let encoded = self.encoded.get_or_try_init(|| {
            let raw = self.raw.clone();
            async move {
                if raw.len() <= INLINE_BYTES {
                    return encode(raw);
                }
                tokio::task::spawn_blocking(move || encode(raw)).await.map_err(|error| error.to_string())?
            }
        });
        encoded.await.cloned()
    }
}

fn encode(raw: Bytes) -> Result<Encoded, String> {
    let (compression, body) = if raw.len() < COMPRESS_MIN {
        (Compression::Raw, raw)
    } else {
        let compressed = compress(&raw)?;
        if compressed.len() < raw.len() { (Compression::Zstd, compressed) } else { (Compression::Raw, raw) }
    };
    let hash = xxh3_64(&body);
    Ok(Encoded { compression, body, hash })
}

/// Chunks of one history.
#[derive(Debug)]
pub(crate) struct HistoryReader {
    log: Log,
    history: HistoryId,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    feeds: usize,
    tails: Vec<(Cursor, Tail)>,
    reading: HashSet<Cursor>,
    cache: VecDeque<Arc<Chunk>>,
    cache_bytes: usize,
}

/// One feed's use of a reader.
#[derive(Debug)]
pub(crate) struct ReaderUse(Arc<HistoryReader>);

impl HistoryReader {
    pub(crate) fn new(log: Log, history: HistoryId) -> Arc<Self> {
        Arc::new(Self { log, history, state: Mutex::default(), changed: Notify::new() })
    }

    /// Registers a feed: chunks are kept only while there are several.
    pub(crate) fn register(self: &Arc<Self>) -> ReaderUse {
        self.state.lock().feeds += 1;
        ReaderUse(self.clone())
    }

    /// The chunk at a cursor; waits until there is one. Whoever comes first to a place reads it, the others wait.
    pub(crate) async fn next(self: Arc<Self>, at: Cursor) -> Result<Arc<Chunk>, LogError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (first, tail) = {
                let mut state = self.state.lock();
                if let Some(chunk) = state.cache.iter().find(|chunk| chunk.at == at) {
                    return Ok(chunk.clone());
                }
                let first = state.reading.insert(at);
                let tail = state.tails.iter().position(|(cursor, _)| *cursor == at).filter(|_| first);
                (first, tail.map(|index| state.tails.swap_remove(index).1))
            };
            if !first {
                changed.await;
                continue;
            }
            let _reading = Reading { reader: &self, at };
            let (tail, chunk) = self.read(at, tail).await?;
            let chunk = Arc::new(chunk);
            let mut state = self.state.lock();
            let feeds = state.feeds.max(1);
            state.tails.push((chunk.next, tail));
            if state.tails.len() > feeds {
                state.tails.remove(0);
            }
            if feeds > 1 {
                state.cache_bytes += chunk.raw.len();
                state.cache.push_back(chunk.clone());
                while state.cache_bytes > CACHE_BYTES
                    && let Some(oldest) = state.cache.pop_front()
                {
                    state.cache_bytes -= oldest.raw.len();
                }
            }
            return Ok(chunk);
        }
    }

    async fn read(&self, at: Cursor, tail: Option<Tail>) -> Result<(Tail, Chunk), LogError> {
        let mut tail = match tail {
            Some(tail) => tail,
            None => {
                let (log, history) = (self.log.clone(), self.history);
                blocking(move || log.tail(history, at.restart)).await?
            }
        };
        loop {
            let mut filling = Filling::new(at);
            filling.take(&tail.next().await?);
            // At the log's end a few records wait at most. Behind it, reading and copying is work for a blocking thread.
            while filling.is_small()
                && let Some(frame) = tail.next_ready()?
            {
                filling.take(&frame);
            }
            if !filling.is_small() {
                (tail, filling) = blocking(move || {
                    filling.fill(&mut tail)?;
                    Ok((tail, filling))
                })
                .await?;
            }
            if let Some(chunk) = filling.finish() {
                return Ok((tail, chunk));
            }
        }
    }
}

impl std::ops::Deref for ReaderUse {
    type Target = Arc<HistoryReader>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for ReaderUse {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.feeds -= 1;
        if state.feeds < 2 {
            state.cache.clear();
            state.cache_bytes = 0;
        }
        if state.feeds == 0 {
            state.tails.clear();
        }
    }
}

/// Somebody reads at a place; ends also when that somebody is cancelled.
struct Reading<'a> {
    reader: &'a HistoryReader,
    at: Cursor,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.reader.state.lock().reading.remove(&self.at);
        self.reader.changed.notify_waiters();
    }
}

/// A chunk in the making.
struct Filling {
    at: Cursor,
    next: Cursor,
    encoder: RecordsEncoder,
    /// Positions of the first and the last record.
    ends: Option<(Position, Position)>,
}

impl Filling {
    fn new(at: Cursor) -> Self {
        Self { at, next: at, encoder: RecordsEncoder::default(), ends: None }
    }

    fn take(&mut self, record: &Frame) {
        // A tail that was opened anew begins before the cursor.
        if record.lsn > self.at.lsn {
            let position = record.header.position();
            self.encoder.add(&record.header, &record.payload);
            self.ends = Some((self.ends.map_or(position, |(first, _)| first), position));
            self.next = Cursor { lsn: record.lsn, restart: record.header.restart_seq };
        }
    }

    fn is_small(&self) -> bool {
        self.encoder.len() <= INLINE_BYTES
    }

    /// Takes what is there, as far as there is room.
    fn fill(&mut self, tail: &mut Tail) -> Result<(), LogError> {
        while self.encoder.has_room()
            && let Some(frame) = tail.try_next()?
        {
            self.take(&frame);
        }
        Ok(())
    }

    /// `None` when all records lay before the cursor.
    fn finish(self) -> Option<Chunk> {
        let (first, last) = self.ends?;
        let records = self.encoder.records();
        let raw = self.encoder.finish();
        Some(Chunk { at: self.at, next: self.next, first, last, records, raw, encoded: OnceCell::new() })
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is going down.
        Err(_) => Err(LogError::Closed),
    }
}
