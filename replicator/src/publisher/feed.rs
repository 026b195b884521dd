//! One feed: reads ahead as far as credit goes, encodes in parallel, sends in order.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use parking_lot::Mutex;
use quinn::Connection;
use tailrace_wal::{HistoryId, LogError, Seq};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};

use super::{
    Shared,
    connection::Event,
    reader::{Chunk, Cursor, Encoded},
};
use crate::{
    session::PublisherSession,
    transport::send_data,
    wire::{DataHeader, DataKind, FeedNumber},
};

/// Chunks of a feed that are encoded at the same time.
const ENCODING_MAX: usize = 3;

/// Everything a feed needs.
pub(crate) struct Feed {
    pub(crate) shared: Arc<Shared>,
    pub(crate) connection: Connection,
    pub(crate) session: Arc<Mutex<PublisherSession>>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) feed: FeedNumber,
    pub(crate) history: HistoryId,
    pub(crate) restart: Seq,
    pub(crate) credit: Arc<Semaphore>,
}

type Encoding = (Arc<Chunk>, JoinHandle<Result<Encoded, String>>);

impl Feed {
    /// Runs until it fails, is cancelled, or the connection ends.
    pub(crate) async fn run(self) {
        let event = match self.pump().await {
            Ok(()) => return,
            Err(Failure::Log(LogError::Truncated { retained_after, .. })) => Event::FeedLost {
                feed: self.feed,
                retained_after,
                reason: format!("the log reaches back to seq {retained_after} only"),
            },
            Err(Failure::Log(error)) => Event::FeedFailed { feed: self.feed, reason: error.to_string() },
            Err(Failure::Encoding(reason)) => Event::FeedFailed { feed: self.feed, reason },
        };
        let _ = self.events.send(event).await;
    }

    async fn pump(&self) -> Result<(), Failure> {
        let reader = self.shared.reader(self.history).register();
        let mut at = Cursor::after(self.restart);
        let mut number = 0;
        let mut encoding: VecDeque<Encoding> = VecDeque::new();
        let next = |at| {
            let (reader, credit) = (reader.clone(), self.credit.clone());
            async move {
                if let Ok(permit) = credit.acquire_owned().await {
                    permit.forget();
                }
                reader.next(at).await
            }
        };
        let mut reading = Box::pin(next(at));
        loop {
            tokio::select! {
                chunk = &mut reading, if encoding.len() < ENCODING_MAX => {
                    let chunk = chunk?;
                    at = chunk.next;
                    encoding.push_back((chunk.clone(), tokio::spawn(chunk.encoded())));
                    reading = Box::pin(next(at));
                }
                encoded = first(&mut encoding), if !encoding.is_empty() => {
                    let encoded = encoded.map_err(Failure::Encoding)?;
                    let Some((chunk, _)) = encoding.pop_front() else { continue };
                    if !self.send(&chunk, encoded, number).await {
                        return Ok(());
                    }
                    number += 1;
                }
            }
        }
    }

    /// `false`: the feed or the connection ended.
    async fn send(&self, chunk: &Chunk, encoded: Encoded, number: u64) -> bool {
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
        self.shared.sent_wire.fetch_add((DataHeader::LEN + encoded.body.len()) as u64, Ordering::Relaxed);
        self.shared.sent_raw.fetch_add(u64::from(header.raw_len), Ordering::Relaxed);
        send_data(&self.connection, &header, encoded.body).await.is_ok()
    }
}

async fn first(encoding: &mut VecDeque<Encoding>) -> Result<Encoded, String> {
    match encoding.front_mut() {
        Some((_, handle)) => handle.await.map_err(|error| error.to_string())?,
        None => std::future::pending().await,
    }
}

enum Failure {
    Log(LogError),
    Encoding(String),
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}
