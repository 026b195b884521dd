//! Exact statistics of a datafile's columns.

use std::cmp::Ordering;

use arrow_array::{
    Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, PrimitiveArray, cast::AsArray, downcast_primitive_array,
};
use arrow_schema::DataType;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use crate::{scalar::Scalar, types::check_type};

/// Longest string or binary that is kept whole, bytes.
const BOUND_BYTES_MAX: usize = 64;

/// Statistics of one column of one datafile. Strings and binaries may be cut to 64 bytes in `min` (rounded down) and
/// leave out `max` when it cannot be rounded up; `exact` tells.
#[derive(Debug, Clone)]
pub struct ColumnStatistics {
    /// NULLs.
    pub null_count: u64,
    /// Array of one value of the column's type; `None` when all are NULL, or a float column holds NaN.
    pub min: Option<ArrayRef>,
    /// See `min`.
    pub max: Option<ArrayRef>,
    /// Whether `min` and `max` are values of the column, not mere bounds.
    pub exact: bool,
}

/// Folds a column's arrays into its statistics.
#[derive(Debug)]
pub(super) struct Accumulator {
    data_type: DataType,
    null_count: u64,
    ends: Option<(Value, Value)>,
    /// A NaN was seen: no order holds.
    unordered: bool,
}

/// A value that outlives its array.
#[derive(Debug, Clone)]
enum Value {
    Fixed(Scalar<'static>),
    Bytes(Vec<u8>),
}

impl Value {
    fn as_scalar(&self) -> Scalar<'_> {
        match self {
            Self::Fixed(scalar) => *scalar,
            Self::Bytes(bytes) => Scalar::Bytes(bytes),
        }
    }

    fn owned(scalar: Scalar<'_>) -> Self {
        match scalar {
            Scalar::Bytes(bytes) => Self::Bytes(bytes.to_vec()),
            Scalar::Bool(value) => Self::Fixed(Scalar::Bool(value)),
            Scalar::Int(value) => Self::Fixed(Scalar::Int(value)),
            Scalar::UInt(value) => Self::Fixed(Scalar::UInt(value)),
            Scalar::Float(value) => Self::Fixed(Scalar::Float(value)),
            Scalar::Decimal(value) => Self::Fixed(Scalar::Decimal(value)),
        }
    }
}

impl Accumulator {
    pub(super) fn new(data_type: DataType) -> Self {
        Self { data_type, null_count: 0, ends: None, unordered: false }
    }

    pub(super) fn add(&mut self, array: &ArrayRef) {
        self.null_count += array.null_count() as u64;
        if array.null_count() == array.len() || self.unordered {
            return;
        }
        let Some((low, high)) = ends(array) else {
            self.unordered = true;
            return;
        };
        // The rows that hold the ends are known; their values are taken from there.
        let (Some(low), Some(high)) = (Scalar::at(array, low), Scalar::at(array, high)) else { return };
        self.ends = Some(match self.ends.take() {
            None => (Value::owned(low), Value::owned(high)),
            Some((min, max)) => (
                if compare(low, min.as_scalar()).is_lt() { Value::owned(low) } else { min },
                if compare(high, max.as_scalar()).is_gt() { Value::owned(high) } else { max },
            ),
        });
    }

    pub(super) fn finish(self) -> ColumnStatistics {
        let (null_count, data_type) = (self.null_count, &self.data_type);
        let ends = self.ends.filter(|_| !self.unordered);
        let Some((min, max)) = ends else {
            return ColumnStatistics { null_count, min: None, max: None, exact: !self.unordered };
        };
        let array = |scalar: Scalar<'_>| scalar.to_array(data_type);
        let whole = |value: &Value| !matches!(value, Value::Bytes(bytes) if bytes.len() > BOUND_BYTES_MAX);
        let exact = whole(&min) && whole(&max);
        let min = match &min {
            Value::Bytes(bytes) => array(Scalar::Bytes(cut(bytes, data_type))),
            Value::Fixed(scalar) => array(*scalar),
        };
        let max = match &max {
            Value::Bytes(bytes) if bytes.len() > BOUND_BYTES_MAX => {
                above(bytes, data_type).and_then(|bytes| array(Scalar::Bytes(&bytes)))
            }
            other => array(other.as_scalar()),
        };
        ColumnStatistics { null_count, min, max, exact }
    }
}

