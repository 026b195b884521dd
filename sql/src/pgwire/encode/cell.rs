//! One encoder per column: chosen once per batch, then called per row that is not NULL.

use std::{io::Write, sync::Arc};

use arrow_pg::datatypes::{PG_OID_ALIAS_KEY, is_pg_char_field};
use bytes::BufMut;
use datafusion::arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray},
    compute::cast,
    datatypes::{
        DataType, Date32Type, Decimal128Type, Decimal256Type, DecimalType, Field, Float32Type, Float64Type, Int8Type,
        Int16Type, Int32Type, Int64Type, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
        TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
    error::ArrowError,
};
use pgwire::{
    api::results::{DataRowEncoder, FieldFormat, FieldInfo},
    error::PgWireError,
};

use super::text::{write_bytea, write_date, write_f32, write_f64, write_time, write_timestamp};
use crate::{
    Result, SqlError,
    pgwire::{
        numeric::write_numeric,
        types::{Format, WireColumn, wire_type},
    },
};

/// Appends the value of a row, which is not NULL, without its length.
pub(super) type Cell = Box<dyn Fn(usize, &mut Vec<u8>) -> Result<()> + Send + Sync>;

/// Days from 1970-01-01 to 2000-01-01, from which PostgreSQL counts.
const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// The encoder of a column.
pub(super) fn cell(array: &ArrayRef, field: &Arc<Field>, column: &WireColumn) -> Result<Cell> {
    let format = column.format;
    Ok(match array.data_type() {
        DataType::Null => Box::new(|_, _| Ok(())),
        DataType::Boolean => {
            let array = array.as_boolean().clone();
            match format {
                Format::Text => infallible(move |row, out| out.put_u8(if array.value(row) { b't' } else { b'f' })),
                Format::Binary => infallible(move |row, out| out.put_u8(u8::from(array.value(row)))),
            }
        }
        // Widths on the wire are those of `wire_type`: PostgreSQL has no one-byte and no unsigned integers.
        DataType::Int8 => integer::<Int8Type>(array, format, |out, value| out.put_i16(value.into())),
        DataType::Int16 => integer::<Int16Type>(array, format, Vec::put_i16),
        DataType::Int32 if is_oid(field) => oid(array, format),
        DataType::Int32 => integer::<Int32Type>(array, format, Vec::put_i32),
        DataType::Int64 => integer::<Int64Type>(array, format, Vec::put_i64),
        DataType::UInt8 => integer::<UInt8Type>(array, format, |out, value| out.put_i16(value.into())),
        DataType::UInt16 => integer::<UInt16Type>(array, format, |out, value| out.put_i32(value.into())),
        DataType::UInt32 => integer::<UInt32Type>(array, format, |out, value| out.put_i64(value.into())),
        DataType::UInt64 => integer::<UInt64Type>(array, format, |out, value| {
            write_numeric(out, itoa::Buffer::new().format(value));
        }),
        DataType::Float32 => {
            let array = primitive::<Float32Type>(array);
            match format {
                Format::Text => infallible(move |row, out| write_f32(out, array.value(row))),
                Format::Binary => infallible(move |row, out| out.put_f32(array.value(row))),
            }
        }
        DataType::Float64 => {
            let array = primitive::<Float64Type>(array);
            match format {
                Format::Text => infallible(move |row, out| write_f64(out, array.value(row))),
                Format::Binary => infallible(move |row, out| out.put_f64(array.value(row))),
            }
        }
        DataType::Decimal128(precision, scale) => decimal::<Decimal128Type>(array, *precision, *scale, format),
        DataType::Decimal256(precision, scale) => decimal::<Decimal256Type>(array, *precision, *scale, format),
        DataType::Utf8 if is_pg_char_field(field) && format == Format::Binary => {
            let array = array.as_string::<i32>().clone();
            infallible(move |row, out| out.put_u8(array.value(row).as_bytes().first().copied().unwrap_or(0)))
        }
        DataType::Utf8 => {
            let array = array.as_string::<i32>().clone();
            infallible(move |row, out| out.extend_from_slice(array.value(row).as_bytes()))
        }
        DataType::LargeUtf8 => {
            let array = array.as_string::<i64>().clone();
            infallible(move |row, out| out.extend_from_slice(array.value(row).as_bytes()))
        }
        DataType::Utf8View => {
            let array = array.as_string_view().clone();
            infallible(move |row, out| out.extend_from_slice(array.value(row).as_bytes()))
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>().clone();
            match format {
                Format::Text => infallible(move |row, out| write_bytea(out, array.value(row))),
                Format::Binary => infallible(move |row, out| out.extend_from_slice(array.value(row))),
            }
        }
        DataType::Date32 => date(array, format),
        DataType::Time64(TimeUnit::Nanosecond) => time(array, format),
        DataType::Timestamp(unit, zone) => timestamp(array, *unit, zone.is_some(), format),
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            cell(&convert(array, &DataType::Binary)?, field, column)?
        }
        DataType::Date64 => cell(&convert(array, &DataType::Date32)?, field, column)?,
        DataType::Float16 => cell(&convert(array, &DataType::Float32)?, field, column)?,
        DataType::Time32(_) | DataType::Time64(_) => {
            cell(&convert(array, &DataType::Time64(TimeUnit::Nanosecond))?, field, column)?
        }
        DataType::Decimal32(precision, scale) | DataType::Decimal64(precision, scale) => {
            cell(&convert(array, &DataType::Decimal128(*precision, *scale))?, field, column)?
        }
        DataType::Dictionary(_, values) => cell(&convert(array, values)?, field, column)?,
        DataType::RunEndEncoded(_, values) => cell(&convert(array, values.data_type())?, field, column)?,
        _ => nested(array, field, column)?,
    })
}

