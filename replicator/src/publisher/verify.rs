//! Verifications served: a digest point in the history, then what the database is there. Where the database is a copy itself,
//! nothing is written: the point is where it stands.

use std::sync::Arc;

use tailrace_engine::{DatabaseVersion, PointId};
use tailrace_wal::{HistoryId, Position};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use super::{Shared, connection::Event, link::ReplicaLink};
use crate::wire::{Compression, DataHeader, DataKind, FeedNumber, MANIFEST_ENCODED_MAX, MANIFEST_RAW_MAX, compress};

/// Where a verification's answers go.
pub(crate) struct Verification {
    pub(crate) shared: Arc<Shared>,
    pub(crate) link: Arc<ReplicaLink>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) feed: FeedNumber,
    pub(crate) history: HistoryId,
    /// What datafiles hold now, not what was written.
    pub(crate) from_files: bool,
}

impl Verification {
    /// Runs to its end, or until it is dropped.
    pub(crate) async fn run(self) {
        let failed = self.answer().await.err();
        let _ = self.events.send(Event::Verified { feed: self.feed, failed }).await;
    }

    async fn answer(&self) -> Result<(), String> {
        let (position, version) = self.point().await?;
        let engine = &self.shared.engine;
        let digests = engine.database_digests(&version, self.from_files).await.map_err(|error| error.to_string())?;
        let json = serde_json::to_vec(&digests).map_err(|error| error.to_string())?;
        let raw_len = json.len();
        if raw_len > MANIFEST_RAW_MAX as usize {
            return Err(format!("its digests have {raw_len} bytes, at most {MANIFEST_RAW_MAX} can be sent"));
        }
        let body = tokio::task::spawn_blocking(move || compress(&json)).await.map_err(|error| error.to_string())??;
        if body.len() > MANIFEST_ENCODED_MAX as usize {
            return Err(format!("its digests have {} bytes, at most {MANIFEST_ENCODED_MAX} can be sent", body.len()));
        }
        let header = DataHeader {
            kind: DataKind::Digests,
            compression: Compression::Zstd,
            feed: self.feed,
            records: 0,
            number: 0,
            raw_len: raw_len as u32,
            encoded_len: body.len() as u32,
            first: position,
            last: position,
            offset: 0,
            body_hash: xxh3_64(&body),
        };
        let room = self.link.room(body.len()).await;
        // A lost connection ends the session elsewhere.
        let _ = self.link.send(&header, body, room).await;
        Ok(())
    }

    /// Writes or chooses the point, and lets go of it once its version is held here.
    async fn point(&self) -> Result<(Position, Arc<DatabaseVersion>), String> {
        let engine = &self.shared.engine;
        let written: Result<(PointId, Position), _> = engine.digest_point(self.history).await;
        let (point, position) = written.map_err(|error| error.to_string())?;
        let _ = self.events.send(Event::PointWritten { feed: self.feed, point, position }).await;
        let version = engine.await_point(point, position).await.map_err(|error| error.to_string())?;
        engine.forget_point(self.history, point);
        Ok((position, version))
    }
}
