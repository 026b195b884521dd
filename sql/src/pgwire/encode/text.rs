//! Values as PostgreSQL spells them: `DateStyle` ISO, `TimeZone` UTC, `extra_float_digits` 1, `bytea_output` hex.

use std::io::Write;

/// A float that reads back as the same value, in as few digits as that takes.
pub(super) fn write_f64(out: &mut Vec<u8>, value: f64) {
    // PostgreSQL changes to an exponent below 1e-4 and from 1e15 on; a float4 from 1e6 on.
    if value.is_finite() {
        write_shortest(out, zmij::Buffer::new().format_finite(value), (1e-4..1e15).contains(&value.abs()), 15);
    } else {
        write_special(out, value);
    }
}

/// See [`write_f64`].
pub(super) fn write_f32(out: &mut Vec<u8>, value: f32) {
    if value.is_finite() {
        write_shortest(out, zmij::Buffer::new().format_finite(value), (1e-4..1e6).contains(&value.abs()), 6);
    } else {
        write_special(out, f64::from(value));
    }
}

fn write_special(out: &mut Vec<u8>, value: f64) {
    let text = match value {
        value if value.is_nan() => "NaN",
        f64::INFINITY => "Infinity",
        _ => "-Infinity",
    };
    out.extend_from_slice(text.as_bytes());
}

/// Spells the shortest digits in `text` as PostgreSQL does. `plain`: the value surely has no exponent.
fn write_shortest(out: &mut Vec<u8>, text: &str, plain: bool, exponent_max: i32) {
    if plain && !text.contains('e') {
        out.extend_from_slice(text.strip_suffix(".0").unwrap_or(text).as_bytes());
        return;
    }
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    if negative {
        out.push(b'-');
    }
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = [whole, fraction].concat();
    let digits = all.trim_start_matches('0');
    // The value is 0.DIGITS × 10^point.
    let leading = i32::try_from(all.len() - digits.len()).unwrap_or(0);
    let point = exponent.parse::<i32>().unwrap_or(0) + i32::try_from(whole.len()).unwrap_or(0) - leading;
    let digits = digits.trim_end_matches('0');
    if digits.is_empty() {
        out.push(b'0');
        return;
    }
    let exponent = point - 1;
    if (-4..exponent_max).contains(&exponent) {
        let length = i32::try_from(digits.len()).unwrap_or(0);
        if point <= 0 {
            out.extend_from_slice(b"0.");
            out.extend((point..0).map(|_| b'0'));
            out.extend_from_slice(digits.as_bytes());
        } else if point >= length {
            out.extend_from_slice(digits.as_bytes());
            out.extend((length..point).map(|_| b'0'));
        } else {
            let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap_or(0));
            out.extend_from_slice(whole.as_bytes());
            out.push(b'.');
            out.extend_from_slice(fraction.as_bytes());
        }
        return;
    }
    let (first, rest) = digits.split_at(1);
    out.extend_from_slice(first.as_bytes());
    if !rest.is_empty() {
        out.push(b'.');
        out.extend_from_slice(rest.as_bytes());
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    write!(out, "e{sign}{:02}", exponent.unsigned_abs()).ok();
}

/// `\x` and hexadecimal digits.
pub(super) fn write_bytea(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + 2 * bytes.len());
    out.extend_from_slice(b"\\x");
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// `2023-01-08`, `0044-03-15 BC`.
pub(super) fn write_date(out: &mut Vec<u8>, days: i64) {
    let bc = write_ymd(out, days);
    write_era(out, bc);
}

/// `2023-01-08 09:30:00.5`, with `+00` where `zone`. `nanos` is the part below a second. PostgreSQL has six digits of
/// it; all nine are shown rather than lost where the last three are not zero.
pub(super) fn write_timestamp(out: &mut Vec<u8>, seconds: i64, nanos: u32, zone: bool) {
    let bc = write_ymd(out, seconds.div_euclid(86_400));
    out.push(b' ');
    write_time(out, u32::try_from(seconds.rem_euclid(86_400)).unwrap_or(0), nanos);
    if zone {
        out.extend_from_slice(b"+00");
    }
    write_era(out, bc);
}

