//! What the tests share.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use tailrace_wal::{
    CommitTime, Disk, FragmentNumber, Frame, HistoryEnd, HistoryId, Log, LogConfig, LogError, Lsn, NodeId, Part,
    PartEntry, PartHash, Payload, Persistence, Position, Record, RecordKind, Recovery, SystemClock, SystemDisk,
    TransactionNumber, VerbatimRecord, Written,
};

/// The node of all tests.
pub(crate) const NODE: NodeId = NodeId([7; 16]);

/// The history of most tests.
pub(crate) const HISTORY: HistoryId = HistoryId([1; 16]);

/// Opens the log in `dir` on the machine's own disk.
pub(crate) fn open(dir: &Path) -> (Log, Recovery) {
    open_with(LogConfig::new(dir), Lsn::ZERO).unwrap()
}

pub(crate) fn open_with(config: LogConfig, floor: Lsn) -> Result<(Log, Recovery), LogError> {
    open_on(config, floor, SystemDisk::shared())
}

pub(crate) fn open_on(config: LogConfig, floor: Lsn, disk: Arc<dyn Disk>) -> Result<(Log, Recovery), LogError> {
    Log::open(config, NODE, floor, disk, SystemClock::shared())
}

/// A log with [`HISTORY`] open where recovery found it.
pub(crate) fn open_history(dir: &Path) -> (Log, Recovery) {
    open_history_with(LogConfig::new(dir))
}

pub(crate) fn open_history_with(config: LogConfig) -> (Log, Recovery) {
    let (log, recovery) = open_with(config, Lsn::ZERO).unwrap();
    start(&log, &recovery, HISTORY);
    (log, recovery)
}

/// Opens a history where recovery found it, or at its start.
pub(crate) fn start(log: &Log, recovery: &Recovery, history: HistoryId) {
    let found = recovery.histories.iter().find(|found| found.end.position.history == history);
    let beginning = HistoryEnd { position: Position::start(history), commit_time: CommitTime(0) };
    log.open_history(found.map_or(beginning, |found| found.end)).unwrap();
}

/// A payload with one part of these bytes, in two pieces.
pub(crate) fn payload(bytes: &[u8]) -> Payload {
    Payload::new(vec![part(bytes)], vec![], None).unwrap()
}

pub(crate) fn part(bytes: &[u8]) -> Part {
    let (left, right) = bytes.split_at(bytes.len() / 2);
    let entry = PartEntry {
        table: 1,
        schema_version: 1,
        operation: 1,
        first_ordinal: 0,
        rows: 1,
        length: 0,
        hash: PartHash(0),
        partition: Bytes::from_static(b"2023-01-08"),
    };
    Part::new(entry, vec![Bytes::copy_from_slice(left), Bytes::copy_from_slice(right)]).unwrap()
}

/// A commit that is a transaction of its own.
pub(crate) fn commit(history: HistoryId, bytes: &[u8]) -> Record {
    Record {
        history,
        kind: RecordKind::Commit,
        transaction: None,
        fragment: FragmentNumber(0),
        payload: payload(bytes),
    }
}

pub(crate) fn fragment(history: HistoryId, transaction: TransactionNumber, number: u32, bytes: &[u8]) -> Record {
    Record {
        history,
        kind: RecordKind::Fragment,
        transaction: Some(transaction),
        fragment: FragmentNumber(number),
        payload: payload(bytes),
    }
}

pub(crate) fn abort(history: HistoryId, transaction: TransactionNumber) -> Record {
    Record {
        history,
        kind: RecordKind::Abort,
        transaction: Some(transaction),
        fragment: FragmentNumber(0),
        payload: Payload::empty(),
    }
}

/// Appends and waits until it is durable.
pub(crate) async fn append(log: &Log, record: Record) -> Result<Written, LogError> {
    log.append(record, Persistence::Sync).await?.durable().await
}

/// Appends as received and waits until it is durable.
pub(crate) async fn append_frame(log: &Log, frame: &Frame) -> Result<Written, LogError> {
    let record = VerbatimRecord { header: frame.header, payload: frame.payload.clone(), skipped: frame.skipped };
    log.append_verbatim(record, Persistence::Sync).await?.durable().await
}

/// Appends commits `from..to` of [`HISTORY`], each holding its number.
pub(crate) async fn append_numbers(log: &Log, numbers: std::ops::Range<u32>) {
    for number in numbers {
        append(log, commit(HISTORY, &number.to_le_bytes())).await.unwrap();
    }
}

/// The number that [`append_numbers`] put into a frame.
pub(crate) fn number(frame: &Frame) -> u32 {
    u32::from_le_bytes(frame.payload.part_bytes(0)[..].try_into().unwrap())
}

/// All durable frames after `after`.
pub(crate) fn replay(log: &Log, after: Lsn) -> Result<Vec<Frame>, LogError> {
    let mut tail = log.replay(after)?;
    let mut frames = Vec::new();
    while let Some(frame) = tail.try_next()? {
        frames.push(frame);
    }
    Ok(frames)
}

/// The segments of a folder, oldest first.
pub(crate) fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "wal")).collect();
    paths.sort();
    paths
}

/// Copies the segments as a crash of the process would leave them.
pub(crate) fn copy_segments(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for path in segments(from) {
        std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
    }
    to
}
