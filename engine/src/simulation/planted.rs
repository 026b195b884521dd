//! Bugs that can be switched on, to see that the tests would find them.

macro_rules! bugs {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A bug of the engine that `EngineConfig::simulation` switches on.
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
    /// A flush names rows whose records are not durable.
    FlushesUndurable,
    /// The log is truncated before the edit of the flush is durable.
    TruncatesBeforeEdit,
    /// An edit counts when it is written.
    DoesNotSyncEdits,
    /// What lies before a checkpoint of the manifest goes before the checkpoint is durable.
    DoesNotSyncCheckpoints,
    /// Replay starts after the last flush, whatever was open then.
    ForgetsOpenTransactions,
    /// The manifest says that a reader may start at the position itself.
    LosesRestartSeq,
    /// Fragments of an aborted transaction are applied with the next commit at replay.
    ShowsAborted,
    /// A datafile gets its name before its bytes are synced.
    NamesUnsyncedDatafile,
    /// Folders of datafiles are not synced.
    DoesNotSyncFolders,
    /// Replay applies what is in datafiles already.
    ReplaysFlushed,
    /// A replica's position goes into the manifest without the rows before it.
    KeepsPositionApart,
    /// Synchronous commits are acknowledged when they are written.
    AcknowledgesEarly,
    /// Datafiles of an edit that may have been written are removed.
    RemovesFilesOfUncertainEdit,
    /// A flush does not tell the manifest which partitions were dropped.
    ForgetsDrops,
}
