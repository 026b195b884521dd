//! Bodies of data streams: records, compressed or not.

use std::io::Write as _;

use bytes::Bytes;
use tailrace_wal::{HistoryHeader, PART_ALIGNMENT, Payload};

use super::{CHUNK_RAW_MAX, CHUNK_RAW_TARGET, Pieces};

/// zstd's fastest ordinary level: replication is bound by the link or by the disk, seldom by the last percent of size.
const ZSTD_LEVEL: i32 = 1;

/// A piece of a part from this length on is not copied into a chunk. It holds the buffer into which the log was read, which
/// is not much larger then: what is read ahead together is at most a MiB.
const SHARED_MIN: usize = 512 << 10;

/// Collects records into the body of a chunk.
#[derive(Debug, Default)]
pub(crate) struct RecordsEncoder {
    done: Pieces,
    /// What follows them, copied.
    bytes: Vec<u8>,
    records: u32,
}

impl RecordsEncoder {
    /// Whether another record, however large, may follow: a chunk below its target and a record of 8 MiB together are
    /// below the limit.
    pub(crate) fn has_room(&self) -> bool {
        self.len() < CHUNK_RAW_TARGET
    }

    /// Adds a record.
    pub(crate) fn add(&mut self, header: &HistoryHeader, payload: &Payload) {
        let shared = |piece: &Bytes| piece.len() >= SHARED_MIN;
        let shared_bytes: usize =
            payload.parts.iter().flatten().filter(|piece| shared(piece)).map(|piece| piece.len()).sum();
        self.bytes.reserve(record_len(header).saturating_sub(shared_bytes));
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(&payload.directory_bytes);
        self.pad();
        for pieces in &payload.parts {
            for piece in pieces {
                if shared(piece) {
                    self.close();
                    self.done.push(piece.clone());
                } else {
                    self.bytes.extend_from_slice(piece);
                }
            }
            self.pad();
        }
        self.records += 1;
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.done.len() + self.bytes.len()
    }

    /// Records so far.
    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    /// The body.
    pub(crate) fn finish(mut self) -> Pieces {
        self.close();
        self.done
    }

    /// What was copied is a piece.
    fn close(&mut self) {
        self.done.push(std::mem::take(&mut self.bytes).into());
    }

    fn pad(&mut self) {
        let missing = self.len().next_multiple_of(PART_ALIGNMENT) - self.len();
        self.bytes.extend_from_slice(&[0; PART_ALIGNMENT][..missing]);
    }
}

/// Splits a body into its records. Nothing is trusted; parts are slices of `body`.
pub(crate) fn decode_records(body: &Bytes, records: u32) -> Result<Vec<(HistoryHeader, Payload)>, String> {
    let mut decoded = Vec::with_capacity(records.min(CHUNK_RAW_MAX / HistoryHeader::ENCODED_LEN as u32) as usize);
    let mut at = 0;
    while at < body.len() {
        let Some(bytes) = body[at..].first_chunk::<{ HistoryHeader::ENCODED_LEN }>() else {
            return Err(format!("a chunk ends within a record header at byte {at}"));
        };
        let header = HistoryHeader::decode(bytes).map_err(|error| error.to_string())?;
        let directory_at = at + HistoryHeader::ENCODED_LEN;
        let parts_at = directory_at + (header.directory_len as usize).next_multiple_of(PART_ALIGNMENT);
        let end = parts_at + header.parts_len as usize;
        if end > body.len() {
            return Err(format!("a record ends at byte {end} of a chunk of {}", body.len()));
        }
        let directory = body.slice(directory_at..directory_at + header.directory_len as usize);
        let payload = Payload::decode(directory, header.payload_hash, body.slice(parts_at..end))
            .map_err(|error| error.to_string())?;
        decoded.push((header, payload));
        at = end;
    }
    if decoded.len() != records as usize {
        return Err(format!("a chunk of {} records, its header says {records}", decoded.len()));
    }
    Ok(decoded)
}

/// Compresses a body.
pub(crate) fn compress(raw: &[u8]) -> Result<Bytes, String> {
    zstd::bulk::compress(raw, ZSTD_LEVEL).map(Bytes::from).map_err(|error| format!("zstd: {error}"))
}

/// Decompresses to exactly `raw_len` bytes, which the caller has checked against its limit, aligned for Arrow.
pub(crate) fn decompress(encoded: &[u8], raw_len: usize) -> Result<Bytes, String> {
    let (mut buffer, start) = aligned_buffer(raw_len);
    buffer.resize(start + raw_len, 0);
    let length = zstd::bulk::decompress_to_buffer(encoded, &mut buffer[start..]).map_err(|error| {
        format!("a body does not decompress to the {raw_len} bytes that its header states: {error}")
    })?;
    if length != raw_len {
        return Err(format!("a body decompresses to {length} bytes, its header says {raw_len}"));
    }
    Ok(Bytes::from(buffer).slice(start..))
}

/// A buffer with room for `len` bytes and so many leading zeros that what follows them is aligned: Arrow then reads parts
/// where they lie instead of copying them.
pub(crate) fn aligned_buffer(len: usize) -> (Vec<u8>, usize) {
    let mut buffer: Vec<u8> = Vec::with_capacity(len + PART_ALIGNMENT);
    let start = buffer.as_ptr().align_offset(PART_ALIGNMENT).min(PART_ALIGNMENT);
    // A vector within its capacity does not move.
    let _ = buffer.write_all(&[0; PART_ALIGNMENT][..start]);
    (buffer, start)
}

