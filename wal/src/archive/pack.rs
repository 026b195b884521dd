//! A sealed segment on its way into the archive: checked, compressed in blocks, uploaded in parts.

use std::{path::PathBuf, sync::Arc};

use bytes::{Bytes, BytesMut};
use object_store::{MultipartUpload, PutPayload, UploadPart};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    entry::{ArchivedHistory, ArchivedSegment},
    object::{BLOCK_BYTES, Block, ObjectHash, ObjectHeader, ObjectTail, TRAILER_LEN, Trailer},
    open::ArchivedFile,
    store::{ArchiveStore, ObjectName},
};
use crate::{
    Clock, DiskFile, FileOffset, HistoryId, LogError, Lsn, Tail,
    error::io_error,
    footer::{Footer, FooterTrailer},
    index::HistorySummary,
    segment::{Segment, read_full},
    shared::Shared,
};

/// Bytes of one part of an upload. Stores want at least 5 MiB and equal parts.
const PART_BYTES: usize = 8 << 20;

/// zstd's level. Measured on a segment of 64 MB of one-minute bars, in blocks of 1 MiB, as user time of one core: level 1
/// makes it 2.81 times smaller at 277 MB/s, level 2 3.00 times at 225, level 3 3.11 times at 197, level 5 3.15 times at
/// 78, level 9 3.23 times at 31.
const LEVEL: i32 = 3;

/// Checks every record of a sealed segment and stores it. Returns its entry for the manifest once the object is whole
/// in the store. An object of an earlier attempt is taken as it is if all of it checks, and replaced otherwise.
pub(crate) async fn archive_segment(
    shared: &Arc<Shared>,
    store: &ArchiveStore,
    segment: Arc<Segment>,
) -> Result<ArchivedSegment, LogError> {
    let source = {
        let shared = shared.clone();
        blocking(move || Source::check(&shared, &segment)).await?
    };
    let name = store.segment(source.header.first, source.header.salt);
    if let Some(found) = earlier_attempt(store, &name, &source, &*shared.clock).await? {
        return Ok(found);
    }
    let packed = upload(store, &name, &source).await?;
    // What the store says it has is looked at once more, so that half an upload is not counted.
    let end = store.get_end(&name, TRAILER_LEN as u64, Some(packed.stored_bytes)).await?;
    let stored = end.filter(|(bytes, len)| *len == packed.stored_bytes && bytes[..] == packed.trailer[..]);
    if stored.is_none() {
        return Err(store.error("check", &name, "the store holds something else than what was uploaded"));
    }
    Ok(ArchivedSegment::of(&source.header, packed.tail, packed.hash, packed.stored_bytes, shared.clock.now()))
}

/// An object that is there already: it was uploaded before a crash, or its upload's answer was lost.
async fn earlier_attempt(
    store: &ArchiveStore,
    name: &ObjectName,
    source: &Source,
    clock: &dyn Clock,
) -> Result<Option<ArchivedSegment>, LogError> {
    let found = match ArchivedFile::find(store, name, clock.now()).await {
        Ok(None) => return Ok(None),
        // Another one is not worth reading.
        Ok(Some(found)) if found.header != source.header => Ok(found),
        Ok(Some(found)) => found.verify().await.map(|()| found),
        Err(error) => Err(error),
    };
    let reason = match found {
        Ok(found) if found.header == source.header && found.entry.raw_hash == source.raw_hash().await? => {
            return Ok(Some(ArchivedSegment::clone(&found.entry)));
        }
        Ok(_) => "it is another segment".to_owned(),
        Err(error @ LogError::Archive { .. }) => return Err(error),
        Err(error) => error.to_string(),
    };
    tracing::warn!("{name} was left by an earlier attempt and is replaced: {reason}");
    store.remove(name).await?;
    Ok(None)
}

/// A sealed segment whose records all checked.
#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    header: ObjectHeader,
    histories: Vec<ArchivedHistory>,
}

