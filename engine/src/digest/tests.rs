use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array, new_null_array,
};
use arrow_cast::cast;
use arrow_schema::{DataType, Field, Schema};
use arrow_select::{concat::concat_batches, take::take_record_batch};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tailrace_wal::Seq;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128, xxh3_128_with_seed};

use super::*;
use crate::{
    Chunk, IdentityRun, ORDINAL_COLUMN, Ordinal, SEQ_COLUMN, part::tests::every_type, scalar::Scalar, types::all_types,
};

fn of(batch: &RecordBatch) -> Digest {
    RowHasher::new(&batch.schema()).unwrap().values(batch).unwrap()
}

fn identified(batch: &RecordBatch) -> Digest {
    RowHasher::new(&batch.schema()).unwrap().rows(batch, Seq(7), Ordinal(100)).unwrap()
}

fn seed() -> (u64, StdRng) {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed} cargo test -p tailrace-engine --lib digest");
    (seed, StdRng::seed_from_u64(seed))
}

/// As `FORMAT.md` says it: value by value, row by row.
fn by_the_book(batch: &RecordBatch, identities: Option<&[(u64, u64)]>) -> Digest {
    let key = |kind: u8, name: &str| xxh3_64(&[&[kind], name.as_bytes()].concat());
    let mut digest = Digest::default();
    for row in 0..batch.num_rows() {
        let mut sum = 0u128;
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            let Some(value) = Scalar::at(column, row) else { continue };
            let (kind, bytes): (u8, Vec<u8>) = match (field.data_type(), value) {
                (_, Scalar::Bool(value)) => (1, vec![u8::from(value)]),
                (DataType::Date32, Scalar::Int(days)) => (7, days.to_le_bytes().into()),
                (DataType::Timestamp(unit, zone), Scalar::Int(time)) => {
                    let unit = *unit as u8;
                    (if zone.is_some() { 12 + unit } else { 8 + unit }, time.to_le_bytes().into())
                }
                (_, Scalar::Int(value)) => (2, value.to_le_bytes().into()),
                (_, Scalar::UInt(value)) => (3, value.to_le_bytes().into()),
                (_, Scalar::Float(value)) if value.is_nan() => (4, 0x7ff8_0000_0000_0000u64.to_le_bytes().into()),
                (_, Scalar::Float(value)) => (4, value.to_bits().to_le_bytes().into()),
                (DataType::Decimal128(_, scale), Scalar::Decimal(value)) => {
                    (64 + *scale as u8, value.to_le_bytes().into())
                }
                (DataType::Utf8, Scalar::Bytes(value)) => (5, value.into()),
                (DataType::Binary, Scalar::Bytes(value)) => (6, value.into()),
                other => panic!("{other:?}"),
            };
            sum = sum.wrapping_add(xxh3_128_with_seed(&bytes, key(kind, field.name())));
        }
        digest.rows += 1;
        digest.values = digest.values.wrapping_add(xxh3_128(&sum.to_le_bytes()));
        if let Some(identities) = identities {
            let (seq, ordinal) = identities[row];
            sum = sum.wrapping_add(xxh3_128_with_seed(&seq.to_le_bytes(), key(3, SEQ_COLUMN)));
            sum = sum.wrapping_add(xxh3_128_with_seed(&ordinal.to_le_bytes(), key(3, ORDINAL_COLUMN)));
            digest.identity = digest.identity.wrapping_add(xxh3_128(&sum.to_le_bytes()));
        }
    }
    digest
}

fn all(rows: usize) -> Vec<u32> {
    (0..rows as u32).collect()
}

fn taken(batch: &RecordBatch, rows: &[u32]) -> RecordBatch {
    take_record_batch(batch, &arrow_array::UInt32Array::from(rows.to_vec())).unwrap()
}

