//! The manifest of format 1 in `testdata/golden/v1/`: what it holds is read, and its documents are written as ever.
//!
//! `testdata/golden/v3/edits.txt` has what format 3 adds, likewise.
//!
//! `GOLDEN=write cargo test -p tailrace-engine --lib manifest::golden` writes it anew. Format 1 is kept readable for ever:
//! once it is out, that is right for additions alone.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use arrow_array::{Array as _, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int64Array, StringArray};
use arrow_schema::{DataType, TimeUnit};
use tailrace_wal::{
    Chain, Epoch, PinKey, Seq, SystemDisk,
    inspect::{InspectedFrame, Inspector, SegmentReport, Visitor},
};

use super::{tests::open, *};
use crate::{
    ColumnDefinition, ColumnStatistics, DatafileMeta, DeadLetter, Difference, Digest, EpochEntry, PartitionKey,
    SchemaVersion, SystemFact, Table, TableDefinition, TableId,
    partition::{DatafilePath, Transform},
};

/// A clock whose time and random numbers are the same for ever.
#[derive(Debug, Default)]
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

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden/v1")
}

/// Every document of a manifest, in order, as `operation body`.
#[derive(Default)]
struct Documents(Vec<(u16, Vec<u8>)>, Vec<u8>);

impl Visitor for Documents {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        if let Some(header) = frame.header {
            self.1.extend_from_slice(&frame.payload.part_bytes(0));
            if header.kind == RecordKind::Commit {
                let body = std::mem::take(&mut self.1);
                self.0.push((frame.payload.directory.parts[0].operation, body));
            }
        }
        ControlFlow::Continue(())
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        assert_eq!(segment.damage(), None);
        ControlFlow::Continue(())
    }
}

fn documents(dir: &Path) -> Vec<(u16, Vec<u8>)> {
    let mut documents = Documents::default();
    Inspector::new(SystemDisk::shared(), dir).read(Lsn(1)..=Lsn(u64::MAX), &mut documents).unwrap();
    documents.0
}

/// A manifest with every shape of document and every field that there is, in the folder of a node.
async fn write(node: &Path) {
    let (config, disk) = (EngineConfig::new(node), SystemDisk::shared());
    let clock: Arc<dyn Clock> = Arc::new(Counting::default());
    let space = Arc::new(Space::open(&config, disk.clone(), clock.clone()));
    let (manifest, state) = Manifest::open(&config, disk, clock, space).await.unwrap();
    let id = HistoryId([1; 16]);
    let epoch = Epoch { counter: 2, nonce: 77 };
    let position = Position { history: id, epoch, seq: Seq(41), chain: Chain(0xfeed) };
    let market = FlushedHistory {
        id,
        name: "market".into(),
        position,
        restart_seq: Seq(40),
        commit_time: CommitTime(1_673_170_200_000_000),
        epochs: vec![
            EpochEntry { epoch: Epoch { counter: 1, nonce: 5 }, first_seq: Seq(1), chain_before: Chain(0) },
            EpochEntry { epoch, first_seq: Seq(30), chain_before: Chain(0xbeef) },
        ],
        next_table: TableId(3),
        replay_after: Lsn::ZERO,
        complete_from: Seq(39),
        tables: vec![table()],
        left_out: Vec::new(),
        dropped: Vec::new(),
        added: vec![(TableId(2), PartitionKey(Bytes::from_static(&[1, 128, 0, 0, 0, 0, 0, 75, 165])), datafile())],
        system_facts: Vec::new(),
        keys: vec![KeyRecord {
            key: b"load-42".to_vec(),
            position,
            lsn: Lsn(49),
            commit_time: CommitTime(1_673_170_200_000_000),
            rows: 100,
        }],
        skipped: Vec::new(),
        differences: Vec::new(),
    };
    let system = FlushedHistory {
        id: state.system,
        name: "system".into(),
        position: Position { history: state.system, ..position },
        next_table: TableId(1),
        tables: Vec::new(),
        added: Vec::new(),
        system_facts: vec![
            SystemFact::PrimaryReplication { on: true },
            SystemFact::ReplicaReplication { on: false },
            SystemFact::DatabaseReplication { history: id, on: true },
            SystemFact::Follows { history: HistoryId([8; 16]), name: "followed".into(), primary: "siteA".into() },
            SystemFact::Ended {
                history: HistoryId([9; 16]),
                name: "gone".into(),
                end: Position { history: HistoryId([9; 16]), ..position },
                epochs: market.epochs.clone(),
            },
        ],
        keys: Vec::new(),
        ..market.clone()
    };
    let edit = FlushEdit { flushed: Lsn(50), replay_from: Lsn(48), histories: vec![market, system], ended: vec![] };
    manifest.append(Edit::Flush(edit)).await.unwrap();
    let mut copy = manifest.history(id).await.unwrap();
    copy.replay_after = Lsn(60);
    manifest.append(Edit::Install(Box::new(copy))).await.unwrap();
    let pin = |feed: &str, lost| PinRecord {
        key: PinKey { feed: feed.into(), history: id },
        acknowledged: Seq(41),
        applied: Seq(40),
        restart: Seq(39),
        lost,
        since: CommitTime(1_673_170_200_000_001),
        stalled: 17,
        table: None,
    };
    let pins = vec![pin("replica/siteB", None), pin("replica/siteC", Some("over its budget".into()))];
    manifest.append(Edit::Pins(pins)).await.unwrap();
    let ended =
        FlushEdit { flushed: Lsn(70), replay_from: Lsn(71), histories: vec![], ended: vec![HistoryId([9; 16])] };
    manifest.append(Edit::Flush(ended)).await.unwrap();
    manifest.close().await.unwrap();
}

