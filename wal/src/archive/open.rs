//! An archived segment, open for reading: only the blocks that hold what is asked for are fetched and decompressed.

use std::{io, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    entry::ArchivedSegment,
    object::{HEADER_LEN, ObjectHash, ObjectHeader, ObjectTail, TRAILER_LEN, Trailer},
    pack::blocking,
    store::{ArchiveStore, ObjectName},
};
use crate::{
    CommitTime, DiskFile, FileOffset, LogError,
    codec::slice,
    footer::{Footer, FooterTrailer, RecordReader},
    frame::Salt,
    index::RecordIndex,
    payload::PART_ALIGNMENT,
    segment::{SEGMENT_HEADER_LEN, SegmentHeader},
};

/// Bytes fetched from an object's end before it is known how long its tail is: most tails are shorter.
const END_BYTES: u64 = 32 << 10;

/// Blocks read with one call when everything is verified.
const VERIFY_BLOCKS: usize = 8;

/// Raw bytes read with one call of a footer that is longer, and from the segment's end before it is known how long that is.
/// At least one block is.
const STEP_BYTES: u64 = 8 << 20;
const FOOTER_BYTES: u64 = 64 << 10;

/// An object whose header, index and trailer checked, and belong to its manifest entry.
#[derive(Debug, Clone)]
pub(crate) struct ArchivedFile {
    store: ArchiveStore,
    name: ObjectName,
    pub(crate) header: ObjectHeader,
    pub(crate) entry: Arc<ArchivedSegment>,
    blocks: Arc<[PlacedBlock]>,
    stored_hash: u64,
}

/// A block and where it is in the object.
#[derive(Debug, Clone, Copy)]
struct PlacedBlock {
    offset: u64,
    stored_bytes: u32,
    raw_bytes: u32,
    stored_hash: u64,
    raw_hash: u64,
}

impl ArchivedFile {
    /// Opens what a manifest entry names.
    pub(crate) async fn open(store: &ArchiveStore, entry: &ArchivedSegment) -> Result<Self, LogError> {
        let name = store.segment(entry.first, entry.salt());
        let Some((header, tail, hash, len)) = read_frame(store, &name, Some(entry.stored_bytes)).await? else {
            return Err(store.error("read", &name, "the manifest names it and it is missing; put it back"));
        };
        let found = ArchivedSegment::of(&header, tail.clone(), hash, len, entry.archived_at);
        if found != *entry {
            let reason = "it is not the object that the manifest names".to_owned();
            return Err(corrupt(store, &name, 0, reason));
        }
        Ok(Self::placed(store, name, header, found, &tail))
    }

    /// Opens an object that no entry names yet; `None` when there is none.
    pub(crate) async fn find(
        store: &ArchiveStore,
        name: &ObjectName,
        archived_at: CommitTime,
    ) -> Result<Option<Self>, LogError> {
        let Some((header, tail, hash, len)) = read_frame(store, name, None).await? else { return Ok(None) };
        let entry = ArchivedSegment::of(&header, tail.clone(), hash, len, archived_at);
        Ok(Some(Self::placed(store, name.clone(), header, entry, &tail)))
    }

    fn placed(
        store: &ArchiveStore,
        name: ObjectName,
        header: ObjectHeader,
        entry: ArchivedSegment,
        tail: &ObjectTail,
    ) -> Self {
        let mut offset = HEADER_LEN as u64;
        let placed = tail.blocks.iter().map(|block| {
            let placed = PlacedBlock {
                offset,
                stored_bytes: block.stored_bytes,
                raw_bytes: block.raw_bytes,
                stored_hash: block.stored_hash,
                raw_hash: block.raw_hash,
            };
            offset += u64::from(block.stored_bytes);
            placed
        });
        let blocks = placed.collect();
        let stored_hash = tail.stored_hash;
        Self { store: store.clone(), name, header, entry: Arc::new(entry), blocks, stored_hash }
    }