/// `09:30:00.5`.
pub(super) fn write_time(out: &mut Vec<u8>, second_of_day: u32, nanos: u32) {
    two(out, second_of_day / 3600);
    out.push(b':');
    two(out, second_of_day / 60 % 60);
    out.push(b':');
    two(out, second_of_day % 60);
    if nanos > 0 {
        let text = format!(".{nanos:09}");
        out.extend_from_slice(text.trim_end_matches('0').as_bytes());
    }
}

fn write_era(out: &mut Vec<u8>, bc: bool) {
    if bc {
        out.extend_from_slice(b" BC");
    }
}

/// Writes the date that lies `days` after 1970-01-01; `true` for one before the year 1.
///
/// The algorithm is Howard Hinnant's `civil_from_days`.
fn write_ymd(out: &mut Vec<u8>, days: i64) -> bool {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = u32::try_from(day_of_year - (153 * month_from_march + 2) / 5 + 1).unwrap_or(1);
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let bc = year <= 0;
    let shown = if bc { 1 - year } else { year };
    match u32::try_from(shown) {
        Ok(shown @ 0..10_000) => {
            two(out, shown / 100);
            two(out, shown % 100);
        }
        _ => drop(write!(out, "{shown}")),
    }
    out.push(b'-');
    two(out, u32::try_from(month).unwrap_or(1));
    out.push(b'-');
    two(out, day);
    bc
}

fn two(out: &mut Vec<u8>, value: u32) {
    let digit = |value: u32| b'0' + u8::try_from(value % 10).unwrap_or(0);
    out.extend_from_slice(&[digit(value / 10), digit(value)]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn doubles_are_spelled_as_postgresql_spells_them() {
        for (value, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (100.0, "100"),
            (10.37, "10.37"),
            (-1.5, "-1.5"),
            (0.1 + 0.2, "0.30000000000000004"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e15, "1e+15"),
            (1.5e15, "1.5e+15"),
            (1e20, "1e+20"),
            (1.234e-5, "1.234e-05"),
            (1e-4, "0.0001"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(text(|out| write_f64(out, value)), expected);
        }
    }

    #[test]
    fn floats_are_spelled_as_postgresql_spells_them() {
        for (value, expected) in
            [(0.1, "0.1"), (999_999.0, "999999"), (1e6, "1e+06"), (1.5e-7, "1.5e-07"), (f32::MAX, "3.4028235e+38")]
        {
            assert_eq!(text(|out| write_f32(out, value)), expected);
        }
    }

    #[test]
    fn doubles_read_back_as_the_same_value() {
        let mut bits = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..100_000 {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            let value = f64::from_bits(bits);
            if value.is_finite() {
                let spelled = text(|out| write_f64(out, value));
                assert_eq!(spelled.parse::<f64>().unwrap().to_bits(), bits, "{spelled}");
            }
        }
    }

    #[test]
    fn moments() {
        assert_eq!(text(|out| write_timestamp(out, 1_673_170_200, 0, false)), "2023-01-08 09:30:00");
        assert_eq!(text(|out| write_timestamp(out, 1_673_170_200, 120_000_000, true)), "2023-01-08 09:30:00.12+00");
        assert_eq!(text(|out| write_timestamp(out, -1, 999_999_999, false)), "1969-12-31 23:59:59.999999999");
        assert_eq!(text(|out| write_date(out, -719_163)), "0001-12-31 BC");
        assert_eq!(text(|out| write_date(out, -719_162)), "0001-01-01");
        assert_eq!(text(|out| write_date(out, 11_016)), "2000-02-29");
        assert_eq!(text(|out| write_date(out, 2_932_897)), "10000-01-01");
        assert_eq!(text(|out| write_bytea(out, &[0, 0xab])), "\\x00ab");
    }
}
