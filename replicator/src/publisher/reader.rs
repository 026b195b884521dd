//! Reads a history from the log and makes chunks of it, once for all replicas that are at the same place.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use tailrace_engine::{Engine, EngineError};
use tailrace_wal::{HistoryId, LogError, Tail};
use tokio::sync::Notify;

use super::{
    cache::ChunkCache,
    chunk::{Chunk, Cursor, Filling},
    figures::Figures,
};

/// Chunks of one history.
#[derive(Debug)]
pub(crate) struct HistoryReader {
    engine: Arc<Engine>,
    history: HistoryId,
    cache: Arc<ChunkCache>,
    figures: Arc<Figures>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    feeds: usize,
    tails: Vec<(Cursor, Tail)>,
    reading: HashSet<Cursor>,
}

/// One feed's use of a reader.
#[derive(Debug)]
pub(crate) struct ReaderUse(Arc<HistoryReader>);

impl HistoryReader {
    pub(crate) fn new(
        engine: Arc<Engine>,
        history: HistoryId,
        cache: Arc<ChunkCache>,
        figures: Arc<Figures>,
    ) -> Arc<Self> {
        Arc::new(Self { engine, history, cache, figures, state: Mutex::default(), changed: Notify::new() })
    }

    /// Registers a feed: chunks are kept only while there are several.
    pub(crate) fn register(self: &Arc<Self>) -> ReaderUse {
        self.state.lock().feeds += 1;
        ReaderUse(self.clone())
    }

    /// The chunk at a cursor; waits until there is one. Whoever comes first to a place reads it, the others wait: the
    /// future has to be polled until it is done, or dropped.
    pub(crate) async fn next(self: Arc<Self>, at: Cursor) -> Result<Arc<Chunk>, EngineError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (first, tail) = {
                let mut state = self.state.lock();
                if let Some(chunk) = self.cache.get(self.history, at) {
                    if state.feeds < 2 {
                        // It was kept while its feed waited for room; nobody else comes for it.
                        self.cache.remove(self.history, at);
                    }
                    return Ok(chunk);
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
            self.figures.chunks.fetch_add(1, Ordering::Relaxed);
            let chunk = Arc::new(chunk);
            let mut state = self.state.lock();
            let feeds = state.feeds.max(1);
            state.tails.push((chunk.next, tail));
            if state.tails.len() > feeds {
                state.tails.remove(0);
            }
            if feeds > 1 {
                // Under the lock: the last feed but one forgets what is kept.
                self.cache.keep(&chunk);
            }
            return Ok(chunk);
        }
    }

