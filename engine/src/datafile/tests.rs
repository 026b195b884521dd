//! Datafiles end to end: written through the durable store, read back with the Parquet reader.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Float64Array, Int32Array, RecordBatch, StringArray, TimestampSecondArray, cast::AsArray,
    types::UInt64Type,
};
use arrow_schema::{DataType, TimeUnit};
use arrow_select::concat::concat_batches;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::Seq;
use xxhash_rust::xxh3::xxh3_128;

use super::*;
use crate::{
    Chunk, ColumnDefinition, IdentityRun, Ordinal, PartitionKey, PartitionScheme, Table, TableDefinition, TableId,
    open_store, part::tests::every_type, partition::datafile_path, scalar::Scalar,
};

fn table(batch: &RecordBatch, order_by: &[&str]) -> Table {
    let schema = batch.schema();
    let column = |field: &Arc<arrow_schema::Field>| ColumnDefinition {
        name: field.name().clone(),
        data_type: field.data_type().clone(),
        nullable: true,
    };
    let definition = TableDefinition {
        name: "bars".into(),
        columns: schema.fields().iter().map(column).collect(),
        partition_by: vec![],
        order_by: order_by.iter().map(|name| (*name).into()).collect(),
    };
    Table::create(TableId(1), definition).unwrap()
}

async fn written(store: &Arc<dyn ObjectStore>, table: &Table, chunks: &[Chunk]) -> (DatafileMeta, RecordBatch) {
    let scheme = PartitionScheme::new(table).unwrap();
    let path = datafile_path("market", &table.name, &scheme, &PartitionKey::default(), rand::random()).unwrap();
    let request = WriteRequest { table, path: path.clone(), chunks };
    let meta = write_datafile(store, request).await.unwrap();
    assert_eq!(meta.path, path);
    let bytes = store.get(&path.object_path().unwrap()).await.unwrap().bytes().await.unwrap();
    assert_eq!(meta.bytes, bytes.len() as u64);
    assert_eq!(meta.hash, format!("{:032x}", xxh3_128(&bytes)));
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let schema = reader.schema().clone();
    for (field, id) in schema.fields().iter().zip(1..) {
        let id = match field.name().as_str() {
            SEQ_COLUMN => SEQ_FIELD_ID,
            ORDINAL_COLUMN => ORDINAL_FIELD_ID,
            _ => id,
        };
        assert_eq!(field.metadata()[crate::FIELD_ID_KEY], id.to_string());
    }
    let metadata = reader.metadata().clone();
    for column in metadata.row_groups().iter().flat_map(|group| group.columns().iter().rev().take(2)) {
        assert!(column.dictionary_page_offset().is_none());
        assert!(column.encodings().any(|encoding| encoding == parquet::basic::Encoding::DELTA_BINARY_PACKED));
    }
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(|batch| batch.unwrap()).collect();
    (meta, concat_batches(&schema, &batches).unwrap())
}

fn store() -> (tempfile::TempDir, Arc<dyn ObjectStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open_store(None, dir.path(), tailrace_wal::SystemDisk::shared()).unwrap();
    (dir, store)
}

fn identities(batch: &RecordBatch) -> Vec<(u64, u64)> {
    let column = |name| batch.column_by_name(name).unwrap().as_primitive::<UInt64Type>().values().to_vec();
    column(SEQ_COLUMN).into_iter().zip(column(ORDINAL_COLUMN)).collect()
}