    /// Bytes of the segment file, exactly `len` at `offset`. At a multiple of 64, they are aligned in memory too.
    pub(crate) async fn read(&self, offset: u64, len: u64) -> Result<Bytes, LogError> {
        let end = offset.checked_add(len).filter(|end| *end <= self.header.raw_bytes);
        let Some(end) = end else {
            let reason = format!("the segment file of {} bytes ends before {offset} + {len}", self.header.raw_bytes);
            return Err(corrupt(&self.store, &self.name, 0, reason));
        };
        if len == 0 {
            return Ok(Bytes::new());
        }
        let block_bytes = u64::from(self.header.block_bytes);
        let (from, to) = ((offset / block_bytes) as usize, end.div_ceil(block_bytes) as usize);
        let (_, raw) = self.read_blocks(self.blocks.get(from..to).unwrap_or_default()).await?;
        let start = (offset - from as u64 * block_bytes) as usize;
        Ok(raw.slice(start..start + len as usize))
    }

    /// Reads the segment's own header and footer, and the index of its records.
    pub(crate) async fn index(&self) -> Result<(Footer, RecordIndex), LogError> {
        let path = self.store.place(&self.name);
        let header = self.read(0, (SEGMENT_HEADER_LEN as u64).min(self.header.raw_bytes)).await?;
        let mut window = Window { start: 0, bytes: header, file_len: self.header.raw_bytes };
        let segment = SegmentHeader::read(&path, &window)?;
        let is_same = segment.salt == self.header.salt
            && segment.node == self.header.node
            && segment.first == self.header.first
            && segment.predecessor.checksum == self.header.predecessor;
        if !is_same {
            return Err(corrupt(&self.store, &self.name, 0, "it holds another segment than its header says".into()));
        }
        let raw_bytes = self.header.raw_bytes;
        let damaged = || corrupt(&self.store, &self.name, 0, "the segment's footer is damaged".into());
        window.start = raw_bytes.saturating_sub(FOOTER_BYTES.max(self.header.block_bytes.into()));
        window.bytes = self.read(window.start, raw_bytes - window.start).await?;
        let trailer = FooterTrailer::read(&path, &window, segment.salt)?.ok_or_else(damaged)?;
        // How long the footer is, it says itself: that is looked at before it is fetched.
        let is_same = trailer.last.last == self.header.last
            && trailer.first == self.header.first
            && trailer.last.checksum == self.header.last_checksum;
        if !is_same {
            let reason = "its footer and its header say different things".into();
            return Err(corrupt(&self.store, &self.name, 0, reason));
        }
        trailer.check_possible().map_err(|reason| corrupt(&self.store, &self.name, 0, reason))?;
        if trailer.summaries_offset < window.start {
            window.start = trailer.summaries_offset;
            window.bytes = self.read(window.start, raw_bytes - window.start).await?;
        }
        let footer = Footer::read(&path, &window, segment.salt)?.ok_or_else(damaged)?;
        let records = self.records(&footer, &window, segment.salt).await?;
        Ok((footer, records))
    }

    /// The record entries of a footer, step by step: what cannot be ends it before more is decompressed.
    async fn records(&self, footer: &Footer, window: &Window, salt: Salt) -> Result<RecordIndex, LogError> {
        let wrong = |reason: String| corrupt(&self.store, &self.name, 0, reason);
        let mut reader = RecordReader::new(footer, salt);
        let block_bytes = u64::from(self.header.block_bytes);
        let step = (STEP_BYTES / block_bytes).max(1) * block_bytes;
        let mut offset = footer.frames_end;
        while offset < footer.summaries_offset {
            let end = match offset.checked_sub(window.start) {
                Some(_) => footer.summaries_offset,
                None => (offset / step * step + step).min(footer.summaries_offset),
            };
            let bytes = match offset.checked_sub(window.start) {
                Some(start) => slice(&window.bytes, start as usize, (end - offset) as usize),
                None => self.read(offset, end - offset).await?,
            };
            reader.take(&bytes).map_err(wrong)?;
            offset = end;
        }
        reader.finish().map_err(wrong)
    }