fn compare(a: Scalar<'_>, b: Scalar<'_>) -> Ordering {
    match (a, b) {
        (Scalar::Bool(a), Scalar::Bool(b)) => a.cmp(&b),
        (Scalar::Int(a), Scalar::Int(b)) => a.cmp(&b),
        (Scalar::UInt(a), Scalar::UInt(b)) => a.cmp(&b),
        (Scalar::Float(a), Scalar::Float(b)) => a.total_cmp(&b),
        (Scalar::Decimal(a), Scalar::Decimal(b)) => a.cmp(&b),
        (Scalar::Bytes(a), Scalar::Bytes(b)) => a.cmp(b),
        // One column has one kind.
        _ => Ordering::Equal,
    }
}

/// Rows of the smallest and the largest value of an array with at least one; `None` if it holds NaN.
fn ends(array: &ArrayRef) -> Option<(usize, usize)> {
    let array = array.as_ref();
    downcast_primitive_array!(
        array => primitive_ends(array),
        DataType::Boolean => {
            let values = array.as_boolean();
            Some(ordered_ends(values.iter().enumerate(), |a, b| a.cmp(b)))
        }
        DataType::Utf8 => {
            Some(ordered_ends(array.as_string::<i32>().iter().enumerate(), |a, b| a.as_bytes().cmp(b.as_bytes())))
        }
        DataType::Binary => Some(ordered_ends(array.as_binary::<i32>().iter().enumerate(), |a, b| a.cmp(b))),
        _ => None
    )
}

fn primitive_ends<T: ArrowPrimitiveType>(array: &PrimitiveArray<T>) -> Option<(usize, usize)> {
    let values = array.values();
    let mut valid = (0..values.len()).filter(|row| array.is_valid(*row));
    let first = valid.next()?;
    // Two passes: the first is a plain reduction that compiles to vector instructions, the second stops at its find.
    let (mut low, mut high) = (values[first], values[first]);
    // Only NaN has no order with itself.
    let mut unordered = false;
    let mut fold = |value: T::Native| {
        unordered |= value.partial_cmp(&value).is_none();
        low = if value.is_lt(low) { value } else { low };
        high = if value.is_gt(high) { value } else { high };
    };
    if array.null_count() == 0 {
        values.iter().copied().for_each(&mut fold);
    } else {
        array.iter().flatten().for_each(&mut fold);
    }
    if unordered {
        return None;
    }
    let find = |wanted: T::Native| {
        (first..values.len()).find(|row| array.is_valid(*row) && values[*row].is_eq(wanted)).unwrap_or(first)
    };
    Some((find(low), find(high)))
}

fn ordered_ends<T: Copy>(
    rows: impl Iterator<Item = (usize, Option<T>)>,
    order: impl Fn(&T, &T) -> Ordering,
) -> (usize, usize) {
    let mut ends: Option<((usize, T), (usize, T))> = None;
    for (row, value) in rows {
        let Some(value) = value else { continue };
        ends = Some(match ends {
            None => ((row, value), (row, value)),
            Some((low, high)) if order(&value, &low.1).is_lt() => ((row, value), high),
            Some((low, high)) if order(&value, &high.1).is_gt() => (low, (row, value)),
            Some(ends) => ends,
        });
    }
    ends.map_or((0, 0), |(low, high)| (low.0, high.0))
}

/// A prefix: never above the whole.
fn cut<'a>(bytes: &'a [u8], data_type: &DataType) -> &'a [u8] {
    let mut end = bytes.len().min(BOUND_BYTES_MAX);
    if *data_type == DataType::Utf8 {
        while end > 0 && std::str::from_utf8(&bytes[..end]).is_err() {
            end -= 1;
        }
    }
    &bytes[..end]
}