/// An encoder that cannot fail.
fn infallible(write: impl Fn(usize, &mut Vec<u8>) + Send + Sync + 'static) -> Cell {
    Box::new(move |row, out| {
        write(row, out);
        Ok(())
    })
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef) -> PrimitiveArray<T> {
    array.as_primitive::<T>().clone()
}

fn convert(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    cast(array, to).map_err(|error| unshown(&error))
}

fn unshown(error: &ArrowError) -> SqlError {
    SqlError::new("XX000", format!("a value could not be sent: {error}"))
}

fn integer<T>(
    array: &ArrayRef,
    format: Format,
    binary: impl Fn(&mut Vec<u8>, T::Native) + Send + Sync + 'static,
) -> Cell
where
    T: ArrowPrimitiveType,
    T::Native: itoa::Integer,
{
    let array = primitive::<T>(array);
    match format {
        Format::Text => {
            infallible(move |row, out| out.extend_from_slice(itoa::Buffer::new().format(array.value(row)).as_bytes()))
        }
        Format::Binary => infallible(move |row, out| binary(out, array.value(row))),
    }
}

/// Whether a catalog column holds object identifiers: unsigned, though Arrow has them as `Int32`.
fn is_oid(field: &Field) -> bool {
    field.metadata().get(PG_OID_ALIAS_KEY).is_some_and(|alias| alias == "oid")
}

fn oid(array: &ArrayRef, format: Format) -> Cell {
    let array = primitive::<Int32Type>(array);
    match format {
        Format::Text => infallible(move |row, out| drop(write!(out, "{}", array.value(row).cast_unsigned()))),
        Format::Binary => infallible(move |row, out| out.put_i32(array.value(row))),
    }
}

fn decimal<T: DecimalType>(array: &ArrayRef, precision: u8, scale: i8, format: Format) -> Cell {
    let array = primitive::<T>(array);
    let text = move |row| T::format_decimal(array.value(row), precision, scale);
    match format {
        Format::Text => infallible(move |row, out| out.extend_from_slice(text(row).as_bytes())),
        Format::Binary => infallible(move |row, out| write_numeric(out, &text(row))),
    }
}

