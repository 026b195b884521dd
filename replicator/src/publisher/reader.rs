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

    /// The body, made on a blocking thread by the first who asks.
    pub(crate) async fn encoded(self: Arc<Self>) -> Result<Encoded, String> {
        let encoded = self.encoded.get_or_try_init(|| {
            let raw = self.raw.clone();
            async move { tokio::task::spawn_blocking(move || encode(raw)).await.map_err(|error| error.to_string())? }
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
        let mut first = None;
        loop {
            let (returned, chunk) = blocking(move || {
                let chunk = fill(&mut tail, at, first.take());
                chunk.map(|chunk| (tail, chunk))
            })
            .await?;
            tail = returned;
            if let Some(chunk) = chunk {
                return Ok((tail, chunk));
            }
            first = Some(tail.next().await?);
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

/// Reads what is there, up to a chunk; `None` when nothing is.
fn fill(tail: &mut Tail, at: Cursor, first: Option<Frame>) -> Result<Option<Chunk>, LogError> {
    let mut encoder = RecordsEncoder::default();
    let mut ends: Option<(Position, Position)> = None;
    let mut next = at;
    let mut frame = match first {
        Some(frame) => Some(frame),
        None => tail.try_next()?,
    };
    while let Some(record) = frame {
        // A tail that was opened anew begins before the cursor.
        if record.lsn > at.lsn {
            let position = record.header.position();
            encoder.add(&record.header, &record.payload);
            ends = Some((ends.map_or(position, |(first, _)| first), position));
            next = Cursor { lsn: record.lsn, restart: record.header.restart_seq };
            if !encoder.has_room() {
                break;
            }
        }
        frame = tail.try_next()?;
    }
    let Some((first, last)) = ends else { return Ok(None) };
    let records = encoder.records();
    Ok(Some(Chunk { at, next, first, last, records, raw: encoder.finish(), encoded: OnceCell::new() }))
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
