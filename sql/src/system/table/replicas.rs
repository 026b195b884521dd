//! `system.replicas`: on a primary, a row per replica and database, and how it is served. No rows where no replica may
//! attach.

use super::SystemTable;
use crate::{
    Result,
    system::{
        computed::{Context, Kind, Rows, Value},
        function::recent_slave_replication_info as feeds,
    },
};

/// Of the way to the replica; NULL while it is not connected.
const LINK: [(&str, Kind); 4] = [
    // The form of its chunks now: none, zstd.
    ("compression", Kind::Text),
    // What its connection acknowledges when it is busy; NULL before it was.
    ("link_bytes_per_second", Kind::Int),
    // NULL: no limit.
    ("rate_limit", Kind::Int),
    // Read and not acknowledged by its connection.
    ("in_flight_bytes", Kind::Int),
];

const COLUMNS: [(&str, Kind); feeds::WIDTH + LINK.len()] = {
    let mut columns = [("", Kind::Text); feeds::WIDTH + LINK.len()];
    let mut index = 0;
    while index < columns.len() {
        columns[index] = if index < feeds::WIDTH { feeds::FEED[index] } else { LINK[index - feeds::WIDTH] };
        index += 1;
    }
    columns
};

pub(super) const TABLE: SystemTable = SystemTable { name: "replicas", columns: &COLUMNS, rows };

fn rows(context: &Context<'_>, rows: &mut Rows) -> Result<()> {
    let Some(publisher) = &context.instance.publisher else { return Ok(()) };
    for feed in publisher.feeds() {
        let link = feed.link;
        let mut row: Vec<Value> = feeds::values(feed).into();
        row.extend([
            link.map(|link| link.compression()).into(),
            link.and_then(|link| link.bytes_per_second).into(),
            link.and_then(|link| link.rate_limit).into(),
            link.map(|link| link.in_flight_bytes).into(),
        ]);
        rows.push_row(row);
    }
    Ok(())
}
