//! One value of a column, apart from its array.

use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, StringArray,
    cast::AsArray,
    make_array,
    types::{
        Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_buffer::{ArrowNativeType, Buffer};
use arrow_data::ArrayData;
use arrow_schema::{DataType, TimeUnit};

/// A value that is not NULL, in the widest form of its kind. Dates and timestamps are `Int`s in the column's unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scalar<'a> {
    Bool(bool),
    Int(i64),
    UInt(u64),
    Float(f64),
    Decimal(i128),
    Bytes(&'a [u8]),
}

impl<'a> Scalar<'a> {
    /// The value at `row`; `None` for NULL and for types that tables cannot have.
    pub(crate) fn at(array: &'a dyn Array, row: usize) -> Option<Self> {
        use DataType::*;
        if row >= array.len() || array.is_null(row) {
            return None;
        }
        Some(match array.data_type() {
            Boolean => Self::Bool(array.as_boolean().value(row)),
            Int8 => Self::Int(array.as_primitive::<Int8Type>().value(row).into()),
            Int16 => Self::Int(array.as_primitive::<Int16Type>().value(row).into()),
            Int32 => Self::Int(array.as_primitive::<Int32Type>().value(row).into()),
            Date32 => Self::Int(array.as_primitive::<Date32Type>().value(row).into()),
            Int64 => Self::Int(array.as_primitive::<Int64Type>().value(row)),
            Timestamp(TimeUnit::Second, _) => Self::Int(array.as_primitive::<TimestampSecondType>().value(row)),
            Timestamp(TimeUnit::Millisecond, _) => {
                Self::Int(array.as_primitive::<TimestampMillisecondType>().value(row))
            }
            Timestamp(TimeUnit::Microsecond, _) => {
                Self::Int(array.as_primitive::<TimestampMicrosecondType>().value(row))
            }
            Timestamp(TimeUnit::Nanosecond, _) => Self::Int(array.as_primitive::<TimestampNanosecondType>().value(row)),
            UInt8 => Self::UInt(array.as_primitive::<UInt8Type>().value(row).into()),
            UInt16 => Self::UInt(array.as_primitive::<UInt16Type>().value(row).into()),
            UInt32 => Self::UInt(array.as_primitive::<UInt32Type>().value(row).into()),
            UInt64 => Self::UInt(array.as_primitive::<UInt64Type>().value(row)),
            Float32 => Self::Float(array.as_primitive::<Float32Type>().value(row).into()),
            Float64 => Self::Float(array.as_primitive::<Float64Type>().value(row)),
            Decimal128(..) => Self::Decimal(array.as_primitive::<Decimal128Type>().value(row)),
            Utf8 => Self::Bytes(array.as_string::<i32>().value(row).as_bytes()),
            Binary => Self::Bytes(array.as_binary::<i32>().value(row)),
            _ => return None,
        })
    }

    /// An array of this one value; `None` when it is no value of that type.
    pub(crate) fn to_array(self, data_type: &DataType) -> Option<ArrayRef> {
        use DataType::*;
        match (data_type, self) {
            (Boolean, Self::Bool(value)) => Some(Arc::new(BooleanArray::from(vec![value]))),
            (Int8, Self::Int(value)) => primitive(data_type, i8::try_from(value).ok()?),
            (Int16, Self::Int(value)) => primitive(data_type, i16::try_from(value).ok()?),
            (Int32 | Date32, Self::Int(value)) => primitive(data_type, i32::try_from(value).ok()?),
            (Int64 | Timestamp(..), Self::Int(value)) => primitive(data_type, value),
            (UInt8, Self::UInt(value)) => primitive(data_type, u8::try_from(value).ok()?),
            (UInt16, Self::UInt(value)) => primitive(data_type, u16::try_from(value).ok()?),
            (UInt32, Self::UInt(value)) => primitive(data_type, u32::try_from(value).ok()?),
            (UInt64, Self::UInt(value)) => primitive(data_type, value),
            (Float32, Self::Float(value)) => primitive(data_type, value as f32),
            (Float64, Self::Float(value)) => primitive(data_type, value),
            (Decimal128(precision, _), Self::Decimal(value)) => {
                let fits = value.unsigned_abs() < 10u128.checked_pow(u32::from(*precision)).unwrap_or(u128::MAX);
                fits.then(|| primitive(data_type, value)).flatten()
            }
            (Utf8, Self::Bytes(value)) => Some(Arc::new(StringArray::from(vec![std::str::from_utf8(value).ok()?]))),
            (Binary, Self::Bytes(value)) => Some(Arc::new(BinaryArray::from(vec![value]))),
            _ => None,
        }
    }
}

fn primitive<T: ArrowNativeType>(data_type: &DataType, value: T) -> Option<ArrayRef> {
    let data = ArrayData::builder(data_type.clone()).len(1).add_buffer(Buffer::from_slice_ref([value])).build();
    data.ok().map(make_array)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::all_types;

    #[test]
    fn every_type_keeps_its_value() {
        for data_type in all_types() {
            let scalar = match &data_type {
                DataType::Boolean => Scalar::Bool(true),
                DataType::Float32 | DataType::Float64 => Scalar::Float(-1.5),
                DataType::Decimal128(..) => Scalar::Decimal(-12345),
                DataType::Utf8 | DataType::Binary => Scalar::Bytes(b"abc"),
                other if other.is_unsigned_integer() => Scalar::UInt(200),
                _ => Scalar::Int(-100),
            };
            let array = scalar.to_array(&data_type).unwrap();
            assert_eq!(array.data_type(), &data_type);
            assert_eq!(Scalar::at(&array, 0), Some(scalar), "{data_type}");
        }
    }

    #[test]
    fn values_beyond_a_type_are_none() {
        assert!(Scalar::Int(128).to_array(&DataType::Int8).is_none());
        assert!(Scalar::UInt(256).to_array(&DataType::UInt8).is_none());
        assert!(Scalar::Decimal(100).to_array(&DataType::Decimal128(2, 0)).is_none());
        assert!(Scalar::Bytes(&[0xff]).to_array(&DataType::Utf8).is_none());
        assert!(Scalar::Int(1).to_array(&DataType::Utf8).is_none());
    }
}
