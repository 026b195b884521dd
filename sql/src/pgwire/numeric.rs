//! PostgreSQL's binary `numeric`: digits of base 10,000, a weight, a sign, a scale.

use bytes::BufMut;

use super::frontend::violation;
use crate::{Result, SqlError};

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;

/// Writes the decimal that `text` spells: digits with at most one point, perhaps a sign before them. It comes from
/// Arrow's own decimals.
pub(crate) fn write_numeric(out: &mut Vec<u8>, text: &str) {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = whole.trim_start_matches('0');
    // Groups of four digits, aligned at the point.
    let mut digits = Vec::with_capacity(12);
    let first = whole.len() % 4;
    if first > 0 {
        digits.push(group(&whole[..first]));
    }
    digits.extend(whole.as_bytes()[first..].chunks(4).map(digits_of));
    let mut weight = i16::try_from(digits.len()).unwrap_or(i16::MAX) - 1;
    digits.extend(fraction.as_bytes().chunks(4).map(|chunk| {
        let missing = u32::try_from(4 - chunk.len()).unwrap_or(0);
        digits_of(chunk) * 10u16.pow(missing)
    }));
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    digits.drain(..zeros);
    weight -= i16::try_from(zeros).unwrap_or(0);
    if digits.is_empty() {
        weight = 0;
    }
    out.put_u16(u16::try_from(digits.len()).unwrap_or(u16::MAX));
    out.put_i16(weight);
    out.put_u16(if negative && !digits.is_empty() { NEGATIVE } else { 0 });
    out.put_u16(u16::try_from(fraction.len()).unwrap_or(u16::MAX));
    digits.iter().for_each(|digit| out.put_u16(*digit));
}

fn group(text: &str) -> u16 {
    digits_of(text.as_bytes())
}

fn digits_of(chunk: &[u8]) -> u16 {
    chunk.iter().fold(0, |value, digit| value * 10 + u16::from(digit.wrapping_sub(b'0') % 10))
}

/// Reads a `numeric` as text. Values beyond 76 digits, NaN and infinities are refused: no column could hold them.
pub(crate) fn read_numeric(bytes: &[u8]) -> Result<String> {
    let word = |index: usize| {
        let at = bytes.get(2 * index..2 * index + 2).ok_or_else(|| violation("a numeric is too short"))?;
        Ok::<_, SqlError>(u16::from_be_bytes([at[0], at[1]]))
    };
    let count = usize::from(word(0)?);
    let weight = word(1)?.cast_signed();
    let (sign, scale) = (word(2)?, usize::from(word(3)?));
    if sign & NAN == NAN {
        return Err(SqlError::new("22003", "a numeric parameter is NaN or infinite").hint("use double precision"));
    }
    if bytes.len() != 8 + 2 * count {
        return Err(violation("a numeric has the wrong length"));
    }
    if count > 20 || weight.unsigned_abs() > 20 || scale > 76 {
        return Err(SqlError::new("22003", "a numeric parameter has more than 76 digits"));
    }
    let digit = |position: i16| -> Result<u16> {
        match usize::try_from(i32::from(weight) - i32::from(position)) {
            Ok(index) if index < count => match word(4 + index)? {
                digit @ 0..=9999 => Ok(digit),
                _ => Err(violation("a numeric has a digit over 9999")),
            },
            _ => Ok(0),
        }
    };
    let mut text = String::new();
    for position in (0..=weight.max(0)).rev() {
        text += &format!("{:04}", digit(position)?);
    }
    let mut text = text.trim_start_matches('0').to_owned();
    if text.is_empty() {
        text.push('0');
    }
    if scale > 0 {
        let mut fraction = String::new();
        let mut position = -1;
        while fraction.len() < scale {
            fraction += &format!("{:04}", digit(position)?);
            position -= 1;
        }
        text.push('.');
        text += &fraction[..scale];
    }
    if sign == NEGATIVE {
        text.insert(0, '-');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        write_numeric(&mut out, text);
        out
    }

    #[test]
    fn known_bytes() {
        // 12345.678: digits 1, 2345, 6780; weight 1; scale 3.
        assert_eq!(&written("12345.678")[..], [0, 3, 0, 1, 0, 0, 0, 3, 0, 1, 0x09, 0x29, 0x1a, 0x7c]);
        assert_eq!(&written("0.00")[..], [0, 0, 0, 0, 0, 0, 0, 2]);
        // 0.00005: digit 5000 at weight -2.
        assert_eq!(&written("-0.00005")[..], [0, 1, 0xff, 0xfe, 0x40, 0, 0, 5, 0x13, 0x88]);
    }

    #[test]
    fn what_is_written_is_read() {
        for text in [
            "0",
            "1",
            "-1",
            "9999",
            "10000",
            "100000000",
            "0.1",
            "-0.0001",
            "123.4500",
            "18446744073709551615",
            "99999999999999999999999999999999999999",
            "-12345678901234567890.123456789012345678",
            "0.00005",
        ] {
            assert_eq!(read_numeric(&written(text)).unwrap(), text);
        }
    }

    #[test]
    fn wrong_bytes_are_refused() {
        for bytes in [
            &b""[..],
            &[0, 1, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0xC0, 0, 0, 0],
            &[0xff, 0xff, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0x7f, 0xff, 0, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0xff, 0xff],
            &[0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
        ] {
            assert!(read_numeric(bytes).is_err(), "{bytes:?}");
        }
    }
}
