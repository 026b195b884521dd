//! Settings of a log.

use std::{path::PathBuf, time::Duration};

/// Settings of one log. Each default is the safe choice.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// Folder of the segments.
    pub dir: PathBuf,
    /// Size at which a segment is sealed, bytes. Larger: fewer files, coarser truncation. Default 64 MiB.
    pub segment_bytes: u64,
    /// Longest time that an asynchronous commit waits for its fdatasync. Default 200 ms.
    pub sync_interval: Duration,
    /// Most bytes that may be written and not yet synced before writers wait for a sync. Default 64 MiB.
    pub async_max_bytes: u64,
    /// Most bytes that may wait for the writer before `append` waits. Default 64 MiB.
    pub queue_max_bytes: u64,
    /// Most bytes of log that one pin may hold back before it is lost. Default 16 GiB.
    pub pin_max_bytes: u64,
    /// Longest time that a pin may stand still while the log grows before it is lost. Default 7 days.
    pub pin_max_age: Duration,
    /// Bytes that the log's owner sets aside ([`crate::Reserve`]) to get out of a full disk; of a small file system at
    /// most a sixteenth. The log itself does not look at it. Default 0, none: whoever runs a node asks for some.
    pub reserve_bytes: u64,
    /// A bug that is switched on, to see that tests find it.
    #[cfg(feature = "simulation")]
    pub planted: Option<crate::simulation::PlantedBug>,
    /// Appenders take turns also where appends meet, so that many turns follow each other closely.
    #[cfg(feature = "simulation")]
    pub crowds_take_turns: bool,
}

/// Whether a bug is planted in a log with these settings. `false`, as a constant, without the feature `simulation`.
macro_rules! planted {
    ($config:expr, $bug:ident) => {{
        #[cfg(feature = "simulation")]
        {
            $config.planted == Some(crate::simulation::PlantedBug::$bug)
        }
        #[cfg(not(feature = "simulation"))]
        {
            let _ = &$config;
            false
        }
    }};
}
pub(crate) use planted;

impl LogConfig {
    /// Whether appends that meet go to the thread for a while.
    pub(crate) fn gathers_crowds(&self) -> bool {
        #[cfg(feature = "simulation")]
        return !self.crowds_take_turns;
        #[cfg(not(feature = "simulation"))]
        true
    }

    /// Defaults for a folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            sync_interval: Duration::from_millis(200),
            async_max_bytes: 64 << 20,
            queue_max_bytes: 64 << 20,
            pin_max_bytes: 16 << 30,
            pin_max_age: Duration::from_secs(7 * 24 * 3600),
            reserve_bytes: 0,
            #[cfg(feature = "simulation")]
            planted: None,
            #[cfg(feature = "simulation")]
            crowds_take_turns: false,
        }
    }
}