fn table() -> Table {
    let column = |name: &str, data_type, nullable| ColumnDefinition { name: name.into(), data_type, nullable };
    let definition = TableDefinition {
        name: "bars".into(),
        columns: vec![
            column("at", DataType::Timestamp(TimeUnit::Millisecond, None), false),
            column("security_id", DataType::Int64, false),
            column("name", DataType::Utf8, true),
            column("price", DataType::Decimal128(18, 4), true),
            column("day", DataType::Date32, true),
            column("loaded", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            column("spread", DataType::Float64, false),
            column("is_last", DataType::Boolean, false),
        ],
        partition_by: vec![(Transform::Day, "at".into())],
        order_by: vec!["security_id".into(), "at".into()],
    };
    Table::create(TableId(2), definition).unwrap()
}

fn datafile() -> DatafileMeta {
    fn of(nulls: u64, exact: bool, ends: [impl arrow_array::Array + 'static; 2]) -> ColumnStatistics {
        let [min, max] = ends.map(|end| -> Option<ArrayRef> { Some(Arc::new(end)) });
        ColumnStatistics { null_count: nulls, min, max, exact }
    }
    let price = |price| Decimal128Array::from(vec![price]).with_precision_and_scale(18, 4).unwrap();
    let statistics = [
        ("security_id", of(0, true, [-5, 9].map(|id| Int64Array::from(vec![id])))),
        ("name", of(3, false, ["a", "zé"].map(|name| StringArray::from(vec![name])))),
        ("price", of(1, true, [-70_000, 12_345_678].map(price))),
        ("day", ColumnStatistics { null_count: 100, min: None, max: None, exact: true }),
        ("spread", of(0, true, [-0.0, 1.5].map(|spread| Float64Array::from(vec![spread])))),
        ("is_last", of(0, true, [false, true].map(|is_last| BooleanArray::from(vec![is_last])))),
    ];
    let table = table();
    let id = |name: &str| table.columns.iter().find(|column| column.name == name).unwrap().id;
    DatafileMeta {
        path: DatafilePath("market/bars/at_day=2023-01-08/0123456789abcdef0123456789abcdef.parquet".into()),
        bytes: 4711,
        rows: 100,
        hash: "00112233445566778899aabbccddeeff".into(),
        schema_version: SchemaVersion(1),
        seqs: (Seq(2), Seq(41)),
        identity_bytes: 60,
        statistics: statistics.into_iter().map(|(name, statistics)| (id(name), statistics)).collect(),
        digest: None,
    }
}

fn kept() -> PathBuf {
    golden().join("manifest")
}

/// The documents as text, one per line.
fn text(documents: &[(u16, Vec<u8>)]) -> String {
    let line = |(operation, body): &(u16, Vec<u8>)| format!("{operation} {}\n", String::from_utf8_lossy(body));
    documents.iter().map(line).collect()
}

/// A copy of the golden manifest, in the folder of a node.
fn copy() -> tempfile::TempDir {
    let node = tempfile::tempdir().unwrap();
    let dir = node.path().join("manifest");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(kept()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
    }
    node
}

#[tokio::test]
async fn format_1_is_read_and_written_as_ever() {
    let node = tempfile::tempdir().unwrap();
    write(node.path()).await;
    let made = node.path().join("manifest");
    let (_, state) = open(node.path()).await;
    let checkpoint = encode(&state).unwrap();
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let _ = std::fs::remove_dir_all(kept());
        std::fs::create_dir_all(kept()).unwrap();
        for entry in std::fs::read_dir(&made).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "wal") {
                std::fs::copy(&path, kept().join(path.file_name().unwrap())).unwrap();
            }
        }
        std::fs::write(golden().join("manifest.txt"), text(&documents(&kept()))).unwrap();
        std::fs::write(golden().join("checkpoint.json"), &checkpoint).unwrap();
    }
    let wanted = std::fs::read_to_string(golden().join("manifest.txt")).unwrap();
    let documents = documents(&kept());
    assert_eq!(text(&documents), wanted);
    assert_eq!(text(&self::documents(&made)), wanted, "today's code writes something else");
    assert_eq!(documents.iter().map(|(operation, _)| *operation).collect::<Vec<_>>(), [2, 1, 1, 1, 1]);
    // What was read is written again byte for byte.
    for (operation, body) in &documents {
        let again = match *operation {
            CHECKPOINT => encode(&serde_json::from_slice::<ManifestState>(body).unwrap()),
            _ => encode(&serde_json::from_slice::<Edit>(body).unwrap()),
        };
        assert_eq!(String::from_utf8_lossy(&again.unwrap()), String::from_utf8_lossy(body));
    }
    // So is the fold of all, as the next checkpoint would hold it.
    let wanted = std::fs::read_to_string(golden().join("checkpoint.json")).unwrap();
    assert_eq!(std::str::from_utf8(&checkpoint).unwrap(), wanted);
    let again = encode(&serde_json::from_str::<ManifestState>(&wanted).unwrap()).unwrap();
    assert_eq!(std::str::from_utf8(&again).unwrap(), wanted);
}

