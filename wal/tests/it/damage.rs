//! Every bit of a segment flipped, and every length that a file can be cut to.
//!
//! A normal run takes a fixed sample of the bits; `WAL_DAMAGE_STRIDE=1 cargo test -p tailrace-wal --test it damage` takes
//! all of them.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, IoSlice},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tailrace_wal::{
    Disk, DiskFile, DiskLock, Frame, HistoryId, Log, LogConfig, LogError, Lsn, Payload, Persistence, Record,
    RecordKind, VerbatimRecord,
    inspect::{Condition, InspectedFrame, Inspector, SegmentReport, Visitor},
};

use crate::support::{HISTORY, abort, append, commit, fragment, open_on, part, replay, start};

const SEGMENT: u64 = 64 << 10;
const HEADER: usize = 4096;
const OTHER: HistoryId = HistoryId([2; 16]);

/// Of the bits of a segment, a normal run flips one in so many.
const STRIDE: usize = 131;

fn dir() -> &'static Path {
    Path::new("log")
}

/// Files in memory. A clone has copies of them.
#[derive(Debug, Default)]
struct MemoryDisk {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
}

#[derive(Debug, Default)]
struct MemoryFile(Mutex<Vec<u8>>);

type Files = BTreeMap<PathBuf, Vec<u8>>;

impl MemoryDisk {
    fn with(files: &Files) -> Arc<Self> {
        let copy =
            |(path, bytes): (&PathBuf, &Vec<u8>)| (path.clone(), Arc::new(MemoryFile(Mutex::new(bytes.clone()))));
        Arc::new(Self { files: Mutex::new(files.iter().map(copy).collect()) })
    }

    fn files(&self) -> Files {
        self.files.lock().iter().map(|(path, file)| (path.clone(), file.0.lock().clone())).collect()
    }
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = Arc::new(MemoryFile::default());
        self.files.lock().insert(path.into(), file.clone());
        Ok(file)
    }

    fn open(&self, path: &Path, _write: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.files.lock().get(path).cloned();
        file.map(|file| file as Arc<dyn DiskFile>).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn create_dir_all(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, _path: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.files.lock().remove(path).map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.files.lock();
        let file = files.remove(from).ok_or(ErrorKind::NotFound)?;
        files.insert(to.into(), file);
        Ok(())
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _path: &Path) -> io::Result<DiskLock> {
        Ok(DiskLock::none())
    }
}

impl DiskFile for MemoryFile {
    fn write_all_vectored_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = self.0.lock();
        let mut at = offset as usize;
        for slice in slices {
            let end = at + slice.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(slice);
            at = end;
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.lock();
        let start = (offset as usize).min(bytes.len());
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().resize(len as usize, 0);
        Ok(())
    }
}

/// How the damaged segment was left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// By a log that was closed.
    Sealed,
    /// By a crash of an idle writer.
    Marked,
    /// By a crash while nothing stated the last record durable.
    Unmarked,
    /// The same, and the manifest states all of it durable.
    Floor,
    /// Sealed, with the next segment behind it.
    Followed,
}

/// One frame of the damaged segment.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: usize,
    end: usize,
    /// The LSN that is missing when this frame is.
    expected: Lsn,
    durable: Lsn,
}

/// Files before the damage, and what they hold.
struct Image {
    kind: Kind,
    files: Files,
    target: PathBuf,
    places: Vec<Place>,
    records: Vec<Frame>,
    floor: Lsn,
    /// Highest LSN that something outside of the frames states durable.
    outside: Lsn,
}

