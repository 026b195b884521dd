//! Rows of the tutorial's shape: one-minute bars of 5,000 securities, from a seed.

use std::{fs::File, path::Path, sync::Arc};

use arrow_array::{Float64Array, Int32Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::WriterProperties,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Securities in a day.
pub(super) const SECURITIES: u64 = 5_000;

/// Bars of one security in a day: 09:30 to 11:30 and 13:00 to 15:00, both ends included.
pub(super) const MINUTES: u64 = 242;

/// 2023-01-08T00:00:00, the first day, in milliseconds since 1970.
const FIRST_DAY_MS: i64 = 1_673_136_000_000;

/// The same rows in every run.
const SEED: u64 = 20_230_108;

/// Rows per batch and row group: several row groups let a loader read in parallel.
const BATCH_ROWS: u64 = 121_000;

/// Writes `rows` rows as a Parquet file. `progress` hears how many are done.
pub(super) fn write_parquet(path: &Path, rows: u64, mut progress: impl FnMut(u64)) -> Result<(), ParquetError> {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_max_row_group_row_count(Some(BATCH_ROWS as usize))
        .build();
    let mut writer = ArrowWriter::try_new(File::create(path)?, schema(), Some(properties))?;
    let mut done = 0;
    for batch in batches(rows) {
        let batch = batch?;
        writer.write(&batch)?;
        done += batch.num_rows() as u64;
        progress(done);
    }
    writer.close()?;
    Ok(())
}

/// The first `rows` rows, the same in every run.
pub fn batches(rows: u64) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> {
    let mut random = StdRng::seed_from_u64(SEED);
    let starts = (0..rows).step_by(BATCH_ROWS as usize);
    starts.map(move |start| bars(start..rows.min(start + BATCH_ROWS), &mut random))
}

/// Identifier of the security numbered `number`: six digits.
pub(super) fn security(number: u64) -> String {
    format!("{number:06}")
}

/// Columns of the tutorial's table.
pub fn schema() -> SchemaRef {
    let price = |name| Field::new(name, DataType::Float64, false);
    Arc::new(Schema::new(vec![
        Field::new("security_id", DataType::Utf8, false),
        Field::new("datetime", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        price("pre_close_px"),
        price("open_px"),
        price("high_px"),
        price("low_px"),
        price("last_px"),
        Field::new("volume", DataType::Int32, false),
        price("amount"),
    ]))
}

/// The rows numbered `rows`, by day, security, minute.
fn bars(rows: std::ops::Range<u64>, random: &mut StdRng) -> Result<RecordBatch, ArrowError> {
    let count = (rows.end - rows.start) as usize;
    let mut prices = || -> Vec<f64> { (0..count).map(|_| cents(10.0 + random.random::<f64>() * 100.0)).collect() };
    let [pre_close, open, high, low, last] = std::array::from_fn(|_| prices());
    let volume: Vec<i32> = (0..count).map(|_| random.random_range(100..200)).collect();
    let amount: Vec<f64> = last.iter().zip(&volume).map(|(price, volume)| cents(price * f64::from(*volume))).collect();
    let float = |values: Vec<f64>| Arc::new(Float64Array::from(values));
    RecordBatch::try_new(
        schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.clone().map(|row| security(row / MINUTES % SECURITIES)))),
            Arc::new(TimestampMillisecondArray::from_iter_values(rows.map(datetime_ms))),
            float(pre_close),
            float(open),
            float(high),
            float(low),
            float(last),
            Arc::new(Int32Array::from(volume)),
            float(amount),
        ],
    )
}

fn datetime_ms(row: u64) -> i64 {
    let day = (row / (SECURITIES * MINUTES)) as i64;
    let minute = (row % MINUTES) as i64;
    let of_day = if minute < 121 { 9 * 60 + 30 + minute } else { 13 * 60 + minute - 121 };
    FIRST_DAY_MS + (day * 24 * 60 + of_day) * 60_000
}

fn cents(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_day_has_every_security_at_every_minute_once() {
        let rows = 0..SECURITIES * MINUTES;
        let keys: BTreeSet<_> = rows.clone().map(|row| (row / MINUTES % SECURITIES, datetime_ms(row))).collect();
        assert_eq!(keys.len() as u64, super::super::TUTORIAL_ROWS);
        let times: BTreeSet<_> = keys.iter().map(|(_, time)| *time).collect();
        assert_eq!(times.len(), 242);
        // 2023-01-08T09:30 and 15:00.
        assert_eq!(*times.first().unwrap(), 1_673_170_200_000);
        assert_eq!(*times.last().unwrap(), 1_673_190_000_000);
        assert_eq!(datetime_ms(rows.end), times.first().unwrap() + 86_400_000);
    }

    #[test]
    fn the_same_seed_gives_the_same_file_and_values_in_range() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| folder.path().join(name));
        write_parquet(&a, 1000, |_| ()).unwrap();
        let mut heard = Vec::new();
        write_parquet(&b, 1000, |rows| heard.push(rows)).unwrap();
        assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
        assert_eq!(heard, [1000]);

        let batch = bars(0..1000, &mut StdRng::seed_from_u64(SEED)).unwrap();
        let volume = batch.column(7).as_any().downcast_ref::<Int32Array>().unwrap();
        assert!(volume.values().iter().all(|volume| (100..200).contains(volume)));
        let last = batch.column(6).as_any().downcast_ref::<Float64Array>().unwrap();
        assert!(last.values().iter().all(|price| (10.0..=110.0).contains(price)));
    }
}
