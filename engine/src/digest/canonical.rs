//! Values as what they mean, apart from how an array holds them.

use std::ops::Range;

use arrow_array::{
    Array, ArrayRef, PrimitiveArray,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
        UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, TimeUnit};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128_with_seed};

/// The one NaN.
const NAN: u64 = 0x7ff8_0000_0000_0000;

/// What values of a type mean. Types of one kind have one canonical form, so that a column that is widened, or is read
/// through another encoding, keeps its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(u8);

impl Kind {
    /// `None` for types that no table column can be read as.
    pub(super) fn of(data_type: &DataType) -> Option<Self> {
        use DataType::*;
        let unit = |unit: &TimeUnit| match unit {
            TimeUnit::Second => 0,
            TimeUnit::Millisecond => 1,
            TimeUnit::Microsecond => 2,
            TimeUnit::Nanosecond => 3,
        };
        Some(Self(match data_type {
            Boolean => 1,
            Int8 | Int16 | Int32 | Int64 => 2,
            UInt8 | UInt16 | UInt32 | UInt64 => 3,
            Float32 | Float64 => 4,
            Utf8 | LargeUtf8 | Utf8View => 5,
            Binary | LargeBinary | BinaryView => 6,
            Date32 => 7,
            Timestamp(of, None) => 8 + unit(of),
            Timestamp(of, Some(_)) => 12 + unit(of),
            Decimal128(_, scale @ 0..=38) => 64 + scale.unsigned_abs(),
            Dictionary(_, values) => return Self::of(values),
            _ => return None,
        }))
    }

    /// What the values of a column of this kind and name are hashed with.
    pub(super) fn key(self, name: &str) -> u64 {
        let mut bytes = vec![self.0];
        bytes.extend_from_slice(name.as_bytes());
        xxh3_64(&bytes)
    }
}

/// A value that has 8 bytes.
#[inline(always)]
pub(super) fn hash_u64(value: u64, key: u64) -> u128 {
    xxh3_128_with_seed(&value.to_le_bytes(), key)
}

/// The array without dictionary; others as they are.
pub(super) fn decoded(array: &ArrayRef) -> Result<ArrayRef, arrow_schema::ArrowError> {
    match array.data_type() {
        DataType::Dictionary(_, values) => arrow_cast::cast(array, values),
        _ => Ok(array.clone()),
    }
}

/// Adds each value's hash to its row's sum: `sums[n]` is of row `rows.start + n`. `false` for a type without a kind.
pub(super) fn fold(array: &dyn Array, rows: Range<usize>, key: u64, sums: &mut [u128]) -> bool {
    use DataType::*;
    match array.data_type() {
        Boolean => {
            let array = array.as_boolean();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(&[u8::from(array.value(row))], key));
        }
        Int8 => fixed::<Int8Type>(array, rows, key, sums, |value| i64::from(value) as u64),
        Int16 => fixed::<Int16Type>(array, rows, key, sums, |value| i64::from(value) as u64),
        Int32 => fixed::<Int32Type>(array, rows, key, sums, |value| i64::from(value) as u64),
        Int64 => fixed::<Int64Type>(array, rows, key, sums, |value| value as u64),
        UInt8 => fixed::<UInt8Type>(array, rows, key, sums, u64::from),
        UInt16 => fixed::<UInt16Type>(array, rows, key, sums, u64::from),
        UInt32 => fixed::<UInt32Type>(array, rows, key, sums, u64::from),
        UInt64 => fixed::<UInt64Type>(array, rows, key, sums, |value| value),
        Float32 => fixed::<Float32Type>(array, rows, key, sums, |value| float(value.into())),
        Float64 => fixed::<Float64Type>(array, rows, key, sums, float),
        Date32 => fixed::<Date32Type>(array, rows, key, sums, |value| i64::from(value) as u64),
        Timestamp(TimeUnit::Second, _) => fixed::<TimestampSecondType>(array, rows, key, sums, |value| value as u64),
        Timestamp(TimeUnit::Millisecond, _) => {
            fixed::<TimestampMillisecondType>(array, rows, key, sums, |value| value as u64);
        }
        Timestamp(TimeUnit::Microsecond, _) => {
            fixed::<TimestampMicrosecondType>(array, rows, key, sums, |value| value as u64);
        }
        Timestamp(TimeUnit::Nanosecond, _) => {
            fixed::<TimestampNanosecondType>(array, rows, key, sums, |value| value as u64);
        }
        Decimal128(..) => {
            let array = array.as_primitive::<Decimal128Type>();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(&array.value(row).to_le_bytes(), key));
        }
        Utf8 => {
            let array = array.as_string::<i32>();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(array.value(row).as_bytes(), key));
        }
        LargeUtf8 => {
            let array = array.as_string::<i64>();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(array.value(row).as_bytes(), key));
        }
        Utf8View => {
            let array = array.as_string_view();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(array.value(row).as_bytes(), key));
        }
        Binary => {
            let array = array.as_binary::<i32>();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(array.value(row), key));
        }
        LargeBinary => {
            let array = array.as_binary::<i64>();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(array.value(row), key));
        }
        BinaryView => {
            let array = array.as_binary_view();
            each(array.nulls(), rows, sums, |row| xxh3_128_with_seed(array.value(row), key));
        }
        _ => return false,
    }
    true
}

#[inline(always)]
fn float(value: f64) -> u64 {
    if value.is_nan() { NAN } else { value.to_bits() }
}

#[inline(always)]
fn fixed<T: ArrowPrimitiveType>(
    array: &dyn Array,
    rows: Range<usize>,
    key: u64,
    sums: &mut [u128],
    canonical: impl Fn(T::Native) -> u64,
) {
    let array: &PrimitiveArray<T> = array.as_primitive();
    if array.null_count() == 0 {
        // Without an index: the loop that nearly all values pass.
        for (sum, value) in sums.iter_mut().zip(&array.values()[rows]) {
            *sum = sum.wrapping_add(hash_u64(canonical(*value), key));
        }
        return;
    }
    each(array.nulls(), rows, sums, |row| hash_u64(canonical(array.values()[row]), key));
}

/// Adds `hash` of every row that is not NULL.
#[inline(always)]
fn each(nulls: Option<&NullBuffer>, rows: Range<usize>, sums: &mut [u128], hash: impl Fn(usize) -> u128) {
    let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
    for (sum, row) in sums.iter_mut().zip(rows) {
        if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
            *sum = sum.wrapping_add(hash(row));
        }
    }
}
