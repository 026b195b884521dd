//! The archive's manifest: numbered entries in small objects that are put if absent and never changed.
//!
//! An object holds the entries of one page up to its own, so that the last object of each page is all that a reader
//! fetches. See `FORMAT.md`, chapter 'Archive'.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    entry::{ArchiveEntry, EntryChain},
    store::{ArchiveStore, Created, ObjectName, PageName},
};
use crate::{
    FileOffset, HistoryId, LogError, Lsn, NodeId, Seq,
    codec::{Decoder, Encoder},
};

/// Entries after which a new page begins: a page of this many segments with one history each has about 100 KiB.
const PAGE_ENTRIES: usize = 256;

/// Bytes of a page after which a new one begins: with thousands of histories, entries are large.
const PAGE_BYTES: usize = 1 << 20;

/// Largest manifest object that is accepted when reading.
const PAGE_BYTES_MAX: u64 = 256 << 20;

const MAGIC: &[u8; 8] = b"TAILRARM";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const CHECKED_LEN: usize = 56;

/// What a node's archive holds, in LSN order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manifest {
    entries: Vec<Arc<ArchiveEntry>>,
    /// Number of the first entry here: 1, unless older ones were removed from the store.
    first_number: u64,
    chain: EntryChain,
    page: OpenPage,
}

/// The page that the next entry goes to, while it has room.
#[derive(Debug, Clone, Default)]
struct OpenPage {
    first: u64,
    chain_before: EntryChain,
    entries: Vec<Arc<ArchiveEntry>>,
    bytes: usize,
}

/// Body of a manifest object.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) node: NodeId,
    /// The chain before the first of these entries, and after the last.
    pub(super) chain_before: EntryChain,
    pub(super) chain: EntryChain,
    pub(super) entries: Vec<Arc<ArchiveEntry>>,
}

impl Manifest {
    /// Last record that is archived or in a gap.
    pub(crate) fn end(&self) -> Lsn {
        self.entries.last().map_or(Lsn::ZERO, |entry| entry.last())
    }

    pub(crate) fn entries(&self) -> &[Arc<ArchiveEntry>] {
        &self.entries
    }

    /// The entry that covers a record.
    pub(crate) fn covering(&self, lsn: Lsn) -> Option<&Arc<ArchiveEntry>> {
        let at = self.entries.partition_point(|entry| entry.last() < lsn);
        self.entries.get(at).filter(|entry| entry.first() <= lsn)
    }

    /// The last seq of each history that is archived or in a gap.
    pub(crate) fn ends(&self) -> BTreeMap<HistoryId, Seq> {
        let mut ends = BTreeMap::new();
        for entry in &self.entries {
            match &**entry {
                ArchiveEntry::Segment(segment) => {
                    ends.extend(segment.histories.iter().map(|held| (held.history, held.upto)));
                }
                ArchiveEntry::Gap(gap) => ends.extend(gap.histories.iter().map(|gap| (gap.history, gap.upto))),
            }
        }
        ends
    }

    /// Number of the last entry; 0 when there is none.
    fn last_number(&self) -> u64 {
        self.first_number + (self.entries.len() as u64).saturating_sub(1)
    }

    /// Reads all of a node's manifest, `self` being what is known of it: pages that were complete are not read again.
    /// Every entry and the order of all is checked.
    pub(crate) async fn load(store: &ArchiveStore, node: NodeId) -> Result<Self, LogError> {
        let mut names = store.list_manifest().await?;
        names.sort_unstable();
        let Some(newest) = names.last().copied() else { return Ok(Self::default()) };
        let mut chosen = vec![newest];
        let mut wanted = newest.first - 1;
        while wanted > 0 {
            let at = names.partition_point(|name| name.last < wanted);
            match names.get(at).filter(|name| name.last == wanted) {
                Some(page) => {
                    chosen.push(*page);
                    wanted = page.first - 1;
                }
                None if at == 0 => break,
                None => {
                    return Err(LogError::Archive {
                        operation: "read",
                        object: store.manifest(PageName { first: 1, last: wanted }).to_string(),
                        reason: format!(
                            "entry {wanted} of the manifest is missing, though older ones are there; put the object back"
                        ),
                    });
                }
            }
        }
        let mut manifest = Self::default();
        for page in chosen.into_iter().rev() {
            let name = store.manifest(page);
            let bytes = store.get(&name, PAGE_BYTES_MAX).await?;
            let bytes = bytes.ok_or_else(|| store.error("read", &name, "it was listed and is missing now"))?;
            let body = decode(&bytes, page, node).map_err(|reason| damaged(store, &name, reason))?;
            manifest.take(page, body, bytes.len()).map_err(|reason| damaged(store, &name, reason))?;
        }
        Ok(manifest)
    }

