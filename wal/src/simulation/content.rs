//! The bytes of one file, and what a crash may make of them.

use std::{collections::BTreeMap, sync::Arc};

use rand::{Rng, rngs::StdRng};

use super::fault::{FaultClass, FaultCounts};

/// What a disk writes whole or not at all.
pub(super) const BLOCK_BYTES: usize = 512;

/// `None`: zeros.
type Block = Option<Arc<[u8; BLOCK_BYTES]>>;

/// Bytes in blocks; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    pub(super) len: u64,
    /// May be shorter than `len` says: zeros follow.
    blocks: Arc<Vec<Block>>,
}

/// Something done to a file and not synced yet.
#[derive(Debug, Clone)]
enum Change {
    /// One block of the write call of that number.
    Block { index: usize, block: Block, call: u64 },
    /// A new length.
    Len(u64),
}

/// A file: what reads see, and what is certain to survive.
#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pub(super) cached: Content,
    durable: Content,
    /// In order. Versions of a block that were overwritten since are kept: each may be what survives.
    unsynced: Arc<Vec<Change>>,
}

impl Content {
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> usize {
        let end = self.len.min(offset.saturating_add(buffer.len() as u64));
        let count = end.saturating_sub(offset) as usize;
        let mut done = 0;
        while done < count {
            let (index, within) = split(offset + done as u64);
            let part = (BLOCK_BYTES - within).min(count - done);
            match self.block(index) {
                Some(block) => buffer[done..done + part].copy_from_slice(&block[within..within + part]),
                None => buffer[done..done + part].fill(0),
            }
            done += part;
        }
        count
    }

    fn block(&self, index: usize) -> &Block {
        self.blocks.get(index).unwrap_or(&None)
    }

    fn put(&mut self, index: usize, block: Block) {
        let blocks = Arc::make_mut(&mut self.blocks);
        if blocks.len() <= index {
            blocks.resize(index + 1, None);
        }
        blocks[index] = block;
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (index, within) = split(len);
            let blocks = Arc::make_mut(&mut self.blocks);
            blocks.truncate(len.div_ceil(BLOCK_BYTES as u64) as usize);
            if within > 0
                && let Some(Some(block)) = blocks.get_mut(index)
            {
                Arc::make_mut(block)[within..].fill(0);
            }
        }
        self.len = len;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Block { index, block, .. } => self.put(*index, block.clone()),
            Change::Len(len) => self.set_len(*len),
        }
    }

    fn blocks_of_len(&self) -> usize {
        self.len.div_ceil(BLOCK_BYTES as u64) as usize
    }
}

