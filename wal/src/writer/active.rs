//! The segment that is written: its file, the zeros ahead of its end, and how it is begun and sealed.

use std::{
    io::{self, ErrorKind, IoSlice},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    Clock, Disk, DiskFile, LogConfig, LogError, Lsn, NodeId,
    config::planted,
    error::io_error,
    footer,
    index::RecordIndex,
    reserve::is_no_space,
    segment::{
        OpenSegment, Predecessor, SEGMENT_HEADER_LEN, Segment, SegmentHeader, SegmentState, segment_path,
        temporary_path,
    },
};

/// Batches below this are small commits: they overwrite zeros written before, because fdatasync is cheaper where no
/// metadata changes (4 KiB: about two thirds). Larger ones are appended: writing their bytes twice would cost more.
const SMALL_BATCH_BYTES_MAX: u64 = 256 << 10;

/// Zeros written behind a small batch that found none ahead.
const ZERO_FILL_BYTES: u64 = 1 << 20;

const PAGE: u64 = 4096;
const ZEROS: &[u8] = &[0; 64 << 10];

/// A failed write.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// No space; the file is again what it was before, and synced as such.
    Full(LogError),
    /// Anything may have been written.
    Broken(LogError),
}

/// The file that is written and where its frames end.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) segment: Arc<Segment>,
    pub(crate) open: Arc<OpenSegment>,
    file: Arc<dyn DiskFile>,
    /// End of the frames.
    pub(crate) end: u64,
    /// The file is written, with zeros behind `end`, up to here.
    zeroed_to: u64,
    segment_bytes: u64,
    #[cfg(feature = "simulation")]
    planted: Option<crate::simulation::PlantedBug>,
    /// A record was refused for want of space: its bytes may lie in free space and check under this segment's salt, so
    /// nothing more is written here but the footer, and that only when the next segment says where this one ends.
    pub(crate) is_cut: bool,
    /// The footer is written; the next segment could not be begun yet.
    pub(crate) is_sealed: bool,
}

impl Active {
    /// Makes the segment after `predecessor`, empty and durable.
    pub(crate) fn begin(
        disk: &dyn Disk,
        clock: &dyn Clock,
        config: &LogConfig,
        predecessor: Predecessor,
        node: NodeId,
    ) -> Result<Self, WriteError> {
        let header = SegmentHeader::after(predecessor, node, config, clock);
        let made = make_segment(disk, config, &header, |_| Ok(()));
        let (path, file) = made.map_err(|error| match error {
            LogError::Full { .. } => WriteError::Full(error),
            error => WriteError::Broken(error),
        })?;
        let state =
            SegmentState { last: predecessor.last, bytes: SEGMENT_HEADER_LEN as u64, ..SegmentState::default() };
        Self::continued(disk, config, path, header, state, RecordIndex::default(), file).map_err(WriteError::Broken)
    }

    /// Goes on behind the frames of a segment that was just made. `state.bytes` is where they end.
    pub(crate) fn continued(
        disk: &dyn Disk,
        config: &LogConfig,
        path: PathBuf,
        header: SegmentHeader,
        state: SegmentState,
        records: RecordIndex,
        file: Arc<dyn DiskFile>,
    ) -> Result<Self, LogError> {
        let reader = disk.open(&path, false).map_err(|error| io_error("open", &path, error))?;
        let end = state.bytes;
        let segment = Arc::new(Segment::active(path, header, state, records, reader));
        let open = segment.open(disk)?;
        Ok(Self {
            segment,
            open,
            file,
            end,
            zeroed_to: end,
            segment_bytes: config.segment_bytes,
            #[cfg(feature = "simulation")]
            planted: config.planted,
            is_cut: false,
            is_sealed: false,
        })
    }

    /// Stands on a sealed segment: there was no space for the next one.
    pub(crate) fn standing(disk: &dyn Disk, config: &LogConfig, segment: Arc<Segment>) -> Result<Self, LogError> {
        let path = &segment.path;
        let file = disk.open(path, true).map_err(|error| io_error("open", path, error))?;
        let open = segment.open(disk)?;
        let end = segment.state().bytes;
        Ok(Self {
            segment,
            open,
            file,
            end,
            zeroed_to: end,
            segment_bytes: config.segment_bytes,
            #[cfg(feature = "simulation")]
            planted: config.planted,
            is_cut: false,
            is_sealed: true,
        })
    }

    /// Nothing more is written to it, and what lies behind its end in a file of `len` bytes goes when it is sealed.
    pub(crate) fn cut(&mut self, len: u64) {
        self.is_cut = true;
        self.zeroed_to = self.zeroed_to.max(len);
    }

    /// Undoes [`Active::begin`], durably: there was no space for what has to come with it.
    pub(crate) fn discard(self, disk: &dyn Disk, config: &LogConfig) -> Result<(), LogError> {
        let path = &self.segment.path;
        disk.remove(path).map_err(|error| io_error("remove", path, error))?;
        disk.sync_dir(&config.dir).map_err(|error| io_error("sync", &config.dir, error))
    }

    /// Whether a frame of `len` bytes should go to the next segment.
    pub(crate) fn is_full_for(&self, len: u64) -> bool {
        self.is_sealed || self.is_cut || (self.end > SEGMENT_HEADER_LEN as u64 && self.end + len > self.segment_bytes)
    }

    /// Whether a frame of `len` bytes overwrites zeros that are written ahead.
    pub(crate) fn has_zeros_for(&self, len: u64) -> bool {
        self.end + len <= self.zeroed_to
    }

