//! Repairs served: a database held at one position, its manifest, pieces of its datafiles.

use std::sync::Arc;

use bytes::Bytes;
use tailrace_engine::RepairSource;
use tailrace_wal::{HistoryId, Position};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    Shared,
    connection::Event,
    link::{ReplicaLink, Room},
};
use crate::wire::{Compression, DataHeader, DataKind, FeedNumber, MANIFEST_ENCODED_MAX, MANIFEST_RAW_MAX, compress};

/// Where a repair's answers go.
#[derive(Clone)]
pub(crate) struct Repair {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<ReplicaLink>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) feed: FeedNumber,
    pub(crate) history: HistoryId,
    /// Fires when nobody wants its pieces any more.
    pub(crate) over: CancellationToken,
}

impl Repair {
    /// Holds the database and sends its manifest.
    pub(crate) async fn begin(self) {
        match self.hold().await {
            Ok(source) => {
                let _ = self.events.send(Event::RepairHeld { feed: self.feed, source: Arc::new(source) }).await;
            }
            Err(reason) => self.fail(reason).await,
        }
    }

    async fn hold(&self) -> Result<RepairSource, String> {
        let source = self.shared.engine.repair_source(self.history).await.map_err(|error| error.to_string())?;
        let json = serde_json::to_vec(&source.manifest).map_err(|error| error.to_string())?;
        let raw_len = json.len();
        let body = tokio::task::spawn_blocking(move || compress(&json)).await.map_err(|error| error.to_string())??;
        if raw_len > MANIFEST_RAW_MAX as usize || body.len() > MANIFEST_ENCODED_MAX as usize {
            return Err(format!("the manifest has {raw_len} bytes, at most {MANIFEST_RAW_MAX} can be sent"));
        }
        let header = self.header(DataKind::Manifest, Compression::Zstd, 0, 0, raw_len as u32, &body);
        let room = self.link.room(body.len()).await;
        self.send(header, body, room).await;
        Ok(source)
    }

    /// Sends part of a datafile, unless the repair is over before.
    pub(crate) async fn fetch(self, source: Arc<RepairSource>, datafile: u32, offset: u64, length: u32) {
        let over = self.over.clone();
        tokio::select! {
            () = self.send_piece(source, datafile, offset, length) => {}
            () = over.cancelled() => {}
        }
    }

    async fn send_piece(self, source: Arc<RepairSource>, datafile: u32, offset: u64, length: u32) {
        let room = self.link.room(length as usize).await;
        match source.read(datafile as usize, offset, u64::from(length)).await {
            Ok(body) if body.len() == length as usize => {
                let header = self.header(DataKind::Piece, Compression::Raw, u64::from(datafile), offset, length, &body);
                self.send(header, body, room).await;
                let _ = self.events.send(Event::PieceSent { feed: self.feed }).await;
            }
            Ok(body) => {
                self.fail(format!("datafile {datafile} has {} of {length} bytes at {offset}", body.len())).await;
            }
            Err(error) => self.fail(error.to_string()).await,
        }
    }

    async fn fail(&self, reason: String) {
        let _ = self.events.send(Event::RepairFailed { feed: self.feed, reason }).await;
    }

    async fn send(&self, header: DataHeader, body: Bytes, room: Room) {
        // A lost connection ends the session elsewhere.
        let _ = self.link.send(&header, body, room).await;
    }

    fn header(
        &self,
        kind: DataKind,
        compression: Compression,
        number: u64,
        offset: u64,
        raw_len: u32,
        body: &Bytes,
    ) -> DataHeader {
        let position = Position::start(self.history);
        DataHeader {
            kind,
            compression,
            feed: self.feed,
            records: 0,
            number,
            raw_len,
            encoded_len: body.len() as u32,
            first: position,
            last: position,
            offset,
            body_hash: xxh3_64(body),
        }
    }
}
