//! Digests: what a set of rows is, in 40 bytes, whatever their order, batches and files.
//!
//! A digest adds up one hash per row, so digests of disjoint sets are added, and rows that go are subtracted. A row's hash
//! covers its columns by *name* and its values as what they mean: two tables that were created apart agree when their rows
//! do, and a column that holds nothing but NULL is not there. `FORMAT.md` says how it is computed, byte for byte.
//!
//! Equal digests of different rows do not happen by accident. They can be made on purpose: neither XXH3 nor a sum resists
//! an adversary, so a digest finds errors, not forgeries.

mod canonical;
mod compare;
mod hasher;
mod partitions;
mod point;
pub(crate) mod read;
#[cfg(test)]
mod tests;

pub use compare::{ComparedPartition, DatabaseDigests, Difference, PartitionDigests, TableDigests, compare_digests};
pub use hasher::RowHasher;
pub use partitions::{DamagedDatafile, ScrubbedPartition};
pub use point::PointId;
pub(crate) use point::Points;

use std::{
    fmt,
    iter::Sum,
    ops::{Add, AddAssign, Sub, SubAssign},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A set of rows in short: how many, and two sums mod 2¹²⁸ of row hashes. The default is that of no rows.
///
/// Addition and subtraction are those of sets of rows, modulo 2⁶⁴ and 2¹²⁸: a difference may pass through "less than
/// nothing" on the way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Digest {
    /// Rows.
    pub rows: u64,
    /// Over the rows' values: equal wherever the same rows are, in whatever database and history.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub values: u128,
    /// Over values and row identities (seq, ordinal): equal on copies of one history. 0 where rows have no identity.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub identity: u128,
}

impl Digest {
    /// Whether rows and values agree, whatever the identities.
    pub fn same_values(&self, other: &Self) -> bool {
        (self.rows, self.values) == (other.rows, other.values)
    }

    /// The sum of values as it is shown: 32 hexadecimal digits.
    pub fn values_hex(&self) -> String {
        hex(self.values)
    }

    /// The sum with identities as it is shown: 32 hexadecimal digits.
    pub fn identity_hex(&self) -> String {
        hex(self.identity)
    }

    /// A sum from its 32 hexadecimal digits; `None` for anything else.
    pub fn parse_hex(text: &str) -> Option<u128> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 32 && digits).then(|| u128::from_str_radix(text, 16).ok()).flatten()
    }
}

fn hex(sum: u128) -> String {
    format!("{sum:032x}")
}

fn to_hex<S: Serializer>(sum: &u128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{sum:032x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
    let text = String::deserialize(deserializer)?;
    Digest::parse_hex(&text).ok_or_else(|| D::Error::custom("a digest has 32 lower-case hexadecimal digits"))
}

impl Add for Digest {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rows: self.rows.wrapping_add(other.rows),
            values: self.values.wrapping_add(other.values),
            identity: self.identity.wrapping_add(other.identity),
        }
    }
}

impl Sub for Digest {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            rows: self.rows.wrapping_sub(other.rows),
            values: self.values.wrapping_sub(other.values),
            identity: self.identity.wrapping_sub(other.identity),
        }
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Digest {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Digest {
    fn sum<I: Iterator<Item = Self>>(digests: I) -> Self {
        digests.fold(Self::default(), Add::add)
    }
}

/// `rows:values:identity`, the sums in hexadecimal.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:032x}:{:032x}", self.rows, self.values, self.identity)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}
