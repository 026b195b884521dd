//! Chunks: consecutive records of a history, made once and sent in either form.

use std::sync::Arc;

use parking_lot::Mutex;
use tailrace_wal::{Clock, Frame, LogError, Lsn, Position, Seq, Tail};
use tokio::sync::OnceCell;

use super::figures::Figures;
use crate::wire::{Compression, Pieces, RecordsEncoder, compress, decompress};

/// Below this a body is not worth compressing.
const COMPRESS_MIN: usize = 256;
/// Chunks up to this size are made where the feed runs: handing them to another thread would take longer.
pub(crate) const INLINE_BYTES: usize = 16 << 10;

/// A place in a history's records in this node's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Cursor {
    /// Last record of the history that was read; 0 at the beginning of a feed.
    lsn: Lsn,
    /// A reader that starts after this commit and drops what lies at or before `lsn` is at the cursor.
    pub(crate) restart: Seq,
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
    pub(crate) at: Cursor,
    /// Where the next one begins.
    pub(crate) next: Cursor,
    pub(crate) first: Position,
    pub(crate) last: Position,
    pub(crate) records: u32,
    raw_len: u32,
    /// `None`: only the compressed form was kept.
    raw: Mutex<Option<Pieces>>,
    /// Hash of the raw bytes, once somebody has taken them raw.
    plain: OnceCell<u64>,
    compressed: OnceCell<Encoded>,
}

/// A chunk's body as it is sent.
#[derive(Debug, Clone)]
pub(crate) struct Encoded {
    pub(crate) compression: Compression,
    pub(crate) body: Pieces,
    pub(crate) hash: u64,
}

impl Chunk {
    /// Uncompressed length.
    pub(crate) fn raw_len(&self) -> u32 {
        self.raw_len
    }

    /// Whether making it is less work than handing it to another thread.
    pub(crate) fn is_small(&self) -> bool {
        self.raw_len as usize <= INLINE_BYTES
    }

    /// Bytes that it holds now.
    pub(crate) fn held_bytes(&self) -> usize {
        let own = |encoded: &Encoded| if encoded.compression == Compression::Raw { 0 } else { encoded.body.len() };
        let compressed = self.compressed.get().map_or(0, own);
        // What did not become smaller is the raw bytes themselves.
        let raw = self.raw.lock().as_ref().map(Pieces::len);
        raw.unwrap_or(if compressed == 0 { self.raw_len as usize } else { 0 }) + compressed
    }

    /// Whether it holds its raw and its compressed bytes.
    pub(crate) fn has_both(&self) -> bool {
        let is_compressed = self.compressed.get().is_some_and(|encoded| encoded.compression == Compression::Zstd);
        is_compressed && self.raw.lock().is_some()
    }

    /// Lets go of the raw bytes where the compressed form is there: whoever takes them raw has them decompressed.
    pub(crate) fn shed(&self) {
        if self.compressed.get().is_some_and(|encoded| encoded.compression == Compression::Zstd) {
            *self.raw.lock() = None;
        }
    }

    /// The body in a form, made by the first who asks for that form; on a blocking thread unless it is small. What does not
    /// become smaller is raw all the same.
    pub(crate) async fn encoded(
        &self,
        form: Compression,
        clock: &Arc<dyn Clock>,
        figures: &Arc<Figures>,
    ) -> Result<Encoded, String> {
        let in_memory = self.raw.lock().clone();
        if form == Compression::Zstd && self.raw_len as usize >= COMPRESS_MIN {
            let make = || async {
                // Shed only once the compressed form is there.
                let raw = in_memory.ok_or("a chunk without a body")?;
                let (clock, figures) = (clock.clone(), figures.clone());
                self.work(move || compressed(raw, &*clock, &figures)).await
            };
            return self.compressed.get_or_try_init(make).await.cloned();
        }
        let body = match (in_memory, self.compressed.get().cloned()) {
            (Some(raw), _) => raw,
            (None, Some(encoded)) => {
                let length = self.raw_len as usize;
                self.work(move || decompress(&encoded.body.joined(), length).map(Pieces::from)).await?
            }
            (None, None) => return Err("a chunk without a body".into()),
        };
        let hashed = body.clone();
        let hash = self.plain.get_or_try_init(|| self.work(move || Ok(hashed.hash()))).await?;
        Ok(Encoded { compression: Compression::Raw, body, hash: *hash })
    }

    /// Does work on the whole body.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        if self.is_small() {
            return work();
        }
        tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
    }
}

fn compressed(raw: Pieces, clock: &dyn Clock, figures: &Figures) -> Result<Encoded, String> {
    let began = clock.monotonic();
    let compressed = compress(&raw.joined())?;
    figures.compressed(raw.len(), compressed.len(), clock.monotonic().saturating_sub(began), began);
    let (compression, body) =
        if compressed.len() < raw.len() { (Compression::Zstd, compressed.into()) } else { (Compression::Raw, raw) };
    let hash = body.hash();
    Ok(Encoded { compression, body, hash })
}

/// A chunk in the making.
pub(crate) struct Filling {
    at: Cursor,
    next: Cursor,
    encoder: RecordsEncoder,
    /// Positions of the first and the last record.
    ends: Option<(Position, Position)>,
}

impl Filling {
    pub(crate) fn new(at: Cursor) -> Self {
        Self { at, next: at, encoder: RecordsEncoder::default(), ends: None }
    }

    /// Adds a record.
    pub(crate) fn take(&mut self, record: &Frame) {
        // A tail that was opened anew begins before the cursor.
        if record.lsn > self.at.lsn {
            let position = record.header.position();
            self.encoder.add(&record.header, &record.payload);
            self.ends = Some((self.ends.map_or(position, |(first, _)| first), position));
            self.next = Cursor { lsn: record.lsn, restart: record.header.restart_seq };
        }
    }

    /// Whether it is so small that it is filled where the feed runs.
    pub(crate) fn is_small(&self) -> bool {
        self.encoder.len() <= INLINE_BYTES
    }

    /// Takes what is there, as far as there is room.
    pub(crate) fn fill(&mut self, tail: &mut Tail) -> Result<(), LogError> {
        while self.encoder.has_room()
            && let Some(frame) = tail.try_next()?
        {
            self.take(&frame);
        }
        Ok(())
    }

    /// `None` when all records lay before the cursor.
    pub(crate) fn finish(self) -> Option<Chunk> {
        let (first, last) = self.ends?;
        let records = self.encoder.records();
        let raw = self.encoder.finish();
        Some(Chunk {
            at: self.at,
            next: self.next,
            first,
            last,
            records,
            raw_len: raw.len() as u32,
            raw: Mutex::new(Some(raw)),
            plain: OnceCell::new(),
            compressed: OnceCell::new(),
        })
    }
}
