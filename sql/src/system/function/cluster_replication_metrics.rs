//! `get_cluster_replication_metrics(secs)`: on the replica, progress over the last seconds; −1: since replication was
//! enabled. Costs are in seconds, from a task's receipt to its end.

use std::time::Duration;

use super::{Function, follower};
use crate::{
    Result, SqlError,
    system::computed::{Context, Kind, Rows},
};

pub(super) const FUNCTION: Function = Function {
    name: "get_cluster_replication_metrics",
    argument: Some("secs"),
    columns: &[
        ("status", Kind::Text),
        ("finished", Kind::Int),
        ("unfinished", Kind::Int),
        ("per_second", Kind::Float),
        ("max_cost", Kind::Float),
        ("mean_cost", Kind::Float),
        ("mean_group_size", Kind::Float),
    ],
    rows,
};

fn rows(context: &Context<'_>, secs: Option<i64>, rows: &mut Rows) -> Result<()> {
    let window = match secs {
        None | Some(-1) => None,
        Some(secs) => match u64::try_from(secs) {
            Ok(secs) if secs > 0 => Some(Duration::from_secs(secs)),
            _ => {
                return Err(SqlError::new("22023", format!("{secs} is no number of seconds"))
                    .hint("give a positive number, or -1 for all since replication was enabled"));
            }
        },
    };
    let metrics = follower(context)?.metrics(window);
    rows.push([
        metrics.state.name().into(),
        metrics.finished.into(),
        metrics.unfinished.into(),
        to_thousandths(metrics.per_second).into(),
        metrics.max_cost.into(),
        metrics.mean_cost.into(),
        to_thousandths(metrics.mean_group_size).into(),
    ]);
    Ok(())
}

/// Of a rate or a mean, what is worth reading.
fn to_thousandths(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
