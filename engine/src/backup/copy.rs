//! Files on their way, checked while they pass.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as ObjectPath};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::Xxh3;

use super::{
    encryption::{Encryption, Identities, Recipients},
    location::BackupLocation,
    manifest::BackupFile,
    progress::BackupTask,
};
use crate::{EngineError, Result, datafile::Sink};

/// Bytes read with one call.
const PIECE_BYTES: u64 = 8 << 20;
/// Pieces that are read ahead.
const PIECES: usize = 2;

/// A file of a backup being written. Nothing is seen of it before [`Outgoing::finish`] returns; then it is durable.
pub(super) struct Outgoing {
    name: String,
    sink: Sink,
    encryption: Option<Encryption>,
    hash: Xxh3,
    bytes: u64,
}

/// Length and hash of a file as it lies in the location.
pub(super) struct Stored {
    pub(super) bytes: u64,
    pub(super) hash: String,
}

impl Outgoing {
    pub(super) fn new(location: &BackupLocation, name: &str, recipients: Option<&Recipients>) -> Result<Self> {
        let sink = Sink::new(Arc::clone(location.store()), location.object(name)?);
        let encryption = recipients.map(Encryption::new).transpose()?;
        Ok(Self { name: name.to_owned(), sink, encryption, hash: Xxh3::new(), bytes: 0 })
    }

    /// Takes plain bytes.
    pub(super) async fn write(&mut self, location: &BackupLocation, plain: Bytes) -> Result<()> {
        let bytes = match &mut self.encryption {
            None => plain,
            Some(encryption) => encryption.push(plain).await?,
        };
        self.put(location, bytes).await
    }

    pub(super) async fn finish(mut self, location: &BackupLocation) -> Result<Stored> {
        if let Some(encryption) = self.encryption.take() {
            let end = encryption.finish()?;
            self.put(location, end).await?;
        }
        let Self { name, sink, hash, bytes, .. } = self;
        sink.finish().await.map_err(|error| location.failed("write", &name, &error))?;
        Ok(Stored { bytes, hash: digits(&hash) })
    }

    async fn put(&mut self, location: &BackupLocation, bytes: Bytes) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.bytes += bytes.len() as u64;
        self.hash.update(&bytes);
        self.sink.write(bytes).await.map_err(|error| location.failed("write", &self.name, &error))
    }
}

/// A whole object in pieces, in order. Its length and its hash are checked before the last piece is given.
pub(super) struct Incoming {
    store: Arc<dyn ObjectStore>,
    object: ObjectPath,
    /// For errors.
    shown: String,
    bytes: u64,
    expected: String,
    hash: Xxh3,
    next: u64,
}

impl Incoming {
    pub(super) fn new(store: &Arc<dyn ObjectStore>, object: ObjectPath, shown: String, bytes: u64, hash: &str) -> Self {
        let store = Arc::clone(store);
        Self { store, object, shown, bytes, expected: hash.to_owned(), hash: Xxh3::new(), next: 0 }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.next == self.bytes {
            return Ok(None);
        }
        let end = self.bytes.min(self.next + PIECE_BYTES);
        let read = self.store.get_range(&self.object, self.next..end).await;
        let piece = read.map_err(|error| self.failed(error.to_string()))?;
        if piece.len() as u64 != end - self.next {
            return Err(self.failed(format!("it ends before its {} bytes", self.bytes)));
        }
        self.hash.update(&piece);
        self.next = end;
        if end == self.bytes {
            let found = digits(&self.hash);
            if found != self.expected {
                return Err(self.failed(format!("its hash is {found} instead of {}: it is damaged", self.expected)));
            }
        }
        Ok(Some(piece))
    }

    fn failed(&self, reason: String) -> EngineError {
        EngineError::Storage { operation: "read", object: self.shown.clone(), reason }
    }
}

/// The plain bytes of a file of a backup, in order; an error ends them. The last piece comes only when length and hash
/// have been checked.
pub(super) fn read_file(
    location: &BackupLocation,
    file: &BackupFile,
    identities: Option<&Identities>,
) -> Result<mpsc::Receiver<Result<Bytes>>> {
    let object = location.object(&file.name)?;
    let shown = format!("{} of backups at {location}", file.name);
    let mut incoming = Incoming::new(location.store(), object, shown, file.bytes, &file.hash);
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        loop {
            let (piece, is_over) = match incoming.next().await {
                Ok(Some(piece)) => (Ok(piece), false),
                Ok(None) => return,
                Err(error) => (Err(error), true),
            };
            if sender.send(piece).await.is_err() || is_over {
                return;
            }
        }
    });
    Ok(match identities {
        None => receiver,
        Some(identities) => identities.decrypt(receiver),
    })
}

/// Copies a datafile. Its hash must be that of its description before anything is seen of the copy.
pub(super) async fn copy_out(
    mut from: Incoming,
    location: &BackupLocation,
    name: &str,
    recipients: Option<&Recipients>,
    task: &BackupTask,
) -> Result<Stored> {
    let mut outgoing = Outgoing::new(location, name, recipients)?;
    while let Some(piece) = from.next().await? {
        let length = piece.len() as u64;
        outgoing.write(location, piece).await?;
        task.passed(length);
    }
    outgoing.finish(location).await
}

/// Length and hash of an object as it lies there; `None` when there is none.
pub(super) async fn measure(location: &BackupLocation, name: &str, task: &BackupTask) -> Result<Option<Stored>> {
    let object = location.object(name)?;
    let bytes = match location.store().head(&object).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(location.failed("look at", name, &error)),
    };
    let mut hash = Xxh3::new();
    let mut next = 0;
    while next < bytes {
        let end = bytes.min(next + PIECE_BYTES);
        let piece = location.store().get_range(&object, next..end).await;
        let piece = piece.map_err(|error| location.failed("read", name, &error))?;
        hash.update(&piece);
        next = end;
        task.passed(piece.len() as u64);
    }
    Ok(Some(Stored { bytes, hash: digits(&hash) }))
}

fn digits(hash: &Xxh3) -> String {
    format!("{:032x}", hash.digest128())
}