#[test]
fn the_format_is_what_it_says() {
    let batch = every_type(2_500);
    let identities: Vec<(u64, u64)> =
        (0..2_500).map(|row| if row < 1_500 { (7, 100 + row) } else { (9, row - 1_500) }).collect();
    let mut chunk = Chunk::new(batch.clone(), Seq(7), Ordinal(100));
    chunk.identities.push(IdentityRun { start: 1_500, seq: Seq(9), first_ordinal: Ordinal(0) });
    let hasher = RowHasher::new(&batch.schema()).unwrap();
    let digest = hasher.chunk(&chunk).unwrap();
    assert_eq!(digest, by_the_book(&batch, Some(&identities)));
    assert_eq!(hasher.values(&batch).unwrap(), by_the_book(&batch, None));
    // Pieces of the chunk, cut where runs and blocks are not.
    for cuts in [vec![0, 2_500], vec![0, 1, 1_023, 1_024, 1_025, 1_499, 1_500, 1_501, 2_500]] {
        let pieces = cuts.windows(2).map(|cut| hasher.chunk_rows(&chunk, cut[0]..cut[1]).unwrap());
        assert_eq!(pieces.sum::<Digest>(), digest);
    }
    // The same with identities as a datafile has them.
    let (seqs, ordinals): (Vec<u64>, Vec<u64>) = identities.into_iter().unzip();
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(UInt64Array::from(seqs)));
    columns.push(Arc::new(UInt64Array::from(ordinals)));
    let mut fields = batch.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(SEQ_COLUMN, DataType::UInt64, false)));
    fields.push(Arc::new(Field::new(ORDINAL_COLUMN, DataType::UInt64, false)));
    let with = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    assert_eq!(hasher.with_identity_columns(&with).unwrap(), digest);
    assert!(hasher.with_identity_columns(&batch).is_err());
}

/// Digests of each type's column alone, and of all together: they are kept in manifests and backups for ever.
#[test]
fn digests_of_today_are_those_of_ever() {
    let batch = every_type(1_000);
    let mut text = format!("all {}\n", identified(&batch));
    for (index, data_type) in all_types().iter().enumerate() {
        text += &format!("{data_type} {}\n", identified(&batch.project(&[index]).unwrap()));
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden/v1/digests.txt");
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
}

#[test]
fn order_batches_and_columns_places_do_not_matter() {
    let (_, mut random) = seed();
    let batch = every_type(777);
    let whole = of(&batch);
    for _ in 0..10 {
        let mut rows = all(777);
        rows.shuffle(&mut random);
        let shuffled = taken(&batch, &rows);
        assert_eq!(of(&shuffled), whole);
        let mut pieces = Digest::default();
        let mut start = 0;
        while start < 777 {
            let length = random.random_range(1..=777 - start);
            pieces += of(&shuffled.slice(start, length));
            start += length;
        }
        assert_eq!(pieces, whole);
        let mut columns: Vec<usize> = (0..batch.num_columns()).collect();
        columns.shuffle(&mut random);
        assert_eq!(of(&batch.project(&columns).unwrap()), whole);
        let cut = random.random_range(0..777);
        let (head, tail) = (batch.slice(0, cut), batch.slice(cut, 777 - cut));
        assert_eq!(whole - of(&tail), of(&head));
        assert_eq!(of(&concat_batches(&batch.schema(), [&tail, &head]).unwrap()), whole);
    }
}

#[test]
fn encodings_do_not_matter() {
    let batch = every_type(500);
    let mut encodings = 0;
    for (index, column) in batch.columns().iter().enumerate() {
        let one = |array: ArrayRef, data_type: DataType| {
            let field = Field::new(format!("c{index}"), data_type, true);
            RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![array]).unwrap()
        };
        let plain = of(&batch.project(&[index]).unwrap());
        let data_type = column.data_type();
        let mut others = vec![DataType::Dictionary(Box::new(DataType::Int32), Box::new(data_type.clone()))];
        others.extend(match data_type {
            DataType::Utf8 => vec![DataType::LargeUtf8, DataType::Utf8View],
            DataType::Binary => vec![DataType::LargeBinary, DataType::BinaryView],
            DataType::Int8 | DataType::Int16 | DataType::Int32 => vec![DataType::Int64],
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => vec![DataType::UInt64],
            DataType::Float32 => vec![DataType::Float64],
            DataType::Decimal128(5, 2) => vec![DataType::Decimal128(20, 2)],
            DataType::Timestamp(unit, Some(_)) => vec![DataType::Timestamp(*unit, Some("UTC".into()))],
            _ => vec![],
        });
        for other in others {
            // Not every type has a dictionary.
            let Ok(array) = cast(column, &other) else { continue };
            assert_eq!(of(&one(array.clone(), other.clone())), plain, "{data_type} as {other}");
            // A table's hasher takes what a scan gives.
            let hasher = RowHasher::new(&batch.project(&[index]).unwrap().schema()).unwrap();
            assert_eq!(hasher.values(&one(array, other)).unwrap(), plain);
            encodings += 1;
        }
    }
    assert!(encodings > 25, "{encodings}");
}

