//! Partition keys: what the log's directory and the manifest call a partition.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::scalar::Scalar;

/// Longest key, bytes: it stands in every directory entry, and many entries in one directory.
pub const KEY_BYTES_MAX: usize = 4096;

/// Canonical encoding of one partition's values, in the order of the table's partition fields. Equal values, equal
/// bytes; NULL is a value of its own, after all others; keys of one table order as their values do. Empty for an
/// unpartitioned table.
///
/// Per field: a byte 2 for NULL; or a byte 1 and the value: a boolean as one byte; integers, dates, timestamps and the
/// numbers of time transforms as 8 big-endian bytes, decimals as 16, the sign bit flipped on signed ones; text and
/// binaries with every 0 byte followed by 255, ended by 0 and 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PartitionKey(#[serde(with = "hex")] pub Bytes);

impl PartitionKey {
    /// As the manifest and SQL write it: hexadecimal digits.
    pub fn to_hex(&self) -> String {
        super::hexadecimal(&self.0)
    }

    /// The key that is written so; `None` for anything else. Whether a table has such keys is for its scheme to say.
    pub fn from_hex(text: &str) -> Option<Self> {
        hex::bytes(text).map(Self)
    }
}

const VALUE: u8 = 1;
const NULL: u8 = 2;

/// Appends one field.
pub(super) fn encode(value: Option<Scalar<'_>>, key: &mut Vec<u8>) {
    let Some(value) = value else { return key.push(NULL) };
    key.push(VALUE);
    match value {
        Scalar::Bool(value) => key.push(value.into()),
        Scalar::Int(value) => key.extend((value ^ i64::MIN).to_be_bytes()),
        Scalar::UInt(value) => key.extend(value.to_be_bytes()),
        Scalar::Decimal(value) => key.extend((value ^ i128::MIN).to_be_bytes()),
        // No column is partitioned by floats; their order would need more than their bits.
        Scalar::Float(value) => key.extend(value.to_bits().to_be_bytes()),
        Scalar::Bytes(value) => {
            for byte in value {
                key.push(*byte);
                if *byte == 0 {
                    key.push(0xff);
                }
            }
            key.extend([0, 1]);
        }
    }
}

/// The kinds of values that a field can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Int,
    UInt,
    Decimal,
    Bytes,
}

/// A decoded field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decoded {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Decimal(i128),
    Bytes(Vec<u8>),
}

impl Decoded {
    pub(super) fn as_scalar(&self) -> Option<Scalar<'_>> {
        Some(match self {
            Self::Null => return None,
            Self::Bool(value) => Scalar::Bool(*value),
            Self::Int(value) => Scalar::Int(*value),
            Self::UInt(value) => Scalar::UInt(*value),
            Self::Decimal(value) => Scalar::Decimal(*value),
            Self::Bytes(value) => Scalar::Bytes(value),
        })
    }
}

/// Takes one field off the front of `key`; `None` if it is no field of that kind.
pub(super) fn decode(kind: Kind, key: &mut &[u8]) -> Option<Decoded> {
    match take::<1>(key)? {
        [NULL] => return Some(Decoded::Null),
        [VALUE] => {}
        _ => return None,
    }
    Some(match kind {
        Kind::Bool => match take::<1>(key)? {
            [0] => Decoded::Bool(false),
            [1] => Decoded::Bool(true),
            _ => return None,
        },
        Kind::Int => Decoded::Int(i64::from_be_bytes(take(key)?) ^ i64::MIN),
        Kind::UInt => Decoded::UInt(u64::from_be_bytes(take(key)?)),
        Kind::Decimal => Decoded::Decimal(i128::from_be_bytes(take(key)?) ^ i128::MIN),
        Kind::Bytes => {
            let mut value = Vec::new();
            loop {
                match take::<1>(key)? {
                    [0] => match take::<1>(key)? {
                        [0xff] => value.push(0),
                        [1] => break,
                        _ => return None,
                    },
                    [byte] => value.push(byte),
                }
            }
            Decoded::Bytes(value)
        }
    })
}

fn take<const N: usize>(key: &mut &[u8]) -> Option<[u8; N]> {
    let (front, rest) = key.split_first_chunk::<N>()?;
    *key = rest;
    Some(*front)
}

/// Keys stand in the manifest as hexadecimal text.
mod hex {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::KEY_BYTES_MAX;

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::super::hexadecimal(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        bytes(&text).ok_or_else(|| D::Error::custom("a partition key is an even number of hexadecimal digits"))
    }

    pub(super) fn bytes(text: &str) -> Option<Bytes> {
        let digits = text.as_bytes();
        if !digits.len().is_multiple_of(2)
            || digits.len() > 2 * KEY_BYTES_MAX
            || !digits.iter().all(u8::is_ascii_hexdigit)
        {
            return None;
        }
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
        Some(digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: Option<Scalar<'_>>) -> Vec<u8> {
        let mut key = Vec::new();
        encode(value, &mut key);
        key
    }

    #[test]
    fn keys_order_like_their_values_with_null_last() {
        let ints = [i64::MIN, -256, -1, 0, 1, 255, 256, i64::MAX].map(|value| key(Some(Scalar::Int(value))));
        assert!(ints.is_sorted_by(|a, b| a < b));
        let decimals = [i128::MIN, -1, 0, 1, i128::MAX].map(|value| key(Some(Scalar::Decimal(value))));
        assert!(decimals.is_sorted_by(|a, b| a < b));
        let texts: [&[u8]; 8] = [b"", b"\0", b"\0\0", b"\0\x01", b"\x01", b"a", b"a\0", b"a\x01"];
        let texts = texts.map(|value| key(Some(Scalar::Bytes(value))));
        assert!(texts.is_sorted_by(|a, b| a < b));
        assert!(texts.iter().chain(&ints).all(|value| *value < key(None)));
        // The end of one field decides before the next one begins.
        let pair = |a: &[u8], b: i64| [key(Some(Scalar::Bytes(a))), key(Some(Scalar::Int(b)))].concat();
        assert!(pair(b"a", i64::MAX) < pair(b"ab", i64::MIN));
        assert!(pair(b"a", i64::MAX) < pair(b"a\0", i64::MIN));
    }

    #[test]
    fn fields_come_back() {
        let bytes = b"a\0b\0\0\xff\x01".as_slice();
        let cases = [
            (Kind::Bool, Scalar::Bool(true)),
            (Kind::Int, Scalar::Int(-7)),
            (Kind::UInt, Scalar::UInt(u64::MAX)),
            (Kind::Decimal, Scalar::Decimal(-7)),
            (Kind::Bytes, Scalar::Bytes(bytes)),
        ];
        for (kind, value) in cases {
            let encoded = key(Some(value));
            let mut rest = encoded.as_slice();
            assert_eq!(decode(kind, &mut rest).unwrap().as_scalar(), Some(value));
            assert!(rest.is_empty());
            for end in 0..encoded.len() {
                assert_eq!(decode(kind, &mut &encoded[..end]), None);
            }
            assert_eq!(decode(kind, &mut key(None).as_slice()), Some(Decoded::Null));
        }
    }

    #[test]
    fn hexadecimal_text_comes_back_and_garbage_does_not() {
        let key = PartitionKey(Bytes::from_static(&[0, 1, 0xab, 0xff]));
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(text, "\"0001abff\"");
        assert_eq!(serde_json::from_str::<PartitionKey>(&text).unwrap(), key);
        for wrong in ["\"0\"", "\"zz\"", "\"é0\""] {
            serde_json::from_str::<PartitionKey>(wrong).unwrap_err();
        }
    }
}
