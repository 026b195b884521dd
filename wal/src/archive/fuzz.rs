//! Hostile archives: what `tailrace_wal::simulation::fuzz` calls for the archive's readers.

use std::{future::Future, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use object_store::{ObjectStore, memory::InMemory, path::Path as ObjectPath};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::{
    Archive, ArchiveEntry, ArchiveGap, ArchiveTail, ArchivedSegment,
    entry::EntryChain,
    manifest::{self, Body, Manifest},
    object::{Block, HEADER_LEN, ObjectHeader, ObjectTail, TRAILER_LEN},
    open::ArchivedFile,
    pack::archived_history,
    store::{ArchiveStore, ObjectName, PageName},
};
use crate::{
    CommitTime, LogError, Lsn, NodeId, Seq,
    footer::Footer,
    frame::{FrameChecksum, Salt},
    segment::SegmentHeader,
    simulation::{
        SimulatedDisk,
        fuzz::{
            Count,
            checksums::{put, u32_at, u64_at},
            file_of, put_file, segment_file, write_segment,
        },
    },
};

/// Whose archive it is where an input does not say.
const NODE: NodeId = NodeId([1; 16]);
const TIMEOUT: Duration = Duration::from_secs(60);
/// An object may state that its blocks come to gigabytes, and be right; that takes time and finds nothing.
const RAW_BYTES_MAX: u64 = 2 << 20;

/// An archived segment: found, verified, named by a manifest, and read as a whole and history by history.
///
/// With bit 1 of an input's first byte the rest is a segment file, which is compressed first; what an inspection of that
/// file calls sound then comes out of the archive.
pub fn archived_segment(input: &[u8]) {
    let Some(mode) = input.first() else { return };
    let (object, records) = if mode & 2 == 0 {
        let Some(object) = file_of(input, |object| repair_object(object)) else { return };
        (object, None)
    } else {
        let Some(file) = segment_file(input) else { return };
        let Some(object) = packed(&file, 64 * (1 + 16 * u32::from(mode >> 2))) else { return };
        (object, records_of(&file))
    };
    if u64_at(&object, 72).is_some_and(|raw_bytes| raw_bytes > RAW_BYTES_MAX) {
        return;
    }
    let read = run(read_object(object.into()));
    if let Some(records) = records {
        match read {
            Ok(read) => assert_eq!(read, records, "the archive returned other records than the inspection read"),
            Err(error) => unreachable!("sound for the inspection: {error}"),
        }
    }
}

/// A manifest: loaded, read, and added to.
///
/// With bit 0 of an input's first byte unset the rest is one object. Otherwise it is bodies of objects, one per line, and
/// with bit 1 the entries' chain is made right.
pub fn archive_manifest(input: &[u8]) {
    let Some((mode, rest)) = input.split_first() else { return };
    let pages = if mode & 1 == 0 {
        let number = |at| u64_at(rest, at).unwrap_or(1);
        let page = PageName { first: number(16), last: number(24) };
        vec![(page, Bytes::copy_from_slice(rest))]
    } else {
        pages_of(rest, mode & 2 != 0)
    };
    run(read_manifest(pages));
}

async fn read_object(object: Bytes) -> Result<u64, LogError> {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let prefix = ObjectPath::from("node");
    let store = ArchiveStore::new(memory.clone(), prefix.clone(), TIMEOUT);
    let header = object.first_chunk::<HEADER_LEN>().and_then(|header| ObjectHeader::decode(header).ok());
    let (first, salt, node) = header.map_or((Lsn(1), Salt(0), NODE), |header| (header.first, header.salt, header.node));
    let name = store.segment(first, salt);
    put_object(&store, &name, object).await;
    let found = ArchivedFile::find(&store, &name, CommitTime(0)).await?;
    let Some(found) = found else { unreachable!("the object is there") };
    let verified = found.verify().await;
    let archive = Archive::new(memory, prefix, node, TIMEOUT);
    let entry = ArchivedSegment::clone(&found.entry);
    assert!(
        archive.append(ArchiveEntry::Segment(entry.clone())).await.is_ok(),
        "an object that was found has an entry"
    );
    assert!(archive.refresh().await.is_ok(), "a manifest reads what it wrote");
    assert_eq!(archive.entries(), [Arc::new(ArchiveEntry::Segment(entry.clone()))]);
    for held in &entry.histories {
        for after in [Seq::ZERO, held.after, held.upto, held.upto.next()] {
            if let Ok(tail) = archive.tail(None, held.history, after).await {
                let _ = drained(tail).await;
            }
        }
    }
    let records = drained(archive.replay(None, Lsn(first.0.saturating_sub(1)))).await?;
    assert_eq!(Some(records), (entry.last.0 - entry.first.0).checked_add(1), "a reader passed over records");
    verified?;
    Ok(records)
}

async fn drained(mut tail: ArchiveTail) -> Result<u64, LogError> {
    let mut records = 0;
    while tail.try_next().await?.is_some() {
        records += 1;
    }
    Ok(records)
}

async fn read_manifest(pages: Vec<(PageName, Bytes)>) {
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let prefix = ObjectPath::from("node");
    let store = ArchiveStore::new(memory.clone(), prefix.clone(), TIMEOUT);
    let node = pages.first().and_then(|(_, bytes)| manifest::node_of(bytes)).unwrap_or(NODE);
    for (page, bytes) in pages {
        // Two pages of one name: the first one counts.
        let _ = store.create(&store.manifest(page), bytes).await;
    }
    let Ok(mut manifest) = Manifest::load(&store, node).await else { return };
    let mut last = Lsn::ZERO;
    for entry in manifest.entries() {
        assert!(last < entry.first() && entry.first() <= entry.last(), "entries overlap");
        for lsn in [entry.first(), entry.last()] {
            assert!(manifest.covering(lsn).is_some_and(|covering| Arc::ptr_eq(covering, entry)), "entries are found");
        }
        last = entry.last();
    }
    let archive = Archive::new(memory, prefix, node, TIMEOUT);
    assert!(archive.refresh().await.is_ok());
    for (history, end) in manifest.ends() {
        for after in [Seq::ZERO, Seq(end.0.saturating_sub(1)), end, Seq(u64::MAX)] {
            if let Ok(tail) = archive.tail(None, history, after).await {
                let _ = drained(tail).await;
            }
        }
    }
    let (from, reason) = (last.next(), "fuzz".to_owned());
    let gap = ArchiveGap { from, to: from, found_at: CommitTime(0), reason, histories: Vec::new() };
    if manifest.append(&store, node, ArchiveEntry::Gap(gap)).await.is_ok() {
        match Manifest::load(&store, node).await {
            Ok(again) => assert_eq!(again.entries(), manifest.entries()),
            Err(error) => unreachable!("what was added cannot be read: {error}"),
        }
    }
}

async fn put_object(store: &ArchiveStore, name: &ObjectName, bytes: Bytes) {
    assert!(store.create(name, bytes).await.is_ok(), "a store in memory");
}

/// Records of a sealed segment file that is sound; `None` when it is not.
fn records_of(file: &[u8]) -> Option<u64> {
    let disk = SimulatedDisk::new(0).shared();
    let dir = Path::new("log");
    write_segment(&*disk, dir, file);
    Count::of(&disk, dir).filter(|count| count.sealed == 1).map(|count| count.records)
}

/// The object of a sealed segment file; `None` when its header or footer cannot be read.
fn packed(file: &[u8], block_bytes: u32) -> Option<Vec<u8>> {
    let path = Path::new("segment");
    let handle = put_file(&*SimulatedDisk::new(0).shared(), path, file);
    let segment = SegmentHeader::read(path, &*handle).ok()?;
    let footer = Footer::read(path, &*handle, segment.salt).ok()??;
    let header = ObjectHeader {
        node: segment.node,
        salt: segment.salt,
        first: segment.first,
        last: footer.last.last,
        predecessor: segment.predecessor.checksum,
        last_checksum: FrameChecksum(footer.last.checksum.0),
        raw_bytes: file.len() as u64,
        block_bytes,
    };
    let encoded = header.encode();
    let mut object = encoded.to_vec();
    let mut blocks = Vec::new();
    for raw in file.chunks(block_bytes as usize) {
        let stored = zstd::bulk::compress(raw, 1).ok()?;
        blocks.push(Block {
            stored_bytes: stored.len() as u32,
            raw_bytes: raw.len() as u32,
            stored_hash: xxh3_64(&stored),
            raw_hash: xxh3_64(raw),
        });
        object.extend(stored);
    }
    let histories = footer.histories.iter().map(|(id, held)| archived_history(*id, held, segment.first)).collect();
    let stored_hash = xxh3_64(&object[HEADER_LEN..]);
    let tail = ObjectTail { blocks, histories, raw_hash: xxh3_64(file), stored_hash };
    object.extend(tail.encode(&encoded).0);
    Some(object)
}

/// Makes the hashes of an object right, as far as lengths lead to what they cover.
fn repair_object(object: &mut [u8]) {
    let Some(trailer) = object.len().checked_sub(TRAILER_LEN).filter(|trailer| *trailer >= HEADER_LEN) else { return };
    let header_checksum = xxh3_64(&object[..HEADER_LEN - 8]);
    put(object, HEADER_LEN - 8, header_checksum);
    put(object, trailer + 32, header_checksum);
    let offset = |field| u64_at(object, trailer + field).and_then(|offset| usize::try_from(offset).ok());
    let (index, histories) = (offset(16).unwrap_or(usize::MAX), offset(24).unwrap_or(usize::MAX));
    if index <= histories && histories <= trailer {
        repair_blocks(object, trailer, index, histories);
        let hashes = (xxh3_64(&object[index..histories]), xxh3_64(&object[histories..trailer]));
        put(object, trailer + 56, hashes.0);
        put(object, trailer + 64, hashes.1);
    }
    let checksum = xxh3_64(&object[trailer..trailer + TRAILER_LEN - 8]);
    put(object, trailer + TRAILER_LEN - 8, checksum);
}

fn repair_blocks(object: &mut [u8], trailer: usize, index: usize, histories: usize) {
    let (mut raw_hash, mut stored_hash) = (Xxh3::new(), Xxh3::new());
    let mut block = HEADER_LEN;
    for entry in (index..histories.saturating_sub(23)).step_by(24) {
        let (Some(stored_bytes), Some(raw_bytes)) = (u32_at(object, entry), u32_at(object, entry + 4)) else { break };
        let end = block.saturating_add(stored_bytes as usize);
        let Some(stored) = object.get(block..end) else { break };
        stored_hash.update(stored);
        let hash = xxh3_64(stored);
        let raw = zstd::bulk::decompress(stored, (raw_bytes as usize).min(RAW_BYTES_MAX as usize));
        put(object, entry + 8, hash);
        if let Ok(raw) = raw {
            raw_hash.update(&raw);
            put(object, entry + 16, xxh3_64(&raw));
        }
        block = end;
    }
    put(object, trailer + 40, raw_hash.digest());
    put(object, trailer + 48, stored_hash.digest());
}

/// Objects with these bodies, numbered one after the other.
fn pages_of(bodies: &[u8], is_chained: bool) -> Vec<(PageName, Bytes)> {
    let mut chain = EntryChain::default();
    let mut next = 1;
    let lines = bodies.split(|byte| *byte == b'\n');
    let pages = lines.map(|line| {
        let body = serde_json::from_slice::<Body>(line).ok();
        let count = body.as_ref().map_or(1, |body| body.entries.len().max(1)) as u64;
        let page = PageName { first: next, last: next + count - 1 };
        next += count;
        let chained = body.filter(|_| is_chained).and_then(|mut body| {
            body.node = NODE;
            body.chain_before = chain;
            chain = body.entries.iter().fold(chain, |chain, entry| entry.follow(chain, NODE));
            body.chain = chain;
            manifest::encode(page, &body).ok()
        });
        (page, chained.unwrap_or_else(|| manifest::encode_json(page, line)))
    });
    pages.collect()
}

fn run<T>(read: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => unreachable!("no runtime: {error}"),
        };
    }
    RUNTIME.with(|runtime| runtime.block_on(read))
}
