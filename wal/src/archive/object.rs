//! Bytes of an archived segment: header, blocks, block index, histories, trailer. See `FORMAT.md`, chapter 'Archive'.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::entry::ArchivedHistory;
use crate::{
    HistoryId, LogError, Lsn, NodeId, Seq,
    codec::{Decoder, Encoder},
    frame::{FrameChecksum, Salt},
    index::{Floor, LargeCommit},
};

/// Raw bytes of every block but the last. One block is what a reader of one record fetches and decompresses.
pub(crate) const BLOCK_BYTES: u32 = 1 << 20;

/// Largest block that is accepted when reading.
const BLOCK_BYTES_MAX: u32 = 8 << 20;

/// Largest segment file that is accepted when reading: the largest that the settings allow, with its footer.
const RAW_BYTES_MAX: u64 = 8 << 30;

/// Largest tail (index, histories, trailer) that is accepted when reading.
pub(crate) const TAIL_BYTES_MAX: u64 = 256 << 20;

pub(crate) const HEADER_LEN: usize = 128;
pub(crate) const TRAILER_LEN: usize = 128;
const HEADER_MAGIC: &[u8; 8] = b"TAILRARC";
const TRAILER_MAGIC: &[u8; 8] = b"TAILRARX";
const VERSION: u32 = 1;
const CHECKED_LEN: usize = 120;
const BLOCK_LEN: usize = 24;
const HISTORY_LEN: usize = 72;
const SPANNING_LEN: usize = 24;
const FLAG_BROKEN: u32 = 1;

/// What an archived segment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ObjectHeader {
    pub(crate) node: NodeId,
    pub(crate) salt: Salt,
    pub(crate) first: Lsn,
    pub(crate) last: Lsn,
    /// Checksum of the frame before `first`, and of the frame `last`: segments are chained by them.
    pub(crate) predecessor: FrameChecksum,
    pub(crate) last_checksum: FrameChecksum,
    /// Length of the segment file.
    pub(crate) raw_bytes: u64,
    pub(crate) block_bytes: u32,
}

/// One compressed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) stored_bytes: u32,
    pub(crate) raw_bytes: u32,
    pub(crate) stored_hash: u64,
    pub(crate) raw_hash: u64,
}

/// What stands behind the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectTail {
    pub(crate) blocks: Vec<Block>,
    pub(crate) histories: Vec<ArchivedHistory>,
    /// Hash of the segment file, and of the blocks as stored.
    pub(crate) raw_hash: u64,
    pub(crate) stored_hash: u64,
}

/// Hash of a whole object: the checksum of its trailer, which holds the hashes of all the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ObjectHash(#[serde(with = "super::entry::hex")] pub(crate) u64);

/// A trailer that checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trailer {
    histories: u32,
    pub(crate) index_at: u64,
    histories_at: u64,
    header_checksum: u64,
    raw_hash: u64,
    stored_hash: u64,
    index_hash: u64,
    histories_hash: u64,
    pub(crate) hash: ObjectHash,
}

impl ObjectHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = Encoder::with_capacity(HEADER_LEN);
        out.bytes(HEADER_MAGIC);
        out.u32(VERSION);
        out.u32(HEADER_LEN as u32);
        out.bytes(&self.node.0);
        out.u64(self.salt.0);
        out.u64(self.first.0);
        out.u64(self.last.0);
        out.u64(self.predecessor.0);
        out.u64(self.last_checksum.0);
        out.u64(self.raw_bytes);
        out.u32(self.block_bytes);
        out.zeros(CHECKED_LEN - out.len());
        let checksum = xxh3_64(out.as_slice());
        out.u64(checksum);
        out.array()
    }

    /// Decodes and checks; the bytes are not trusted.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, LogError> {
        let wrong = |reason: String| Err(LogError::Invalid { reason });
        let mut from = Decoder::new(bytes, "header of an archived segment");
        if from.bytes(8)? != HEADER_MAGIC {
            return wrong("this is not an archived segment".into());
        }
        if xxh3_64(&bytes[..CHECKED_LEN]).to_le_bytes() != bytes[CHECKED_LEN..] {
            return wrong("the header's checksum is wrong".into());
        }
        check_version(from.u32()?)?;
        let header_len = from.u32()?;
        if header_len as usize != HEADER_LEN {
            return wrong(format!("a header of {header_len} bytes, it must have {HEADER_LEN}"));
        }
        let header = Self {
            node: NodeId(from.array()?),
            salt: Salt(from.u64()?),
            first: Lsn(from.u64()?),
            last: Lsn(from.u64()?),
            predecessor: FrameChecksum(from.u64()?),
            last_checksum: FrameChecksum(from.u64()?),
            raw_bytes: from.u64()?,
            block_bytes: from.u32()?,
        };
        from.reserved(CHECKED_LEN - from.taken())?;
        let is_possible = header.first > Lsn::ZERO
            && header.first <= header.last
            && (1..=RAW_BYTES_MAX).contains(&header.raw_bytes)
            && (64..=BLOCK_BYTES_MAX).contains(&header.block_bytes)
            && header.block_bytes.is_multiple_of(64);
        if !is_possible {
            return wrong(format!(
                "a segment of {} bytes in blocks of {} from LSN {} to {}",
                header.raw_bytes, header.block_bytes, header.first, header.last
            ));
        }
        Ok(header)
    }
}

