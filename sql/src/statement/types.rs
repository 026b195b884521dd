//! SQL type names and Arrow types.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    sql::sqlparser::ast::{DataType as SqlType, ExactNumberInfo, TimezoneInfo},
};

use crate::{Result, SqlError};

/// The Arrow type of a column of a SQL type.
pub(crate) fn column_type(sql: &SqlType) -> Result<DataType> {
    Ok(match sql {
        SqlType::TinyInt(_) => DataType::Int8,
        SqlType::SmallInt(_) | SqlType::Int2(_) | SqlType::Int16 => DataType::Int16,
        SqlType::Int(_) | SqlType::Integer(_) | SqlType::Int4(_) | SqlType::Int32 => DataType::Int32,
        SqlType::BigInt(_) | SqlType::Int8(_) | SqlType::Int64 => DataType::Int64,
        SqlType::TinyIntUnsigned(_) | SqlType::UTinyInt | SqlType::UInt8 => DataType::UInt8,
        SqlType::SmallIntUnsigned(_) | SqlType::Int2Unsigned(_) | SqlType::USmallInt | SqlType::UInt16 => {
            DataType::UInt16
        }
        SqlType::IntUnsigned(_) | SqlType::IntegerUnsigned(_) | SqlType::Int4Unsigned(_) | SqlType::UInt32 => {
            DataType::UInt32
        }
        SqlType::BigIntUnsigned(_) | SqlType::Int8Unsigned(_) | SqlType::UBigInt | SqlType::UInt64 => DataType::UInt64,
        SqlType::Real | SqlType::Float4 | SqlType::Float32 => DataType::Float32,
        SqlType::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => DataType::Float32,
        SqlType::Float(_) | SqlType::Float8 | SqlType::Float64 | SqlType::Double(_) | SqlType::DoublePrecision => {
            DataType::Float64
        }
        SqlType::Decimal(info) | SqlType::Numeric(info) | SqlType::Dec(info) => decimal(sql, info)?,
        SqlType::Boolean | SqlType::Bool => DataType::Boolean,
        SqlType::Text
        | SqlType::String(_)
        | SqlType::Varchar(_)
        | SqlType::CharacterVarying(_)
        | SqlType::CharVarying(_)
        | SqlType::Char(_)
        | SqlType::Character(_) => DataType::Utf8,
        SqlType::Bytea => DataType::Binary,
        SqlType::Date | SqlType::Date32 => DataType::Date32,
        SqlType::Datetime(precision) | SqlType::TimestampNtz(precision) => DataType::Timestamp(unit(*precision)?, None),
        SqlType::Timestamp(precision, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
            DataType::Timestamp(unit(*precision)?, None)
        }
        SqlType::Timestamp(precision, TimezoneInfo::WithTimeZone | TimezoneInfo::Tz) => {
            DataType::Timestamp(unit(*precision)?, Some(Arc::from("UTC")))
        }
        other => {
            return Err(SqlError::unsupported(format!("type {other}")).hint(
                "types: TINYINT, SMALLINT, INT, BIGINT (each UNSIGNED too), REAL, DOUBLE PRECISION, DECIMAL(p, s), BOOLEAN, TEXT, \
                 BYTEA, DATE, TIMESTAMP(0|3|6|9), TIMESTAMPTZ",
            ));
        }
    })
}

/// The SQL name of a column's type, for messages.
pub(crate) fn type_name(data_type: &DataType) -> String {
    let precision = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "(0)",
        TimeUnit::Millisecond => "(3)",
        TimeUnit::Microsecond => "",
        TimeUnit::Nanosecond => "(9)",
    };
    match data_type {
        DataType::Int8 => "TINYINT".to_owned(),
        DataType::Int16 => "SMALLINT".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::UInt8 => "TINYINT UNSIGNED".to_owned(),
        DataType::UInt16 => "SMALLINT UNSIGNED".to_owned(),
        DataType::UInt32 => "INT UNSIGNED".to_owned(),
        DataType::UInt64 => "BIGINT UNSIGNED".to_owned(),
        DataType::Float32 => "REAL".to_owned(),
        DataType::Float64 => "DOUBLE PRECISION".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTEA".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(unit, None) => format!("TIMESTAMP{}", precision(unit)),
        DataType::Timestamp(unit, Some(_)) => format!("TIMESTAMPTZ{}", precision(unit)),
        other => other.to_string(),
    }
}

fn decimal(sql: &SqlType, info: &ExactNumberInfo) -> Result<DataType> {
    let (precision, scale) = match *info {
        ExactNumberInfo::None => {
            return Err(
                SqlError::unsupported(format!("{sql} without precision and scale")).hint("write DECIMAL(18, 4)")
            );
        }
        ExactNumberInfo::Precision(precision) => (precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (precision, scale),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(precision @ 1..=38), Ok(scale))
            if scale >= 0 && u64::from(scale.unsigned_abs()) <= u64::from(precision) =>
        {
            Ok(DataType::Decimal128(precision, scale))
        }
        _ => Err(SqlError::new("22023", format!("{sql} is out of range"))
            .hint("precision is 1 to 38, scale is 0 to the precision")),
    }
}

fn unit(precision: Option<u64>) -> Result<TimeUnit> {
    match precision {
        Some(0) => Ok(TimeUnit::Second),
        Some(3) => Ok(TimeUnit::Millisecond),
        None | Some(6) => Ok(TimeUnit::Microsecond),
        Some(9) => Ok(TimeUnit::Nanosecond),
        Some(other) => {
            Err(SqlError::unsupported(format!("TIMESTAMP({other})")).hint("the precision is 0, 3, 6 (default) or 9"))
        }
    }
}