    /// Reads and checks every block, and all of them against the hashes of the whole.
    pub(crate) async fn verify(&self) -> Result<(), LogError> {
        let (mut raw_hash, mut stored_hash) = (Xxh3::new(), Xxh3::new());
        for blocks in self.blocks.chunks(VERIFY_BLOCKS) {
            let (stored, raw) = self.read_blocks(blocks).await?;
            stored_hash.update(&stored);
            raw_hash.update(&raw);
        }
        if raw_hash.digest() == self.entry.raw_hash && stored_hash.digest() == self.stored_hash {
            Ok(())
        } else {
            let reason = "its blocks do not add up to the segment that the trailer states".into();
            Err(corrupt(&self.store, &self.name, HEADER_LEN as u64, reason))
        }
    }

    /// Blocks that lie behind each other, as stored and decompressed.
    async fn read_blocks(&self, blocks: &[PlacedBlock]) -> Result<(Bytes, Bytes), LogError> {
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else {
            return Ok((Bytes::new(), Bytes::new()));
        };
        let stored_at = first.offset;
        let stored = self.store.get_range(&self.name, stored_at..last.offset + u64::from(last.stored_bytes)).await?;
        let (store, name, blocks) = (self.store.clone(), self.name.clone(), blocks.to_vec());
        blocking(move || {
            let raw = decompress(&stored, stored_at, &blocks)
                .map_err(|(offset, reason)| corrupt(&store, &name, offset, reason))?;
            Ok((stored, raw))
        })
        .await
    }

    /// An error about a record of the segment.
    pub(crate) fn corrupt_record(&self, offset: FileOffset, reason: &str) -> LogError {
        let reason = format!("byte {offset} of the segment in it: {reason}");
        let block = offset.0 / u64::from(self.header.block_bytes);
        let at = self.blocks.get(block as usize).map_or(0, |block| block.offset);
        corrupt(&self.store, &self.name, at, reason)
    }
}

/// Header, tail, hash and length of an object; `None` when there is none.
async fn read_frame(
    store: &ArchiveStore,
    name: &ObjectName,
    len: Option<u64>,
) -> Result<Option<(ObjectHeader, ObjectTail, ObjectHash, u64)>, LogError> {
    let damaged = |error: LogError, offset: u64| match error {
        LogError::Invalid { reason } => corrupt(store, name, offset, reason),
        error => error,
    };
    let Some((end, len)) = store.get_end(name, END_BYTES, len).await? else { return Ok(None) };
    let end_at = len.saturating_sub(end.len() as u64);
    let trailer_at = len.saturating_sub(TRAILER_LEN as u64);
    let Some(trailer) = end.last_chunk::<TRAILER_LEN>() else {
        return Err(corrupt(store, name, 0, format!("it has {len} bytes, too few for an archived segment")));
    };
    let trailer = Trailer::decode(trailer, len).map_err(|error| damaged(error, trailer_at))?;
    let tail = if trailer.index_at >= end_at {
        end.slice((trailer.index_at - end_at) as usize..end.len() - TRAILER_LEN)
    } else {
        store.get_range(name, trailer.index_at..trailer_at).await?
    };
    let header = store.get_range(name, 0..(HEADER_LEN as u64).min(len)).await?;
    let Some(header) = header.first_chunk::<HEADER_LEN>() else {
        return Err(corrupt(store, name, 0, "it ends within its header".into()));
    };
    let header = ObjectHeader::decode(header).map_err(|error| damaged(error, 0))?;
    let tail = ObjectTail::decode(&tail, &trailer, &header).map_err(|error| damaged(error, trailer.index_at))?;
    Ok(Some((header, tail, trailer.hash, len)))
}