impl Image {
    async fn new(kind: Kind) -> Self {
        let sync_interval = match kind {
            Kind::Marked => Duration::from_millis(1),
            _ => Duration::from_secs(3600),
        };
        let disk = Arc::new(MemoryDisk::default());
        let config = LogConfig { sync_interval, segment_bytes: SEGMENT, ..LogConfig::new(dir()) };
        let (log, recovery) = open_on(config, Lsn::ZERO, disk.clone()).unwrap();
        start(&log, &recovery, HISTORY);
        start(&log, &recovery, OTHER);
        fill(&log).await;
        let files = match kind {
            Kind::Sealed => {
                log.close().await.unwrap();
                disk.files()
            }
            Kind::Followed => {
                log.roll().await.unwrap();
                append(&log, commit(HISTORY, b"next")).await.unwrap();
                disk.files()
            }
            Kind::Marked => {
                while !ends_with_mark(&disk.files()) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                disk.files()
            }
            Kind::Unmarked | Kind::Floor => disk.files(),
        };
        drop(log);
        let target = files.keys().next().unwrap().clone();
        let (log, recovery) = open_on(LogConfig::new(dir()), Lsn::ZERO, MemoryDisk::with(&files)).unwrap();
        let records = replay(&log, Lsn::ZERO).unwrap();
        let last = records.iter().map(|record| record.lsn).max().unwrap();
        assert_eq!((recovery.last, recovery.torn), (last, None));
        let (floor, outside) = match kind {
            Kind::Marked | Kind::Unmarked => (Lsn::ZERO, Lsn::ZERO),
            Kind::Floor => (last, last),
            Kind::Sealed => (Lsn::ZERO, last),
            Kind::Followed => (Lsn::ZERO, Lsn(last.0 - 1)),
        };
        let mut image = Self { kind, files, target, places: Vec::new(), records, floor, outside };
        let (reports, places) = image.inspect(&image.files);
        assert!(reports.iter().all(|report| report.damage().is_none()), "{reports:?}");
        let ends = if matches!(kind, Kind::Sealed | Kind::Followed) { Condition::Sealed } else { Condition::Active };
        assert_eq!(reports[0].condition, ends);
        image.places = places;
        image
    }

    /// What an inspection says of `files`, and the frames of the first segment.
    fn inspect(&self, files: &Files) -> (Vec<SegmentReport>, Vec<Place>) {
        let mut collect = Collect { target: &self.target, reports: Vec::new(), places: Vec::new(), last: Lsn::ZERO };
        let inspector = Inspector::new(MemoryDisk::with(files), dir()).durable_floor(self.floor);
        inspector.read(Lsn(1)..=Lsn(u64::MAX), &mut collect).unwrap();
        (collect.reports, collect.places)
    }

    fn bytes(&self) -> &[u8] {
        &self.files[&self.target]
    }

    fn frames_end(&self) -> usize {
        self.places.last().unwrap().end
    }

    /// What must become of a log whose segment has a wrong byte at `offset`.
    fn flipped(&self, offset: usize) -> Expected {
        if offset < HEADER {
            return Expected::Refused { offset: 0 };
        }
        let Some(index) = self.places.iter().position(|place| place.offset <= offset && offset < place.end) else {
            return if matches!(self.kind, Kind::Sealed | Kind::Followed) { Expected::Footer } else { Expected::Tail };
        };
        let place = self.places[index];
        let later = self.places[index + 1..].iter().map(|place| place.durable).max().unwrap_or_default();
        match later.max(self.outside) >= place.expected {
            true => Expected::Refused { offset: place.offset },
            false => Expected::Cut { offset: place.offset, expected: place.expected, reported: true },
        }
    }

    /// What must become of a log whose segment ends at `len`.
    fn cut(&self, len: usize) -> Expected {
        if len < HEADER {
            return Expected::Refused { offset: 0 };
        }
        let lost = self.places.iter().find(|place| place.end > len).copied();
        let at = lost.map_or(self.frames_end(), |place| place.offset);
        let Some(expected) = lost.map(|place| place.expected) else {
            return if matches!(self.kind, Kind::Sealed | Kind::Followed) {
                Expected::Footer
            } else {
                Expected::Cut { offset: at, expected: self.records.last().unwrap().lsn.next(), reported: false }
            };
        };
        let outside = if self.kind == Kind::Sealed { Lsn::ZERO } else { self.outside };
        match outside >= expected {
            true => Expected::Refused { offset: at },
            // What is left of a frame may be zeros, its checksum's first byte: that is space written ahead.
            false => {
                Expected::Cut { offset: at, expected, reported: self.bytes()[at..len].iter().any(|byte| *byte != 0) }
            }
        }
    }