#[test]
fn null_is_not_there() {
    let batch = every_type(100);
    let whole = of(&batch);
    for data_type in all_types() {
        let mut fields = batch.schema().fields().to_vec();
        fields.insert(3, Arc::new(Field::new("new", data_type.clone(), true)));
        let mut columns = batch.columns().to_vec();
        columns.insert(3, new_null_array(&data_type, 100));
        assert_eq!(of(&RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()), whole);
    }
}

fn column(name: &str, array: impl Array + 'static) -> RecordBatch {
    RecordBatch::try_from_iter([(name, Arc::new(array) as ArrayRef)]).unwrap()
}

#[test]
fn what_differs_has_another_digest() {
    let different = [
        of(&column("a", Int64Array::from(vec![1, 2]))),
        of(&column("b", Int64Array::from(vec![1, 2]))),
        of(&column("a", Int64Array::from(vec![1, 1]))),
        of(&column("a", Int64Array::from(vec![2, 2]))),
        of(&column("a", Int64Array::from(vec![Some(1), None]))),
        of(&column("a", UInt64Array::from(vec![1, 2]))),
        of(&column("a", StringArray::from(vec!["1", "2"]))),
        of(&column("a", StringArray::from(vec!["12", ""]))),
        of(&column("a", StringArray::from(vec![Some("12"), None]))),
        of(&column("a", Float64Array::from(vec![0.0, 1.0]))),
        of(&column("a", Float64Array::from(vec![-0.0, 1.0]))),
        of(&column("a", Float64Array::from(vec![f64::NAN, 1.0]))),
    ];
    for (index, digest) in different.iter().enumerate() {
        assert!(!different[..index].iter().any(|other| other.values == digest.values), "{index}");
    }
    // All NaNs are one.
    let nan = |bits: u64| of(&column("a", Float64Array::from(vec![f64::from_bits(bits)])));
    assert_eq!(nan(0x7ff8_0000_0000_0000), nan(0xfff8_dead_beef_0001));
    assert_eq!(nan(0x7ff8_0000_0000_0000), of(&column("a", Float32Array::from(vec![-f32::NAN]))));
    // Rows that exchange a value.
    let pair = |a: [i64; 2], b: [i64; 2]| {
        let column = |values: [i64; 2]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        of(&RecordBatch::try_from_iter([("a", column(a)), ("b", column(b))]).unwrap())
    };
    assert_ne!(pair([1, 2], [1, 2]), pair([1, 2], [2, 1]));
    assert_ne!(pair([1, 2], [3, 4]), pair([3, 4], [1, 2]));
    // The same rows under other identities.
    let batch = column("a", Int64Array::from(vec![1, 2]));
    let hasher = RowHasher::new(&batch.schema()).unwrap();
    let (one, other) =
        (hasher.rows(&batch, Seq(1), Ordinal(0)).unwrap(), hasher.rows(&batch, Seq(1), Ordinal(1)).unwrap());
    assert!(one.same_values(&other) && one.identity != other.identity);
    assert_ne!(one.identity, hasher.rows(&batch, Seq(2), Ordinal(0)).unwrap().identity);
    let exchanged = taken(&batch, &[1, 0]);
    assert_ne!(one.identity, hasher.rows(&exchanged, Seq(1), Ordinal(0)).unwrap().identity);
}