    fn take(&mut self, page: PageName, body: Body, bytes: usize) -> Result<(), String> {
        if self.entries.is_empty() {
            self.first_number = page.first;
            self.chain = body.chain_before;
        } else if body.chain_before != self.chain {
            return Err("it does not continue the entries before it".into());
        }
        self.page =
            OpenPage { first: page.first, chain_before: body.chain_before, entries: body.entries.clone(), bytes };
        for entry in body.entries {
            self.check_next(&entry)?;
            self.chain = entry.follow(self.chain, body.node);
            self.entries.push(entry);
        }
        if self.chain == body.chain { Ok(()) } else { Err("its entries are not those that its chain states".into()) }
    }

    /// Whether an entry can follow the last one.
    fn check_next(&self, entry: &ArchiveEntry) -> Result<(), String> {
        if entry.first() == Lsn::ZERO || entry.first() > entry.last() {
            return Err(format!("an entry from LSN {} to {}", entry.first(), entry.last()));
        }
        let Some(last) = self.entries.last() else { return Ok(()) };
        // After the last LSN there is none; `next` stays there.
        if entry.first() != last.last().next() || entry.first() == last.last() {
            return Err(format!("LSN {} follows LSN {}", entry.first(), last.last()));
        }
        if let (ArchiveEntry::Segment(before), ArchiveEntry::Segment(segment)) = (&**last, entry)
            && before.last_checksum != segment.predecessor
        {
            return Err(format!("the segment from LSN {} on does not continue the one before it", segment.first));
        }
        Ok(())
    }

    /// Adds an entry, durably. On an error nothing is known here; the entry may be in the store all the same, and the
    /// same entry can be added again.
    pub(crate) async fn append(
        &mut self,
        store: &ArchiveStore,
        node: NodeId,
        entry: ArchiveEntry,
    ) -> Result<(), LogError> {
        let entry = Arc::new(entry);
        self.check_next(&entry).map_err(|reason| LogError::Invalid { reason })?;
        let number = self.last_number().checked_add(1);
        let number = number.ok_or_else(|| LogError::Invalid { reason: "the archive's manifest is full".into() })?;
        let is_full = self.page.entries.len() >= PAGE_ENTRIES || self.page.bytes >= PAGE_BYTES;
        let mut page = if is_full || self.entries.is_empty() {
            OpenPage { first: number, chain_before: self.chain, ..OpenPage::default() }
        } else {
            self.page.clone()
        };
        page.entries.push(entry.clone());
        let chain = entry.follow(self.chain, node);
        let name = PageName { first: page.first, last: number };
        let body = Body { node, chain_before: page.chain_before, chain, entries: page.entries.clone() };
        let bytes = encode(name, &body)?;
        let object = store.manifest(name);
        if store.create(&object, bytes.clone()).await? == Created::Before {
            // An earlier attempt whose answer was lost, or somebody else.
            let found = store.get(&object, PAGE_BYTES_MAX).await?;
            let found = found.ok_or_else(|| store.error("read", &object, "it was there and is missing now"))?;
            let same = decode(&found, name, node).is_ok_and(|found| found.chain == chain);
            if !same {
                return Err(LogError::ArchiveConflict {
                    object: object.to_string(),
                    reason: "another process has archived here, or another life of this node".into(),
                });
            }
        }
        page.bytes = bytes.len();
        if self.entries.is_empty() {
            self.first_number = name.last;
        }
        self.page = page;
        self.chain = chain;
        self.entries.push(entry);
        Ok(())
    }
}

pub(super) fn encode(page: PageName, body: &Body) -> Result<Bytes, LogError> {
    let json = serde_json::to_vec(body)
        .map_err(|error| LogError::Invalid { reason: format!("the archive's manifest: {error}") })?;
    Ok(encode_json(page, &json))
}