#[tokio::test]
async fn a_node_starts_on_a_manifest_of_format_1() {
    let node = copy();
    let facts = ManifestFacts::read(&SystemDisk::shared(), &node.path().join("manifest")).unwrap();
    let (manifest, state) = open(node.path()).await;
    assert_eq!((facts.node, facts.flushed), (state.node, state.flushed));
    assert_eq!((state.flushed, state.replay_from), (Lsn(70), Lsn(71)));
    let market = &state.histories[&HistoryId([1; 16])];
    assert_eq!((market.name.as_str(), market.position.seq, market.position.chain), ("market", Seq(41), Chain(0xfeed)));
    assert_eq!((market.restart_seq, market.complete_from, market.replay_after), (Seq(40), Seq(39), Lsn(60)));
    assert_eq!((market.epochs.len(), market.epochs[1].first_seq, market.next_table), (2, Seq(30), TableId(3)));
    assert_eq!((market.keys.len(), market.keys[0].key.as_slice(), market.keys[0].rows), (1, &b"load-42"[..], 100));
    assert_eq!(market.tables[&TableId(2)].table, table());
    let partitions = &market.tables[&TableId(2)].partitions;
    let (key, files) = partitions.first_key_value().unwrap();
    let scheme = crate::PartitionScheme::new(&table()).unwrap();
    assert_eq!(scheme.describe(key).unwrap(), [("at_day".to_owned(), Some("2023-01-08".to_owned()))]);
    let (file, wanted) = (&files[0], datafile());
    assert_eq!((partitions.len(), files.len()), (1, 1));
    assert_eq!((&file.path, file.bytes, file.rows, file.seqs), (&wanted.path, 4711, 100, (Seq(2), Seq(41))));
    assert_eq!((&file.hash, file.schema_version, file.identity_bytes), (&wanted.hash, SchemaVersion(1), 60));
    assert_eq!(file.statistics.len(), wanted.statistics.len());
    for ((id, read), (wanted_id, wanted)) in file.statistics.iter().zip(&wanted.statistics) {
        assert_eq!((id, read.null_count, read.exact), (wanted_id, wanted.null_count, wanted.exact));
        let value = |end: &Option<ArrayRef>| end.as_ref().map(|end| end.to_data());
        assert_eq!((value(&read.min), value(&read.max)), (value(&wanted.min), value(&wanted.max)));
    }
    let facts = &state.histories[&state.system].system_facts;
    assert_eq!(facts.len(), 5);
    assert_eq!(facts[2], SystemFact::DatabaseReplication { history: HistoryId([1; 16]), on: true });
    let pins: Vec<_> = state.pins.iter().map(|pin| (pin.key.feed.as_str(), pin.restart, pin.lost.as_deref())).collect();
    assert_eq!(pins, [("replica/siteB", Seq(39), None), ("replica/siteC", Seq(39), Some("over its budget"))]);
    assert_eq!((state.pins[0].since, state.pins[0].stalled), (CommitTime(1_673_170_200_000_001), 17));
    manifest.close().await.unwrap();
}