    /// Bytes of frames that still fit.
    pub(crate) fn room(&self) -> u64 {
        self.segment_bytes.saturating_sub(self.end)
    }

    /// Writes `slices`, `len` bytes together, behind the last frame, and moves the end.
    pub(crate) fn write(&mut self, slices: Vec<IoSlice<'_>>, len: u64) -> Result<(), WriteError> {
        let end = self.end + len;
        if end > self.zeroed_to && len < SMALL_BATCH_BYTES_MAX {
            let zeroed_to = (end + ZERO_FILL_BYTES).min(self.segment_bytes.max(end)).next_multiple_of(PAGE);
            match self.write_to(with_zeros(slices.clone(), zeroed_to - end), end, zeroed_to) {
                // There may be space for the batch alone.
                Err(WriteError::Full(_)) => {}
                result => return result,
            }
        }
        self.write_to(slices, end, self.zeroed_to.max(end))
    }

    fn write_to(&mut self, mut slices: Vec<IoSlice<'_>>, end: u64, zeroed_to: u64) -> Result<(), WriteError> {
        match self.file.write_all_vectored_at(&mut slices, self.end) {
            Ok(()) => {
                self.end = end;
                self.zeroed_to = zeroed_to;
                Ok(())
            }
            Err(error) if is_no_space(&error) => Err(self.cut_back()),
            Err(error) => Err(WriteError::Broken(io_error("write", &self.segment.path, error))),
        }
    }

    /// fdatasync.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(|error| self.sync_error(error))
    }

    /// What is written, for a sync elsewhere.
    pub(crate) fn file(&self) -> Arc<dyn DiskFile> {
        self.file.clone()
    }

    /// A sync of [`Active::file`] failed.
    pub(crate) fn sync_error(&self, error: io::Error) -> LogError {
        io_error("fdatasync", &self.segment.path, error)
    }

    /// Gives back what is written ahead of the end.
    pub(crate) fn trim(&mut self) -> Result<(), LogError> {
        if self.zeroed_to > self.end {
            self.file.set_len(self.end).map_err(|error| io_error("truncate", &self.segment.path, error))?;
            self.zeroed_to = self.end;
        }
        Ok(())
    }

    /// Cuts the zeros off, appends the footer and syncs all of it.
    pub(crate) fn seal(&mut self, last: Predecessor, durable: Lsn) -> Result<(), WriteError> {
        let footer = {
            let state = self.segment.state();
            let records = self.open.records.read();
            footer::encode(self.end, self.open.first, last, durable, &records, &state, self.open.salt)
        };
        self.trim().map_err(WriteError::Broken)?;
        let path = &self.segment.path;
        match self.file.write_all_vectored_at(&mut [IoSlice::new(&footer)], self.end) {
            Ok(()) => {}
            Err(error) if is_no_space(&error) => return Err(self.cut_back()),
            Err(error) => return Err(WriteError::Broken(io_error("write", path, error))),
        }
        if !planted!(self, SealsWithoutSync) {
            self.sync().map_err(WriteError::Broken)?;
        }
        self.is_sealed = true;
        self.segment.seal(self.end + footer.len() as u64);
        Ok(())
    }

    /// Undoes a write that found no space. The cut is synced too: a crash must not bring back a record that was
    /// refused.
    fn cut_back(&mut self) -> WriteError {
        let path = &self.segment.path;
        let undone = self
            .file
            .set_len(self.end)
            .and_then(|()| if planted!(self, CutsBackWithoutSync) { Ok(()) } else { self.file.sync_data() });
        self.zeroed_to = self.end;
        match undone {
            Ok(()) => WriteError::Full(LogError::Full { path: path.clone(), refused: false }),
            Err(error) => WriteError::Broken(io_error("truncate", path, error)),
        }
    }
}

/// Adds `count` zeros.
fn with_zeros(mut slices: Vec<IoSlice<'_>>, count: u64) -> Vec<IoSlice<'_>> {
    let mut missing = count as usize;
    while missing > 0 {
        let zeros = &ZEROS[..missing.min(ZEROS.len())];
        slices.push(IoSlice::new(zeros));
        missing -= zeros.len();
    }
    slices
}

/// Makes a segment durable under its name, with what `fill` puts behind its header. Returns its path and the handle
/// to write on with. [`LogError::Full`] when there was no space; nothing is left behind then.
pub(crate) fn make_segment(
    disk: &dyn Disk,
    config: &LogConfig,
    header: &SegmentHeader,
    fill: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> Result<(PathBuf, Arc<dyn DiskFile>), LogError> {
    let dir = &config.dir;
    let path = segment_path(dir, header.first);
    let temporary = temporary_path(&path);
    let made = (|| {
        let file = disk.create(&temporary)?;
        file.write_all_vectored_at(&mut [IoSlice::new(&header.encode())], 0)?;
        fill(&*file)?;
        if !planted!(config, SkipsHeaderSync) {
            file.sync_all()?;
        }
        Ok(file)
    })();
    let file: Arc<dyn DiskFile> = match made {
        Ok(file) => file,
        Err(error) if is_no_space(&error) => {
            match disk.remove(&temporary) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("remove", &temporary, error));
                }
                _ => {}
            }
            return Err(LogError::Full { path, refused: false });
        }
        Err(error) => return Err(io_error("make", &path, error)),
    };
    disk.rename(&temporary, &path).map_err(|error| io_error("rename", &temporary, error))?;
    if !planted!(config, SkipsDirectorySync) {
        disk.sync_dir(dir).map_err(|error| io_error("sync", dir, error))?;
    }
    Ok((path, file))
}
