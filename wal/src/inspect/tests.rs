//! Segments whose checksums are right and whose content is not, and files that change while they are read.

use std::io::IoSlice;

use bytes::Bytes;

use super::*;
use crate::{
    CommitTime, DiskFile, Epoch, FileOffset, FragmentNumber, NodeId, PayloadHash, Position, RecordKind, Seq,
    TransactionNumber,
    codec::slice,
    footer,
    frame::{self, HEADER_LEN, Salt},
    recovery::scan::scan,
    segment::{Predecessor, SEGMENT_HEADER_LEN, SegmentHeader, SegmentState, segment_path},
    simulation::SimulatedDisk,
};

const HISTORY: HistoryId = HistoryId([5; 16]);
const EPOCH: Epoch = Epoch { counter: 1, nonce: 9 };

/// A segment as it is written, frame by frame.
struct Draft {
    header: SegmentHeader,
    bytes: Vec<u8>,
    last: Predecessor,
    position: Position,
    time: CommitTime,
    /// Where each frame begins.
    offsets: Vec<usize>,
}

impl Draft {
    fn after(predecessor: Predecessor, position: Position) -> Self {
        let salt = Salt(0x5a17 + predecessor.last.0);
        let header = SegmentHeader { node: NodeId([7; 16]), salt, first: predecessor.last.next(), predecessor };
        let time = CommitTime(1000 + i64::try_from(position.seq.0).unwrap());
        Self { bytes: header.encode(), header, last: predecessor, position, time, offsets: Vec::new() }
    }

    fn new() -> Self {
        Self::after(Predecessor::default(), Position::start(HISTORY))
    }

    /// The header that the next record of this kind should have.
    fn next(&self, kind: RecordKind, transaction: u64, fragment: u32, payload: &Payload) -> HistoryHeader {
        let time = CommitTime(self.time.0 + 1);
        let position = match kind {
            RecordKind::Commit => self.position.follow(EPOCH, kind, time, payload.hash),
            _ => self.position,
        };
        HistoryHeader {
            kind,
            history: HISTORY,
            epoch: EPOCH,
            transaction: TransactionNumber(transaction),
            fragment: FragmentNumber(fragment),
            seq: position.seq,
            restart_seq: position.seq,
            chain: position.chain,
            commit_time: time,
            payload_hash: payload.hash,
            directory_len: payload.directory_bytes.len() as u32,
            parts_len: 0,
        }
    }

    fn push(&mut self, header: &HistoryHeader, payload: &Payload, durable: Lsn) {
        let lsn = self.last.last.next();
        let bytes: [u8; HEADER_LEN] = frame::encode_record(header, lsn, durable, false, self.header.salt);
        self.offsets.push(self.bytes.len());
        self.bytes.extend_from_slice(&bytes);
        self.bytes.extend_from_slice(&payload.directory_bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        self.last = Predecessor { last: lsn, checksum: frame::checksum_of(&bytes) };
        if header.kind == RecordKind::Commit {
            (self.position, self.time) = (header.position(), header.commit_time);
        }
    }

    fn commit(&mut self, transaction: u64) {
        let payload = Payload::empty();
        let header = self.next(RecordKind::Commit, transaction, 0, &payload);
        self.push(&header, &payload, self.header.predecessor.last);
    }

    /// Appends the footer that its frames deserve, changed by `change`.
    fn seal(&mut self, change: impl FnOnce(&mut crate::index::RecordIndex, &mut SegmentState)) {
        let disk = Files::new();
        let path = disk.write(&self.header, &self.bytes);
        let file = disk.0.shared().open(&path, false).unwrap();
        let config = LogConfig::new("log");
        let mut scan =
            scan(&path, &*file, &self.header, &config, Lsn(u64::MAX), &mut BTreeMap::new()).expect("it is whole");
        assert!(scan.damage.is_none());
        let last = scan.last;
        let mut state =
            SegmentState { last: last.last, bytes: scan.end, sealed: true, histories: scan.histories.clone() };
        change(&mut scan.records, &mut state);
        let (first, salt) = (self.header.first, self.header.salt);
        let bytes = footer::encode(scan.end, first, last, last.last, &scan.records, &state, salt);
        self.bytes.extend_from_slice(&bytes);
    }
}

/// A folder of segments in memory.
struct Files(SimulatedDisk);

impl Files {
    fn new() -> Self {
        let disk = SimulatedDisk::new(1);
        disk.shared().create_dir_all(Path::new("log")).unwrap();
        Self(disk)
    }

