//! A range of LSNs as it is typed.

use std::{ops::RangeInclusive, str::FromStr};

use tailrace_wal::Lsn;

/// `A..B` with both included, `A..`, `..B`, `..` or `A`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LsnRange {
    first: Lsn,
    last: Lsn,
}

impl LsnRange {
    pub(super) fn all() -> Self {
        Self { first: Lsn(1), last: Lsn(u64::MAX) }
    }

    pub(super) fn lsns(self) -> RangeInclusive<Lsn> {
        self.first..=self.last
    }
}

impl FromStr for LsnRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str, missing: Lsn| match text.trim() {
            "" => Ok(missing),
            text => text.parse().map(Lsn).map_err(|_| format!("{text:?} is not an LSN")),
        };
        let all = Self::all();
        let range = match text.split_once("..") {
            Some((first, last)) => Self { first: number(first, all.first)?, last: number(last, all.last)? },
            None => {
                let lsn = number(text, Lsn::ZERO)?;
                Self { first: lsn, last: lsn }
            }
        };
        match range.first > range.last || range.last == Lsn::ZERO {
            true => Err(format!("{text:?} holds no LSN; write A..B, A.., ..B or A, from 1 on")),
            false => Ok(range),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let parsed = |text: &str| text.parse::<LsnRange>().map(|range| (range.first.0, range.last.0));
        assert_eq!(parsed("3..9"), Ok((3, 9)));
        assert_eq!(parsed("3.."), Ok((3, u64::MAX)));
        assert_eq!(parsed("..9"), Ok((1, 9)));
        assert_eq!(parsed("7"), Ok((7, 7)));
        assert_eq!(parsed(".."), Ok((1, u64::MAX)));
        for wrong in ["", "0", "9..3", "a..b", "1...3", "-1", "..0"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
