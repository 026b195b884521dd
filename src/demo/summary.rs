//! The demo's last lines: how fast, how many bytes.

use std::{fmt, time::Duration};

use super::site::Site;

/// What was measured.
pub(super) struct Summary {
    rows: u64,
    loaded: Duration,
    shown: Duration,
    logged: u64,
    wire: u64,
    raw: u64,
    at_rest: [u64; 2],
}

impl Summary {
    /// After the load: `loaded` and `shown` from the load's start.
    pub(super) fn new(rows: u64, loaded: Duration, shown: Duration, primary: &Site, replica: &Site) -> Self {
        let (wire, raw) = replica.node.follower().map_or((0, 0), |follower| {
            let status = follower.status();
            (status.wire_bytes, status.raw_bytes)
        });
        let logged = primary.node.engine().log().status().appended_bytes;
        Self { rows, loaded, shown, logged, wire, raw, at_rest: [0; 2] }
    }

    /// After a flush of both.
    pub(super) fn measure_at_rest(&mut self, primary: &Site, replica: &Site) {
        self.at_rest = [primary, replica].map(datafile_bytes);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (loaded, shown) = (self.loaded.as_secs_f64(), self.shown.as_secs_f64());
        let per_second = |seconds: f64| self.rows as f64 / seconds.max(1e-9) / 1e6;
        writeln!(f, "{} rows, the same on both sides", self.rows)?;
        writeln!(f, "  into the primary, durable   {loaded:.2} s  {:.2} million rows/s", per_second(loaded))?;
        writeln!(f, "  until the replica shows all {shown:.2} s  {:.2} million rows/s", per_second(shown))?;
        writeln!(f, "  in the primary's log        {}", bytes(self.logged))?;
        writeln!(f, "  over the wire               {} (of {})", bytes(self.wire), bytes(self.raw))?;
        write!(f, "  at rest                     {}, {}", bytes(self.at_rest[0]), bytes(self.at_rest[1]))
    }
}

/// A size for people.
pub(super) fn bytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn datafile_bytes(site: &Site) -> u64 {
    let version = site.node.engine().version();
    let tables = version.databases().flat_map(|database| database.tables());
    let datafiles =
        tables.flat_map(|table| table.partitions().flat_map(|(_, partition)| &partition.datafiles).collect::<Vec<_>>());
    datafiles.map(|datafile| datafile.meta.bytes).sum()
}
