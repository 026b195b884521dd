//! One newtype per quantity. Arithmetic lives on the type; no signature of this crate carries a bare `u64`.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Number of a record in one node's log, 1, 2, 3 … without gaps. Never compared between nodes.
    /// 0 means "before the first record".
    Lsn(u64)
);
number!(
    /// Number of a committed transaction in a history, 1, 2, 3 … without holes. 0 means "before the first".
    Seq(u64)
);
number!(
    /// Running 64-bit hash of a history; see [`crate::Position`]. `Chain(0)` stands before the first transaction.
    Chain(u64)
);
number!(
    /// Number of a transaction within one epoch of one history, so that (epoch, number) never repeats in a history.
    TransactionNumber(u64)
);
number!(
    /// Number of a fragment within its transaction, from 0.
    FragmentNumber(u32)
);
number!(
    /// Wall-clock microseconds since 1970-01-01 UTC; strictly increasing within a history.
    CommitTime(i64)
);
number!(
    /// XXH3-64 of a record's directory, which itself holds the hashes of the parts.
    PayloadHash(u64)
);
number!(
    /// XXH3-64 of one part's bytes.
    PartHash(u64)
);
number!(
    /// Bytes from the start of a file.
    FileOffset(u64)
);

impl Lsn {
    /// The LSN before the first record.
    pub const ZERO: Self = Self(0);

    /// The LSN after this one. A number read from a hostile file may be the last there is: it stays.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Seq {
    /// The position before the first transaction.
    pub const ZERO: Self = Self(0);

    /// The seq after this one; the last number there is stays.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Generation of a history: a counter and a random half, so that two nodes that both believe
/// they opened generation 7 are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// 1 for a history's first epoch; 0 stands before it.
    pub counter: u32,
    /// Random.
    pub nonce: u32,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.counter, self.nonce)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// A new random id.
            pub fn random() -> Self {
                Self(rand::random())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let wrong = || format!("{text:?} is not 32 hexadecimal digits");
                if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(wrong());
                }
                let mut id = [0; 16];
                for (index, byte) in id.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
                }
                Ok(Self(id))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

identity!(
    /// Random identity of a history: new at CREATE DATABASE and at a restore under a new name.
    HistoryId
);
identity!(
    /// Random identity of a node, made by `init` and stated in every segment header.
    NodeId
);
