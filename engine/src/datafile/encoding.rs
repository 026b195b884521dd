//! How the values of a column are encoded.

use std::{collections::HashSet, hash::Hash};

use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use parquet::basic::Encoding;

use crate::scalar::Scalar;

/// Values looked at per column.
const SAMPLE: usize = 4096;
/// Values below which a dictionary costs nothing worth a decision.
const SAMPLE_MIN: usize = 64;

/// `None`: a dictionary, which most columns of time series gain from. Where nearly every value is new, building one costs
/// more than everything else and is thrown away half-way: such columns are written as they are, integers and times as
/// packed differences.
pub(super) fn without_dictionary(chunks: &[ArrayRef]) -> Option<Encoding> {
    let data_type = chunks.first()?.data_type();
    // Whatever fits 16 bits has few values; booleans have no dictionary.
    if matches!(data_type, DataType::Boolean) || data_type.primitive_width().is_some_and(|width| width < 4) {
        return None;
    }
    let rows: usize = chunks.iter().map(|chunk| chunk.len()).sum();
    let stride = rows.div_ceil(SAMPLE).max(1);
    let mut seen: HashSet<Value<'_>> = HashSet::new();
    let (mut taken, mut skip) = (0usize, 0);
    for chunk in chunks {
        let mut row = skip;
        while row < chunk.len() {
            if let Some(scalar) = Scalar::at(chunk, row) {
                taken += 1;
                seen.insert(Value::of(scalar));
            }
            row += stride;
        }
        skip = row - chunk.len();
    }
    if taken < SAMPLE_MIN || seen.len() * 10 < taken * 9 {
        return None;
    }
    Some(match data_type {
        DataType::Int32
        | DataType::Int64
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Date32
        | DataType::Timestamp(..) => Encoding::DELTA_BINARY_PACKED,
        _ => Encoding::PLAIN,
    })
}

/// A scalar that can be counted: floats by their bits.
#[derive(PartialEq, Eq, Hash)]
enum Value<'a> {
    Number(i128),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn of(scalar: Scalar<'a>) -> Self {
        match scalar {
            Scalar::Bool(value) => Self::Number(value.into()),
            Scalar::Int(value) => Self::Number(value.into()),
            Scalar::UInt(value) => Self::Number(value.into()),
            Scalar::Float(value) => Self::Number(value.to_bits().into()),
            Scalar::Decimal(value) => Self::Number(value),
            Scalar::Bytes(value) => Self::Bytes(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BooleanArray, Float64Array, Int16Array, StringArray, TimestampSecondArray};

    use super::*;

    #[test]
    fn new_values_everywhere_want_no_dictionary() {
        let few: ArrayRef = Arc::new(Float64Array::from_iter_values((0..10_000).map(|row| f64::from(row % 100))));
        let many: ArrayRef = Arc::new(Float64Array::from_iter_values((0..10_000).map(f64::from)));
        let times: ArrayRef = Arc::new(TimestampSecondArray::from_iter_values(0..10_000));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..10_000).map(|row| row.to_string())));
        let short: ArrayRef = Arc::new(Int16Array::from_iter_values(0..10_000));
        let flags: ArrayRef = Arc::new(BooleanArray::from(vec![true; 100]));
        assert_eq!(without_dictionary(std::slice::from_ref(&few)), None);
        assert_eq!(without_dictionary(std::slice::from_ref(&many)), Some(Encoding::PLAIN));
        assert_eq!(
            without_dictionary(&[times.slice(0, 100), times.slice(100, 9_900)]),
            Some(Encoding::DELTA_BINARY_PACKED)
        );
        assert_eq!(without_dictionary(&[texts]), Some(Encoding::PLAIN));
        assert_eq!(without_dictionary(&[few, many.slice(0, 100)]), None);
        assert_eq!(without_dictionary(&[many.slice(0, 10)]), None);
        assert_eq!(without_dictionary(&[short]), None);
        assert_eq!(without_dictionary(&[flags]), None);
        assert_eq!(without_dictionary(&[]), None);
    }
}
