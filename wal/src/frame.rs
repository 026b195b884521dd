//! The node half of a frame's header, and the whole header as it lies in a segment. See `FORMAT.md`.

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{
    Directory, HistoryHeader, LogError, Lsn, Payload,
    codec::{Decoder, Encoder, slice},
    payload::{is_zero, padded},
};

/// Length of the node half, bytes.
pub(crate) const NODE_HALF_LEN: usize = 64;

/// Length of both halves, bytes.
pub(crate) const HEADER_LEN: usize = NODE_HALF_LEN + HistoryHeader::ENCODED_LEN;

const FLAG_MARK: u32 = 1;
const FLAG_SKIPPED: u32 = 2;

/// Random number of a segment that seeds its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub u64);

/// Checksum of a frame's header; names the frame in the next segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct FrameChecksum(pub(crate) u64);

/// A frame's header whose checksum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// Of a durable mark: the last LSN before it.
    pub(crate) lsn: Lsn,
    /// What its writer knew to be durable.
    pub(crate) durable: Lsn,
    /// Header, payload and padding, bytes.
    pub(crate) frame_len: u32,
    pub(crate) skipped: bool,
    pub(crate) checksum: FrameChecksum,
    /// `None` on a durable mark.
    pub(crate) record: Option<HistoryHeader>,
}

/// What stands at a multiple of 64 in a segment.
#[derive(Debug)]
pub(crate) enum Decoded {
    /// A header that checks.
    Valid(Box<FrameHeader>),
    /// Not a header under this salt.
    Foreign,
}

/// Bytes of a record's header.
pub(crate) fn encode_record(
    header: &HistoryHeader,
    lsn: Lsn,
    durable: Lsn,
    skipped: bool,
    salt: Salt,
) -> [u8; HEADER_LEN] {
    let flags = if skipped { FLAG_SKIPPED } else { 0 };
    encode(header.frame_len() as u32, flags, lsn, durable, &header.encode(), salt)
}

/// Bytes of a durable mark.
pub(crate) fn encode_mark(durable: Lsn, salt: Salt) -> [u8; HEADER_LEN] {
    encode(HEADER_LEN as u32, FLAG_MARK, durable, durable, &[0; HistoryHeader::ENCODED_LEN], salt)
}

/// The checksum field of an encoded header.
pub(crate) fn checksum_of(header: &[u8; HEADER_LEN]) -> FrameChecksum {
    let mut checksum = [0; 8];
    checksum.copy_from_slice(&header[..8]);
    FrameChecksum(u64::from_le_bytes(checksum))
}

/// Decodes what stands at a multiple of 64. An error means that the header checks but says what this version does
/// not know.
pub(crate) fn decode(bytes: &[u8; HEADER_LEN], salt: Salt) -> Result<Decoded, LogError> {
    let mut from = Decoder::new(bytes, "frame header");
    let checksum = FrameChecksum(from.u64()?);
    let frame_len = from.u32()?;
    // Rejects zeros and most other bytes before hashing.
    if (frame_len as usize) < HEADER_LEN
        || frame_len as usize > crate::FRAME_BYTES_MAX
        || xxh3_64_with_seed(&bytes[8..], salt.0) != checksum.0
    {
        return Ok(Decoded::Foreign);
    }
    let flags = from.u32()?;
    let lsn = Lsn(from.u64()?);
    let term = from.u64()?;
    let durable = Lsn(from.u64()?);
    from.reserved(24)?;
    if flags & !(FLAG_MARK | FLAG_SKIPPED) != 0 || term != 0 {
        return Err(LogError::Invalid {
            reason: format!("frame flags {flags:#x} and term {term} are not known to this version; upgrade this node"),
        });
    }
    let record = if flags & FLAG_MARK == 0 {
        let header = HistoryHeader::decode(&from.array()?)?;
        if header.frame_len() != u64::from(frame_len) {
            return Err(LogError::Invalid {
                reason: format!("a frame of {frame_len} bytes whose record needs {}", header.frame_len()),
            });
        }
        Some(header)
    } else {
        None
    };
    Ok(Decoded::Valid(Box::new(FrameHeader {
        lsn,
        durable,
        frame_len,
        skipped: flags & FLAG_SKIPPED != 0,
        checksum,
        record,
    })))
}