impl ObjectTail {
    /// Bytes of index, histories and trailer, and the hash that stands for the whole object. `header` is the encoded
    /// header.
    pub(crate) fn encode(&self, header: &[u8; HEADER_LEN]) -> (Vec<u8>, ObjectHash) {
        let index_at = HEADER_LEN as u64 + self.blocks.iter().map(|block| u64::from(block.stored_bytes)).sum::<u64>();
        let mut out = Encoder::with_capacity(self.blocks.len() * BLOCK_LEN + 1024);
        for block in &self.blocks {
            out.u32(block.stored_bytes);
            out.u32(block.raw_bytes);
            out.u64(block.stored_hash);
            out.u64(block.raw_hash);
        }
        let histories_at = out.len();
        let index_hash = xxh3_64(out.as_slice());
        for history in &self.histories {
            encode_history(&mut out, history);
        }
        let histories_hash = xxh3_64(&out.as_slice()[histories_at..]);
        let mut trailer = Encoder::with_capacity(TRAILER_LEN);
        trailer.bytes(TRAILER_MAGIC);
        trailer.u32(VERSION);
        trailer.u32(self.histories.len() as u32);
        trailer.u64(index_at);
        trailer.u64(index_at + histories_at as u64);
        trailer.bytes(&header[CHECKED_LEN..]);
        trailer.u64(self.raw_hash);
        trailer.u64(self.stored_hash);
        trailer.u64(index_hash);
        trailer.u64(histories_hash);
        trailer.zeros(CHECKED_LEN - trailer.len());
        let checksum = xxh3_64(trailer.as_slice());
        trailer.u64(checksum);
        out.bytes(trailer.as_slice());
        (out.finish(), ObjectHash(checksum))
    }

    /// Decodes index and histories, `bytes` being all from the index to the trailer without it.
    pub(crate) fn decode(bytes: &[u8], trailer: &Trailer, header: &ObjectHeader) -> Result<Self, LogError> {
        let wrong = |reason: &str| Err(LogError::Invalid { reason: reason.into() });
        let index_len = (trailer.histories_at - trailer.index_at) as usize;
        let Some((index, histories)) = bytes.split_at_checked(index_len) else {
            return wrong("the block index ends too early");
        };
        if xxh3_64(index) != trailer.index_hash {
            return wrong("the block index is damaged");
        }
        if xxh3_64(histories) != trailer.histories_hash {
            return wrong("the list of histories is damaged");
        }
        if header.encode()[CHECKED_LEN..] != trailer.header_checksum.to_le_bytes() {
            return wrong("header and trailer belong to two objects");
        }
        let mut from = Decoder::new(index, "block index");
        let mut blocks = Vec::with_capacity(index_len / BLOCK_LEN);
        let (mut raw, mut stored) = (0, HEADER_LEN as u64);
        while from.remaining() >= BLOCK_LEN {
            let block = Block {
                stored_bytes: from.u32()?,
                raw_bytes: from.u32()?,
                stored_hash: from.u64()?,
                raw_hash: from.u64()?,
            };
            let raw_expected = (header.raw_bytes - raw).min(u64::from(header.block_bytes));
            if u64::from(block.raw_bytes) != raw_expected
                || block.stored_bytes as usize > zstd::zstd_safe::compress_bound(block.raw_bytes as usize)
            {
                return wrong("the block index does not add up");
            }
            raw += u64::from(block.raw_bytes);
            stored += u64::from(block.stored_bytes);
            blocks.push(block);
        }
        if raw != header.raw_bytes || stored != trailer.index_at || from.remaining() != 0 {
            return wrong("the block index does not add up");
        }
        let mut from = Decoder::new(histories, "list of histories");
        if trailer.histories as usize > histories.len() / HISTORY_LEN {
            return wrong("the list of histories is too short");
        }
        let histories = (0..trailer.histories).map(|_| decode_history(&mut from)).collect::<Result<_, _>>()?;
        if from.remaining() != 0 {
            return wrong("the list of histories is too long");
        }
        Ok(Self { blocks, histories, raw_hash: trailer.raw_hash, stored_hash: trailer.stored_hash })
    }
}

