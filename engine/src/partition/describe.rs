//! Partition values as people and other tools read them.

use arrow_schema::{DataType, TimeUnit};

use super::{Transform, hexadecimal, key::Decoded, transform::civil};

/// The readable form; `None` is NULL.
pub(super) fn describe(transform: Transform, data_type: &DataType, value: &Decoded) -> Option<String> {
    Some(match (value, transform) {
        (Decoded::Null, _) => return None,
        (Decoded::Int(value), Transform::Year) => year(value.saturating_add(1970)),
        (Decoded::Int(value), Transform::Month) => {
            format!("{}-{:02}", year(value.div_euclid(12) + 1970), value.rem_euclid(12) + 1)
        }
        (Decoded::Int(value), Transform::Day) => date(*value),
        (Decoded::Int(value), Transform::Hour) => format!("{}-{:02}", date(value.div_euclid(24)), value.rem_euclid(24)),
        (Decoded::Int(value), Transform::Identity) => match data_type {
            DataType::Date32 => date(*value),
            DataType::Timestamp(unit, zone) => timestamp(*value, *unit, zone.is_some()),
            _ => value.to_string(),
        },
        (Decoded::Bool(value), _) => value.to_string(),
        (Decoded::UInt(value), _) => value.to_string(),
        (Decoded::Decimal(value), _) => match data_type {
            DataType::Decimal128(_, scale) => decimal(*value, scale.unsigned_abs().into()),
            _ => value.to_string(),
        },
        (Decoded::Bytes(value), _) => match (data_type, std::str::from_utf8(value)) {
            (DataType::Utf8, Ok(text)) => text.to_owned(),
            _ => hexadecimal(value),
        },
    })
}

fn year(year: i64) -> String {
    match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{year:+05}"),
    }
}

fn date(days: i64) -> String {
    let (y, month, day) = civil(days);
    format!("{}-{month:02}-{day:02}", year(y))
}

fn timestamp(value: i64, unit: TimeUnit, zoned: bool) -> String {
    let (per_second, digits) = match unit {
        TimeUnit::Second => (1, 0),
        TimeUnit::Millisecond => (1_000, 3),
        TimeUnit::Microsecond => (1_000_000, 6),
        TimeUnit::Nanosecond => (1_000_000_000, 9),
    };
    let (seconds, fraction) = (value.div_euclid(per_second), value.rem_euclid(per_second));
    let of_day = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let mut text = format!("{}T{hour:02}:{minute:02}:{second:02}", date(seconds.div_euclid(86_400)));
    if fraction != 0 {
        text.push_str(&format!(".{fraction:0digits$}"));
    }
    if zoned {
        text.push('Z');
    }
    text
}

fn decimal(value: i128, scale: usize) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let digits = format!("{:0width$}", value.unsigned_abs(), width = scale + 1);
    match digits.split_at(digits.len() - scale) {
        (whole, "") => format!("{sign}{whole}"),
        (whole, fraction) => format!("{sign}{whole}.{fraction}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_well() {
        let show = |transform, data_type: &DataType, value| describe(transform, data_type, &value).unwrap();
        let second = DataType::Timestamp(TimeUnit::Second, None);
        let nanosecond = DataType::Timestamp(TimeUnit::Nanosecond, Some("+02:00".into()));
        assert_eq!(show(Transform::Day, &second, Decoded::Int(19_365)), "2023-01-08");
        assert_eq!(show(Transform::Day, &second, Decoded::Int(-1)), "1969-12-31");
        assert_eq!(show(Transform::Year, &second, Decoded::Int(-1)), "1969");
        assert_eq!(show(Transform::Year, &second, Decoded::Int(-1971)), "-0001");
        assert_eq!(show(Transform::Month, &second, Decoded::Int(-1)), "1969-12");
        assert_eq!(show(Transform::Hour, &second, Decoded::Int(-1)), "1969-12-31-23");
        assert_eq!(show(Transform::Identity, &second, Decoded::Int(-1)), "1969-12-31T23:59:59");
        assert_eq!(show(Transform::Identity, &nanosecond, Decoded::Int(1)), "1970-01-01T00:00:00.000000001Z");
        assert_eq!(show(Transform::Identity, &DataType::Decimal128(5, 2), Decoded::Decimal(-5)), "-0.05");
        assert_eq!(show(Transform::Identity, &DataType::Decimal128(5, 0), Decoded::Decimal(50)), "50");
        assert_eq!(show(Transform::Identity, &DataType::Utf8, Decoded::Bytes(b"a/b".to_vec())), "a/b");
        assert_eq!(show(Transform::Identity, &DataType::Binary, Decoded::Bytes(vec![1, 255])), "01ff");
        assert_eq!(describe(Transform::Day, &second, &Decoded::Null), None);
    }
}