    async fn read(&self, at: Cursor, tail: Option<Tail>) -> Result<(Tail, Chunk), EngineError> {
        let mut tail = match tail {
            Some(tail) => tail,
            None => {
                let (log, history) = (self.engine.log().clone(), self.history);
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
                // A record may be durable a moment before it is readable. Nobody is to see it elsewhere before it is here.
                self.engine.applied(self.history, chunk.last.seq).await?;
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
            self.0.cache.forget(self.0.history);
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

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The runtime is going down.
        Err(_) => Err(LogError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use tailrace_wal::Seq;

    use super::*;
    use crate::support::{Authority, Site};

    const WRITERS: u64 = 4;
    const COMMITS: u64 = 200;
    /// Room for one full chunk, not for two.
    const BUDGET: usize = 3 << 20;

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_leaves_before_it_is_readable_here() {
        let site = Site::new(&Authority::new(), "a").await;
        site.market("market").await;
        let engine = site.engine.clone();
        let history = site.position("market").unwrap().history;
        let reader = HistoryReader::new(engine.clone(), history, Arc::new(ChunkCache::new(0)), Arc::default());
        let site = Arc::new(site);
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let site = site.clone();
                tokio::spawn(async move {
                    for id in 0..COMMITS as i64 {
                        site.insert("market", "bars", id..id + 1).await;
                    }
                })
            })
            .collect();
        let mut at = Cursor::after(Seq::ZERO);
        let mut last = Seq::ZERO;
        while last < Seq(2 + WRITERS * COMMITS) {
            let chunk = reader.clone().next(at).await.unwrap();
            let here = site.position("market").unwrap().seq;
            assert!(here >= chunk.last.seq, "seq {} left, {here} is readable", chunk.last.seq);
            (at, last) = (chunk.next, chunk.last.seq);
        }
        for writer in writers {
            writer.await.unwrap();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_kept_stays_within_its_budget() {
        let site = Site::new(&Authority::new(), "a").await;
        site.market("market").await;
        for id in 0..120 {
            site.insert("market", "bars", id * 3_000..(id + 1) * 3_000).await;
        }
        let end = site.position("market").unwrap();
        let (cache, figures) = (Arc::new(ChunkCache::new(BUDGET)), Arc::<Figures>::default());
        let reader = HistoryReader::new(site.engine.clone(), end.history, cache.clone(), figures.clone());
        let (first, second) = (reader.register(), reader.register());
        let mut at = Cursor::after(Seq::ZERO);
        let mut last = Seq::ZERO;
        let (mut newest, mut shed) = (None, 0);
        while last < end.seq {
            let chunk = first.clone().next(at).await.unwrap();
            // Its compressed form counts as well.
            let encoded = chunk.encoded(crate::wire::Compression::Zstd, site.engine.clock(), &figures).await.unwrap();
            assert_eq!(encoded.compression, crate::wire::Compression::Zstd);
            cache.grown(&chunk);
            assert!(cache.bytes() <= BUDGET, "{} bytes are kept", cache.bytes());
            // And what was let go of is the same when it is taken raw.
            let raw = chunk.encoded(crate::wire::Compression::Raw, site.engine.clock(), &figures).await.unwrap();
            let back = crate::wire::decompress(&encoded.body.joined(), chunk.raw_len() as usize).unwrap();
            assert_eq!(back, raw.body.joined());
            assert_eq!(xxhash_rust::xxh3::xxh3_64(&back), raw.hash);
            shed += usize::from(chunk.held_bytes() < raw.body.len());
            newest = cache.get(end.history, at);
            (at, last) = (chunk.next, chunk.last.seq);
        }
        assert_eq!(figures.chunks.load(Ordering::Relaxed), figures.compressions());
        assert!(newest.is_none() || cache.bytes() > 0);
        assert!(shed > 0, "the budget was never scarce");
        drop(second);
        assert_eq!(cache.bytes(), 0, "one reader needs no copies");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_chunk_in_both_forms_gives_one_up_before_another_goes() {
        let site = Site::new(&Authority::new(), "a").await;
        site.market("market").await;
        for id in 0..140 {
            site.insert("market", "bars", id * 3_000..(id + 1) * 3_000).await;
        }
        let history = site.position("market").unwrap().history;
        // Room for three chunks of 2 MiB and the compressed form of one of them, not for a fourth beside that.
        let cache = Arc::new(ChunkCache::new(8 << 20));
        let figures = Arc::<Figures>::default();
        let reader = HistoryReader::new(site.engine.clone(), history, cache.clone(), figures.clone());
        let _several = (reader.register(), reader.register());
        let start = Cursor::after(Seq::ZERO);
        let first = reader.clone().next(start).await.unwrap();
        first.encoded(crate::wire::Compression::Zstd, site.engine.clock(), &figures).await.unwrap();
        cache.grown(&first);
        assert!(first.has_both() && cache.bytes() > first.raw_len() as usize);
        let (mut at, mut places) = (first.next, vec![start]);
        for _ in 0..2 {
            let chunk = reader.clone().next(at).await.unwrap();
            places.push(at);
            at = chunk.next;
        }
        assert!(places.iter().all(|at| cache.get(history, *at).is_some()), "{} bytes are kept", cache.bytes());
        assert!(first.has_both(), "there was room");
        reader.clone().next(at).await.unwrap();
        assert!(!first.has_both() && cache.get(history, start).is_some(), "{} bytes are kept", cache.bytes());
    }
}