impl Trailer {
    /// Decodes the last bytes of an object of `object_bytes` bytes.
    pub(crate) fn decode(bytes: &[u8; TRAILER_LEN], object_bytes: u64) -> Result<Self, LogError> {
        let wrong = |reason: &str| Err(LogError::Invalid { reason: reason.into() });
        let mut from = Decoder::new(bytes, "trailer of an archived segment");
        if from.bytes(8)? != TRAILER_MAGIC {
            return wrong("it does not end with a trailer");
        }
        let hash = xxh3_64(&bytes[..CHECKED_LEN]);
        if hash.to_le_bytes() != bytes[CHECKED_LEN..] {
            return wrong("the trailer's checksum is wrong");
        }
        check_version(from.u32()?)?;
        let trailer = Self {
            histories: from.u32()?,
            index_at: from.u64()?,
            histories_at: from.u64()?,
            header_checksum: from.u64()?,
            raw_hash: from.u64()?,
            stored_hash: from.u64()?,
            index_hash: from.u64()?,
            histories_hash: from.u64()?,
            hash: ObjectHash(hash),
        };
        from.reserved(CHECKED_LEN - from.taken())?;
        let end = object_bytes.saturating_sub(TRAILER_LEN as u64);
        let in_order = HEADER_LEN as u64 <= trailer.index_at
            && trailer.index_at <= trailer.histories_at
            && trailer.histories_at <= end
            && (trailer.histories_at - trailer.index_at).is_multiple_of(BLOCK_LEN as u64)
            && end - trailer.index_at <= TAIL_BYTES_MAX;
        if in_order { Ok(trailer) } else { wrong("the trailer does not fit the object's length") }
    }
}

fn check_version(version: u32) -> Result<(), LogError> {
    if version != VERSION {
        return Err(LogError::Invalid {
            reason: format!("it has format version {version}, this version reads {VERSION}; upgrade this node"),
        });
    }
    Ok(())
}

fn encode_history(out: &mut Encoder, history: &ArchivedHistory) {
    let broken = history.broken.unwrap_or(Floor { lsn: Lsn::ZERO, seq: Seq::ZERO });
    out.bytes(&history.history.0);
    out.u64(history.after.0);
    out.u64(history.upto.0);
    out.u64(history.first.0);
    out.u64(history.last.0);
    out.u32(if history.broken.is_some() { FLAG_BROKEN } else { 0 });
    out.u32(history.spanning.len() as u32);
    out.u64(broken.lsn.0);
    out.u64(broken.seq.0);
    for large in &history.spanning {
        out.u64(large.seq.0);
        out.u64(large.lsn.0);
        out.u64(large.first_fragment.0);
    }
}

