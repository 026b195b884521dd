//! Nodes, tables and rows for the tests.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use arrow_array::{
    Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, cast::AsArray,
    types::Int64Type,
};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use tailrace_engine::{
    Chunk, ColumnDefinition, CommitOptions, Engine, EngineConfig, EngineError, EngineSeams, Receipt, StartReport,
    TableDefinition, TableVersion, Version, partition::Transform,
};
use tailrace_wal::{LogError, SystemClock, SystemDisk};

/// (seq, ordinal).
pub(crate) type Identity = (u64, u64);
/// (id, note).
pub(crate) type Row = (i64, Option<String>);

/// One day in microseconds.
pub(crate) const DAY: i64 = 24 * 3600 * 1_000_000;

pub(crate) fn config(dir: &Path) -> EngineConfig {
    let mut config = EngineConfig::new(dir);
    // Flushes happen where a test asks for them.
    config.flush_age = std::time::Duration::from_secs(3600);
    config
}

pub(crate) async fn open(dir: &Path) -> Arc<Engine> {
    open_with(config(dir)).await.0
}

pub(crate) async fn open_with(config: EngineConfig) -> (Arc<Engine>, StartReport) {
    // An engine that was dropped without a shutdown is there until its housekeeping lets go of it.
    for _ in 0..5_000 {
        let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
        match Engine::open(config.clone(), seams).await {
            Err(EngineError::Log(LogError::Locked { .. })) => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            opened => return opened.unwrap(),
        }
    }
    panic!("{} is held by an engine that nobody has any more", config.data_dir.display());
}