#[test]
fn one_value_changed_changes_both_sums() {
    let (_, mut random) = seed();
    let batch = every_type(300);
    let whole = identified(&batch);
    for (index, array) in batch.columns().iter().enumerate() {
        for _ in 0..20 {
            // The value of another row in the place of one, where it is another value.
            let (row, from) = (random.random_range(0..300u32), random.random_range(0..300u32));
            let value = |row: u32| Scalar::at(array, row as usize);
            let mut rows = all(300);
            rows[row as usize] = from;
            let mut columns = batch.columns().to_vec();
            columns[index] = taken(&batch.project(&[index]).unwrap(), &rows).column(0).clone();
            let changed = identified(&RecordBatch::try_new(batch.schema(), columns).unwrap());
            if value(row) == value(from) {
                assert_eq!(changed, whole);
            } else {
                assert!(changed.values != whole.values && changed.identity != whole.identity, "{row} {from}");
            }
        }
    }
}

#[test]
fn a_digest_is_text() {
    let digest = Digest { rows: 3, values: 0xab, identity: u128::MAX };
    let json = serde_json::to_string(&digest).unwrap();
    let wanted =
        r#"{"rows":3,"values":"000000000000000000000000000000ab","identity":"ffffffffffffffffffffffffffffffff"}"#;
    assert_eq!(json, wanted);
    assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), digest);
    assert_eq!(digest.to_string(), "3:000000000000000000000000000000ab:ffffffffffffffffffffffffffffffff");
    for wrong in ["AB", "+0000000000000000000000000000ab0", "000000000000000000000000000000AB"] {
        assert!(serde_json::from_str::<Digest>(&json.replace("000000000000000000000000000000ab", wrong)).is_err());
    }
    assert_eq!(Digest::default() - digest + digest, Digest::default());
}

#[test]
fn other_columns_are_refused_by_name() {
    let batch = column("a", Int64Array::from(vec![1]));
    let hasher = RowHasher::new(&batch.schema()).unwrap();
    let error = hasher.values(&column("a", StringArray::from(vec!["1"]))).unwrap_err().to_string();
    assert!(error.contains("\"a\"") && error.contains("Utf8"), "{error}");
    assert!(hasher.values(&every_type(1)).unwrap_err().to_string().contains("to have 1"));
    let list = Schema::new(vec![Field::new_list("l", Field::new("x", DataType::Int64, true), true)]);
    assert!(RowHasher::new(&list).unwrap_err().to_string().contains("\"l\""));
}

/// Rows per second on the tutorial's columns, printed: run it optimised, alone, with `--ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
#[expect(clippy::disallowed_methods, reason = "measures")]
fn figures_of_the_tutorials_columns() {
    let mut random = StdRng::seed_from_u64(1);
    let rows = 1_000_000;
    let times = arrow_array::TimestampMillisecondArray::from_iter_values((0..rows).map(|row| row * 60_000));
    let mut columns: Vec<(String, ArrayRef)> = vec![
        (
            "security_id".into(),
            Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{:06}", row / 242)))),
        ),
        ("datetime".into(), Arc::new(times)),
    ];
    for name in ["pre_close_px", "open_px", "high_px", "low_px", "last_px", "amount"] {
        let values = (0..rows).map(|_| (random.random::<f64>() * 1e4).round() / 100.0);
        columns.push((name.into(), Arc::new(Float64Array::from_iter_values(values))));
    }
    columns
        .push(("volume".into(), Arc::new(arrow_array::Int32Array::from_iter_values((0..rows).map(|row| row as i32)))));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let hasher = RowHasher::new(&batch.schema()).unwrap();
    for _ in 0..5 {
        for (name, with_identity) in [("values", false), ("values and identity", true)] {
            let start = std::time::Instant::now();
            let digest = match with_identity {
                true => hasher.rows(&batch, Seq(1), Ordinal(0)).unwrap(),
                false => hasher.values(&batch).unwrap(),
            };
            let rate = digest.rows as f64 / start.elapsed().as_secs_f64() / 1e6;
            println!("{name}: {rate:.1} M rows/s ({})", digest.values_hex());
        }
    }
}