/// Decompresses blocks that lie behind each other. An error says where in the object.
fn decompress(stored: &[u8], stored_at: u64, blocks: &[PlacedBlock]) -> Result<Bytes, (u64, String)> {
    let len = blocks.iter().map(|block| block.raw_bytes as usize).sum::<usize>();
    let mut buffer = vec![0_u8; len + PART_ALIGNMENT];
    let shift = buffer.as_ptr().align_offset(PART_ALIGNMENT).min(PART_ALIGNMENT);
    let mut decompressor =
        zstd::bulk::Decompressor::new().map_err(|error| (stored_at, format!("decompress: {error}")))?;
    let mut at = shift;
    for block in blocks {
        let wrong = |reason: &str| (block.offset, format!("a block is damaged: {reason}"));
        let start = (block.offset - stored_at) as usize;
        let Some(bytes) = stored.get(start..start + block.stored_bytes as usize) else {
            return Err(wrong("it ends too early"));
        };
        if xxh3_64(bytes) != block.stored_hash {
            return Err(wrong("its checksum is wrong"));
        }
        let raw = &mut buffer[at..at + block.raw_bytes as usize];
        match decompressor.decompress_to_buffer(bytes, raw) {
            Ok(count) if count == raw.len() => {}
            Ok(count) => return Err(wrong(&format!("{count} bytes came out of it, not {}", raw.len()))),
            Err(error) => return Err(wrong(&error.to_string())),
        }
        if xxh3_64(raw) != block.raw_hash {
            return Err(wrong("its content's checksum is wrong"));
        }
        at += raw.len();
    }
    Ok(Bytes::from(buffer).slice(shift..shift + len))
}

fn corrupt(store: &ArchiveStore, name: &ObjectName, offset: u64, reason: String) -> LogError {
    LogError::Corrupt { path: store.place(name), offset: FileOffset(offset), reason }
}

/// A part of a segment file in memory, for readers of files.
#[derive(Debug)]
struct Window {
    start: u64,
    bytes: Bytes,
    file_len: u64,
}

