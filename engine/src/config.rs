//! Settings of an engine.

use std::{path::PathBuf, time::Duration};

use tailrace_wal::{LogConfig, Persistence};
use url::Url;

use crate::ArchiveConfig;

/// Settings of one node's engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Folder of this node: `wal/`, `manifest/`, `store/` lie in it.
    pub data_dir: PathBuf,
    /// Where datafiles lie; `None`: `data_dir/store`.
    pub storage_url: Option<Url>,
    /// The log.
    pub wal: LogConfig,
    /// Where sealed segments of the log are archived. Default: nowhere.
    pub archive: Option<ArchiveConfig>,
    /// When a commit that does not say otherwise is acknowledged. Default sync.
    pub persistence: Persistence,
    /// Memtable size at which a flush starts; at twice this, writers wait. Of a followed database's open transactions as
    /// much again is in memory at most; what is beyond waits in the log. Default 256 MiB.
    pub memtable_bytes: u64,
    /// Arrow kept in memory for recently flushed datafiles. Default 1 GiB.
    pub cache_bytes: u64,
    /// Age of the oldest unflushed row at which a flush starts. Default 60 s.
    pub flush_age: Duration,
    /// Payload bytes at which an open transaction starts to write fragments. Default 4 MiB.
    pub fragment_bytes: u64,
    /// Most payload bytes of one transaction. Default 16 GiB.
    pub transaction_max_bytes: u64,
    /// Longest time that a transaction with fragments may be idle. Default 10 minutes.
    pub transaction_max_age: Duration,
    /// What simulations change.
    #[cfg(feature = "simulation")]
    pub simulation: crate::simulation::Simulation,
}

/// Whether a bug is planted in an engine with these settings. `false`, as a constant, without the feature `simulation`.
macro_rules! planted {
    ($config:expr, $bug:ident) => {{
        #[cfg(feature = "simulation")]
        {
            $config.simulation.planted == Some(crate::simulation::PlantedBug::$bug)
        }
        #[cfg(not(feature = "simulation"))]
        {
            false
        }
    }};
}
pub(crate) use planted;

impl EngineConfig {
    /// Whether one thing happens after the other, when it is asked for: the same calls make the same trace of the disk.
    pub(crate) fn is_by_hand(&self) -> bool {
        #[cfg(feature = "simulation")]
        {
            self.simulation.by_hand
        }
        #[cfg(not(feature = "simulation"))]
        {
            false
        }
    }

    /// Defaults for a folder.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self {
            wal: LogConfig::new(data_dir.join("wal")),
            data_dir,
            storage_url: None,
            archive: None,
            persistence: Persistence::Sync,
            memtable_bytes: 256 << 20,
            cache_bytes: 1 << 30,
            flush_age: Duration::from_secs(60),
            fragment_bytes: 4 << 20,
            transaction_max_bytes: 16 << 30,
            transaction_max_age: Duration::from_secs(600),
            #[cfg(feature = "simulation")]
            simulation: crate::simulation::Simulation::default(),
        }
    }
}