pub(super) fn encode_json(page: PageName, json: &[u8]) -> Bytes {
    let mut out = Encoder::with_capacity(HEADER_LEN + json.len());
    out.bytes(MAGIC);
    out.u32(VERSION);
    out.u32(HEADER_LEN as u32);
    out.u64(page.first);
    out.u64(page.last);
    out.u64(json.len() as u64);
    out.u64(xxh3_64(json));
    out.zeros(CHECKED_LEN - out.len());
    let checksum = xxh3_64(out.as_slice());
    out.u64(checksum);
    out.bytes(json);
    out.finish().into()
}

/// The node that an object says it is of.
#[cfg(feature = "simulation")]
pub(super) fn node_of(bytes: &[u8]) -> Option<NodeId> {
    serde_json::from_slice::<Body>(bytes.get(HEADER_LEN..)?).ok().map(|body| body.node)
}

fn decode(bytes: &[u8], page: PageName, node: NodeId) -> Result<Body, String> {
    let Some((header, json)) = bytes.split_at_checked(HEADER_LEN) else {
        return Err(format!("it has {} bytes, its header alone needs {HEADER_LEN}", bytes.len()));
    };
    let text = |error: LogError| error.to_string();
    let mut from = Decoder::new(header, "header of a manifest object");
    if from.bytes(8).map_err(text)? != MAGIC {
        return Err("this is not a manifest of an archive".into());
    }
    if xxh3_64(&header[..CHECKED_LEN]).to_le_bytes() != header[CHECKED_LEN..] {
        return Err("the header's checksum is wrong".into());
    }
    let version = from.u32().map_err(text)?;
    if version != VERSION {
        return Err(format!("it has format version {version}, this version reads {VERSION}; upgrade this node"));
    }
    let header_len = from.u32().map_err(text)?;
    if header_len as usize != HEADER_LEN {
        return Err(format!("a header of {header_len} bytes, it must have {HEADER_LEN}"));
    }
    let found = PageName { first: from.u64().map_err(text)?, last: from.u64().map_err(text)? };
    let (len, hash) = (from.u64().map_err(text)?, from.u64().map_err(text)?);
    from.reserved(CHECKED_LEN - from.taken()).map_err(text)?;
    if found != page {
        return Err(format!("it holds entries {} to {} under another name", found.first, found.last));
    }
    if json.len() as u64 != len || xxh3_64(json) != hash {
        return Err("its entries are damaged".into());
    }
    let body: Body = serde_json::from_slice(json).map_err(|error| format!("its entries: {error}"))?;
    if body.node != node {
        return Err(format!("it is of node {}, not of node {node}", body.node));
    }
    if page.last - page.first + 1 != body.entries.len() as u64 {
        return Err(format!("it holds {} entries under the name of {page:?}", body.entries.len()));
    }
    Ok(body)
}