/// What format 3 has more, as text: one line per document that has it.
#[test]
fn format_3_is_read_and_written_as_ever() {
    let digest = Digest { rows: 100, values: 0x0123_4567_89ab_cdef_0011_2233_4455_6677, identity: u128::MAX - 1 };
    let datafile = DatafileMeta { digest: Some(digest), ..datafile() };
    let key = PartitionKey(Bytes::from_static(&[1, 128, 0, 0, 0, 0, 0, 75, 165]));
    let settle =
        SettleEdit { history: HistoryId([1; 16]), skipped: Vec::new(), added: vec![(TableId(2), key, datafile)] };
    let difference = Difference {
        table: TableId(2),
        table_name: "bars".into(),
        partition: PartitionKey(Bytes::from_static(&[1, 128, 0, 0, 0, 0, 0, 75, 165])),
        partition_name: Some("at_day=2023-01-08".into()),
        seq: Seq(41),
        found_at: CommitTime(1_673_170_200_000_000),
        reason: "99 rows here, 100 at the primary".into(),
    };
    let copy = HistoryState {
        id: HistoryId([1; 16]),
        name: "market".into(),
        position: Position::start(HistoryId([1; 16])),
        restart_seq: Seq(0),
        commit_time: CommitTime(0),
        epochs: Vec::new(),
        next_table: TableId(3),
        replay_after: Lsn::ZERO,
        complete_from: Seq(0),
        tables: Default::default(),
        left_out: Vec::new(),
        system_facts: Vec::new(),
        keys: Vec::new(),
        skipped: Vec::new(),
        differences: vec![difference],
    };
    let documents = [Edit::Settle(Box::new(settle)), Edit::Install(Box::new(copy))];
    let documents = documents.map(|edit| (EDIT, encode(&edit).unwrap().to_vec()));
    let path = golden().join("../v3/manifest.txt");
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text(&documents)).unwrap();
    }
    let wanted = std::fs::read_to_string(path).unwrap();
    assert_eq!(text(&documents), wanted);
    for line in wanted.lines() {
        let (_, document) = line.split_once(' ').unwrap();
        let edit: Edit = serde_json::from_str(document).unwrap();
        assert_eq!(encode(&edit).unwrap(), document.as_bytes());
    }
}