impl Source {
    /// Reads all of it. Blocks.
    fn check(shared: &Arc<Shared>, segment: &Segment) -> Result<Self, LogError> {
        let path = segment.path.clone();
        let file = shared.disk.open(&path, false).map_err(|error| io_error("open", &path, error))?;
        let footer = Footer::read(&path, &*file, segment.header.salt)?.ok_or_else(|| LogError::Corrupt {
            path: path.clone(),
            offset: FileOffset(segment.state().bytes),
            reason: "the footer is damaged".into(),
        })?;
        // What could not be read back is not stored.
        if let Some(trailer) = FooterTrailer::read(&path, &*file, segment.header.salt)? {
            trailer.check_possible().map_err(|reason| LogError::Invalid { reason })?;
        }
        let (first, last) = (segment.header.first, footer.last.last);
        let mut tail = Tail::of_all(shared.clone(), Lsn(first.0 - 1));
        while tail.passed() < last && tail.try_next()?.is_some() {}
        let header = ObjectHeader {
            node: segment.header.node,
            salt: segment.header.salt,
            first,
            last,
            predecessor: segment.header.predecessor.checksum,
            last_checksum: footer.last.checksum,
            raw_bytes: footer.file_len,
            block_bytes: BLOCK_BYTES,
        };
        let histories = footer.histories.iter().map(|(id, summary)| archived_history(*id, summary, first)).collect();
        Ok(Self { path, file, header, histories })
    }

    /// Hash of the file.
    async fn raw_hash(&self) -> Result<u64, LogError> {
        let source = self.clone();
        blocking(move || {
            let mut hash = Xxh3::new();
            let mut buffer = vec![0; BLOCK_BYTES as usize];
            let mut offset = 0;
            while offset < source.header.raw_bytes {
                let raw = source.block(&mut buffer, offset)?;
                hash.update(raw);
                offset += raw.len() as u64;
            }
            Ok(hash.digest())
        })
        .await
    }

    fn block<'a>(&self, buffer: &'a mut [u8], offset: u64) -> Result<&'a [u8], LogError> {
        let len = (self.header.raw_bytes - offset).min(u64::from(BLOCK_BYTES)) as usize;
        let raw = &mut buffer[..len];
        if read_full(&self.path, &*self.file, raw, offset)? < len {
            return Err(LogError::Corrupt {
                path: self.path.clone(),
                offset: FileOffset(offset),
                reason: "the sealed file became shorter".into(),
            });
        }
        Ok(raw)
    }
}

/// What an archived segment says of one history in it.
pub(super) fn archived_history(history: HistoryId, summary: &HistorySummary, first: Lsn) -> ArchivedHistory {
    ArchivedHistory {
        history,
        after: summary.boundary,
        upto: summary.end.map_or(summary.boundary, |end| end.position.seq),
        first: summary.first,
        last: summary.last,
        broken: summary.broken,
        spanning: summary.large.iter().filter(|large| large.first_fragment < first).copied().collect(),
    }
}

/// What was uploaded.
struct Packed {
    tail: ObjectTail,
    trailer: [u8; TRAILER_LEN],
    hash: ObjectHash,
    stored_bytes: u64,
}

/// Compresses and uploads; the next part is compressed while one is on its way.
async fn upload(store: &ArchiveStore, name: &ObjectName, source: &Source) -> Result<Packed, LogError> {
    let mut upload = Uploading { upload: Some(store.begin(name).await?) };
    match upload_parts(store, name, source, &mut upload).await {
        Ok(packed) => {
            upload.upload = None;
            Ok(packed)
        }
        Err(error) => {
            if let Some(mut begun) = upload.upload.take() {
                // What is left of it is invisible; the first error is the one to report.
                let _ = store.step(name, begun.abort()).await;
            }
            Err(error)
        }
    }
}

