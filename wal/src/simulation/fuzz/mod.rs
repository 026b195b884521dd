//! What the fuzz targets in `wal/fuzz/` call, and the test that runs over their corpus. Each takes any bytes, must not
//! panic, and asserts what has to hold of what was accepted.
//!
//! Checksums would stop nearly every input at the door, so the first byte of an input says whether they are made right
//! before it is read: odd, and the bytes are those of someone who can compute a hash.

pub(crate) mod checksums;
mod corpus;

use std::{io::IoSlice, ops::ControlFlow, path::Path, sync::Arc};

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::{SimulatedClock, SimulatedDisk};
use crate::{
    Directory, Disk, DiskFile, HistoryHeader, Log, LogConfig, Lsn, NodeId, Payload, PayloadHash,
    codec::slice,
    footer::Footer,
    frame::{self, Decoded, HEADER_LEN, Salt},
    inspect::{Condition, InspectedFrame, Inspector, SegmentReport, Visitor},
    segment::{SEGMENT_HEADER_LEN, segment_path},
};

pub use crate::archive::fuzz::{archive_manifest, archived_segment};
use checksums::{repair_footer, repair_frame, repair_segment};
pub use corpus::Corpus;

/// Larger inputs find nothing that smaller ones do not.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// A segment file: inspected, recovered and replayed.
pub fn segment(input: &[u8]) {
    let Some(file) = segment_file(input) else { return };
    let dir = Path::new("log");
    let (disk, clock) = (SimulatedDisk::new(0).shared(), Arc::new(SimulatedClock::new(0)));
    write_segment(&*disk, dir, &file);
    let node = file.get(16..32).and_then(|node| node.try_into().ok()).map_or(NodeId::default(), NodeId);
    let count = Count::of(&disk, dir);
    let is_sound = count.is_some();
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
    if let Some(count) = count {
        assert!(ended.is_ok(), "sound for the inspection: {ended:?}");
        assert_eq!(replayed, count.records, "the inspection read other records than a replay");
    }
}

/// The segment file that an input of [`segment`] stands for; `None` when it is too long.
pub fn segment_file(input: &[u8]) -> Option<Vec<u8>> {
    file_of(input, |file| repair_segment(file))
}

/// Writes a segment file, durably, into `dir` under the name that its header asks for.
pub fn write_segment(disk: &dyn Disk, dir: &Path, file: &[u8]) {
    assert!(disk.create_dir_all(dir).is_ok(), "a disk in memory");
    let first = checksums::u64_at(file, 40).unwrap_or(1);
    put_file(disk, &segment_path(dir, Lsn(first)), file);
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
    let path = Path::new("footer");
    let handle = put_file(&*SimulatedDisk::new(0).shared(), path, &file);
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

/// What an inspection counts.
#[derive(Default)]
pub(crate) struct Count {
    segments: u64,
    pub(crate) sealed: u64,
    pub(crate) records: u64,
    damaged: bool,
}

impl Count {
    /// Inspects a folder with segments; `None` when they are not sound.
    pub(crate) fn of(disk: &Arc<dyn Disk>, dir: &Path) -> Option<Self> {
        let mut count = Self::default();
        let inspected = Inspector::new(disk.clone(), dir).read(Lsn(1)..=Lsn(u64::MAX), &mut count);
        (inspected.is_ok() && !count.damaged && count.segments > 0).then_some(count)
    }
}

impl Visitor for Count {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        self.records += u64::from(frame.header.is_some());
        ControlFlow::Continue(())
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.segments += 1;
        self.sealed += u64::from(segment.condition == Condition::Sealed);
        self.damaged |= segment.damage().is_some();
        ControlFlow::Continue(())
    }
}

pub(crate) fn file_of(input: &[u8], repair: impl FnOnce(&mut Vec<u8>)) -> Option<Vec<u8>> {
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

pub(crate) fn put_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Arc<dyn DiskFile> {
    let written = disk.create(path).and_then(|handle| {
        handle.write_all_vectored_at(&mut [IoSlice::new(bytes)], 0)?;
        handle.sync_all()?;
        Ok(handle)
    });
    match written {
        Ok(handle) => handle,
        Err(error) => unreachable!("a disk in memory: {error}"),
    }
}
