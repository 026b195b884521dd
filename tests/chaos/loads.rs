//! The bulk loader: Parquet files large enough for fragments; each is there whole or not at all. From time to time it
//! moves on to a new table and drops the old one.

use std::{fs::File, path::Path, sync::Arc, time::Duration};

use arrow_array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use parquet::arrow::ArrowWriter;
use rand::{Rng, rngs::StdRng};

use crate::{
    Run,
    client::{Connection, Failure},
    ledger::{Load, Outcome},
    plan::Side,
};

/// Loads into one table before the next one takes its place.
const LOADS_PER_TABLE: u64 = 12;

/// 2024-02-01T00:00:00 in milliseconds since 1970.
const FIRST_DAY_MS: i64 = 1_706_745_600_000;

pub(crate) fn table(generation: u64) -> String {
    format!("chaos.loads_{generation}")
}

pub(crate) fn create_table(generation: u64) -> String {
    format!(
        "CREATE TABLE {} (load BIGINT NOT NULL, row BIGINT NOT NULL, price DOUBLE PRECISION, label VARCHAR, \
         at TIMESTAMP(3) NOT NULL) PARTITION BY VALUE (day(at)) ORDER BY (load, row)",
        table(generation)
    )
}

/// Loads until the load ends.
pub(crate) async fn load(run: Arc<Run>) {
    let mut random = run.seed.actor("loads", 0);
    let mut number = 0;
    while !*run.load_ends.borrow() {
        number += 1;
        if number % LOADS_PER_TABLE == 0 && next_table(&run).await.is_none() {
            return;
        }
        let rows = random.random_range(10_000..60_000);
        let path = run.site.import().join(format!("{number}.parquet"));
        write_parquet(&path, number, rows, &mut random);
        let rolls_back = random.random_bool(0.15);
        let Some(connection) = Connection::open(&run, Side::Primary).await else { return };
        let generation = run.ledger.generation.lock().unwrap().number;
        let load = |outcome| Load { generation, rows, outcome };
        run.ledger.loads.lock().unwrap().insert(number, load(Outcome::Sent));
        let copy = format!("COPY {} FROM '{}'", table(generation), path.display());
        let result =
            if rolls_back { roll_back(&run, &connection, &copy).await } else { connection.execute(&run, &copy).await };
        let outcome = if rolls_back { Outcome::Refused } else { Outcome::of(&result) };
        run.ledger.loads.lock().unwrap().insert(number, load(outcome));
        let word = result.err().map_or("done".to_owned(), |failure| failure.outcome());
        run.report.operation(if rolls_back { "bulk load with rollback" } else { "bulk load" }, &word);
        let _ = std::fs::remove_file(&path);
        tokio::time::sleep(Duration::from_millis(random.random_range(500..4000))).await;
    }
}

async fn roll_back(run: &Run, connection: &Connection, copy: &str) -> Result<(), Failure> {
    for statement in ["BEGIN", copy, "ROLLBACK"] {
        connection.execute(run, statement).await?;
    }
    Ok(())
}

/// A new table for what follows, and the old one dropped. `None`: the load ends first.
async fn next_table(run: &Run) -> Option<()> {
    let old = run.ledger.generation.lock().unwrap().number;
    insist(run, Side::Primary, &create_table(old + 1), "42P07").await?;
    {
        let mut generation = run.ledger.generation.lock().unwrap();
        generation.number = old + 1;
        generation.is_dropping = true;
    }
    insist(run, Side::Primary, &format!("DROP TABLE {}", table(old)), "42P01").await?;
    run.ledger.generation.lock().unwrap().is_dropping = false;
    Some(())
}

/// Repeats a statement until it is done; `done_before` is the state that says that an earlier attempt did it.
pub(crate) async fn insist(run: &Run, side: Side, statement: &str, done_before: &str) -> Option<()> {
    while let Some(connection) = Connection::open(run, side).await {
        let result = connection.execute(run, statement).await;
        let word = result.as_ref().err().map_or("done".to_owned(), Failure::outcome);
        run.report.operation(statement.split_whitespace().take(2).collect::<Vec<_>>().join(" ").as_str(), &word);
        match result {
            Ok(()) => return Some(()),
            Err(failure) if failure.is_refused_with(done_before) => return Some(()),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    None
}

fn write_parquet(path: &Path, load: u64, rows: u64, random: &mut StdRng) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("load", DataType::Int64, false),
        Field::new("row", DataType::Int64, false),
        Field::new("price", DataType::Float64, true),
        Field::new("label", DataType::Utf8, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ]));
    let prices: Vec<_> = (0..rows).map(|_| f64::from(random.random_range(0..1_000_000)) / 100.0).collect();
    let labels = prices.iter().map(|price| format!("a label that is not short at all, for {price}"));
    let days = (0..rows).map(|row| FIRST_DAY_MS + (row % 3) as i64 * 86_400_000 + row as i64);
    let batch = RecordBatch::try_new(
        schema.clone(),
        vec![
            Arc::new(Int64Array::from(vec![load as i64; rows as usize])),
            Arc::new(Int64Array::from_iter_values(0..rows as i64)),
            Arc::new(Float64Array::from(prices.clone())),
            Arc::new(StringArray::from_iter_values(labels)),
            Arc::new(TimestampMillisecondArray::from_iter_values(days)),
        ],
    );
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch.unwrap()).unwrap();
    writer.close().unwrap();
}
