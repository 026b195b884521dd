use std::sync::Arc;

use datafusion::arrow::{
    array::{
        ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, DictionaryArray,
        Float32Array, Float64Array, Int8Array, Int32Array, Int64Array, ListArray, NullArray, StringArray,
        Time64MicrosecondArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
        TimestampSecondArray, UInt8Array, UInt32Array, UInt64Array,
    },
    datatypes::{Field, Int32Type, Schema, i256},
};

use super::*;
use crate::pgwire::types::wire_columns;

/// The values of a one-column batch on the wire; `None` is NULL.
fn values(array: ArrayRef, format: i16) -> Result<Vec<Option<Vec<u8>>>> {
    let schema = Arc::new(Schema::new(vec![Field::new("c", array.data_type().clone(), true)]));
    let columns = wire_columns(&schema, &[format]);
    let batch = RecordBatch::try_new(schema, vec![array]).unwrap();
    let mut encoder = BatchEncoder::new(&batch, &columns)?;
    let mut out = Vec::new();
    assert_eq!(encoder.write(&mut out, usize::MAX, usize::MAX)?, batch.num_rows());
    let mut rest = &out[..];
    let mut values = Vec::new();
    while !rest.is_empty() {
        assert_eq!(rest[0], b'D');
        let length = i32::from_be_bytes(rest[1..5].try_into().unwrap());
        assert_eq!(&rest[5..7], [0, 1]);
        let end = 1 + usize::try_from(length).unwrap();
        let value = i32::from_be_bytes(rest[7..11].try_into().unwrap());
        values.push((value >= 0).then(|| rest[11..end].to_vec()));
        if value >= 0 {
            assert_eq!(usize::try_from(value).unwrap(), end - 11);
        }
        rest = &rest[end..];
    }
    Ok(values)
}

fn text(array: impl datafusion::arrow::array::Array + 'static) -> Vec<Option<String>> {
    let values = values(Arc::new(array), 0).unwrap();
    values.into_iter().map(|value| value.map(|value| String::from_utf8(value).unwrap())).collect()
}

fn binary(array: impl datafusion::arrow::array::Array + 'static) -> Vec<Option<Vec<u8>>> {
    values(Arc::new(array), 1).unwrap()
}

fn some(texts: &[&str]) -> Vec<Option<String>> {
    texts.iter().map(|text| Some((*text).to_owned())).collect()
}

#[test]
fn text_of_every_column_type() {
    assert_eq!(
        text(BooleanArray::from(vec![Some(true), None, Some(false)])),
        [Some("t".into()), None, Some("f".into())]
    );
    assert_eq!(text(Int8Array::from(vec![i8::MIN])), some(&["-128"]));
    assert_eq!(text(Int64Array::from(vec![i64::MIN, 7])), some(&["-9223372036854775808", "7"]));
    assert_eq!(text(UInt64Array::from(vec![u64::MAX])), some(&["18446744073709551615"]));
    assert_eq!(text(Float32Array::from(vec![0.1, f32::NAN])), some(&["0.1", "NaN"]));
    assert_eq!(text(Float64Array::from(vec![10.37, -f64::INFINITY])), some(&["10.37", "-Infinity"]));
    let decimals = Decimal128Array::from(vec![-1, 12_345]).with_precision_and_scale(38, 2).unwrap();
    assert_eq!(text(decimals), some(&["-0.01", "123.45"]));
    assert_eq!(text(StringArray::from(vec![Some("ä"), None])), [Some("ä".to_owned()), None]);
    assert_eq!(text(BinaryArray::from(vec![&b"\x00\xff"[..]])), some(&["\\x00ff"]));
    assert_eq!(text(Date32Array::from(vec![19_365])), some(&["2023-01-08"]));
    assert_eq!(text(Time64MicrosecondArray::from(vec![34_200_500_000])), some(&["09:30:00.5"]));
    assert_eq!(text(NullArray::new(2)), [None, None]);
}