    /// Opens, reads and inspects what is left; every answer must be the expected one.
    fn check(&self, bytes: Vec<u8>, expected: Expected, what: &dyn Fn() -> String) {
        let mut files = self.files.clone();
        files.insert(self.target.clone(), bytes);
        let (read, torn, error) = self.recover(&files);
        let what = || format!("{:?}, {}: torn {torn:?}, error {error:?}", self.kind, what());
        for (read, record) in read.iter().zip(&self.records) {
            assert!(same(read, record), "{}: a wrong record, LSN {}", what(), read.lsn);
        }
        assert!(read.len() <= self.records.len(), "{}", what());
        let whole = read.len() == self.records.len();
        let (reports, _) = self.inspect(&files);
        let damage = reports.iter().find_map(SegmentReport::damage);
        let tail = reports.iter().find_map(|report| match &report.condition {
            Condition::Tail { offset, .. } => Some(offset.0 as usize),
            _ => None,
        });
        match expected {
            Expected::Refused { offset: at } => {
                match &error {
                    Some(LogError::Corrupt { path, offset, .. }) => {
                        assert_eq!((path, offset.0 as usize), (&self.target, at), "{}", what());
                    }
                    // The file ends where a frame does.
                    Some(LogError::EndsBefore { wanted, .. }) if self.kind == Kind::Floor => {
                        assert_eq!(*wanted, self.floor, "{}", what());
                    }
                    _ => panic!("{}: not refused", what()),
                }
                let damage = damage.unwrap_or_else(|| panic!("{}: the inspection found nothing", what()));
                assert_eq!((&damage.path, damage.offset.0 as usize), (&self.target, at), "{}", what());
            }
            Expected::Cut { offset, expected, reported } => {
                assert!(error.is_none(), "{}", what());
                assert_eq!(read.len() as u64, expected.0 - 1, "{}", what());
                assert_eq!(torn.is_some(), reported, "{}", what());
                let named = torn.as_ref().is_none_or(|torn| torn.contains(&format!("from byte {offset} on")));
                assert!(named, "{}: {offset} is not named", what());
                assert_eq!((damage, tail), (None, reported.then_some(offset)), "{}", what());
            }
            Expected::Tail => {
                assert!(whole && error.is_none() && torn.is_some(), "{}", what());
                assert_eq!((damage, tail), (None, Some(self.frames_end())), "{}", what());
            }
            Expected::Footer => {
                match &error {
                    Some(LogError::Corrupt { path, .. }) => assert_eq!(path, &self.target, "{}", what()),
                    Some(_) => panic!("{}", what()),
                    None => assert!(whole, "{}: {} records", what(), read.len()),
                }
                let is_seen = reports[0].condition != Condition::Sealed;
                assert!(is_seen, "{}: the inspection found nothing", what());
                let (at, end) = (damage.map(|damage| damage.offset.0 as usize), self.frames_end());
                assert!(at.or(tail).is_none_or(|at| at >= end), "{}: {at:?}", what());
            }
        }
    }

    /// What a start on `files` serves, the tail that it cut, and the error that it or the reading ended with.
    fn recover(&self, files: &Files) -> (Vec<Frame>, Option<String>, Option<LogError>) {
        let (log, recovery) = match open_on(LogConfig::new(dir()), self.floor, MemoryDisk::with(files)) {
            Ok(opened) => opened,
            Err(error) => return (Vec::new(), None, Some(error)),
        };
        let mut read = Vec::new();
        let mut tail = log.replay(Lsn::ZERO).unwrap();
        loop {
            match tail.try_next() {
                Ok(Some(frame)) => read.push(frame),
                Ok(None) => return (read, recovery.torn, None),
                Err(error) => return (read, recovery.torn, Some(error)),
            }
        }
    }
}

/// What must become of a damaged log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Refused, with the file and this offset.
    Refused { offset: usize },
    /// Records below `expected` are served, what is from `offset` on is cut, and reported if there was anything.
    Cut { offset: usize, expected: Lsn, reported: bool },
    /// All records are served, something behind them is cut.
    Tail,
    /// All records are served with the footer made again, or the file is refused.
    Footer,
}

/// Takes an inspection down.
struct Collect<'a> {
    target: &'a Path,
    reports: Vec<SegmentReport>,
    places: Vec<Place>,
    last: Lsn,
}

impl Visitor for Collect<'_> {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        if frame.path == self.target {
            let (offset, durable) = (frame.offset.0 as usize, frame.durable);
            let expected = self.last.next();
            self.places.push(Place { offset, end: offset + frame.bytes as usize, expected, durable });
            self.last = frame.lsn;
        }
        ControlFlow::Continue(())
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.reports.push(segment.clone());
        ControlFlow::Continue(())
    }
}

fn ends_with_mark(files: &Files) -> bool {
    struct Last(bool);
    impl Visitor for Last {
        fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
            self.0 = frame.header.is_none();
            ControlFlow::Continue(())
        }
        fn segment(&mut self, _: &SegmentReport) -> ControlFlow<()> {
            ControlFlow::Continue(())
        }
    }
    let mut last = Last(false);
    Inspector::new(MemoryDisk::with(files), dir()).read(Lsn(1)..=Lsn(u64::MAX), &mut last).unwrap();
    last.0
}