/// Decodes and checks what follows the header in `frame`, the bytes of a whole frame.
pub(crate) fn payload(frame: &Bytes, record: &HistoryHeader) -> Result<Payload, LogError> {
    let directory_len = record.directory_len as usize;
    let directory = slice(frame, HEADER_LEN, directory_len);
    let parts_at = HEADER_LEN + padded(directory_len);
    let parts = slice(frame, parts_at, record.parts_len as usize);
    let payload = Payload::decode(directory, record.payload_hash, parts)?;
    if frame.get(HEADER_LEN + directory_len..parts_at).is_none_or(|padding| !is_zero(padding)) {
        return Err(LogError::Invalid { reason: "the padding of the directory is not zero".into() });
    }
    Ok(payload)
}

/// Why this version cannot read the directory in `frame` although its hash is right; `None` where the hash is wrong or
/// the directory is fine.
pub(crate) fn unknown_directory(frame: &Bytes, record: &HistoryHeader) -> Option<LogError> {
    let directory = slice(frame, HEADER_LEN, record.directory_len as usize);
    (xxh3_64(&directory) == record.payload_hash.0).then(|| Directory::decode(&directory).err())?
}

fn encode(
    frame_len: u32,
    flags: u32,
    lsn: Lsn,
    durable: Lsn,
    history_half: &[u8; HistoryHeader::ENCODED_LEN],
    salt: Salt,
) -> [u8; HEADER_LEN] {
    let mut out = Encoder::with_capacity(HEADER_LEN);
    out.u64(0);
    out.u32(frame_len);
    out.u32(flags);
    out.u64(lsn.0);
    out.u64(0);
    out.u64(durable.0);
    out.zeros(24);
    out.bytes(history_half);
    let mut bytes: [u8; HEADER_LEN] = out.array();
    let checksum = xxh3_64_with_seed(&bytes[8..], salt.0);
    bytes[..8].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Chain, CommitTime, Epoch, FragmentNumber, HistoryId, PayloadHash, RecordKind, Seq, TransactionNumber};

    fn header() -> HistoryHeader {
        HistoryHeader {
            kind: RecordKind::Commit,
            history: HistoryId([9; 16]),
            epoch: Epoch { counter: 3, nonce: 77 },
            transaction: TransactionNumber(5),
            fragment: FragmentNumber(2),
            seq: Seq(41),
            restart_seq: Seq(40),
            chain: Chain(0xfeed),
            commit_time: CommitTime(-5),
            payload_hash: PayloadHash(0xbeef),
            directory_len: 100,
            parts_len: 640,
        }
    }

    #[test]
    fn history_half_round_trip() {
        assert_eq!(HistoryHeader::decode(&header().encode()).unwrap(), header());
    }

    #[test]
    fn round_trip_and_every_flipped_bit() {
        let salt = Salt(1234);
        let bytes = encode_record(&header(), Lsn(7), Lsn(6), true, salt);
        let Decoded::Valid(back) = decode(&bytes, salt).unwrap() else { panic!("not valid") };
        assert_eq!(back.record, Some(header()));
        assert_eq!((back.lsn, back.durable, back.skipped), (Lsn(7), Lsn(6), true));
        assert_eq!(back.frame_len as usize, HEADER_LEN + 128 + 640);
        assert!(matches!(decode(&bytes, Salt(1235)), Ok(Decoded::Foreign)), "another salt");
        for at in 0..HEADER_LEN * 8 {
            let mut flipped = bytes;
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(matches!(decode(&flipped, salt), Ok(Decoded::Foreign)), "bit {at}");
        }
    }

    #[test]
    fn marks_have_no_record() {
        let Decoded::Valid(mark) = decode(&encode_mark(Lsn(9), Salt(1)), Salt(1)).unwrap() else { panic!("not valid") };
        assert_eq!((mark.record, mark.durable, mark.lsn), (None, Lsn(9), Lsn(9)));
    }

    #[test]
    fn limits_of_the_history_half() {
        let decode = |header: HistoryHeader| HistoryHeader::decode(&header.encode());
        assert!(decode(HistoryHeader { parts_len: 63, ..header() }).is_err());
        assert!(decode(HistoryHeader { parts_len: 8 << 20, ..header() }).is_err());
        assert!(decode(HistoryHeader { restart_seq: Seq(42), ..header() }).is_err());
        let mut unknown = header().encode();
        unknown[0] = 200;
        assert!(matches!(HistoryHeader::decode(&unknown), Err(LogError::UnknownRecordKind { code: 200 })));
    }
}