#[test]
fn text_of_timestamps_of_every_unit() {
    let second = 1_673_170_200;
    assert_eq!(text(TimestampSecondArray::from(vec![second])), some(&["2023-01-08 09:30:00"]));
    assert_eq!(text(TimestampMillisecondArray::from(vec![second * 1000 + 5])), some(&["2023-01-08 09:30:00.005"]));
    let micros = TimestampMicrosecondArray::from(vec![second * 1_000_000 + 1]).with_timezone("UTC");
    assert_eq!(text(micros), some(&["2023-01-08 09:30:00.000001+00"]));
    // The zone is how a value is shown elsewhere; this session shows UTC.
    let zoned = TimestampSecondArray::from(vec![second]).with_timezone("+02:00");
    assert_eq!(text(zoned), some(&["2023-01-08 09:30:00+00"]));
    assert_eq!(text(TimestampNanosecondArray::from(vec![-1])), some(&["1969-12-31 23:59:59.999999999"]));
}

#[test]
fn binary_of_every_column_type() {
    assert_eq!(binary(BooleanArray::from(vec![Some(true), None])), [Some(vec![1]), None]);
    assert_eq!(binary(Int8Array::from(vec![-2])), [Some(vec![0xff, 0xfe])]);
    assert_eq!(binary(UInt8Array::from(vec![255])), [Some(vec![0, 0xff])]);
    assert_eq!(binary(UInt32Array::from(vec![u32::MAX])), [Some(vec![0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff])]);
    assert_eq!(binary(Float64Array::from(vec![1.5])), [Some(1.5f64.to_be_bytes().to_vec())]);
    let decimals = Decimal128Array::from(vec![12_345]).with_precision_and_scale(10, 2).unwrap();
    assert_eq!(binary(decimals), [Some(vec![0, 2, 0, 0, 0, 0, 0, 2, 0, 123, 0x11, 0x94])]);
    assert_eq!(binary(Date32Array::from(vec![10_957])), [Some(vec![0; 4])]);
    assert_eq!(binary(BinaryArray::from(vec![&b"\x00\xff"[..]])), [Some(vec![0, 0xff])]);
    let epoch = 946_684_800;
    for array in [
        Arc::new(TimestampSecondArray::from(vec![epoch])) as ArrayRef,
        Arc::new(TimestampMillisecondArray::from(vec![epoch * 1000])),
        Arc::new(TimestampMicrosecondArray::from(vec![epoch * 1_000_000])),
        Arc::new(TimestampNanosecondArray::from(vec![epoch * 1_000_000_000 + 999])),
    ] {
        assert_eq!(values(array, 1).unwrap(), [Some(vec![0; 8])]);
    }
}

#[test]
fn binary_values_that_do_not_fit_are_refused() {
    assert_eq!(values(Arc::new(TimestampSecondArray::from(vec![i64::MAX])), 1).unwrap_err().sqlstate, "22008");
    assert_eq!(values(Arc::new(Date32Array::from(vec![i32::MIN])), 1).unwrap_err().sqlstate, "22008");
    assert!(values(Arc::new(TimestampSecondArray::from(vec![i64::MAX])), 0).is_ok());
}

#[test]
fn other_types() {
    let keys = Int8Array::from(vec![Some(1), None, Some(0)]);
    let dictionary = DictionaryArray::try_new(keys, Arc::new(StringArray::from(vec!["a", "b"]))).unwrap();
    assert_eq!(text(dictionary), [Some("b".to_owned()), None, Some("a".to_owned())]);
    let wide = Decimal256Array::from(vec![i256::from(10)]).with_precision_and_scale(40, 1).unwrap();
    assert_eq!(text(wide), some(&["1.0"]));
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
    assert_eq!(text(list), [Some("{1,NULL}".to_owned()), None]);
}

#[test]
fn rows_are_written_up_to_the_limits() {
    let array: ArrayRef = Arc::new(Int32Array::from_iter_values(0..100));
    let schema = Arc::new(Schema::new(vec![Field::new("c", array.data_type().clone(), true)]));
    let columns = wire_columns(&schema, &[]);
    let batch = RecordBatch::try_new(schema, vec![array]).unwrap();
    let mut encoder = BatchEncoder::new(&batch, &columns).unwrap();
    let mut out = Vec::new();
    assert_eq!(encoder.write(&mut out, 10, usize::MAX).unwrap(), 10);
    let bytes_max = out.len() + 1;
    assert_eq!(encoder.write(&mut out, usize::MAX, bytes_max).unwrap(), 1);
    assert_eq!(encoder.remaining(), 89);
}

#[test]
fn a_result_with_other_columns_than_announced_is_refused() {
    let array: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let batch = RecordBatch::try_from_iter([("c", array)]).unwrap();
    assert!(BatchEncoder::new(&batch, &[]).is_err());
}