/// The cut prefix, raised to be above everything that begins with it; `None` when that is impossible.
fn above(bytes: &[u8], data_type: &DataType) -> Option<Vec<u8>> {
    let prefix = cut(bytes, data_type);
    if *data_type == DataType::Utf8 {
        let mut characters: Vec<char> = std::str::from_utf8(prefix).ok()?.chars().collect();
        while let Some(last) = characters.pop() {
            let next = match last as u32 + 1 {
                // Surrogates are no characters; UTF-8 orders as code points do.
                0xd800 => 0xe000,
                next => next,
            };
            if let Some(next) = char::from_u32(next) {
                characters.push(next);
                return Some(String::from_iter(characters).into_bytes());
            }
        }
        return None;
    }
    let mut raised = prefix.to_vec();
    while let Some(last) = raised.pop() {
        if let Some(next) = last.checked_add(1) {
            raised.push(next);
            return Some(raised);
        }
    }
    None
}

/// As text: integers and decimals in digits, floats by their bits, binaries in hexadecimal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    nulls: u64,
    exact: bool,
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    data_type: Option<DataType>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max: Option<String>,
}

impl Serialize for ColumnStatistics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = |array: &Option<ArrayRef>| {
            array.as_ref().and_then(|array| Scalar::at(array, 0).map(|s| write(s, array.data_type())))
        };
        let data_type = self.min.as_ref().or(self.max.as_ref()).map(|array| array.data_type().clone());
        let (min, max) = (text(&self.min), text(&self.max));
        Text { nulls: self.null_count, exact: self.exact, data_type, min, max }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ColumnStatistics {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(deserializer)?;
        let array = |value: Option<String>| match (value, &text.data_type) {
            (None, _) => Ok(None),
            (Some(value), Some(data_type)) if check_type(data_type).is_ok() => {
                let array = read(&value, data_type);
                array.map(Some).ok_or_else(|| D::Error::custom(format!("{value:?} is no {data_type}")))
            }
            _ => Err(D::Error::custom("statistics have values without a type that a table can have")),
        };
        Ok(Self { null_count: text.nulls, min: array(text.min)?, max: array(text.max)?, exact: text.exact })
    }
}

