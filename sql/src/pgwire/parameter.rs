//! Values of parameters, as clients send them.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::ScalarValue,
};

use super::{
    numeric::read_numeric,
    types::{Format, arrow_type, parameter_oid},
};
use crate::{Result, SqlError};

/// Seconds from 1970-01-01 to 2000-01-01.
const EPOCH_SECONDS: i64 = 946_684_800;
const EPOCH_DAYS: i32 = 10_957;

/// What is known of a parameter's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ParameterType {
    /// Type number that the client gave, or is told.
    pub(crate) oid: u32,
    /// Type that the statement wants; `None` when nothing says.
    pub(crate) wanted: Option<DataType>,
    /// Whether the client chose the type.
    declared: bool,
}

impl ParameterType {
    /// The type of a parameter: what the client declared (0: nothing), else what planning inferred, else text.
    pub(crate) fn new(declared: u32, inferred: Option<DataType>) -> Self {
        if declared != 0 {
            return Self { oid: declared, wanted: inferred, declared: true };
        }
        let oid = inferred.as_ref().map_or(pgwire::api::Type::TEXT.oid(), parameter_oid);
        Self { oid, wanted: inferred, declared: false }
    }
}

/// Reads parameter `number` (from 1).
pub(crate) fn read_parameter(
    number: usize,
    of: &ParameterType,
    value: Option<&[u8]>,
    format: Format,
) -> Result<ScalarValue> {
    // A type that the client declared is taken as it is: the plan coerces it, and `int_column = 2.5` must not become 2.
    let target = match &of.wanted {
        Some(wanted) if !of.declared => wanted.clone(),
        _ => arrow_type(of.oid).ok_or_else(|| {
            SqlError::unsupported(format!("parameter ${number} of type OID {}", of.oid))
                .hint(format!("cast it: ${number}::text"))
        })?,
    };
    let Some(value) = value else {
        return ScalarValue::try_from(&target).map_err(|error| wrong(number, &error));
    };
    match format {
        Format::Text => {
            let text = std::str::from_utf8(value).map_err(|error| {
                SqlError::new("22021", format!("parameter ${number} is not valid UTF-8")).detail(error.to_string())
            })?;
            from_text(number, text, &target)
        }
        Format::Binary => from_binary(number, of.oid, value, &target),
    }
}

fn wrong(number: usize, why: &dyn std::fmt::Display) -> SqlError {
    SqlError::new("22P02", format!("parameter ${number} is not valid: {why}"))
}

fn from_text(number: usize, text: &str, target: &DataType) -> Result<ScalarValue> {
    match target {
        DataType::Utf8 => Ok(ScalarValue::Utf8(Some(text.to_owned()))),
        DataType::Boolean => match text.trim().to_ascii_lowercase().as_str() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Ok(ScalarValue::Boolean(Some(true))),
            "f" | "false" | "n" | "no" | "off" | "0" => Ok(ScalarValue::Boolean(Some(false))),
            _ => Err(wrong(number, &format!("{text:?} is no boolean"))),
        },
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
            let bytes = bytea(text).ok_or_else(|| wrong(number, &"it is no bytea in hexadecimal"))?;
            cast(number, ScalarValue::Binary(Some(bytes)), target)
        }
        DataType::Decimal128(..) if arrow_type(pgwire::api::Type::NUMERIC.oid()).as_ref() == Some(target) => {
            numeric(number, text)
        }
        _ => cast(number, ScalarValue::Utf8(Some(text.trim().to_owned())), target),
    }
}