impl File {
    /// Writes into the cache.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64, call: u64) {
        let changes = Arc::make_mut(&mut self.unsynced);
        let mut done = 0;
        while done < bytes.len() {
            let (index, within) = split(offset + done as u64);
            let part = (BLOCK_BYTES - within).min(bytes.len() - done);
            let new = &bytes[done..done + part];
            let block =
                if new.iter().all(|byte| *byte == 0) && (part == BLOCK_BYTES || self.cached.block(index).is_none()) {
                    None
                } else {
                    let mut block = self.cached.block(index).as_deref().copied().unwrap_or([0; BLOCK_BYTES]);
                    block[within..within + part].copy_from_slice(new);
                    Some(Arc::new(block))
                };
            self.cached.put(index, block.clone());
            changes.push(Change::Block { index, block, call });
            done += part;
        }
        let end = offset + bytes.len() as u64;
        if end > self.cached.len {
            self.cached.len = end;
            changes.push(Change::Len(end));
        }
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.cached.set_len(len);
        Arc::make_mut(&mut self.unsynced).push(Change::Len(len));
    }

    /// Everything that is known to be dirty becomes durable.
    pub(super) fn sync(&mut self) {
        let changes = std::mem::take(&mut self.unsynced);
        changes.iter().for_each(|change| self.durable.apply(change));
        self.durable.len = self.cached.len;
    }

    /// What a failed sync does: pages are written or not, and none counts as dirty any more. Returns whether any was
    /// lost. The length is the file system's own and stays to be written.
    pub(super) fn drop_pages(&mut self, random: &mut StdRng) -> bool {
        let written = [0.0, 0.3, 0.7][random.random_range(0..3)];
        let mut lost = false;
        let mut kept = Vec::new();
        for change in self.unsynced.iter() {
            match change {
                Change::Len(_) => kept.push(change.clone()),
                Change::Block { .. } if random.random_bool(written) => kept.push(change.clone()),
                Change::Block { .. } => lost = true,
            }
        }
        self.unsynced = Arc::new(kept);
        lost
    }

    /// The cache forgets clean pages: what a failed sync dropped is gone for readers too. Returns whether anything
    /// changed for them.
    pub(super) fn evict(&mut self) -> bool {
        let mut content = self.durable.clone();
        self.unsynced.iter().for_each(|change| content.apply(change));
        content.set_len(self.cached.len);
        let blocks = content.blocks_of_len().max(self.cached.blocks_of_len());
        let differs = (0..blocks).any(|index| content.block(index) != self.cached.block(index));
        self.cached = content;
        differs
    }

    /// Flips one bit, on the disk and in the cache.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        let (index, within) = split(offset);
        for content in [&mut self.durable, &mut self.cached] {
            let mut block = content.block(index).as_deref().copied().unwrap_or([0; BLOCK_BYTES]);
            block[within] ^= 1 << (bit % 8);
            content.put(index, Some(Arc::new(block)));
        }
    }

    /// Whether a crash could lose anything.
    pub(super) fn is_dirty(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// The file after a loss of power: any of what was not synced may be there. `stale`: contents of earlier files,
    /// whose blocks may stand where space was allocated and not written.
    pub(super) fn crash(&self, stale: &[Content], random: &mut StdRng, counts: &mut FaultCounts) -> Self {
        let (content, kept) = self.survivors(random);
        self.count(&kept, counts);
        let mut content = content;
        if random.random_bool(0.6) {
            fill_stale(&mut content, &self.durable, &kept, &self.unsynced, stale, random, counts);
        }
        Self { cached: content.clone(), durable: content, unsynced: Arc::default() }
    }

    /// What is on the disk after a crash, and which changes got there.
    fn survivors(&self, random: &mut StdRng) -> (Content, Vec<bool>) {
        let changes = &self.unsynced;
        let mut content = self.durable.clone();
        let mut kept = vec![false; changes.len()];
        let lens = changes.iter().filter(|change| matches!(change, Change::Len(_))).count();
        // Lengths are kept by the file system in their order; blocks in any.
        let (lens_kept, chance, prefix) = match random.random_range(0..8) {
            0 => (0, 0.0, 0),
            1 => (lens, 1.0, changes.len()),
            2 | 3 => (lens, 1.0, random.random_range(0..=changes.len())),
            4 => (lens, 0.0, changes.len()),
            mode => {
                let chance = [0.1, 0.5, 0.9][random.random_range(0..3)];
                (if mode == 5 { random.random_range(0..=lens) } else { lens }, chance, changes.len())
            }
        };
        let mut lens_seen = 0;
        for (at, change) in changes.iter().take(prefix).enumerate() {
            match change {
                Change::Len(len) => {
                    if lens_seen >= lens_kept {
                        if *len < content.len {
                            // What follows was written to space that was given out only after the cut.
                            break;
                        }
                        continue;
                    }
                    lens_seen += 1;
                    content.set_len(*len);
                    kept[at] = true;
                }
                Change::Block { index, block, .. } => {
                    if random.random_bool(chance) {
                        content.put(*index, block.clone());
                        kept[at] = true;
                    }
                }
            }
        }
        let len = content.len;
        content.len = u64::MAX;
        content.set_len(len);
        (content, kept)
    }

    fn count(&self, kept: &[bool], counts: &mut FaultCounts) {
        let mut per_call: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
        let mut kept_at: BTreeMap<usize, bool> = BTreeMap::new();
        let (mut lost_before, mut reordered, mut older) = (None, false, false);
        for (change, kept) in self.unsynced.iter().zip(kept) {
            let Change::Block { index, call, .. } = change else { continue };
            let fate = per_call.entry(*call).or_default();
            if *kept {
                fate.0 = true;
                reordered |= lost_before.is_some_and(|lost| lost != *index);
                kept_at.insert(*index, true);
            } else {
                fate.1 = true;
                lost_before = Some(*index);
                older |= kept_at.contains_key(index);
            }
        }
        let lost = kept.iter().any(|kept| !kept);
        for (class, is_active) in [
            (FaultClass::LostData, lost),
            (FaultClass::TornWrite, per_call.values().any(|fate| *fate == (true, true))),
            (FaultClass::ReorderedWrite, reordered),
            (FaultClass::OlderBlock, older),
        ] {
            if is_active {
                counts.add(class);
            }
        }
    }
}

/// Puts blocks of an earlier file where space was allocated but never written.
fn fill_stale(
    content: &mut Content,
    durable: &Content,
    kept: &[bool],
    changes: &[Change],
    stale: &[Content],
    random: &mut StdRng,
    counts: &mut FaultCounts,
) {
    if stale.is_empty() {
        return;
    }
    // What was freed last is given out first, mostly.
    let back = random.random_range(0..stale.len()).min(random.random_range(0..4));
    let earlier = &stale[stale.len() - 1 - back];
    // Space is usually given out again in runs, often from where the file lay before.
    let shift = if random.random_bool(0.7) { 0 } else { random.random_range(0..16) };
    let mut written = vec![false; content.blocks_of_len()];
    for (change, kept) in changes.iter().zip(kept) {
        if let Change::Block { index, .. } = change
            && *kept
            && let Some(written) = written.get_mut(*index)
        {
            *written = true;
        }
    }
    let mut is_active = false;
    for index in durable.blocks_of_len()..content.blocks_of_len() {
        if !written.get(index).copied().unwrap_or(true)
            && let Some(block) = earlier.block(index + shift).clone()
        {
            content.put(index, Some(block));
            is_active = true;
        }
    }
    let len = content.len;
    content.len = u64::MAX;
    content.set_len(len);
    if is_active {
        counts.add(FaultClass::StaleBlock);
    }
}

fn split(offset: u64) -> (usize, usize) {
    ((offset / BLOCK_BYTES as u64) as usize, (offset % BLOCK_BYTES as u64) as usize)
}