#[tokio::test]
async fn every_type_comes_back_in_identity_order() {
    let (_dir, store) = store();
    let batch = every_type(500);
    let table = table(&batch, &[]);
    let mut chunks = vec![
        Chunk::new(batch.slice(0, 123), Seq(7), Ordinal(3)),
        Chunk::new(batch.slice(123, 377), Seq(8), Ordinal(0)),
    ];
    chunks[1].identities.push(IdentityRun { start: 77, seq: Seq(9), first_ordinal: Ordinal(1_000) });
    let (meta, read) = written(&store, &table, &chunks).await;
    assert_eq!((meta.rows, meta.seqs), (500, (Seq(7), Seq(9))));
    let visible = read.project(&(0..batch.num_columns()).collect::<Vec<_>>()).unwrap();
    assert_eq!(visible.columns(), batch.columns());
    let expected: Vec<(u64, u64)> =
        (3..126).map(|n| (7, n)).chain((0..77).map(|n| (8, n))).chain((1_000..1_300).map(|n| (9, n))).collect();
    assert_eq!(identities(&read), expected);

    let json = serde_json::to_string(&meta).unwrap();
    let back: DatafileMeta = serde_json::from_str(&json).unwrap();
    assert_eq!(serde_json::to_string(&back).unwrap(), json);
    assert_eq!(back.statistics.len(), batch.num_columns());
    assert!(back.statistics.iter().all(|(_, statistics)| statistics.exact && statistics.null_count == 100));
}

#[tokio::test]
async fn every_type_can_be_the_order() {
    let (_dir, store) = store();
    let batch = every_type(300);
    for index in 0..batch.num_columns() {
        let name = format!("c{index}");
        let table = table(&batch, &[&name]);
        let chunks = [
            Chunk::new(batch.slice(0, 100), Seq(1), Ordinal(0)),
            Chunk::new(batch.slice(100, 200), Seq(2), Ordinal(0)),
        ];
        let (_, read) = written(&store, &table, &chunks).await;
        let identities = identities(&read);
        let rows: Vec<usize> =
            identities.iter().map(|(seq, n)| if *seq == 1 { *n } else { n + 100 } as usize).collect();
        // Every row with its own identity, in order, NULLs last, ties by identity.
        for (column, read) in batch.columns().iter().zip(read.columns()) {
            assert!(rows.iter().enumerate().all(|(at, row)| Scalar::at(read, at) == Scalar::at(column, *row)));
        }
        let column = batch.column(index);
        let options = arrow_schema::SortOptions { descending: false, nulls_first: false };
        let compare = arrow_ord::ord::make_comparator(column, column, options).unwrap();
        assert!(rows.windows(2).all(|pair| compare(pair[0], pair[1]).then(pair[0].cmp(&pair[1])).is_lt()), "{name}");
        assert!(column.is_null(rows[299]));
    }
}

#[tokio::test]
async fn no_rows_and_wrong_columns_are_refused() {
    let (_dir, store) = store();
    let batch = every_type(10);
    let path = || DatafilePath("market/bars/x.parquet".into());
    let table = table(&batch, &[]);
    let empty = WriteRequest { table: &table, path: path(), chunks: &[] };
    write_datafile(&store, empty).await.unwrap_err();
    let chunks = [Chunk::new(batch.project(&[1, 0]).unwrap(), Seq(1), Ordinal(0))];
    write_datafile(&store, WriteRequest { table: &table, path: path(), chunks: &chunks }).await.unwrap_err();
}

