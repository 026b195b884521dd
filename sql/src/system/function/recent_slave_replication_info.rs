//! `get_recent_slave_replication_info()`: on the primary, a row per replica and database.

use tailrace_replicator::ReplicaFeedStatus;

use super::{Function, publisher};
use crate::{
    Result,
    system::computed::{Context, Kind, Rows, Value},
};

/// Number of its columns.
pub(in crate::system) const WIDTH: usize = 16;

pub(in crate::system) const FEED: [(&str, Kind); WIDTH] = [
    ("replica", Kind::Text),
    ("address", Kind::Text),
    ("database", Kind::Text),
    ("last_finished_task_id", Kind::Int),
    ("last_acknowledged_task_id", Kind::Int),
    ("last_pull_time", Kind::Time),
    ("lag_tasks", Kind::Int),
    ("lag_bytes", Kind::Int),
    ("lag_seconds", Kind::Float),
    ("catch_up_seconds", Kind::Float),
    ("stuck_seconds", Kind::Float),
    ("pin_state", Kind::Text),
    ("headroom_bytes", Kind::Int),
    ("headroom_seconds", Kind::Float),
    ("state", Kind::Text),
    ("reason", Kind::Text),
];

pub(super) const FUNCTION: Function =
    Function { name: "get_recent_slave_replication_info", argument: None, columns: &FEED, rows };

fn rows(context: &Context<'_>, _argument: Option<i64>, rows: &mut Rows) -> Result<()> {
    publisher(context)?.feeds().into_iter().for_each(|feed| rows.push(values(feed)));
    Ok(())
}

/// A replica and database, connected or pinned.
pub(in crate::system) fn values(feed: ReplicaFeedStatus) -> [Value; WIDTH] {
    [
        feed.replica.into(),
        feed.address.into(),
        feed.database.into(),
        feed.applied.into(),
        feed.acknowledged.into(),
        feed.last_pull.into(),
        feed.lag_tasks.into(),
        feed.lag_bytes.into(),
        feed.lag.into(),
        feed.catch_up.into(),
        feed.stuck.into(),
        feed.pin.name().into(),
        feed.headroom_bytes.into(),
        feed.headroom.into(),
        feed.state.name().into(),
        feed.reason.into(),
    ]
}