fn write(scalar: Scalar<'_>, data_type: &DataType) -> String {
    match scalar {
        Scalar::Bool(value) => value.to_string(),
        Scalar::Int(value) => value.to_string(),
        Scalar::UInt(value) => value.to_string(),
        Scalar::Float(value) => format!("{:016x}", value.to_bits()),
        Scalar::Decimal(value) => value.to_string(),
        Scalar::Bytes(value) if *data_type == DataType::Utf8 => String::from_utf8_lossy(value).into_owned(),
        Scalar::Bytes(value) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn read(text: &str, data_type: &DataType) -> Option<ArrayRef> {
    let mut binary = Vec::new();
    let scalar = match data_type {
        DataType::Boolean => Scalar::Bool(text.parse().ok()?),
        DataType::Float32 | DataType::Float64 => Scalar::Float(f64::from_bits(u64::from_str_radix(text, 16).ok()?)),
        DataType::Decimal128(..) => Scalar::Decimal(text.parse().ok()?),
        DataType::Utf8 => Scalar::Bytes(text.as_bytes()),
        DataType::Binary => {
            for pair in text.as_bytes().chunks(2) {
                let digits = std::str::from_utf8(pair).ok().filter(|digits| digits.len() == 2)?;
                binary.push(u8::from_str_radix(digits, 16).ok()?);
            }
            Scalar::Bytes(&binary)
        }
        other if other.is_unsigned_integer() => Scalar::UInt(text.parse().ok()?),
        _ => Scalar::Int(text.parse().ok()?),
    };
    scalar.to_array(data_type)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{BinaryArray, Float64Array, Int32Array, StringArray};

    use super::*;
    use crate::part::tests::every_type;

    fn of(arrays: &[ArrayRef]) -> ColumnStatistics {
        let mut accumulator = Accumulator::new(arrays[0].data_type().clone());
        arrays.iter().for_each(|array| accumulator.add(array));
        accumulator.finish()
    }

    fn text(array: &Option<ArrayRef>) -> Vec<u8> {
        match Scalar::at(array.as_ref().unwrap(), 0) {
            Some(Scalar::Bytes(bytes)) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_type_has_its_ends_and_comes_back_from_json() {
        let batch = every_type(500);
        for column in batch.columns() {
            let whole = of(std::slice::from_ref(column));
            let halves = of(&[column.slice(0, 100), column.slice(100, 400)]);
            assert_eq!(whole.null_count, 100);
            assert!(whole.exact);
            let json = serde_json::to_string(&whole).unwrap();
            let back: ColumnStatistics = serde_json::from_str(&json).unwrap();
            for other in [&halves, &back] {
                assert_eq!(whole.min.as_ref().unwrap().as_ref(), other.min.as_ref().unwrap().as_ref(), "{json}");
                assert_eq!(whole.max.as_ref().unwrap().as_ref(), other.max.as_ref().unwrap().as_ref(), "{json}");
            }
            let (min, max) = (whole.min.unwrap(), whole.max.unwrap());
            let (min, max) = (Scalar::at(&min, 0).unwrap(), Scalar::at(&max, 0).unwrap());
            for row in 0..column.len() {
                if let Some(value) = Scalar::at(column, row) {
                    assert!(compare(min, value).is_le() && compare(value, max).is_le());
                }
            }
        }
    }

    #[test]
    fn nan_has_no_ends_and_zeros_keep_their_sign() {
        let nan: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN]));
        let one: ArrayRef = Arc::new(Float64Array::from(vec![1.0]));
        for order in [[nan.clone(), one.clone()], [one, nan]] {
            let statistics = of(&order);
            assert!(statistics.min.is_none() && statistics.max.is_none() && !statistics.exact);
        }
        let zeros: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0]));
        let json = serde_json::to_value(of(&[zeros])).unwrap();
        assert_eq!((&json["min"], &json["max"]), (&"8000000000000000".into(), &"0000000000000000".into()));
    }

    #[test]
    fn all_null_has_no_ends() {
        let statistics = of(&[Arc::new(Int32Array::from(vec![None, None]))]);
        assert_eq!(statistics.null_count, 2);
        assert!(statistics.min.is_none() && statistics.exact);
    }

    #[test]
    fn long_values_become_bounds() {
        let long = "é".repeat(50);
        let statistics = of(&[Arc::new(StringArray::from(vec![long.as_str()]))]);
        assert!(!statistics.exact);
        let (min, max) = (text(&statistics.min), text(&statistics.max));
        assert!(min.len() <= 64 && max.len() <= 64);
        assert!(min.as_slice() < long.as_bytes() && long.as_bytes() < max.as_slice());

        let high = [0xff; 100];
        let statistics = of(&[Arc::new(BinaryArray::from(vec![high.as_slice()]))]);
        assert!(statistics.max.is_none() && !statistics.exact);
        let last = char::MAX.to_string().repeat(30);
        assert!(of(&[Arc::new(StringArray::from(vec![last.as_str()]))]).max.is_none());
    }

    #[test]
    fn wrong_json_is_refused() {
        for wrong in [
            r#"{"nulls":0,"exact":true,"type":"Int8","min":"300"}"#,
            r#"{"nulls":0,"exact":true,"min":"3"}"#,
            r#"{"nulls":0,"exact":true,"type":"Null","min":"3"}"#,
            r#"{"nulls":0,"exact":true,"type":"Binary","min":"abc"}"#,
            r#"{"nulls":0,"exact":true,"more":1}"#,
        ] {
            serde_json::from_str::<ColumnStatistics>(wrong).unwrap_err();
        }
    }
}