impl DiskFile for Window {
    fn write_all_vectored_at(&self, _: &mut [io::IoSlice<'_>], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    /// What lies outside of the window reads as the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let held = offset.checked_sub(self.start).and_then(|start| self.bytes.get(start as usize..));
        let held = held.unwrap_or_default();
        let len = held.len().min(buffer.len());
        buffer[..len].copy_from_slice(&held[..len]);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file_len)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::{memory::InMemory, path::Path as ObjectPath};
    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::*;
    use crate::{
        HistoryId, Lsn, NodeId, RecordKind, Seq,
        archive::object::Block,
        footer,
        frame::FrameChecksum,
        index::HistorySummary,
        segment::{Predecessor, SegmentState},
    };

    const BLOCK_BYTES: usize = 8 << 20;
    const RAW_BYTES: u64 = 8 << 30;
    const SALT: Salt = Salt(3);

    fn segment() -> SegmentHeader {
        SegmentHeader { node: NodeId([1; 16]), salt: SALT, first: Lsn(1), predecessor: Predecessor::default() }
    }

    fn block_of(raw: &[u8]) -> (Vec<u8>, Block) {
        let stored = zstd::bulk::compress(raw, 1).unwrap();
        let block = Block {
            stored_bytes: stored.len() as u32,
            raw_bytes: raw.len() as u32,
            stored_hash: xxh3_64(&stored),
            raw_hash: xxh3_64(raw),
        };
        (stored, block)
    }

    /// What the index of a segment of 8 GiB is refused for that ends with `footer`. Its object has some hundred KiB. Of its
    /// blocks only the first, the last and `sound` can be read; the others hold zeros.
    async fn refusal(last: Lsn, footer: &[u8], sound: Option<usize>) -> String {
        let mut begin = vec![0; BLOCK_BYTES];
        begin[..SEGMENT_HEADER_LEN].copy_from_slice(&segment().encode());
        let mut end = vec![0; BLOCK_BYTES];
        end[BLOCK_BYTES - footer.len()..].copy_from_slice(footer);
        let (begin, end, zeros) = (block_of(&begin), block_of(&end), block_of(&vec![0; BLOCK_BYTES]));
        let header = ObjectHeader {
            node: segment().node,
            salt: SALT,
            first: Lsn(1),
            last,
            predecessor: FrameChecksum::default(),
            last_checksum: FrameChecksum::default(),
            raw_bytes: RAW_BYTES,
            block_bytes: BLOCK_BYTES as u32,
        };
        let encoded = header.encode();
        let (mut object, mut blocks) = (encoded.to_vec(), Vec::new());
        let count = (RAW_BYTES / BLOCK_BYTES as u64) as usize;
        for place in 0..count {
            let (stored, mut block) = match place {
                0 => begin.clone(),
                place if place + 1 == count => end.clone(),
                _ => zeros.clone(),
            };
            if ![Some(0), Some(count - 1), sound].contains(&Some(place)) {
                block.stored_hash ^= 1;
            }
            object.extend(stored);
            blocks.push(block);
        }
        let tail = ObjectTail { blocks, histories: Vec::new(), raw_hash: 0, stored_hash: 0 };
        object.extend(tail.encode(&encoded).0);
        assert!(object.len() < 1 << 20);
        let store = ArchiveStore::new(Arc::new(InMemory::new()), ObjectPath::from("n"), Duration::from_secs(60));
        let name = store.segment(Lsn(1), SALT);
        store.create(&name, object.into()).await.unwrap();
        let file = ArchivedFile::find(&store, &name, CommitTime(0)).await.unwrap().unwrap();
        file.index().await.unwrap_err().to_string()
    }

    /// The trailer of a footer of `records` records without summaries, from `frames_end` on.
    fn trailer(records: u64, frames_end: u64) -> Vec<u8> {
        let last = Predecessor { last: Lsn(records), ..Predecessor::default() };
        let (none, state) = (RecordIndex::default(), SegmentState::default());
        let mut trailer = footer::encode(frames_end, Lsn(1), last, Lsn::ZERO, &none, &state, SALT);
        trailer[24..32].copy_from_slice(&(frames_end + records * 24).to_le_bytes());
        let checksum = xxh3_64_with_seed(&trailer[..120], SALT.0);
        trailer[120..].copy_from_slice(&checksum.to_le_bytes());
        trailer
    }

    #[tokio::test]
    async fn a_hostile_object_is_refused_before_it_is_decompressed() {
        let refused = refusal(Lsn(1), &[], None).await;
        assert!(refused.contains("footer is damaged"), "{refused}");

        let refused = refusal(Lsn(1), &trailer(1, 8192), None).await;
        assert!(refused.contains("summaries of 8589926248 bytes"), "{refused}");

        let records = 300_000_000;
        let refused = refusal(Lsn(records), &trailer(records, RAW_BYTES - 128 - 24 * records), None).await;
        assert!(refused.contains("lists 300000000 records"), "{refused}");

        // There is room for so many, but the entries are none: of hundreds of MiB one block is read.
        let records = 30_000_000;
        let begins = RAW_BYTES - 128 - 24 * records;
        let sound = (begins / BLOCK_BYTES as u64) as usize;
        let refused = refusal(Lsn(records), &trailer(records, begins), Some(sound)).await;
        assert!(refused.contains("record kind 0"), "{refused}");

        // One record that would be read with one call.
        let history = HistoryId([2; 16]);
        let mut index = RecordIndex::default();
        index.push(history, RecordKind::Commit, Seq(1), 4096, u32::MAX - 63);
        let summary = HistorySummary {
            boundary: Seq::ZERO,
            first: Lsn(1),
            last: Lsn(1),
            end: None,
            broken: None,
            large: Vec::new(),
            open: Vec::new(),
        };
        let state = SegmentState { histories: [(history, summary)].into(), ..SegmentState::default() };
        let last = Predecessor { last: Lsn(1), ..Predecessor::default() };
        let frames_end = RAW_BYTES - 24 - 112 - 128;
        let footer = footer::encode(frames_end, Lsn(1), last, Lsn(1), &index, &state, SALT);
        let refused = refusal(Lsn(1), &footer, None).await;
        assert!(refused.contains("a frame of 4294967232 bytes"), "{refused}");
    }
}