/// Edits with what later formats add, as documents, one per line.
fn later_edits() -> Vec<Edit> {
    let id = HistoryId([1; 16]);
    let key = PartitionKey(Bytes::from_static(&[1, 128, 0, 0, 0, 0, 0, 75, 165]));
    let newer = DatafileMeta {
        path: DatafilePath("market/bars/at_day=2023-01-08/00000000000000000000000000000042.parquet".into()),
        ..datafile()
    };
    let moved = |seq, dropped, added| FlushedHistory {
        id,
        name: "market".into(),
        position: Position { history: id, epoch: Epoch { counter: 2, nonce: 77 }, seq: Seq(seq), chain: Chain(seq) },
        restart_seq: Seq(seq),
        commit_time: CommitTime(1_673_170_200_000_000),
        epochs: Vec::new(),
        next_table: TableId(3),
        replay_after: Lsn::ZERO,
        complete_from: Seq(39),
        tables: vec![table()],
        left_out: Vec::new(),
        dropped,
        added,
        system_facts: Vec::new(),
        keys: Vec::new(),
        differences: Vec::new(),
        skipped: vec![DeadLetter {
            seq: Seq(40),
            operation: 1,
            commit_time: CommitTime(1_673_170_200_000_000),
            tables: vec![(TableId(2), "bars".into())],
            rows: 7,
            bytes: 640,
            reason: "no".into(),
            skipped_at: CommitTime(1_673_170_200_000_001),
            discarded: false,
            dropped: vec![(TableId(2), key.clone())],
        }],
    };
    let flush = |upto, history| {
        let histories = vec![history];
        Edit::Flush(FlushEdit { flushed: Lsn(upto), replay_from: Lsn(upto + 1), histories, ended: Vec::new() })
    };
    vec![
        // What was there goes, what comes with the drop stays.
        flush(80, moved(42, vec![(TableId(2), key.clone())], vec![(TableId(2), key.clone(), newer)])),
        flush(90, moved(43, vec![(TableId(2), key.clone())], Vec::new())),
    ]
}

#[test]
fn what_format_3_adds_is_read_and_written_as_ever() {
    let path = golden().join("../v3/edits.txt");
    let edits = later_edits();
    let made: Vec<_> = edits.iter().map(|edit| (EDIT, encode(edit).unwrap().to_vec())).collect();
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text(&made)).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text(&made), kept, "today's code writes something else");
    let checkpoint = std::fs::read_to_string(golden().join("checkpoint.json")).unwrap();
    let mut state: ManifestState = serde_json::from_str(&checkpoint).unwrap();
    let files = |state: &ManifestState| -> Vec<String> {
        let partitions = state.histories[&HistoryId([1; 16])].tables[&TableId(2)].partitions.values();
        partitions.flatten().map(|meta| meta.path.0.chars().rev().take(10).collect()).collect()
    };
    let mut seen = vec![files(&state)];
    for line in kept.lines() {
        let (_, document) = line.split_once(' ').unwrap();
        let edit: Edit = serde_json::from_str(document).unwrap();
        assert_eq!(std::str::from_utf8(&encode(&edit).unwrap()).unwrap(), document);
        state.apply(edit);
        seen.push(files(&state));
    }
    assert_eq!(seen, [vec!["teuqrap.fe".to_owned()], vec!["teuqrap.24".to_owned()], vec![]]);
    let letter = &state.histories[&HistoryId([1; 16])].skipped[0];
    assert_eq!(letter.dropped.len(), 1);
    state.check().unwrap();
}