fn decode_history(from: &mut Decoder<'_>) -> Result<ArchivedHistory, LogError> {
    let history = HistoryId(from.array()?);
    let (after, upto, first, last) = (Seq(from.u64()?), Seq(from.u64()?), Lsn(from.u64()?), Lsn(from.u64()?));
    let (flags, spanning_count) = (from.u32()?, from.u32()? as usize);
    let broken = Floor { lsn: Lsn(from.u64()?), seq: Seq(from.u64()?) };
    if spanning_count > from.remaining() / SPANNING_LEN || flags & !FLAG_BROKEN != 0 || first > last {
        return Err(LogError::Invalid { reason: "an entry of the list of histories makes no sense".into() });
    }
    let mut spanning = Vec::with_capacity(spanning_count);
    for _ in 0..spanning_count {
        spanning.push(LargeCommit { seq: Seq(from.u64()?), lsn: Lsn(from.u64()?), first_fragment: Lsn(from.u64()?) });
    }
    let broken = (flags & FLAG_BROKEN != 0).then_some(broken);
    Ok(ArchivedHistory { history, after, upto, first, last, broken, spanning })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ObjectHeader {
        ObjectHeader {
            node: NodeId([3; 16]),
            salt: Salt(77),
            first: Lsn(5),
            last: Lsn(9),
            predecessor: FrameChecksum(1),
            last_checksum: FrameChecksum(2),
            raw_bytes: 300,
            block_bytes: 128,
        }
    }

    fn tail() -> ObjectTail {
        let block = |raw_bytes, stored_bytes| Block { stored_bytes, raw_bytes, stored_hash: 4, raw_hash: 5 };
        let history = ArchivedHistory {
            history: HistoryId([8; 16]),
            after: Seq(3),
            upto: Seq(6),
            first: Lsn(5),
            last: Lsn(9),
            broken: Some(Floor { lsn: Lsn(6), seq: Seq(4) }),
            spanning: vec![LargeCommit { seq: Seq(5), lsn: Lsn(7), first_fragment: Lsn(2) }],
        };
        let plain = ArchivedHistory { broken: None, spanning: vec![], history: HistoryId([9; 16]), ..history.clone() };
        ObjectTail {
            blocks: vec![block(128, 40), block(128, 41), block(44, 17)],
            histories: vec![history, plain],
            raw_hash: 10,
            stored_hash: 11,
        }
    }

    fn decode(bytes: &[u8]) -> Result<(ObjectHeader, ObjectTail), LogError> {
        let len = bytes.len();
        let header = ObjectHeader::decode(&bytes[..HEADER_LEN].try_into().unwrap())?;
        let trailer = Trailer::decode(&bytes[len - TRAILER_LEN..].try_into().unwrap(), len as u64)?;
        let tail = ObjectTail::decode(&bytes[trailer.index_at as usize..len - TRAILER_LEN], &trailer, &header)?;
        Ok((header, tail))
    }

    fn object() -> Vec<u8> {
        let head = header().encode();
        let mut bytes = head.to_vec();
        bytes.extend([0xaa; 40 + 41 + 17]);
        bytes.extend(tail().encode(&head).0);
        bytes
    }

    #[test]
    fn round_trip() {
        assert_eq!(decode(&object()).unwrap(), (header(), tail()));
    }

    #[test]
    fn every_flipped_bit_outside_of_the_blocks_is_refused() {
        let object = object();
        let blocks = HEADER_LEN..HEADER_LEN + 98;
        let mut refused = 0;
        for at in 0..object.len() * 8 {
            if blocks.contains(&(at / 8)) {
                continue;
            }
            let mut flipped = object.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(decode(&flipped).is_err(), "bit {at}");
            refused += 1;
        }
        assert_eq!(refused, (object.len() - blocks.len()) * 8);
    }

    #[test]
    fn hostile_numbers_are_refused_before_anything_is_allocated() {
        let refuse = |header: ObjectHeader| {
            assert!(ObjectHeader::decode(&header.encode()).is_err(), "{header:?}");
        };
        refuse(ObjectHeader { raw_bytes: u64::MAX, ..header() });
        refuse(ObjectHeader { block_bytes: 64 << 20, ..header() });
        refuse(ObjectHeader { block_bytes: 0, ..header() });
        refuse(ObjectHeader { last: Lsn(4), ..header() });
        let head = header().encode();
        let blocks = vec![Block { stored_bytes: u32::MAX, raw_bytes: 128, stored_hash: 0, raw_hash: 0 }; 3];
        let (bytes, _) = ObjectTail { blocks, ..tail() }.encode(&head);
        let trailer: [u8; TRAILER_LEN] = bytes[bytes.len() - TRAILER_LEN..].try_into().unwrap();
        assert!(Trailer::decode(&trailer, 4096).is_err(), "its index lies far beyond the object's end");
    }
}
