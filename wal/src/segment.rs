//! One segment: its name, its header, and what is known of it in memory.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use parking_lot::{Mutex, RwLock};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    Clock, Disk, DiskFile, FileOffset, HistoryId, LogConfig, LogError, Lsn, NodeId,
    codec::{Decoder, Encoder},
    config::planted,
    error::io_error,
    footer,
    frame::{FrameChecksum, Salt},
    index::{HistorySummary, RecordIndex},
};

/// Frames start here.
pub(crate) const SEGMENT_HEADER_LEN: usize = 4096;

const MAGIC: &[u8; 8] = b"TAILRWAL";
/// Of segment headers and footers.
pub(crate) const FORMAT_VERSION: u32 = 1;
const CHECKED_LEN: usize = SEGMENT_HEADER_LEN - 8;
const EXTENSION: &str = "wal";

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) node: NodeId,
    pub(crate) salt: Salt,
    pub(crate) first: Lsn,
    pub(crate) predecessor: Predecessor,
}

/// The last record before a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Predecessor {
    pub(crate) last: Lsn,
    pub(crate) checksum: FrameChecksum,
}

impl SegmentHeader {
    /// The header of a new segment after `predecessor`.
    pub(crate) fn after(predecessor: Predecessor, node: NodeId, config: &LogConfig, clock: &dyn Clock) -> Self {
        let salt = Salt(if planted!(config, IgnoresSalt) { 0 } else { clock.random() });
        Self { node, salt, first: predecessor.last.next(), predecessor }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Encoder::with_capacity(SEGMENT_HEADER_LEN);
        out.bytes(MAGIC);
        out.u32(FORMAT_VERSION);
        out.u32(SEGMENT_HEADER_LEN as u32);
        out.bytes(&self.node.0);
        out.u64(self.salt.0);
        out.u64(self.first.0);
        out.u64(self.predecessor.last.0);
        out.u64(self.predecessor.checksum.0);
        // Flags: none yet.
        out.u32(0);
        out.zeros(CHECKED_LEN - out.len());
        let checksum = xxh3_64(out.as_slice());
        out.u64(checksum);
        out.finish()
    }

    /// Reads and checks the header of the file at `path`.
    pub(crate) fn read(path: &Path, file: &dyn DiskFile) -> Result<Self, LogError> {
        let mut bytes = vec![0; SEGMENT_HEADER_LEN];
        let len = read_full(path, file, &mut bytes, 0)?;
        let corrupt = |reason: String| LogError::Corrupt { path: path.into(), offset: FileOffset(0), reason };
        if len < SEGMENT_HEADER_LEN {
            return Err(corrupt(format!("the segment has {len} bytes, its header alone needs {SEGMENT_HEADER_LEN}")));
        }
        let mut from = Decoder::new(&bytes, "segment header");
        if from.bytes(8)? != MAGIC {
            return Err(corrupt("this is not a segment".into()));
        }
        // The same in every version, so that damage is not taken for another version.
        if xxh3_64(&bytes[..CHECKED_LEN]).to_le_bytes() != bytes[CHECKED_LEN..] {
            return Err(corrupt("the checksum of the segment header is wrong".into()));
        }
        check_version(path, from.u32()?)?;
        let header_len = from.u32()?;
        if header_len as usize != SEGMENT_HEADER_LEN {
            return Err(corrupt(format!("a segment header of {header_len} bytes, it must have {SEGMENT_HEADER_LEN}")));
        }
        let header = Self {
            node: NodeId(from.array()?),
            salt: Salt(from.u64()?),
            first: Lsn(from.u64()?),
            predecessor: Predecessor { last: Lsn(from.u64()?), checksum: FrameChecksum(from.u64()?) },
        };
        if from.bytes(CHECKED_LEN - from.taken())?.iter().any(|byte| *byte != 0) {
            let reason = "flags or reserved bytes of the segment header are set".into();
            return Err(LogError::UnknownContent { path: path.into(), offset: FileOffset(0), reason });
        }
        if header.first != header.predecessor.last.next() || header.first == header.predecessor.last {
            return Err(corrupt(format!("first LSN {} after LSN {}", header.first, header.predecessor.last)));
        }
        Ok(header)
    }
}

/// Refuses a file of another format.
pub(crate) fn check_version(path: &Path, found: u32) -> Result<(), LogError> {
    match found {
        FORMAT_VERSION => Ok(()),
        0 => Err(LogError::PreReleaseFormat { path: path.into() }),
        _ => Err(LogError::UnknownFormat { path: path.into(), found, known: FORMAT_VERSION }),
    }
}

/// Path of the segment that starts with `first`.
pub(crate) fn segment_path(dir: &Path, first: Lsn) -> PathBuf {
    dir.join(format!("{:020}.{EXTENSION}", first.0))
}

/// Where a segment is made before it gets its name.
pub(crate) fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}