/// What a process that is killed now leaves behind.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&source, &target);
        } else {
            match std::fs::copy(&source, &target) {
                // What nothing names any more is removed meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}

/// `market.bars`-like table: partitioned by day of `at`.
pub(crate) fn bars(name: &str) -> TableDefinition {
    let column = |name: &str, data_type, nullable| ColumnDefinition { name: name.to_owned(), data_type, nullable };
    TableDefinition {
        name: name.to_owned(),
        columns: vec![
            column("id", DataType::Int64, false),
            column("at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
            column("price", DataType::Float64, true),
            column("note", DataType::Utf8, true),
        ],
        partition_by: vec![(Transform::Day, "at".to_owned())],
        order_by: vec!["id".to_owned(), "at".to_owned()],
    }
}

/// Rows with these ids; row `i` lies on day `i % days`.
pub(crate) fn rows(ids: std::ops::Range<i64>, days: i64) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("price", DataType::Float64, true),
        Field::new("note", DataType::Utf8, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| (id % days) * DAY + id % 1000))),
        Arc::new(Float64Array::from_iter(ids.clone().map(|id| (id % 7 != 0).then_some(id as f64 / 3.0)))),
        Arc::new(StringArray::from_iter(ids.map(|id| (id % 5 != 0).then(|| format!("note {id}"))))),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// The same with half a kilobyte in each note.
pub(crate) fn wide_rows(ids: std::ops::Range<i64>, days: i64) -> RecordBatch {
    let narrow = rows(ids.clone(), days);
    let mut columns = narrow.columns().to_vec();
    columns[3] = Arc::new(StringArray::from_iter_values(ids.map(|id| format!("{id:0500}"))));
    RecordBatch::try_new(narrow.schema(), columns).unwrap()
}

pub(crate) async fn insert(engine: &Arc<Engine>, table: &str, batch: RecordBatch) -> Receipt {
    let mut transaction = engine.begin("market").unwrap();
    transaction.append(table, batch).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap()
}

/// `market` with one table `bars`.
pub(crate) async fn market(engine: &Arc<Engine>) {
    engine.create_database("market").await.unwrap();
    engine.create_table("market", bars("bars")).await.unwrap();
}

/// All rows of a table of `market` as (seq, ordinal) → (id, note), from memory and files. Doubled identities fail.
pub(crate) async fn contents(engine: &Arc<Engine>, version: &Version, table: &str) -> BTreeMap<Identity, Row> {
    match version.database("market").and_then(|database| database.table(table)) {
        Some(table) => table_contents(engine, table).await,
        None => BTreeMap::new(),
    }
}

/// All rows of a table.
pub(crate) async fn table_contents(engine: &Arc<Engine>, table: &TableVersion) -> BTreeMap<Identity, Row> {
    let mut found = BTreeMap::new();
    let mut add = |identity, row| assert!(found.insert(identity, row).is_none(), "row {identity:?} twice");
    let mut expected = 0;
    for (_, partition) in table.partitions() {
        expected += partition.rows();
        for chunk in &partition.chunks {
            for (identity, row) in chunk_rows(chunk) {
                add(identity, row);
            }
        }
        for file in &partition.datafiles {
            let path = file.path().object_path().unwrap();
            use object_store::ObjectStoreExt as _;
            let bytes = engine.store().get(&path).await.unwrap().bytes().await.unwrap();
            let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
            for batch in reader.build().unwrap() {
                let batch = batch.unwrap();
                let number = |name: &str, row| {
                    batch.column_by_name(name).unwrap().as_primitive::<arrow_array::types::UInt64Type>().value(row)
                };
                for row in 0..batch.num_rows() {
                    add((number("_seq", row), number("_ordinal", row)), row_of(&batch, row));
                }
            }
        }
    }
    assert_eq!(found.len() as u64, expected);
    found
}

/// The rows of a chunk.
pub(crate) fn chunk_rows(chunk: &Chunk) -> Vec<(Identity, Row)> {
    let mut found = Vec::new();
    for (index, run) in chunk.identities.iter().enumerate() {
        let end = chunk.identities.get(index + 1).map_or(chunk.batch.num_rows(), |next| next.start);
        for row in run.start..end {
            let ordinal = run.first_ordinal.0 + (row - run.start) as u64;
            found.push(((run.seq.0, ordinal), row_of(&chunk.batch, row)));
        }
    }
    found
}

fn row_of(batch: &RecordBatch, row: usize) -> Row {
    let note = batch.column(3).as_string::<i32>();
    let note = (!note.is_null(row)).then(|| note.value(row).to_owned());
    (batch.column(0).as_primitive::<Int64Type>().value(row), note)
}

/// The ids in a table, sorted.
pub(crate) async fn ids(engine: &Arc<Engine>, table: &str) -> Vec<i64> {
    let mut ids: Vec<i64> = contents(engine, &engine.version(), table).await.values().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids
}

/// The tutorial's table.
pub(crate) fn tutorial_table() -> TableDefinition {
    let column = |name: &str, data_type| ColumnDefinition { name: name.to_owned(), data_type, nullable: true };
    let mut columns =
        vec![column("security_id", DataType::Utf8), column("datetime", DataType::Timestamp(TimeUnit::Second, None))];
    columns.extend(["pre_close", "open", "high", "low", "last"].map(|name| column(name, DataType::Float64)));
    columns.push(column("volume", DataType::Int32));
    columns.push(column("amount", DataType::Float64));
    TableDefinition {
        name: "bars".to_owned(),
        columns,
        partition_by: vec![(Transform::Day, "datetime".to_owned())],
        order_by: vec!["security_id".to_owned(), "datetime".to_owned()],
    }
}

/// Its 1.21 million rows, in batches of 64 Ki.
pub(crate) fn tutorial_rows() -> Vec<RecordBatch> {
    use arrow_array::{Int32Array, TimestampSecondArray};
    const MINUTES: i64 = 242;
    const START: i64 = 1_673_136_000;
    let schema = tutorial_table().columns.into_iter();
    let schema =
        Arc::new(Schema::new(schema.map(|column| Field::new(column.name, column.data_type, true)).collect::<Vec<_>>()));
    let mut state = 42u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(u32::MAX)
    };
    let total = 5_000 * MINUTES;
    (0..total)
        .step_by(65_536)
        .map(|first| {
            let rows = first..(first + 65_536).min(total);
            let mut columns: Vec<ArrayRef> = vec![
                Arc::new(StringArray::from_iter_values(rows.clone().map(|row| format!("{:06}", row / MINUTES)))),
                Arc::new(TimestampSecondArray::from_iter_values(
                    rows.clone().map(|row| START + 34_200 + 60 * (row % MINUTES)),
                )),
            ];
            for _ in 0..5 {
                columns.push(Arc::new(Float64Array::from_iter_values(
                    rows.clone().map(|_| (random() * 10_000.0).round() / 100.0),
                )));
            }
            columns.push(Arc::new(Int32Array::from_iter_values(rows.clone().map(|_| (random() * 10_000.0) as i32))));
            columns.push(Arc::new(Float64Array::from_iter_values(rows.clone().map(|_| random() * 1e6))));
            RecordBatch::try_new(schema.clone(), columns).unwrap()
        })
        .collect()
}
