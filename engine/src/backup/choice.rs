//! Which partitions of a table: those like a pattern, or those that meet a condition.

use std::{fmt, sync::Arc};

use super::PartitionPattern;
use crate::{PartitionKey, PartitionScheme, Result, Table};

/// A condition that picks whole partitions. Who knows the language it is written in evaluates it.
pub trait PartitionCondition: fmt::Debug + Send + Sync {
    /// As it was asked for.
    fn text(&self) -> &str;

    /// Which of these partitions of a table are meant, in their order.
    ///
    /// # Errors
    /// [`crate::EngineError::Invalid`] for a condition that does not pick whole partitions of this table: one over other
    /// columns, or one that can hold for some rows of a partition and not for others.
    fn choose(&self, table: &Table, keys: &[PartitionKey]) -> Result<Vec<bool>>;
}

/// Which partitions.
#[derive(Debug, Clone)]
pub enum PartitionChoice {
    /// Those whose values are like it.
    Pattern(PartitionPattern),
    /// Those that meet it.
    Condition(Arc<dyn PartitionCondition>),
}

impl PartitionChoice {
    /// Which of these partitions are meant, in their order.
    pub(super) fn choose(&self, table: &Table, keys: &[PartitionKey]) -> Result<Vec<bool>> {
        match self {
            Self::Pattern(pattern) => {
                let scheme = PartitionScheme::new(table)?;
                keys.iter().map(|key| Ok(pattern.matches(&scheme.describe(key)?))).collect()
            }
            Self::Condition(condition) => condition.choose(table, keys),
        }
    }
}

impl fmt::Display for PartitionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => write!(f, "is like {:?}", pattern.as_str()),
            Self::Condition(condition) => write!(f, "meets {:?}", condition.text()),
        }
    }
}