/// The value of `\x…`, or of text without backslashes.
fn bytea(text: &str) -> Option<Vec<u8>> {
    let Some(digits) = text.strip_prefix("\\x") else {
        return (!text.contains('\\')).then(|| text.as_bytes().to_vec());
    };
    let digits = digits.as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if digits.len() % 2 != 0 {
        return None;
    }
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// A `numeric` whose scale only the value tells.
fn numeric(number: usize, text: &str) -> Result<ScalarValue> {
    let text = text.trim();
    let scale = text.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    match i8::try_from(scale) {
        Ok(scale @ 0..=38) if !text.contains(['e', 'E']) => {
            cast(number, ScalarValue::Utf8(Some(text.to_owned())), &DataType::Decimal128(38, scale))
        }
        _ => cast(number, ScalarValue::Utf8(Some(text.to_owned())), &DataType::Float64),
    }
}

fn cast(number: usize, value: ScalarValue, target: &DataType) -> Result<ScalarValue> {
    if value.data_type() == *target {
        return Ok(value);
    }
    let was = value.clone();
    match value.cast_to(target) {
        Ok(cast) if !cast.is_null() => Ok(cast),
        Err(error) if matches!(was, ScalarValue::Utf8(_)) => Err(wrong(number, &error.strip_backtrace())),
        // Arrow's lenient casts give NULL where a value does not fit.
        _ => Err(SqlError::new("22003", format!("parameter ${number} does not fit: {was} is no {target}"))),
    }
}

fn from_binary(number: usize, oid: u32, value: &[u8], target: &DataType) -> Result<ScalarValue> {
    use pgwire::api::Type;
    fn fixed<const N: usize>(number: usize, value: &[u8]) -> Result<[u8; N]> {
        value.try_into().map_err(|_| wrong(number, &format!("it has {} bytes, not {N}", value.len())))
    }
    let kind = Type::from_oid(oid).unwrap_or(Type::UNKNOWN);
    let scalar = match kind {
        Type::BOOL => ScalarValue::Boolean(Some(fixed::<1>(number, value)?[0] != 0)),
        Type::INT2 => ScalarValue::Int16(Some(i16::from_be_bytes(fixed(number, value)?))),
        Type::INT4 => ScalarValue::Int32(Some(i32::from_be_bytes(fixed(number, value)?))),
        Type::INT8 => ScalarValue::Int64(Some(i64::from_be_bytes(fixed(number, value)?))),
        Type::OID => ScalarValue::UInt32(Some(u32::from_be_bytes(fixed(number, value)?))),
        Type::FLOAT4 => ScalarValue::Float32(Some(f32::from_be_bytes(fixed(number, value)?))),
        Type::FLOAT8 => ScalarValue::Float64(Some(f64::from_be_bytes(fixed(number, value)?))),
        Type::BYTEA => ScalarValue::Binary(Some(value.to_vec())),
        Type::DATE => {
            let days = i32::from_be_bytes(fixed(number, value)?).checked_add(EPOCH_DAYS);
            ScalarValue::Date32(Some(days.ok_or_else(|| wrong(number, &"the date is out of range"))?))
        }
        Type::TIME => ScalarValue::Time64Microsecond(Some(i64::from_be_bytes(fixed(number, value)?))),
        Type::TIMESTAMP | Type::TIMESTAMPTZ => {
            let micros = i64::from_be_bytes(fixed(number, value)?).checked_add(EPOCH_SECONDS * 1_000_000);
            let micros = micros.ok_or_else(|| wrong(number, &"the timestamp is out of range"))?;
            let zone = (kind == Type::TIMESTAMPTZ).then(|| "UTC".into());
            return Ok(moment(micros, ScalarValue::TimestampMicrosecond(Some(micros), zone), target));
        }
        Type::NUMERIC => {
            let text = read_numeric(value)?;
            return match target {
                DataType::Decimal128(..) => numeric(number, &text),
                _ => cast(number, ScalarValue::Utf8(Some(text)), target),
            };
        }
        Type::UUID => {
            let hex: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
            ScalarValue::Utf8(Some(hex))
        }
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON => {
            let text = std::str::from_utf8(value)
                .map_err(|_| SqlError::new("22021", format!("parameter ${number} is not valid UTF-8")))?;
            return from_text(number, text, target);
        }
        kind => {
            return Err(
                SqlError::unsupported(format!("parameter ${number} of type {kind} in binary")).hint("send it as text")
            );
        }
    };
    cast(number, scalar, target)
}

/// A moment in the unit of its column, where that loses nothing.
fn moment(micros: i64, as_is: ScalarValue, target: &DataType) -> ScalarValue {
    let exact = match target {
        DataType::Timestamp(TimeUnit::Second, _) => micros % 1_000_000 == 0,
        DataType::Timestamp(TimeUnit::Millisecond, _) => micros % 1000 == 0,
        _ => true,
    };
    match as_is.cast_to(target) {
        Ok(cast) if exact && !cast.is_null() => cast,
        _ => as_is,
    }
}

#[cfg(test)]
mod tests {
    use pgwire::api::Type;

    use super::*;

    fn text(declared: u32, inferred: Option<DataType>, text: &str) -> Result<ScalarValue> {
        read_parameter(1, &ParameterType::new(declared, inferred), Some(text.as_bytes()), Format::Text)
    }

    fn binary(declared: u32, inferred: Option<DataType>, bytes: &[u8]) -> Result<ScalarValue> {
        read_parameter(1, &ParameterType::new(declared, inferred), Some(bytes), Format::Binary)
    }

    #[test]
    fn text_becomes_the_type_that_the_statement_wants() {
        assert_eq!(text(0, Some(DataType::Int32), "7").unwrap(), ScalarValue::Int32(Some(7)));
        assert_eq!(text(0, None, "x").unwrap(), ScalarValue::Utf8(Some("x".into())));
        assert_eq!(text(0, Some(DataType::Boolean), "off").unwrap(), ScalarValue::Boolean(Some(false)));
        let second = DataType::Timestamp(TimeUnit::Second, None);
        assert_eq!(
            text(0, Some(second), "2023-01-08 09:30:00").unwrap(),
            ScalarValue::TimestampSecond(Some(1_673_170_200), None)
        );
        assert_eq!(text(0, Some(DataType::Binary), "\\x00fF").unwrap(), ScalarValue::Binary(Some(vec![0, 255])));
        assert_eq!(text(Type::NUMERIC.oid(), None, "1.25").unwrap(), ScalarValue::Decimal128(Some(125), 38, 2));
    }

    #[test]
    fn wrong_text_is_refused() {
        assert_eq!(text(0, Some(DataType::Int32), "x").unwrap_err().sqlstate, "22P02");
        assert_eq!(text(0, Some(DataType::Boolean), "maybe").unwrap_err().sqlstate, "22P02");
        assert_eq!(text(0, Some(DataType::Binary), "\\x0").unwrap_err().sqlstate, "22P02");
        assert_eq!(text(9999, None, "x").unwrap_err().sqlstate, "0A000");
    }

    #[test]
    fn binary_of_declared_and_inferred_types() {
        assert_eq!(binary(0, Some(DataType::Int32), &7i32.to_be_bytes()).unwrap(), ScalarValue::Int32(Some(7)));
        assert_eq!(binary(0, Some(DataType::UInt8), &7i16.to_be_bytes()).unwrap(), ScalarValue::UInt8(Some(7)));
        // The client's double is not cut to the column's integer.
        let declared = binary(Type::FLOAT8.oid(), Some(DataType::Int32), &2.5f64.to_be_bytes()).unwrap();
        assert_eq!(declared, ScalarValue::Float64(Some(2.5)));
        let second = DataType::Timestamp(TimeUnit::Second, None);
        let at = |micros: i64| binary(0, Some(second.clone()), &micros.to_be_bytes()).unwrap();
        assert_eq!(at(0), ScalarValue::TimestampSecond(Some(EPOCH_SECONDS), None));
        assert_eq!(at(1), ScalarValue::TimestampMicrosecond(Some(EPOCH_SECONDS * 1_000_000 + 1), None));
        assert_eq!(binary(0, Some(DataType::Date32), &[0; 4]).unwrap(), ScalarValue::Date32(Some(EPOCH_DAYS)));
        assert_eq!(binary(0, None, b"x").unwrap(), ScalarValue::Utf8(Some("x".into())));
    }

    #[test]
    fn wrong_binary_is_refused() {
        assert_eq!(binary(0, Some(DataType::Int32), &[0; 3]).unwrap_err().sqlstate, "22P02");
        assert_eq!(binary(0, Some(DataType::UInt8), &300i16.to_be_bytes()).unwrap_err().sqlstate, "22003");
        assert_eq!(binary(0, Some(DataType::Date32), &i32::MAX.to_be_bytes()).unwrap_err().sqlstate, "22P02");
        assert_eq!(binary(0, None, &[0xff]).unwrap_err().sqlstate, "22021");
    }

    #[test]
    fn null_has_the_wanted_type() {
        let of = ParameterType::new(0, Some(DataType::Int32));
        assert_eq!(read_parameter(1, &of, None, Format::Text).unwrap(), ScalarValue::Int32(None));
    }
}