/// Bytes of a record in a body.
pub(crate) fn record_len(header: &HistoryHeader) -> usize {
    HistoryHeader::ENCODED_LEN
        + (header.directory_len as usize).next_multiple_of(PART_ALIGNMENT)
        + header.parts_len as usize
}

#[cfg(test)]
mod tests {
    use tailrace_wal::{
        Chain, CommitTime, Epoch, FragmentNumber, HistoryId, Part, PartEntry, PartHash, RecordKind, Seq,
        TransactionNumber,
    };

    use super::*;

    fn record(seq: u64, bytes: usize) -> (HistoryHeader, Payload) {
        let entry = PartEntry {
            table: 1,
            schema_version: 1,
            operation: 1,
            first_ordinal: 0,
            rows: 1,
            length: 0,
            hash: PartHash(0),
            partition: Bytes::from_static(b"p"),
        };
        let part = Part::new(entry, vec![Bytes::from(vec![seq as u8; bytes])]).unwrap();
        let payload = Payload::new(vec![part], vec![], None).unwrap();
        let header = HistoryHeader {
            kind: RecordKind::Commit,
            history: HistoryId([1; 16]),
            epoch: Epoch { counter: 1, nonce: 2 },
            transaction: TransactionNumber(seq),
            fragment: FragmentNumber(0),
            seq: Seq(seq),
            restart_seq: Seq(seq),
            chain: Chain(seq),
            commit_time: CommitTime(seq as i64),
            payload_hash: payload.hash,
            directory_len: payload.directory_bytes.len() as u32,
            parts_len: bytes.next_multiple_of(PART_ALIGNMENT) as u32,
        };
        (header, payload)
    }

    fn body(records: &[(HistoryHeader, Payload)]) -> Bytes {
        let mut encoder = RecordsEncoder::default();
        for (header, payload) in records {
            encoder.add(header, payload);
        }
        encoder.finish().joined()
    }

    #[test]
    fn large_parts_are_not_copied() {
        let records = [record(1, 100), record(2, SHARED_MIN), record(3, 10), record(4, SHARED_MIN + 1)];
        let mut encoder = RecordsEncoder::default();
        records.iter().for_each(|(header, payload)| encoder.add(header, payload));
        let expected: usize = records.iter().map(|(header, _)| record_len(header)).sum();
        assert_eq!((encoder.len(), encoder.records()), (expected, 4));
        let pieces = encoder.finish();
        let lies_at = |record: usize| records[record].1.part_bytes(0).as_ptr();
        let places: Vec<_> = pieces.clone().into_pieces().iter().map(|piece| piece.as_ptr()).collect();
        assert!(places.contains(&lies_at(1)) && places.contains(&lies_at(3)));
        assert!(!places.contains(&lies_at(0)));
        let decoded = decode_records(&pieces.joined(), 4).unwrap();
        for ((header, payload), (expected, sent)) in decoded.iter().zip(&records) {
            assert_eq!((header, payload.part_bytes(0)), (expected, sent.part_bytes(0)));
        }
    }

    #[test]
    fn records_survive_compression_aligned() {
        let records = [record(1, 100), record(2, 70_000), record(3, 0)];
        let raw = body(&records);
        let back = decompress(&compress(&raw).unwrap(), raw.len()).unwrap();
        assert_eq!(back, raw);
        assert_eq!(back.as_ptr().align_offset(PART_ALIGNMENT), 0);
        let decoded = decode_records(&back, 3).unwrap();
        for ((header, payload), (expected, sent)) in decoded.iter().zip(&records) {
            assert_eq!(header, expected);
            assert_eq!(payload.part_bytes(0), sent.part_bytes(0));
            assert_eq!(payload.part_bytes(0).as_ptr().align_offset(PART_ALIGNMENT), 0);
        }
    }

    #[test]
    fn every_truncation_and_flip_is_seen() {
        let raw = body(&[record(1, 10), record(2, 100)]);
        for len in 0..raw.len() {
            assert!(decode_records(&raw.slice(..len), 2).is_err(), "cut at {len}");
        }
        assert!(decode_records(&raw, 1).is_err());
        let mut bytes = raw.to_vec();
        bytes[128] ^= 1;
        assert!(decode_records(&bytes.into(), 2).is_err());
        // Absurd lengths in a record header.
        for at in [80, 84] {
            let mut bytes = raw.to_vec();
            bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert!(decode_records(&bytes.into(), 2).is_err());
        }
    }

    #[test]
    fn decompression_is_exact() {
        let encoded = compress(&[7; 10_000]).unwrap();
        assert!(decompress(&encoded, 9_999).is_err());
        assert!(decompress(&encoded, 10_001).is_err());
        assert!(decompress(b"not zstd at all", 100).is_err());
        assert!(decompress(&encoded, 10_000).is_ok());
    }

    #[test]
    fn a_chunk_takes_records_up_to_its_target() {
        let mut encoder = RecordsEncoder::default();
        let (header, payload) = record(1, 3 << 20);
        assert!(encoder.has_room());
        encoder.add(&header, &payload);
        assert!(!encoder.has_room());
        assert_eq!(encoder.records(), 1);
        assert_eq!(encoder.finish().len(), record_len(&header));
        const { assert!(CHUNK_RAW_TARGET + tailrace_wal::FRAME_BYTES_MAX < CHUNK_RAW_MAX as usize) };
    }
}
