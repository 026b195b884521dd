//! Bugs that can be switched on, to see that the tests would find them.

/// A bug of the log that `LogConfig::planted` switches on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlantedBug {
    /// A batch counts as synced without a sync.
    SkipsSync,
    /// Synchronous appends are acknowledged when they are written.
    AcksBeforeSync,
}
