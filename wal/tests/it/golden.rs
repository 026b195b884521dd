//! The files of format 1 in `testdata/golden/v1/`: what they hold is read, and what wrote them writes the same bytes.
//!
//! `GOLDEN=write cargo test -p tailrace-wal --test it golden` writes them anew. Format 1 is kept readable for ever: once
//! it is out, that is right for additions alone.

use std::{
    fmt::Write as _,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, executor::block_on};
use tailrace_wal::{
    Clock, CommitTime, FragmentNumber, HistoryId, Log, LogConfig, LogError, Lsn, NodeId, Part, PartEntry, PartHash,
    Payload, Persistence, Record, RecordKind, SystemDisk, VerbatimRecord, Written,
    inspect::{Condition, InspectedFrame, Inspector, SegmentReport, Visitor},
    simulation::Stepper,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::support::{HISTORY, NODE, abort, commit, fragment, open_with, payload, replay, segments, start};

const OTHER: HistoryId = HistoryId([2; 16]);
const FOLLOWED: HistoryId = HistoryId([3; 16]);

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden/v1")
}

/// A clock whose time and random numbers are the same for ever.
#[derive(Debug)]
struct Counting(AtomicU64);

impl Clock for Counting {
    fn now(&self) -> CommitTime {
        CommitTime(1_673_170_200_000_000)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn random(&self) -> u64 {
        (self.0.fetch_add(1, Ordering::Relaxed) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

fn open(dir: &Path) -> (Log, Stepper) {
    let config = LogConfig { segment_bytes: 12 << 10, ..LogConfig::new(dir) };
    let clock = Arc::new(Counting(AtomicU64::new(0)));
    let (log, stepper, _) = Log::open_stepped(config, NODE, Lsn::ZERO, SystemDisk::shared(), clock).unwrap();
    (log, stepper)
}

fn append(log: &Log, writer: &mut Stepper, record: Record) -> Written {
    let appending = block_on(log.append(record, Persistence::Sync)).unwrap();
    assert!(writer.step());
    block_on(appending.durable()).unwrap()
}

/// Every shape of record that there is.
fn write(dir: &Path) {
    let (log, mut writer) = open(dir);
    let none = tailrace_wal::Recovery::default();
    for history in [HISTORY, OTHER, FOLLOWED] {
        start(&log, &none, history);
    }
    let part = |partition: &'static [u8], bytes: &'static [u8], first_ordinal, rows| {
        let (table, schema_version, operation, hash) = (7, 3, 1, PartHash(0));
        let partition = Bytes::from_static(partition);
        let entry = PartEntry { table, schema_version, operation, first_ordinal, rows, length: 0, hash, partition };
        Part::new(entry, vec![Bytes::from_static(bytes)]).unwrap()
    };
    // 1: two parts, one with a partition, and a client's key.
    let parts = vec![part(b"\x01day", b"first part", 0, 2), part(b"", &[0xaa; 64], 2, 1)];
    let keyed = Payload::new(parts, vec![], Some(Bytes::from_static(b"load-42"))).unwrap();
    append(&log, &mut writer, Record { payload: keyed, ..commit(HISTORY, b"") });
    // 2 to 6: a transaction in fragments; one of another history that is aborted, between them.
    let large = log.begin_transaction(HISTORY).unwrap();
    let pieces = [fragment(HISTORY, large, 0, b"piece 0"), fragment(HISTORY, large, 1, b"piece 1")];
    let hashes = pieces.iter().map(|piece| piece.payload.hash).collect();
    let lost = log.begin_transaction(OTHER).unwrap();
    let [first, second] = pieces;
    append(&log, &mut writer, first);
    append(&log, &mut writer, fragment(OTHER, lost, 0, b"never committed"));
    append(&log, &mut writer, second);
    append(&log, &mut writer, abort(OTHER, lost));
    let payload = Payload::new(vec![part(b"", b"the last piece", 0, 1)], hashes, None).unwrap();
    let (transaction, number) = (Some(large), FragmentNumber(2));
    append(&log, &mut writer, Record { transaction, fragment: number, payload, ..commit(HISTORY, b"") });
    // 7: a record of a primary that this node was told to skip.
    let frame = from_primary();
    let record = VerbatimRecord { header: frame.header, payload: frame.payload, skipped: true };
    let appending = block_on(log.append_verbatim(record, Persistence::Sync)).unwrap();
    assert!(writer.step());
    block_on(appending.durable()).unwrap();
    // A durable mark, and the end of the first segment.
    assert!(writer.idle());
    let mut rolling = log.roll().boxed();
    assert!(rolling.as_mut().now_or_never().is_none());
    assert!(writer.step());
    block_on(rolling).unwrap();
    // 8 to 10: the second segment is left as a crash leaves it, with an open transaction.
    append(&log, &mut writer, commit(OTHER, b"another history"));
    let open = log.begin_transaction(HISTORY).unwrap();
    append(&log, &mut writer, fragment(HISTORY, open, 0, b"open"));
    append(&log, &mut writer, commit(HISTORY, &[7; 300]));
}

/// The first record of [`FOLLOWED`], as its primary wrote it.
fn from_primary() -> tailrace_wal::Frame {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut writer) = open(dir.path());
    start(&log, &tailrace_wal::Recovery::default(), FOLLOWED);
    append(&log, &mut writer, Record { payload: payload(b"left out"), ..commit(FOLLOWED, b"") });
    replay(&log, Lsn::ZERO).unwrap().remove(0)
}

/// What an inspection says, line by line.
#[derive(Default)]
struct Listing(String, Vec<Condition>);

impl Visitor for Listing {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        let InspectedFrame { offset, bytes, lsn, durable, skipped, header, payload, .. } = *frame;
        let Self(out, _) = self;
        writeln!(out, "byte {offset}, {bytes} bytes: LSN {lsn}, durable {durable}, skipped {skipped}").unwrap();
        let Some(header) = header else {
            writeln!(out, "  durable mark").unwrap();
            return ControlFlow::Continue(());
        };
        let (kind, transaction, fragment) = (header.kind, header.transaction, header.fragment);
        writeln!(out, "  {kind:?} {}, transaction {transaction}, fragment {fragment}", header.position()).unwrap();
        let (restart, time, hash) = (header.restart_seq, header.commit_time, header.payload_hash.0);
        writeln!(out, "  restart seq {restart}, commit time {time}, payload hash {hash:016x}").unwrap();
        for (index, part) in payload.directory.parts.iter().enumerate() {
            writeln!(out, "  {part:?} = {:?}", payload.part_bytes(index)).unwrap();
        }
        let fragments: Vec<_> = payload.directory.fragments.iter().map(|hash| format!("{:016x}", hash.0)).collect();
        writeln!(out, "  fragments {fragments:?}, key {:?}", payload.directory.idempotency_key).unwrap();
        ControlFlow::Continue(())
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        let SegmentReport { node, salt, first, last, records, durable, follows, condition, .. } = segment;
        let (salt, name) = (salt.unwrap().0, segment.path.file_name().unwrap().to_str().unwrap());
        writeln!(
            self.0,
            "{name}: version {:?}, node {:?}, salt {salt:016x}, LSN {first} to {last}, {records} records, durable \
             {durable}, follows {follows:?}, {condition:?}\n",
            segment.version, node
        )
        .unwrap();
        self.1.push(condition.clone());
        ControlFlow::Continue(())
    }
}

fn listing(dir: &Path) -> Listing {
    let mut listing = Listing::default();
    let histories = Inspector::new(SystemDisk::shared(), dir).read(Lsn(1)..=Lsn(u64::MAX), &mut listing).unwrap();
    for history in histories {
        writeln!(listing.0, "{history:?}").unwrap();
    }
    listing
}

#[test]
fn format_1_is_read_and_written_as_ever() {
    let made = tempfile::tempdir().unwrap();
    write(made.path());
    // The writer is gone without closing; what it left is what counts.
    let kept = golden().join("wal");
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(&kept).unwrap();
        for path in segments(made.path()) {
            std::fs::copy(&path, kept.join(path.file_name().unwrap())).unwrap();
        }
        std::fs::write(golden().join("wal.txt"), listing(made.path()).0).unwrap();
    }
    let names = |dir: &Path| segments(dir).iter().map(|path| path.file_name().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&kept).len(), 2);
    assert_eq!(names(&kept), names(made.path()));
    for (kept, made) in segments(&kept).iter().zip(segments(made.path())) {
        assert!(std::fs::read(kept).unwrap() == std::fs::read(&made).unwrap(), "{} differs", kept.display());
    }
    let listing = listing(&kept);
    assert_eq!(listing.1, [Condition::Sealed, Condition::Active]);
    assert_eq!(listing.0, std::fs::read_to_string(golden().join("wal.txt")).unwrap());
}

