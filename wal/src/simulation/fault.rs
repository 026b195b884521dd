//! What goes wrong, and how often it did.

use std::{collections::BTreeMap, fmt};

/// What a failing call does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The call fails with EIO. Of a write, a part may have been done; a failed sync keeps its pages dirty.
    Broken,
    /// A call that needs space fails with ENOSPC; of a write, a part may have been done.
    Full,
    /// A sync fails, its dirty pages are dropped, and the page cache still shows them, as clean: later reads see
    /// them, a later sync succeeds, a crash loses them.
    DropsPages,
}

/// Classes of faults, as they are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultClass {
    /// A crash lost bytes that were not synced.
    LostData,
    /// A crash lost a folder's entry that was not synced.
    LostEntry,
    /// Of one write, some blocks survived a crash and some did not.
    TornWrite,
    /// A later write survived a crash, an earlier one did not.
    ReorderedWrite,
    /// A crash brought back an unsynced version of a block that had been overwritten.
    OlderBlock,
    /// A crash left bytes of an earlier file in newly allocated space.
    StaleBlock,
    /// A bit was flipped.
    FlippedBit,
    /// A call failed with EIO.
    Broken,
    /// A call failed with ENOSPC.
    Full,
    /// A failed sync dropped dirty pages.
    DroppedPages,
    /// The page cache forgot what a failed sync had dropped.
    Evicted,
}

impl FaultClass {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::LostData,
        Self::LostEntry,
        Self::TornWrite,
        Self::ReorderedWrite,
        Self::OlderBlock,
        Self::StaleBlock,
        Self::FlippedBit,
        Self::Broken,
        Self::Full,
        Self::DroppedPages,
        Self::Evicted,
    ];
}

/// How often each class was active.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FaultCounts(BTreeMap<FaultClass, u64>);

impl FaultCounts {
    pub(super) fn add(&mut self, class: FaultClass) {
        *self.0.entry(class).or_default() += 1;
    }

    /// How often `class` was active.
    pub fn of(&self, class: FaultClass) -> u64 {
        self.0.get(&class).copied().unwrap_or(0)
    }

    /// Adds another disk's counts.
    pub fn merge(&mut self, other: &Self) {
        for (class, count) in &other.0 {
            *self.0.entry(*class).or_default() += count;
        }
    }

    /// Classes that were never active.
    pub fn never_active(&self) -> Vec<FaultClass> {
        FaultClass::ALL.into_iter().filter(|class| self.of(*class) == 0).collect()
    }
}

impl fmt::Display for FaultCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, class) in FaultClass::ALL.into_iter().enumerate() {
            write!(f, "{}{class:?} {}", if index == 0 { "" } else { ", " }, self.of(class))?;
        }
        Ok(())
    }
}