/// Rows of the replication tutorial's shape: `securities` × 242 minutes of one day, in order of time.
fn bars(securities: usize, seed: u64) -> RecordBatch {
    let mut random = StdRng::seed_from_u64(seed);
    let rows = securities * 242;
    let start = 1_673_136_000i64 + 9 * 3600 + 1800;
    let mut last: Vec<i64> = (0..securities).map(|_| random.random_range(200..20_000)).collect();
    let close = last.clone();
    let mut prices: [Vec<f64>; 5] = std::array::from_fn(|_| Vec::with_capacity(rows));
    let (mut ids, mut times, mut volumes, mut amounts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for minute in 0..242i64 {
        let time = start + 60 * if minute < 121 { minute } else { minute + 89 };
        for security in 0..securities {
            let open = last[security];
            let end = (open + random.random_range(-5..=5)).max(1);
            let (high, low) = (open.max(end) + random.random_range(0..3), open.min(end) - random.random_range(0..2));
            last[security] = end;
            for (prices, value) in prices.iter_mut().zip([close[security], open, high, low, end]) {
                prices.push(value as f64 / 100.0);
            }
            let volume = random.random_range(0..10_000) * 100;
            ids.push(format!("{:06}", 600_000 + security));
            times.push(time);
            volumes.push(volume);
            amounts.push(f64::from(volume) * end as f64 / 100.0);
        }
    }
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("security_id", Arc::new(StringArray::from(ids))),
        ("datetime", Arc::new(TimestampSecondArray::from(times))),
    ];
    for (name, values) in ["pre_close", "open", "high", "low", "last"].into_iter().zip(prices) {
        columns.push((name, Arc::new(Float64Array::from(values))));
    }
    columns.push(("volume", Arc::new(Int32Array::from(volumes))));
    columns.push(("amount", Arc::new(Float64Array::from(amounts))));
    RecordBatch::try_from_iter(columns).unwrap()
}

fn bulk(batch: &RecordBatch, rows_per_chunk: usize) -> Vec<Chunk> {
    let rows = batch.num_rows();
    let chunk =
        |start: usize| Chunk::new(batch.slice(start, rows_per_chunk.min(rows - start)), Seq(3), Ordinal(start as u64));
    (0..rows).step_by(rows_per_chunk).map(chunk).collect()
}

#[tokio::test]
async fn a_large_file_is_split_into_row_groups_and_its_identities_are_small() {
    let (_dir, store) = store();
    let batch = bars(1_500, 1);
    let table = table(&batch, &["security_id", "datetime"]);
    let (meta, read) = written(&store, &table, &bulk(&batch, 50_000)).await;
    assert_eq!(meta.rows, 363_000);
    assert!(meta.identity_bytes * 100 < meta.bytes, "{} of {}", meta.identity_bytes, meta.bytes);
    let ids = read.column(0).as_string::<i32>();
    assert!((1..ids.len()).all(|row| ids.value(row - 1) <= ids.value(row)));
    let volumes = |batch: &RecordBatch| -> i64 {
        let volumes = batch.column(7).as_primitive::<arrow_array::types::Int32Type>();
        volumes.values().iter().map(|volume| i64::from(*volume)).sum()
    };
    assert_eq!(volumes(&read), volumes(&batch));
    let min = meta.statistics[0].1.min.as_ref().unwrap();
    assert_eq!(min.as_string::<i32>().value(0), "600000");
    assert_eq!(*min.data_type(), DataType::Utf8);
    assert_eq!(*read.column(1).data_type(), DataType::Timestamp(TimeUnit::Second, None));
}

/// Figures of the tutorial's table, printed: run it optimised, with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "prints figures"]
#[expect(clippy::disallowed_methods, reason = "measures")]
async fn figures_of_the_tutorials_table() {
    let (_dir, store) = store();
    let by_time = bars(5_000, 1);
    let table = table(&by_time, &["security_id", "datetime"]);
    let (meta, by_security) = written(&store, &table, &bulk(&by_time, 65_536)).await;
    let by_security = by_security.project(&(0..9).collect::<Vec<_>>()).unwrap();
    println!("{} rows, {} bytes, {} of them identities", meta.rows, meta.bytes, meta.identity_bytes);
    for (name, batch) in [("in time order", &by_time), ("in file order", &by_security)] {
        let chunks = bulk(batch, 65_536);
        for _ in 0..3 {
            let scheme = PartitionScheme::new(&table).unwrap();
            let path = datafile_path("market", "bars", &scheme, &PartitionKey::default(), rand::random()).unwrap();
            let start = std::time::Instant::now();
            let meta = write_datafile(&store, WriteRequest { table: &table, path, chunks: &chunks }).await.unwrap();
            println!("{name}: {:?}, identities {} bytes", start.elapsed(), meta.identity_bytes);
        }
    }
}
