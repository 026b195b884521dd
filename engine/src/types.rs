//! Column types.

use arrow_schema::{DataType, TimeUnit};

use crate::{EngineError, Result};

/// Longest time zone name of a timestamp column, bytes.
pub const ZONE_BYTES_MAX: usize = 64;

/// Accepts the types that tables can have: integers of 8 to 64 bits, signed and unsigned; 32 and 64 bit floats;
/// Decimal128; Boolean; Utf8; Binary; Date32; Timestamp of any unit with and without zone. Anything else is refused by
/// name, with the nearest supported type where there is one.
pub fn check_type(data_type: &DataType) -> Result<()> {
    use DataType::*;
    let nearest = match data_type {
        Int8
        | Int16
        | Int32
        | Int64
        | UInt8
        | UInt16
        | UInt32
        | UInt64
        | Float32
        | Float64
        | Boolean
        | Utf8
        | Binary
        | Date32
        | Timestamp(_, None) => return Ok(()),
        Timestamp(_, Some(zone)) => return check_zone(zone),
        Decimal128(precision, scale) => return check_decimal(*precision, *scale),
        LargeUtf8 | Utf8View => Some(Utf8),
        LargeBinary | BinaryView | FixedSizeBinary(_) => Some(Binary),
        Float16 => Some(Float32),
        Date64 => Some(Timestamp(TimeUnit::Millisecond, None)),
        Decimal32(precision, scale) | Decimal64(precision, scale) => Some(Decimal128(*precision, *scale)),
        Decimal256(..) => Some(Decimal128(38, 10)),
        Dictionary(_, value) if check_type(value).is_ok() => Some(value.as_ref().clone()),
        Time32(_) | Time64(_) | Duration(_) => Some(Int64),
        _ => None,
    };
    Err(EngineError::Unsupported(match nearest {
        Some(nearest) => format!("column type {data_type} (the nearest supported one is {nearest})"),
        None => format!("column type {data_type}"),
    }))
}

fn check_zone(zone: &str) -> Result<()> {
    let printable = zone.bytes().all(|byte| byte.is_ascii_graphic());
    if zone.is_empty() || zone.len() > ZONE_BYTES_MAX || !printable {
        return Err(EngineError::Unsupported(format!("time zone {zone:?}")));
    }
    Ok(())
}

fn check_decimal(precision: u8, scale: i8) -> Result<()> {
    let fits = (1..=38).contains(&precision) && scale >= 0 && scale.unsigned_abs() <= precision;
    if !fits {
        return Err(EngineError::Unsupported(format!(
            "column type Decimal128({precision}, {scale}) (a decimal has 1 to 38 digits, of which 0 to all follow the point)"
        )));
    }
    Ok(())
}

/// One type of each supported kind, for tests of everything that must handle all of them.
#[cfg(test)]
pub(crate) fn all_types() -> Vec<DataType> {
    use DataType::*;
    let units = [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond];
    let mut types = vec![
        Int8,
        Int16,
        Int32,
        Int64,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
        Float32,
        Float64,
        Decimal128(5, 2),
        Decimal128(15, 3),
        Decimal128(38, 10),
        Boolean,
        Utf8,
        Binary,
        Date32,
    ];
    for unit in units {
        types.push(Timestamp(unit, None));
        types.push(Timestamp(unit, Some("+02:00".into())));
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_types_are_accepted() {
        for data_type in all_types() {
            check_type(&data_type).unwrap();
        }
    }

    #[test]
    fn others_are_refused_by_name_with_the_nearest() {
        let message = check_type(&DataType::LargeUtf8).unwrap_err().to_string();
        assert_eq!(message, "column type LargeUtf8 (the nearest supported one is Utf8) is not supported");
        let dictionary = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        assert!(check_type(&dictionary).unwrap_err().to_string().contains("nearest supported one is Utf8"));
        assert!(check_type(&DataType::Null).unwrap_err().to_string().contains("Null"));
        for (precision, scale) in [(0, 0), (39, 0), (5, -1), (5, 6)] {
            check_type(&DataType::Decimal128(precision, scale)).unwrap_err();
        }
        check_type(&DataType::Timestamp(TimeUnit::Second, Some("".into()))).unwrap_err();
        check_type(&DataType::Timestamp(TimeUnit::Second, Some("a b".into()))).unwrap_err();
    }
}