#[test]
fn a_log_starts_on_files_of_format_1() {
    let dir = copy();
    let (log, recovery) = open_with(LogConfig::new(dir.path()), Lsn::ZERO).unwrap();
    assert_eq!((recovery.first, recovery.last, recovery.torn.as_deref()), (Lsn(1), Lsn(10), None));
    let ends: Vec<_> = recovery.histories.iter().map(|found| (found.end.position.seq.0, found.open.len())).collect();
    assert_eq!(ends, [(3, 1), (1, 0), (1, 0)]);
    let frames = replay(&log, Lsn::ZERO).unwrap();
    assert_eq!(frames.len(), 10);
    assert_eq!(frames[0].payload.directory.idempotency_key.as_deref(), Some(&b"load-42"[..]));
    assert_eq!(frames[5].header.kind, RecordKind::Commit);
    assert_eq!(frames[5].payload.directory.fragments, [frames[1].header.payload_hash, frames[3].header.payload_hash]);
    assert!(frames[6].skipped);
}

/// A copy of the golden log.
fn copy() -> tempfile::TempDir {
    crate::support::copy_segments(&golden().join("wal"))
}

/// Puts `bytes` at `offset` of a file and makes the unseeded checksum of the segment header right again.
fn edit_header(path: &Path, offset: usize, bytes: &[u8]) {
    let mut file = std::fs::read(path).unwrap();
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
    let checksum = xxh3_64(&file[..4088]);
    file[4088..4096].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(path, file).unwrap();
}

