//! One feed: reads ahead as far as credit goes, encodes in parallel, sends in order.

use std::{collections::VecDeque, sync::Arc};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tailrace_engine::EngineError;
use tailrace_wal::{HistoryId, LogError, Seq};
use tokio::sync::{Semaphore, mpsc};

use super::{
    Shared,
    chunk::{Chunk, Cursor, Encoded},
    connection::Event,
    link::{ReplicaLink, Room},
    reader::HistoryReader,
};
use crate::{
    session::PublisherSession,
    wire::{Compression, DataHeader, DataKind, FeedNumber},
};

/// Chunks of a feed that are encoded at the same time.
const ENCODING_MAX: usize = 3;

/// Everything a feed needs.
pub(crate) struct Feed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<ReplicaLink>,
    pub(crate) session: Arc<Mutex<PublisherSession>>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) feed: FeedNumber,
    pub(crate) history: HistoryId,
    pub(crate) restart: Seq,
    pub(crate) credit: Arc<Semaphore>,
}

/// A chunk on its way into the form in which it is sent.
struct Encoding {
    chunk: Arc<Chunk>,
    room: Room,
    encoded: BoxFuture<'static, Result<Encoded, String>>,
}

impl Feed {
    /// Runs until it fails, is cancelled, or the connection ends.
    pub(crate) async fn run(self) {
        let event = match self.pump().await {
            Ok(()) => return,
            Err(Failure::Reading(EngineError::Log(LogError::Truncated { retained_after, .. }))) => Event::FeedLost {
                feed: self.feed,
                retained_after,
                reason: format!("the log reaches back to seq {retained_after} only"),
            },
            Err(Failure::Reading(error)) => Event::FeedFailed { feed: self.feed, reason: error.to_string() },
            Err(Failure::Encoding(reason)) => Event::FeedFailed { feed: self.feed, reason },
        };
        let _ = self.events.send(event).await;
    }

    /// Reading, encoding and sending go on beside one another: a replica that takes nothing must not leave a read half
    /// done, for which others at the same place wait.
    async fn pump(&self) -> Result<(), Failure> {
        let reader = self.shared.reader(self.history).register();
        let mut at = Cursor::after(self.restart);
        let mut number = 0;
        let mut encoding: VecDeque<Encoding> = VecDeque::new();
        let mut reading = Box::pin(self.read(reader.clone(), at));
        let mut sending: Option<BoxFuture<'_, bool>> = None;
        loop {
            tokio::select! {
                read = &mut reading, if encoding.len() < ENCODING_MAX => {
                    let (chunk, room) = read.map_err(Failure::Reading)?;
                    at = chunk.next;
                    encoding.push_back(self.encode(chunk, room));
                    reading = Box::pin(self.read(reader.clone(), at));
                }
                encoded = first(&mut encoding), if sending.is_none() && !encoding.is_empty() => {
                    let encoded = encoded.map_err(Failure::Encoding)?;
                    let Some(Encoding { chunk, room, .. }) = encoding.pop_front() else { continue };
                    sending = Some(self.send(chunk, encoded, number, room).boxed());
                    number += 1;
                }
                sent = pending(&mut sending) => {
                    sending = None;
                    if !sent {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The chunk at a place, for which there is credit, and room on the way to the replica.
    async fn read(&self, reader: Arc<HistoryReader>, at: Cursor) -> Result<(Arc<Chunk>, Room), EngineError> {
        if let Ok(permit) = self.credit.acquire().await {
            permit.forget();
        }
        loop {
            let chunk = reader.clone().next(at).await?;
            let bytes = chunk.raw_len() as usize;
            if let Some(room) = self.link.try_room(bytes) {
                return Ok((chunk, room));
            }
            // Nothing is held outside of the cache's budget while it waits.
            self.shared.cache.keep(&chunk);
            drop(chunk);
            let room = self.link.room(bytes).await;
            let chunk = reader.clone().next(at).await?;
            // Read anew, it may have become longer.
            if chunk.raw_len() as usize <= bytes {
                return Ok((chunk, room));
            }
        }
    }

    fn encode(&self, chunk: Arc<Chunk>, room: Room) -> Encoding {
        let (shared, form, of) = (self.shared.clone(), self.link.next_form(chunk.raw_len() as usize), chunk.clone());
        let encoded = async move {
            let encoded = of.encoded(form, shared.engine.clock(), &shared.figures).await?;
            if encoded.compression != Compression::Raw {
                shared.cache.grown(&of);
            }
            Ok(encoded)
        };
        if chunk.is_small() {
            return Encoding { chunk, room, encoded: encoded.boxed() };
        }
        // Spawned, so that several are made at a time.
        let made = tokio::spawn(encoded);
        let encoded = async move { made.await.map_err(|error| error.to_string())? };
        Encoding { chunk, room, encoded: encoded.boxed() }
    }

    /// `false`: the feed or the connection ended.
    async fn send(&self, chunk: Arc<Chunk>, encoded: Encoded, number: u64, room: Room) -> bool {
        if !self.session.lock().handle_sent(self.feed, chunk.last.seq) {
            return false;
        }
        let header = DataHeader {
            kind: DataKind::Chunk,
            compression: encoded.compression,
            feed: self.feed,
            records: chunk.records,
            number,
            raw_len: chunk.raw_len(),
            encoded_len: encoded.body.len() as u32,
            first: chunk.first,
            last: chunk.last,
            offset: 0,
            body_hash: encoded.hash,
        };
        // The body is what is still needed of it.
        drop(chunk);
        self.link.send(&header, encoded.body, room).await.is_ok()
    }
}

async fn first(encoding: &mut VecDeque<Encoding>) -> Result<Encoded, String> {
    match encoding.front_mut() {
        Some(first) => (&mut first.encoded).await,
        None => std::future::pending().await,
    }
}

/// Waits for a future that may not be there.
async fn pending<T>(future: &mut Option<BoxFuture<'_, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

enum Failure {
    Reading(EngineError),
    Encoding(String),
}