    fn write(&self, header: &SegmentHeader, bytes: &[u8]) -> PathBuf {
        let path = segment_path(Path::new("log"), header.first);
        let file: Arc<dyn DiskFile> = self.0.shared().create(&path).unwrap();
        file.write_all_vectored_at(&mut [IoSlice::new(bytes)], 0).unwrap();
        path
    }

    fn read(&self, visitor: &mut dyn Visitor) -> Vec<HistoryReport> {
        Inspector::new(self.0.shared(), "log").read(Lsn(1)..=Lsn(u64::MAX), visitor).unwrap()
    }
}

/// Keeps reports, and does something at each frame and segment.
struct Watch<F, S> {
    reports: Vec<SegmentReport>,
    frames: usize,
    at_frame: F,
    at_segment: S,
}

impl<F: FnMut(usize), S: FnMut(usize)> Watch<F, S> {
    fn new(at_frame: F, at_segment: S) -> Self {
        Self { reports: Vec::new(), frames: 0, at_frame, at_segment }
    }
}

impl<F: FnMut(usize), S: FnMut(usize)> Visitor for Watch<F, S> {
    fn frame(&mut self, _: &InspectedFrame<'_>) -> ControlFlow<()> {
        self.frames += 1;
        (self.at_frame)(self.frames);
        ControlFlow::Continue(())
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.reports.push(segment.clone());
        (self.at_segment)(self.reports.len());
        ControlFlow::Continue(())
    }
}

fn reports(files: &Files) -> Vec<SegmentReport> {
    let mut watch = Watch::new(|_| {}, |_| {});
    files.read(&mut watch);
    watch.reports
}

/// The one segment's damage must be at the last frame, and say this.
fn damaged_at_last_frame(draft: &Draft, wanted: &str) {
    let files = Files::new();
    files.write(&draft.header, &draft.bytes);
    let reports = reports(&files);
    let damage = reports[0].damage().unwrap_or_else(|| panic!("{wanted}: {:?}", reports[0].condition));
    assert_eq!(damage.offset, FileOffset(*draft.offsets.last().unwrap() as u64), "{damage}");
    assert!(damage.reason.contains(wanted), "{damage}");
}

#[test]
fn a_history_that_is_as_it_must_be_is_sound() {
    let mut draft = Draft::new();
    draft.commit(1);
    let piece = Payload::empty();
    let fragment = draft.next(RecordKind::Fragment, 2, 0, &piece);
    draft.push(&fragment, &piece, Lsn(0));
    let end = Payload::new(vec![], vec![piece.hash], None).unwrap();
    let commit = draft.next(RecordKind::Commit, 2, 1, &end);
    draft.push(&commit, &end, Lsn(2));
    draft.seal(|_, _| {});
    let files = Files::new();
    files.write(&draft.header, &draft.bytes);
    let mut watch = Watch::new(|_| {}, |_| {});
    let histories = files.read(&mut watch);
    assert_eq!(watch.reports[0].condition, Condition::Sealed);
    assert_eq!((watch.reports[0].records, watch.reports[0].durable), (3, Lsn(3)));
    let [history] = &histories[..] else { panic!("{histories:?}") };
    assert_eq!((history.first_seq, history.last_seq, history.epochs), (Some(Seq(1)), Some(Seq(2)), 1));
    assert_eq!((history.chain, history.open.len(), history.breaks), (draft.position.chain, 0, 0));
}

#[test]
fn a_sealed_history_with_a_hole_is_damaged() {
    let mut draft = Draft::new();
    draft.commit(1);
    draft.position = Position { seq: Seq(5), ..draft.position };
    draft.commit(2);
    // Before it is sealed, nothing but a repair could have written this; the footer says whether one did.
    let mut sealed = Draft { bytes: draft.bytes.clone(), offsets: draft.offsets.clone(), ..draft };
    sealed.seal(|_, state| state.histories.values_mut().for_each(|summary| summary.broken = None));
    damaged_at_last_frame(&sealed, "does not continue its history");
}

#[test]
fn a_restart_seq_above_an_open_transaction_is_damage() {
    let mut draft = Draft::new();
    draft.commit(1);
    let piece = Payload::empty();
    let fragment = draft.next(RecordKind::Fragment, 2, 0, &piece);
    draft.push(&fragment, &piece, Lsn(0));
    draft.commit(3);
    damaged_at_last_frame(&draft, "passes over transaction 2");
}

#[test]
fn fragments_are_those_that_their_commit_lists() {
    let piece = Payload::empty();
    let mut draft = Draft::new();
    let fragment = draft.next(RecordKind::Fragment, 1, 0, &piece);
    draft.push(&fragment, &piece, Lsn(0));
    let base = (draft.bytes.clone(), draft.offsets.clone(), draft.last);
    let again = |draft: &mut Draft| (draft.bytes, draft.offsets, draft.last) = base.clone();

    let gap = draft.next(RecordKind::Fragment, 1, 2, &piece);
    draft.push(&gap, &piece, Lsn(0));
    damaged_at_last_frame(&draft, "fragment 2 of transaction 1 stands where fragment 1 was expected");

    for (hashes, number, wanted) in [
        (vec![PayloadHash(1)], 1, "lists another fragment 0"),
        (vec![piece.hash, piece.hash], 2, "lists another fragment 1"),
        (vec![], 1, "has 1 fragments, its directory lists 0"),
    ] {
        again(&mut draft);
        let end = Payload::new(vec![], hashes, None).unwrap();
        let before = (draft.position, draft.time);
        let commit = draft.next(RecordKind::Commit, 1, number, &end);
        draft.push(&commit, &end, Lsn(0));
        damaged_at_last_frame(&draft, wanted);
        (draft.position, draft.time) = before;
    }
}

#[test]
fn times_epochs_and_marks_must_make_sense() {
    let mut draft = Draft::new();
    draft.commit(1);
    let mut late = Draft { bytes: draft.bytes.clone(), offsets: draft.offsets.clone(), ..draft };
    late.time = CommitTime(late.time.0 - 1);
    late.commit(2);
    damaged_at_last_frame(&late, "has commit time");

    let mut early = Draft::new();
    let payload = Payload::empty();
    let header = early.next(RecordKind::Commit, 1, 0, &payload);
    early.push(&header, &payload, Lsn(1));
    damaged_at_last_frame(&early, "states LSN 1 durable");
}

#[test]
fn footers_that_say_something_else_are_damaged() {
    type Change = fn(&mut crate::index::RecordIndex, &mut SegmentState);
    let changes: [(Change, &str); 4] = [
        (|records, _| records.entries[1].seq = Seq(9), "entry of LSN 2"),
        (|records, _| records.entries[0].offset += 64, "entry of LSN 1"),
        (|_, state| state.histories.values_mut().for_each(|summary| summary.last = Lsn(1)), "summary of history"),
        (|_, state| state.histories.values_mut().for_each(|summary| summary.boundary = Seq(1)), "summary of history"),
    ];
    for (change, wanted) in changes {
        let mut draft = Draft::new();
        draft.commit(1);
        draft.commit(2);
        let frames_end = draft.bytes.len() as u64;
        draft.seal(change);
        let files = Files::new();
        files.write(&draft.header, &draft.bytes);
        let reports = reports(&files);
        let damage = reports[0].damage().unwrap_or_else(|| panic!("{wanted}"));
        assert!(damage.reason.contains(wanted) && damage.offset.0 >= frames_end, "{damage}");
    }
}

/// Three sealed segments with one commit each.
fn three() -> (Files, Vec<PathBuf>) {
    let files = Files::new();
    let mut before = (Predecessor::default(), Position::start(HISTORY));
    let paths = (1..=3).map(|number| {
        let mut draft = Draft::after(before.0, before.1);
        draft.commit(number);
        before = (draft.last, draft.position);
        draft.seal(|_, _| {});
        files.write(&draft.header, &draft.bytes)
    });
    let paths = paths.collect();
    (files, paths)
}

#[test]
fn segments_that_are_truncated_while_they_are_read_are_no_damage() {
    let (files, paths) = three();
    let disk = files.0.shared();
    let truncate = |segments: usize| {
        if segments == 1 {
            disk.remove(&paths[0]).unwrap();
            disk.remove(&paths[1]).unwrap();
        }
    };
    let mut watch = Watch::new(|_| {}, truncate);
    let histories = files.read(&mut watch);
    assert!(watch.reports.iter().all(|report| report.condition == Condition::Sealed), "{:?}", watch.reports);
    assert_eq!(watch.reports.iter().map(|report| report.first).collect::<Vec<_>>(), [Lsn(1), Lsn(3)]);
    assert_eq!(watch.reports[1].follows, None);
    assert_eq!(histories.len(), 1);
}

#[test]
fn a_segment_that_is_missing_is_named() {
    let (files, paths) = three();
    files.0.shared().remove(&paths[1]).unwrap();
    let reports = reports(&files);
    assert_eq!(reports[0].condition, Condition::Sealed);
    let damage = reports[1].damage().unwrap();
    assert_eq!((&damage.path, damage.offset), (&paths[2], FileOffset(0)));
    assert!(damage.reason.contains("a segment between them is missing"), "{damage}");
    // Without the first the rest is a log that was truncated.
    let (files, paths) = three();
    files.0.shared().remove(&paths[0]).unwrap();
    assert!(self::reports(&files).iter().all(|report| report.condition == Condition::Sealed));
}

#[test]
fn a_segment_that_grows_while_it_is_read_is_read_on() {
    let mut draft = Draft::new();
    draft.commit(1);
    draft.commit(2);
    let (now, read) = (draft.bytes.clone(), draft.bytes.len());
    draft.commit(3);
    let files = Files::new();
    let path = files.write(&draft.header, &now);
    let file = files.0.shared().open(&path, true).unwrap();
    let more = slice(&Bytes::from(draft.bytes.clone()), read, draft.bytes.len() - read);
    let grow = |frames: usize| {
        if frames == 2 {
            file.write_all_vectored_at(&mut [IoSlice::new(&more)], read as u64).unwrap();
        }
    };
    let mut watch = Watch::new(grow, |_| {});
    files.read(&mut watch);
    assert_eq!((watch.reports[0].records, &watch.reports[0].condition), (3, &Condition::Active));
}

#[test]
fn a_segment_that_is_sealed_while_it_is_read_is_sealed() {
    let mut draft = Draft::new();
    draft.commit(1);
    draft.commit(2);
    let frames = draft.bytes.len();
    draft.seal(|_, _| {});
    let mut zeroed = draft.bytes[..frames].to_vec();
    zeroed.resize(frames + 4096, 0);
    let files = Files::new();
    let path = files.write(&draft.header, &zeroed);
    let file = files.0.shared().open(&path, true).unwrap();
    let seal = |count: usize| {
        if count == 1 {
            file.set_len(frames as u64).unwrap();
            file.write_all_vectored_at(&mut [IoSlice::new(&draft.bytes[frames..])], frames as u64).unwrap();
        }
    };
    let mut watch = Watch::new(seal, |_| {});
    files.read(&mut watch);
    assert_eq!((watch.reports[0].records, &watch.reports[0].condition), (2, &Condition::Sealed));
    assert!(frames > SEGMENT_HEADER_LEN);
}

#[test]
fn an_empty_folder_below_the_floor_is_damaged() {
    let files = Files::new();
    let mut watch = Watch::new(|_| {}, |_| {});
    let inspector = Inspector::new(files.0.shared(), "log").durable_floor(Lsn(4));
    inspector.read(Lsn(1)..=Lsn(u64::MAX), &mut watch).unwrap();
    let damage = watch.reports[0].damage().unwrap();
    assert!(damage.reason.contains("LSN 4 is known to be durable"), "{damage}");
    assert!(reports(&files).is_empty());
}