fn refusal(dir: &Path) -> LogError {
    let opened = open_with(LogConfig::new(dir), Lsn::ZERO).map(|_| ()).unwrap_err();
    let inspected = Inspector::new(SystemDisk::shared(), dir).read(Lsn(1)..=Lsn(u64::MAX), &mut Listing::default());
    assert_eq!(inspected.unwrap_err().to_string(), opened.to_string());
    opened
}

#[test]
fn other_versions_are_refused_by_name() {
    for (version, offset) in [(0_u32, 8), (2, 8), (7, 8)] {
        let dir = copy();
        let path = segments(dir.path()).remove(1);
        edit_header(&path, offset, &version.to_le_bytes());
        let error = refusal(dir.path());
        match version {
            0 => assert!(matches!(&error, LogError::PreReleaseFormat { path: named } if *named == path), "{error}"),
            _ => assert!(
                matches!(&error, LogError::UnknownFormat { path: named, found, known: 1 }
                    if *named == path && *found == version),
                "{error}"
            ),
        }
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    // Flags of the segment header that this version does not know.
    let dir = copy();
    let path = segments(dir.path()).remove(1);
    edit_header(&path, 64, &[1]);
    assert!(matches!(refusal(dir.path()), LogError::UnknownContent { path: named, .. } if named == path));
    assert_ne!(NODE, NodeId::default());
}

#[test]
fn footers_of_other_versions_are_refused_by_name() {
    for (at, value) in [(8_usize, 2_u8), (8, 0), (80, 1)] {
        let dir = copy();
        let path = segments(dir.path()).remove(0);
        let mut file = std::fs::read(&path).unwrap();
        let trailer = file.len() - 128;
        let salt = u64::from_le_bytes(file[32..40].try_into().unwrap());
        file[trailer + at] = value;
        let checksum = xxhash_rust::xxh3::xxh3_64_with_seed(&file[trailer..trailer + 120], salt);
        file[trailer + 120..].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(&path, file).unwrap();
        let error = refusal(dir.path());
        let is_named = match (at, value) {
            (8, 0) => matches!(&error, LogError::PreReleaseFormat { path: named } if *named == path),
            (8, _) => {
                matches!(&error, LogError::UnknownFormat { path: named, found: 2, known: 1 } if *named == path)
            }
            _ => matches!(&error, LogError::UnknownContent { path: named, .. } if *named == path),
        };
        assert!(is_named, "{error}");
    }
}

/// A record whose checksums are right is refused where its content is not known, not cut off as a torn tail.
#[test]
fn records_of_other_versions_are_refused_and_never_cut() {
    // Of the last record: flags, the reserved bytes of both halves, its kind, and the version of its directory.
    for (at, value) in [(12_usize, 4_u8), (40, 1), (152, 1), (64, 9), (192, 2), (193, 2)] {
        let dir = copy();
        let path = segments(dir.path()).remove(1);
        let mut file = std::fs::read(&path).unwrap();
        let salt = u64::from_le_bytes(file[32..40].try_into().unwrap());
        let mut frame = 4096;
        while u64::from_le_bytes(file[frame + 16..frame + 24].try_into().unwrap()) < 10 {
            frame += u32::from_le_bytes(file[frame + 8..frame + 12].try_into().unwrap()) as usize;
        }
        file[frame + at] = value;
        let directory = u32::from_le_bytes(file[frame + 144..frame + 148].try_into().unwrap()) as usize;
        let hash = xxh3_64(&file[frame + 192..frame + 192 + directory]);
        file[frame + 136..frame + 144].copy_from_slice(&hash.to_le_bytes());
        let checksum = xxhash_rust::xxh3::xxh3_64_with_seed(&file[frame + 8..frame + 192], salt);
        file[frame..frame + 8].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(&path, file).unwrap();
        match refusal(dir.path()) {
            LogError::UnknownContent { path: named, offset, reason } => {
                assert_eq!((named, offset.0 as usize), (path, frame), "{reason}");
                assert!(!reason.is_empty());
            }
            error => panic!("byte {at}: {error}"),
        }
    }
}