/// Whether `path` is a leftover of a segment in the making.
pub(crate) fn is_temporary(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tmp")
}

/// First LSN by the file's name; `None` when it is not a segment's name.
pub(crate) fn first_of_name(path: &Path) -> Option<Lsn> {
    if path.extension()? != EXTENSION {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    (stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit())).then(|| stem.parse().ok().map(Lsn))?
}

/// What is known of one segment. Summaries stay in memory; the record index does so while the segment is written
/// or read.
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    state: RwLock<SegmentState>,
    open: Mutex<Weak<OpenSegment>>,
    /// Keeps the record index while the segment is written, as no footer holds it yet.
    active: Mutex<Option<Arc<OpenSegment>>>,
}

/// What changes while a segment is written.
#[derive(Debug, Clone, Default)]
pub(crate) struct SegmentState {
    /// Last LSN in it; first - 1 while it is empty.
    pub(crate) last: Lsn,
    /// End of its frames, or of the file once sealed.
    pub(crate) bytes: u64,
    pub(crate) sealed: bool,
    pub(crate) histories: BTreeMap<HistoryId, HistorySummary>,
}

/// A segment with its file open and its records indexed.
#[derive(Debug)]
pub(crate) struct OpenSegment {
    pub(crate) path: PathBuf,
    pub(crate) salt: Salt,
    pub(crate) first: Lsn,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) records: RwLock<RecordIndex>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Segment {
    /// A sealed segment.
    pub(crate) fn sealed(path: PathBuf, header: SegmentHeader, state: SegmentState) -> Self {
        Self {
            path,
            header,
            state: RwLock::new(SegmentState { sealed: true, ..state }),
            open: Mutex::default(),
            active: Mutex::default(),
        }
    }

    /// The segment that is written; `file` is a handle for readers.
    pub(crate) fn active(
        path: PathBuf,
        header: SegmentHeader,
        state: SegmentState,
        records: RecordIndex,
        file: Arc<dyn DiskFile>,
    ) -> Self {
        let open = Arc::new(OpenSegment {
            path: path.clone(),
            salt: header.salt,
            first: header.first,
            file,
            records: RwLock::new(records),
        });
        Self {
            path,
            header,
            state: RwLock::new(state),
            open: Mutex::new(Arc::downgrade(&open)),
            active: Mutex::new(Some(open)),
        }
    }

    /// Reads the state.
    pub(crate) fn state(&self) -> parking_lot::RwLockReadGuard<'_, SegmentState> {
        self.state.read()
    }

    /// Last LSN in it.
    pub(crate) fn last(&self) -> Lsn {
        self.state.read().last
    }

    /// Changes the state; the writer's.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut SegmentState) -> R) -> R {
        change(&mut self.state.write())
    }

    /// The footer is synced: the record index can be read back from it.
    pub(crate) fn seal(&self, bytes: u64) {
        self.update(|state| {
            state.sealed = true;
            state.bytes = bytes;
        });
        self.active.lock().take();
    }

    /// Opens it for reading, or shares what is open already. Blocks on the disk.
    pub(crate) fn open(&self, disk: &dyn Disk) -> Result<Arc<OpenSegment>, LogError> {
        let mut slot = self.open.lock();
        if let Some(open) = slot.upgrade() {
            return Ok(open);
        }
        let file = disk.open(&self.path, false).map_err(|error| io_error("open", &self.path, error))?;
        let footer = footer::Footer::read(&self.path, &*file, self.header.salt)?.ok_or_else(|| LogError::Corrupt {
            path: self.path.clone(),
            offset: FileOffset(self.state.read().bytes),
            reason: "the footer is damaged".into(),
        })?;
        let records = footer.records(&self.path, &*file, self.header.salt)?;
        let open = Arc::new(OpenSegment {
            path: self.path.clone(),
            salt: self.header.salt,
            first: self.header.first,
            file,
            records: RwLock::new(records),
        });
        *slot = Arc::downgrade(&open);
        Ok(open)
    }
}

/// Reads until `buffer` is full or the file ends; returns the bytes read.
pub(crate) fn read_full(path: &Path, file: &dyn DiskFile, buffer: &mut [u8], offset: u64) -> Result<usize, LogError> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read_at(&mut buffer[len..], offset + len as u64) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_error("read", path, error)),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let path = segment_path(Path::new("d"), Lsn(73112));
        assert_eq!(path, Path::new("d/00000000000000073112.wal"));
        assert_eq!(first_of_name(&path), Some(Lsn(73112)));
        assert!(is_temporary(&temporary_path(&path)));
        for other in ["d/LOCK", "d/1.wal", "d/00000000000000073112.wal.tmp", "d/0000000000000007311x.wal"] {
            assert_eq!(first_of_name(Path::new(other)), None, "{other}");
        }
    }
}