/// A manifest with one document of this version, after the first checkpoint.
async fn manifest_of(version: u32, operation: u16, body: &'static [u8]) -> tempfile::TempDir {
    let node = tempfile::tempdir().unwrap();
    let (manifest, _) = open(node.path()).await;
    let mut payload = payload(operation, Bytes::from_static(body), Vec::new()).unwrap();
    let mut entry = payload.directory.parts.remove(0);
    entry.schema_version = version;
    let payload = Payload::new(vec![Part::new(entry, payload.parts.remove(0)).unwrap()], Vec::new(), None).unwrap();
    manifest.record(RecordKind::Commit, None, FragmentNumber(0), payload, Persistence::Sync).await.unwrap();
    manifest.close().await.unwrap();
    node
}

#[tokio::test]
async fn other_versions_and_unknown_fields_are_refused_by_name() {
    let pins: &[u8] = br#"{"pins":[]}"#;
    for (version, operation, body, wanted) in [
        (4, EDIT, pins, "format version 4, this version reads up to 3"),
        (4, CHECKPOINT, b"of a later version", "format version 4, this version reads up to 3"),
        (0, EDIT, pins, "pre-release format 0"),
        (1, 9, pins, "neither edit nor checkpoint"),
        (1, EDIT, br#"{"grants":[]}"#, "grants"),
        (1, EDIT, br#"{"flush":{"flushed":1,"replay_from":2,"histories":[],"ended":[],"leases":3}}"#, "leases"),
        (1, EDIT, br#"{"pins":[{"key":{"feed":"a","history":"x","site":1}}]}"#, "x"),
        (1, CHECKPOINT, br#"{"node":1}"#, "invalid type: integer `1`"),
    ] {
        let node = manifest_of(version, operation, body).await;
        let (config, disk, clock) = (EngineConfig::new(node.path()), SystemDisk::shared(), Counting::default());
        let clock: Arc<dyn Clock> = Arc::new(clock);
        let space = Arc::new(Space::open(&config, disk.clone(), clock.clone()));
        let opened = Manifest::open(&config, disk.clone(), clock, space).await.map(|_| ()).unwrap_err();
        let dir = node.path().join("manifest");
        let read = ManifestFacts::read(&disk, &dir).unwrap_err();
        assert!(opened.to_string().contains(wanted), "{opened}");
        if version != 1 {
            assert!(read.to_string().contains(dir.to_str().unwrap()), "{read}");
        }
        assert_eq!(opened.to_string(), read.to_string());
    }
}

/// What no later version may take for granted: fields that are not known are refused everywhere in a document.
#[test]
fn an_unknown_field_is_refused_wherever_it_stands() {
    let text = std::fs::read_to_string(golden().join("manifest.txt")).unwrap();
    let checkpoint = format!("2 {}", std::fs::read_to_string(golden().join("checkpoint.json")).unwrap());
    let mut refused = 0;
    for line in text.lines().chain([checkpoint.as_str()]) {
        let (operation, document) = line.split_once(' ').unwrap();
        for (at, _) in document.match_indices('{') {
            let mut newer = document.to_owned();
            let comma = if document[at + 1..].starts_with('}') { "" } else { "," };
            newer.insert_str(at + 1, &format!("\"grants\":1{comma}"));
            let mut folding = Folding::new(kept());
            let known = br#"{"node":"00000000000000000000000000000000","system":"00000000000000000000000000000000","flushed":0,"replay_from":0,"histories":{},"pins":[]}"#;
            folding.transaction(CHECKPOINT, known, Lsn(1)).unwrap();
            let error = folding.transaction(operation.parse().unwrap(), newer.as_bytes(), Lsn(2)).unwrap_err();
            assert!(error.to_string().contains("record 2"), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 40, "{refused}");
}
