//! Bugs that can be switched on, to see that the tests would find them.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A bug of the log that `LogConfig::planted` switches on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum PlantedBug {
            $($(#[$doc])* $name,)*
        }

        impl PlantedBug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

bugs! {
    /// A batch counts as synced without a sync.
    SkipsSync,
    /// Synchronous appends are acknowledged when they are written.
    AcksBeforeSync,
    /// A failed sync is tried again, and counts when that succeeds.
    RetriesFailedSync,
    /// A failed sync fails those who wait for it; the log goes on.
    GoesOnAfterFailedSync,
    /// A sync counts for what was written while it was under way.
    CoversLaterWrites,
    /// The folder is not synced after a segment got its name.
    SkipsDirectorySync,
    /// A segment gets its name before its bytes are synced.
    SkipsHeaderSync,
    /// A sealed segment is not synced before the next one states it durable.
    SealsWithoutSync,
    /// A write undone for want of space is not synced as undone.
    CutsBackWithoutSync,
    /// All segments have the same salt.
    IgnoresSalt,
    /// Records state more durable than what is.
    StatesDurableTooHigh,
    /// Recovery serves records above the durable mark as they are in the page cache.
    ServesUndecided,
    /// Recovery takes records whose payload is not whole.
    AcceptsTornRecords,
    /// Recovery takes any damage in the last segment for a torn tail, whatever later frames state.
    IgnoresLaterMarks,
    /// Recovery does not care what others state durable.
    IgnoresFloor,
    /// Truncation takes the segment that holds the first record not flushed.
    TruncatesUnflushed,
    /// Truncation takes the segment that holds the first record that a pin needs.
    TruncatesPinned,
    /// Truncation does not know of open transactions.
    TruncatesOpen,
    /// Records do not say where a reader must start for the transactions still open.
    LosesRestartSeq,
    /// An abort does not end its transaction.
    KeepsAbortedOpen,
    /// A footer does not list the transactions that are open.
    SealForgetsOpen,
    /// A history goes on in its old epoch after a start.
    ReusesEpoch,
    /// Records of other nodes are taken without a look at the chain.
    AcceptsAnyVerbatim,
    /// Records of a run are taken although one before them was refused.
    TakesAfterRefused,
    /// Readers get what is not durable yet.
    ReadsPastDurable,
    /// Readers miss the last record of a sealed segment.
    MissesLastOfSegment,
}