fn date(array: &ArrayRef, format: Format) -> Cell {
    let array = primitive::<Date32Type>(array);
    match format {
        Format::Text => infallible(move |row, out| write_date(out, array.value(row).into())),
        Format::Binary => Box::new(move |row, out| {
            let days = array.value(row).checked_sub(EPOCH_DAYS);
            out.put_i32(days.ok_or_else(|| out_of_range("date"))?);
            Ok(())
        }),
    }
}

fn time(array: &ArrayRef, format: Format) -> Cell {
    let array = primitive::<Time64NanosecondType>(array);
    match format {
        Format::Text => infallible(move |row, out| {
            let nanos = array.value(row);
            let second = u32::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(0);
            write_time(out, second, u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0));
        }),
        Format::Binary => infallible(move |row, out| out.put_i64(array.value(row) / 1000)),
    }
}

fn timestamp(array: &ArrayRef, unit: TimeUnit, zone: bool, format: Format) -> Cell {
    match unit {
        TimeUnit::Second => moments::<TimestampSecondType>(array, 1, zone, format),
        TimeUnit::Millisecond => moments::<TimestampMillisecondType>(array, 1000, zone, format),
        TimeUnit::Microsecond => moments::<TimestampMicrosecondType>(array, 1_000_000, zone, format),
        TimeUnit::Nanosecond => moments::<TimestampNanosecondType>(array, 1_000_000_000, zone, format),
    }
}

/// Timestamps of `per_second` units. Binary has microseconds: nanoseconds are cut towards the past.
fn moments<T: ArrowPrimitiveType<Native = i64>>(array: &ArrayRef, per_second: i64, zone: bool, format: Format) -> Cell {
    let array = primitive::<T>(array);
    match format {
        Format::Text => infallible(move |row, out| {
            let value = array.value(row);
            let below = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
            write_timestamp(out, value.div_euclid(per_second), u32::try_from(below).unwrap_or(0), zone);
        }),
        Format::Binary => Box::new(move |row, out| {
            let value = array.value(row);
            let micros = if per_second <= 1_000_000 {
                value.checked_mul(1_000_000 / per_second)
            } else {
                Some(value.div_euclid(per_second / 1_000_000))
            };
            let micros = micros.and_then(|micros| micros.checked_sub(EPOCH_MICROS));
            out.put_i64(micros.ok_or_else(|| out_of_range("timestamp"))?);
            Ok(())
        }),
    }
}

fn out_of_range(what: &str) -> SqlError {
    SqlError::new("22008", format!("a {what} is outside of the range that clients can receive in binary"))
        .hint("cast it to text")
}

/// Lists, structs and intervals by arrow-pg; what it does not know as Arrow shows it.
fn nested(array: &ArrayRef, field: &Arc<Field>, column: &WireColumn) -> Result<Cell> {
    if arrow_pg::datatypes::field_into_pg_type(field).is_err() {
        let text = convert(array, &DataType::Utf8).map_err(|error| {
            SqlError::unsupported(format!("a result of type {}", array.data_type())).detail(error.message)
        })?;
        let text = text.as_string::<i32>().clone();
        return Ok(infallible(move |row, out| out.extend_from_slice(text.value(row).as_bytes())));
    }
    let format = match column.format {
        Format::Text => FieldFormat::Text,
        Format::Binary => FieldFormat::Binary,
    };
    let info = FieldInfo::new(column.name.clone(), None, None, wire_type(field), format);
    let infos = Arc::new(vec![info]);
    let (array, field) = (Arc::clone(array), Arc::clone(field));
    Ok(Box::new(move |row, out| {
        let mut encoder = DataRowEncoder::new(Arc::clone(&infos));
        arrow_pg::encoder::encode_value(&mut encoder, &array, row, &field, &infos[0]).map_err(nested_error)?;
        // The encoder wrote the length as well, which is written already.
        let data = encoder.take_row().data;
        out.extend_from_slice(data.get(4..).unwrap_or_default());
        Ok(())
    }))
}

fn nested_error(error: PgWireError) -> SqlError {
    SqlError::new("XX000", format!("a value could not be sent: {error}"))
}