async fn upload_parts(
    store: &ArchiveStore,
    name: &ObjectName,
    source: &Source,
    uploading: &mut Uploading,
) -> Result<Packed, LogError> {
    let Some(upload) = &mut uploading.upload else { return Err(LogError::Closed) };
    let mut packer = Packer::new(source.clone())?;
    let mut sending: Option<UploadPart> = None;
    loop {
        let pack = blocking(move || {
            let part = packer.next_part()?;
            Ok((packer, part))
        });
        let send = async {
            match sending.take() {
                Some(part) => store.step(name, part).await,
                None => Ok(()),
            }
        };
        let (packed, sent) = futures::join!(pack, send);
        let (returned, part) = packed?;
        packer = returned;
        sent?;
        if part.is_empty() {
            break;
        }
        sending = Some(upload.put_part(PutPayload::from_bytes(part)));
    }
    store.step(name, upload.complete()).await?;
    packer.packed()
}

/// An upload that is aborted when it is dropped before its end.
struct Uploading {
    upload: Option<Box<dyn MultipartUpload>>,
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { upload.abort().await });
        }
    }
}

/// Makes the bytes of the object, part by part.
struct Packer {
    source: Source,
    compressor: zstd::bulk::Compressor<'static>,
    /// Of the file.
    offset: u64,
    buffer: Vec<u8>,
    /// Bytes not handed out yet.
    out: BytesMut,
    handed_out: u64,
    raw_hash: Xxh3,
    stored_hash: Xxh3,
    blocks: Vec<Block>,
    finished: Option<(ObjectTail, [u8; TRAILER_LEN], ObjectHash)>,
}

impl Packer {
    fn new(source: Source) -> Result<Self, LogError> {
        let compressor =
            zstd::bulk::Compressor::new(LEVEL).map_err(|error| io_error("compress", &source.path, error))?;
        let mut out = BytesMut::with_capacity(PART_BYTES + 2 * BLOCK_BYTES as usize);
        out.extend_from_slice(&source.header.encode());
        Ok(Self {
            source,
            compressor,
            offset: 0,
            buffer: vec![0; BLOCK_BYTES as usize],
            out,
            handed_out: 0,
            raw_hash: Xxh3::new(),
            stored_hash: Xxh3::new(),
            blocks: Vec::new(),
            finished: None,
        })
    }

    /// The next part; empty after the last. Blocks.
    fn next_part(&mut self) -> Result<Bytes, LogError> {
        while self.out.len() < PART_BYTES && self.offset < self.source.header.raw_bytes {
            let raw = self.source.block(&mut self.buffer, self.offset)?;
            let stored =
                self.compressor.compress(raw).map_err(|error| io_error("compress", &self.source.path, error))?;
            self.offset += raw.len() as u64;
            self.raw_hash.update(raw);
            self.stored_hash.update(&stored);
            self.blocks.push(Block {
                stored_bytes: stored.len() as u32,
                raw_bytes: raw.len() as u32,
                stored_hash: xxh3_64(&stored),
                raw_hash: xxh3_64(raw),
            });
            self.out.extend_from_slice(&stored);
        }
        if self.offset == self.source.header.raw_bytes && self.finished.is_none() {
            let tail = ObjectTail {
                blocks: std::mem::take(&mut self.blocks),
                histories: std::mem::take(&mut self.source.histories),
                raw_hash: self.raw_hash.digest(),
                stored_hash: self.stored_hash.digest(),
            };
            let (bytes, hash) = tail.encode(&self.source.header.encode());
            let mut trailer = [0; TRAILER_LEN];
            trailer.copy_from_slice(&bytes[bytes.len() - TRAILER_LEN..]);
            self.out.extend_from_slice(&bytes);
            self.finished = Some((tail, trailer, hash));
        }
        let part = self.out.split_to(self.out.len().min(PART_BYTES)).freeze();
        self.handed_out += part.len() as u64;
        Ok(part)
    }

    fn packed(self) -> Result<Packed, LogError> {
        let Some((tail, trailer, hash)) = self.finished else { return Err(LogError::Closed) };
        // What was written must be what would be read.
        Trailer::decode(&trailer, self.handed_out)?;
        Ok(Packed { tail, trailer, hash, stored_bytes: self.handed_out })
    }
}

/// Runs blocking work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(LogError::Closed),
    }
}
