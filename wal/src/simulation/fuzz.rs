//! What the fuzz targets in `wal/fuzz/` call, and the test that runs over their corpus. Each takes any bytes, must not
//! panic, and asserts what has to hold of what was accepted.
//!
//! Checksums would stop nearly every input at the door, so the first byte of an input says whether they are made right
//! before it is read: odd, and the bytes are those of someone who can compute a hash.

use std::{io::IoSlice, ops::ControlFlow, path::Path, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{SimulatedClock, SimulatedDisk};
use crate::{
    Directory, HistoryHeader, Log, LogConfig, Lsn, NodeId, Payload, PayloadHash,
    codec::slice,
    footer::Footer,
    frame::{self, Decoded, HEADER_LEN, Salt},
    inspect::{InspectedFrame, Inspector, SegmentReport, Visitor},
    payload::padded,
    segment::{SEGMENT_HEADER_LEN, segment_path},
};

/// Larger inputs find nothing that smaller ones do not.
const INPUT_BYTES_MAX: usize = 64 << 10;

const TRAILER_LEN: usize = 128;

/// A segment file: inspected, recovered and replayed.
pub fn segment(input: &[u8]) {
    let Some(file) = file_of(input, |file| {
        repair_segment_header(file);
        repair_frames(file);
        repair_footer(file, SEGMENT_HEADER_LEN);
    }) else {
        return;
    };
    let first = u64_at(&file, 40).unwrap_or(1);
    let node = file.get(16..32).and_then(|node| node.try_into().ok()).map_or(NodeId::default(), NodeId);
    let dir = Path::new("log");
    let (disk, clock) = (SimulatedDisk::new(0).shared(), Arc::new(SimulatedClock::new(0)));
    if disk.create_dir_all(dir).is_err() {
        return;
    }
    let path = segment_path(dir, Lsn(first));
    let written = disk.create(&path).and_then(|handle| {
        handle.write_all_vectored_at(&mut [IoSlice::new(&file)], 0)?;
        handle.sync_all()
    });
    assert!(written.is_ok(), "a disk in memory");
    let mut count = Count::default();
    let inspected = Inspector::new(disk.clone(), dir).read(Lsn(1)..=Lsn(u64::MAX), &mut count);
    let is_sound = inspected.is_ok() && !count.damaged && count.segments > 0;
    let opened = Log::open_stepped(LogConfig::new(dir), node, Lsn::ZERO, disk, clock);
    let Ok((log, _, recovery)) = opened else {
        assert!(!is_sound, "sound for the inspection, and a start refuses it: {opened:?}");
        return;
    };
    let Ok(mut tail) = log.replay(Lsn(recovery.first.0.saturating_sub(1))) else { return };
    let mut replayed = 0;
    let ended = loop {
        match tail.try_next() {
            Ok(Some(_)) => replayed += 1,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    if is_sound {
        assert!(ended.is_ok(), "sound for the inspection: {ended:?}");
        assert_eq!(replayed, count.records, "the inspection read other records than a replay");
    }
}

/// One frame: what is accepted is written as it was read.
pub fn frame(input: &[u8]) {
    let Some(bytes) = file_of(input, |bytes| repair_frame(bytes, 0, Salt(0))) else { return };
    let Some(Ok(header)) = bytes.get(..HEADER_LEN).map(<[u8; HEADER_LEN]>::try_from) else { return };
    let Ok(Decoded::Valid(decoded)) = frame::decode(&header, Salt(0)) else { return };
    let again = match &decoded.record {
        Some(record) => frame::encode_record(record, decoded.lsn, decoded.durable, decoded.skipped, Salt(0)),
        None => return,
    };
    assert_eq!(again, header, "a header is written as it was read");
    let Some(record) = decoded.record else { return };
    let whole = slice(&Bytes::from(bytes), 0, decoded.frame_len as usize);
    if let Ok(payload) = frame::payload(&whole, &record) {
        assert_eq!(payload.encoded_len() + HEADER_LEN, whole.len());
        assert!(payload.check().is_ok());
    }
}

/// A directory: what is accepted is written as it was read.
pub fn directory(input: &[u8]) {
    if input.len() > INPUT_BYTES_MAX {
        return;
    }
    let bytes = Bytes::copy_from_slice(input);
    if let Ok(directory) = Directory::decode(&bytes) {
        assert_eq!(directory.encode_within_limits(), bytes, "a directory is written as it was read");
        let _ = Payload::decode(bytes.clone(), PayloadHash(xxh3_64(&bytes)), Bytes::new());
    }
}

/// A footer behind a segment's header.
pub fn footer(input: &[u8]) {
    let Some(footer) = file_of(input, |_| {}) else { return };
    let mut file = vec![0; SEGMENT_HEADER_LEN];
    file.extend_from_slice(&footer);
    if input.first().is_some_and(|mode| mode % 2 == 1) {
        repair_footer(&mut file, SEGMENT_HEADER_LEN);
    }
    let disk = SimulatedDisk::new(0).shared();
    let path = Path::new("footer");
    let Ok(handle) = disk.create(path) else { return };
    assert!(handle.write_all_vectored_at(&mut [IoSlice::new(&file)], 0).is_ok());
    if let Ok(Some(footer)) = Footer::read(path, &*handle, Salt(0)) {
        let _ = footer.records(path, &*handle, Salt(0));
        let _ = footer.state();
    }
}

/// A history half, as it comes from a peer or a disk.
pub fn history_header(input: &[u8]) {
    let Ok(bytes) = <&[u8; HistoryHeader::ENCODED_LEN]>::try_from(input) else { return };
    if let Ok(header) = HistoryHeader::decode(bytes) {
        assert_eq!(&header.encode(), bytes);
    }
}

#[derive(Default)]
struct Count {
    segments: u64,
    records: u64,
    damaged: bool,
}

impl Visitor for Count {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        self.records += u64::from(frame.header.is_some());
        ControlFlow::Continue(())
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.segments += 1;
        self.damaged |= segment.damage().is_some();
        ControlFlow::Continue(())
    }
}

fn file_of(input: &[u8], repair: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<u8>> {
    let (mode, rest) = input.split_first()?;
    if rest.len() > INPUT_BYTES_MAX {
        return None;
    }
    let mut file = rest.to_vec();
    if mode % 2 == 1 {
        repair(&mut file);
    }
    Some(file)
}

fn repair_segment_header(file: &mut [u8]) {
    if let Some(checked) = file.get(..SEGMENT_HEADER_LEN - 8) {
        let checksum = xxh3_64(checked);
        put(file, SEGMENT_HEADER_LEN - 8, checksum);
    }
}

fn repair_frames(file: &mut [u8]) {
    let salt = Salt(u64_at(file, 32).unwrap_or_default());
    let mut at = SEGMENT_HEADER_LEN;
    while let Some(len) = u32_at(file, at + 8) {
        repair_frame(file, at, salt);
        if (len as usize) < HEADER_LEN {
            return;
        }
        at = at.saturating_add(len as usize);
    }
}

/// Makes the hashes of parts, directory and header right, as far as they are where lengths say.
fn repair_frame(file: &mut [u8], at: usize, salt: Salt) {
    if file.len() < at + HEADER_LEN {
        return;
    }
    let directory_len = u32_at(file, at + 144).unwrap_or_default() as usize;
    let directory = at + HEADER_LEN;
    let end = directory.saturating_add(directory_len);
    if end <= file.len() {
        repair_parts(file, directory, end);
        let hash = xxh3_64(&file[directory..end]);
        put(file, at + 136, hash);
    }
    let checksum = xxh3_64_with_seed(&file[at + 8..at + HEADER_LEN], salt.0);
    put(file, at, checksum);
}

fn repair_parts(file: &mut [u8], directory: usize, end: usize) {
    let count = u32_at(file, directory + 4).unwrap_or_default();
    let (mut entry, mut part) = (directory + 16, directory.saturating_add(padded(end - directory)));
    for _ in 0..count {
        let (Some(partition), Some(length)) = (u32_at(file, entry + 12), u32_at(file, entry + 28)) else { return };
        let Some(bytes) = file.get(part..part.saturating_add(length as usize)) else { return };
        let hash = xxh3_64(bytes);
        if entry + 40 > end {
            return;
        }
        put(file, entry + 32, hash);
        entry = (entry + 40).saturating_add(partition as usize);
        part = part.saturating_add(padded(length as usize));
    }
}

fn repair_footer(file: &mut [u8], least: usize) {
    let Some(trailer) = file.len().checked_sub(TRAILER_LEN).filter(|trailer| *trailer >= least) else { return };
    let salt = u64_at(file, 32).unwrap_or_default();
    let offset = |field| u64_at(file, trailer + field).map(|offset| usize::try_from(offset).unwrap_or(usize::MAX));
    if let (Some(records), Some(summaries)) = (offset(16), offset(24)) {
        let of = |range| file.get(range).map(|bytes: &[u8]| xxh3_64_with_seed(bytes, salt));
        let hashes = (of(records..summaries.max(records)), of(summaries..trailer.max(summaries)));
        if let (Some(records), Some(summaries)) = hashes {
            put(file, trailer + 64, records);
            put(file, trailer + 72, summaries);
        }
    }
    let checksum = xxh3_64_with_seed(&file[trailer..trailer + TRAILER_LEN - 8], salt);
    put(file, trailer + TRAILER_LEN - 8, checksum);
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(field) = bytes.get_mut(at..at + 8) {
        field.copy_from_slice(&value.to_le_bytes());
    }
}