/// Records of every kind until the segment is nearly full.
async fn fill(log: &Log) {
    let transaction = log.begin_transaction(HISTORY).unwrap();
    append(log, fragment(HISTORY, transaction, 0, &[3; 700])).await.unwrap();
    let lost = log.begin_transaction(OTHER).unwrap();
    let first = fragment(OTHER, lost, 0, b"lost");
    append(log, first).await.unwrap();
    let second = fragment(HISTORY, transaction, 1, b"more");
    let hashes = vec![fragment(HISTORY, transaction, 0, &[3; 700]).payload.hash, second.payload.hash];
    append(log, second).await.unwrap();
    append(log, abort(OTHER, lost)).await.unwrap();
    let key = Some(Bytes::from_static(b"a client's key"));
    let payload = Payload::new(vec![part(b"end"), part(&[9; 65])], hashes, key).unwrap();
    let (kind, number) = (RecordKind::Commit, tailrace_wal::FragmentNumber(2));
    let large = Record { history: HISTORY, kind, transaction: Some(transaction), fragment: number, payload };
    append(log, large).await.unwrap();
    skipped(log).await;
    for number in 0_u32.. {
        let bytes = vec![number as u8; (number as usize * 611) % 3001];
        let record = commit(if number.is_multiple_of(3) { OTHER } else { HISTORY }, &bytes);
        if log.status().bytes + 192 + record.payload.encoded_len() as u64 + 512 > SEGMENT {
            break;
        }
        append(log, record).await.unwrap();
    }
    assert_eq!(log.status().segments, 1);
}

/// A record that this node skipped, of a third history.
async fn skipped(log: &Log) {
    let history = HistoryId([3; 16]);
    let disk = Arc::new(MemoryDisk::default());
    let (primary, recovery) = open_on(LogConfig::new(dir()), Lsn::ZERO, disk).unwrap();
    start(&primary, &recovery, history);
    append(&primary, commit(history, b"left out")).await.unwrap();
    let frame = replay(&primary, Lsn::ZERO).unwrap().remove(0);
    start(log, &tailrace_wal::Recovery::default(), history);
    let record = VerbatimRecord { header: frame.header, payload: frame.payload, skipped: true };
    log.append_verbatim(record, Persistence::Sync).await.unwrap().durable().await.unwrap();
}

fn same(left: &Frame, right: &Frame) -> bool {
    let parts = |frame: &Frame| (0..frame.payload.parts.len()).map(|part| frame.payload.part_bytes(part)).collect();
    let (left_parts, right_parts): (Vec<Bytes>, Vec<Bytes>) = (parts(left), parts(right));
    (left.lsn, left.skipped, left.header, &left.payload.directory_bytes, left_parts)
        == (right.lsn, right.skipped, right.header, &right.payload.directory_bytes, right_parts)
}

/// Runs `case` for every number below `count`, on all processors.
fn spread(count: usize, case: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    case(number);
                }
            });
        }
    });
}

fn stride() -> usize {
    std::env::var("WAL_DAMAGE_STRIDE").map_or(STRIDE, |stride| stride.parse().unwrap())
}

async fn flip_every_bit(kind: Kind) {
    let image = Image::new(kind).await;
    let (bits, stride) = (image.bytes().len() * 8, stride());
    // Another residue for each kind, so that together they sample more places.
    let from = (kind as usize * 11) % stride;
    let cases = (bits - from).div_ceil(stride);
    spread(cases, |case| {
        let bit = from + case * stride;
        let mut bytes = image.bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        image.check(bytes, image.flipped(bit / 8), &|| format!("bit {} of byte {}", bit % 8, bit / 8));
    });
    println!("{kind:?}: {cases} of {bits} bits of a segment of {} bytes flipped", image.bytes().len());
}

async fn cut_at_every_length(kind: Kind) {
    let image = Image::new(kind).await;
    let (len, stride) = (image.bytes().len(), stride().div_ceil(8));
    // Of a file that is not cut nothing is wrong.
    let cases = len.div_ceil(stride);
    spread(cases, |case| {
        let len = case * stride;
        image.check(image.bytes()[..len].to_vec(), image.cut(len), &|| format!("cut to {len} bytes"));
    });
    println!("{kind:?}: cut to {cases} of {len} lengths");
}

macro_rules! kinds {
    ($($name:ident: $kind:ident),*) => {
        mod flips {
            $(#[tokio::test] async fn $name() { super::flip_every_bit(super::Kind::$kind).await })*
        }
        mod cuts {
            $(#[tokio::test] async fn $name() { super::cut_at_every_length(super::Kind::$kind).await })*
        }
    };
}

kinds! {
    of_a_sealed_segment: Sealed,
    of_a_segment_with_its_mark: Marked,
    of_a_segment_without_its_mark: Unmarked,
    of_a_segment_below_the_floor: Floor,
    of_a_segment_with_a_successor: Followed
}