fn damaged(store: &ArchiveStore, name: &ObjectName, reason: String) -> LogError {
    LogError::Corrupt { path: store.place(name), offset: FileOffset(0), reason }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use object_store::{ObjectStoreExt as _, memory::InMemory, path::Path as ObjectPath};

    use super::*;
    use crate::{CommitTime, archive::entry::ArchiveGap};

    const NODE: NodeId = NodeId([4; 16]);

    fn gap(from: u64, to: u64) -> ArchiveEntry {
        ArchiveEntry::Gap(ArchiveGap {
            from: Lsn(from),
            to: Lsn(to),
            found_at: CommitTime(1),
            reason: "test".into(),
            histories: vec![],
        })
    }

    fn store() -> (Arc<InMemory>, ArchiveStore) {
        let memory = Arc::new(InMemory::new());
        let store = ArchiveStore::new(memory.clone(), ObjectPath::from("n"), Duration::from_secs(5));
        (memory, store)
    }

    #[tokio::test]
    async fn pages_are_read_back_and_go_on_where_they_ended() {
        let (_, store) = store();
        let mut written = Manifest::default();
        let count = 2 * PAGE_ENTRIES as u64 + 10;
        for number in 1..=count {
            written.append(&store, NODE, gap(number, number)).await.unwrap();
            if number % 100 == 0 {
                written = Manifest::load(&store, NODE).await.unwrap();
            }
        }
        let read = Manifest::load(&store, NODE).await.unwrap();
        assert_eq!(read.entries, written.entries);
        assert_eq!((read.end(), read.last_number(), read.chain), (Lsn(count), count, written.chain));
        assert_eq!(read.covering(Lsn(300)).unwrap().first(), Lsn(300));
        assert!(read.covering(Lsn(count + 1)).is_none());
    }

    #[tokio::test]
    async fn the_same_entry_twice_is_one_and_another_in_its_place_is_a_conflict() {
        let (_, store) = store();
        let mut one = Manifest::default();
        let mut other = Manifest::default();
        one.append(&store, NODE, gap(1, 5)).await.unwrap();
        other.append(&store, NODE, gap(1, 5)).await.unwrap();
        assert_eq!(one.entries, other.entries);
        one.append(&store, NODE, gap(6, 8)).await.unwrap();
        let error = other.append(&store, NODE, gap(6, 9)).await.unwrap_err();
        assert!(matches!(error, LogError::ArchiveConflict { .. }), "{error}");
        let error = one.append(&store, NODE, gap(10, 11)).await.unwrap_err();
        assert!(error.to_string().contains("LSN 10 follows LSN 8"), "{error}");
    }

    #[tokio::test]
    async fn old_pages_may_be_gone_and_a_hole_is_named() {
        let (memory, store) = store();
        let mut manifest = Manifest::default();
        for number in 1..=3 * PAGE_ENTRIES as u64 {
            manifest.append(&store, NODE, gap(number, number)).await.unwrap();
        }
        for number in 1..=PAGE_ENTRIES as u64 {
            let name = store.manifest(PageName { first: 1, last: number });
            memory.delete(&ObjectPath::from(name.to_string())).await.unwrap();
        }
        let mut read = Manifest::load(&store, NODE).await.unwrap();
        assert_eq!(read.entries.first().unwrap().first(), Lsn(257));
        read.append(&store, NODE, gap(769, 770)).await.unwrap();
        assert_eq!(Manifest::load(&store, NODE).await.unwrap().end(), Lsn(770));
        let name = store.manifest(PageName { first: 257, last: 512 });
        memory.delete(&ObjectPath::from(name.to_string())).await.unwrap();
        let error = Manifest::load(&store, NODE).await.unwrap_err();
        assert!(error.to_string().contains("entry 512"), "{error}");
    }

    #[tokio::test]
    async fn nothing_comes_after_the_last_number() {
        let (_, other) = store();
        let mut manifest = Manifest::default();
        manifest.append(&other, NODE, gap(1, u64::MAX)).await.unwrap();
        manifest.append(&other, NODE, gap(u64::MAX, u64::MAX)).await.unwrap_err();

        let (memory, store) = store();
        let entry = Arc::new(gap(5, 9));
        let (chain_before, chain) = (EntryChain(3), entry.follow(EntryChain(3), NODE));
        let body = Body { node: NODE, chain_before, chain, entries: vec![entry] };
        let page = PageName { first: u64::MAX, last: u64::MAX };
        let path = ObjectPath::from(store.manifest(page).to_string());
        memory.put(&path, encode(page, &body).unwrap().into()).await.unwrap();
        let mut last = Manifest::load(&store, NODE).await.unwrap();
        assert_eq!((last.end(), last.last_number()), (Lsn(9), u64::MAX));
        let error = last.append(&store, NODE, gap(10, 11)).await.unwrap_err();
        assert!(error.to_string().contains("full"), "{error}");
    }

    #[tokio::test]
    async fn every_flipped_bit_is_refused_by_name() {
        let (memory, store) = store();
        let mut manifest = Manifest::default();
        manifest.append(&store, NODE, gap(1, 5)).await.unwrap();
        manifest.append(&store, NODE, gap(6, 7)).await.unwrap();
        let name = store.manifest(PageName { first: 1, last: 2 });
        let path = ObjectPath::from(name.to_string());
        let bytes = memory.get(&path).await.unwrap().bytes().await.unwrap();
        for at in 0..bytes.len() * 8 {
            let mut flipped = bytes.to_vec();
            flipped[at / 8] ^= 1 << (at % 8);
            memory.put(&path, flipped.into()).await.unwrap();
            let error = Manifest::load(&store, NODE).await.unwrap_err();
            assert!(error.to_string().contains(&name.to_string()), "bit {at}: {error}");
        }
        for len in 0..bytes.len() {
            memory.put(&path, bytes.slice(..len).into()).await.unwrap();
            assert!(Manifest::load(&store, NODE).await.is_err(), "{len} bytes");
        }
        memory.put(&path, bytes.into()).await.unwrap();
        assert_eq!(Manifest::load(&store, NODE).await.unwrap().end(), Lsn(7));
        let error = Manifest::load(&store, NodeId([5; 16])).await.unwrap_err();
        assert!(error.to_string().contains("not of node"), "{error}");
    }
}
