//! After the faults: both sides come to rest, equal, or say why not.

use std::time::{Duration, Instant};

use crate::{
    Run,
    client::{Connection, Failure},
    plan::Side,
};

/// How long two nodes may take to become equal, repairs included. Debug builds on a busy machine are slow.
const REST_MAX: Duration = Duration::from_secs(300);

/// Replication on everywhere, then waits until nothing is left to do.
pub(crate) async fn settle(run: &Run, when: &str) {
    let began = Instant::now();
    let mut last = String::new();
    while began.elapsed() < REST_MAX {
        match is_settled(run).await {
            Ok(()) => {
                run.report.span(&format!("settled {when}"), began.elapsed());
                return;
            }
            Err(reason) => last = reason,
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    run.report.violation(format!("not settled {REST_MAX:?} {when}: {last}"));
}

async fn is_settled(run: &Run) -> Result<(), String> {
    let open = async |side: Side| {
        Connection::try_open(run, side).await.ok_or_else(|| format!("the {} takes no connection", side.name()))
    };
    let words = |failure: Failure| format!("{failure:?}");
    let (primary, replica) = (open(Side::Primary).await?, open(Side::Replica).await?);
    for connection in [&primary, &replica] {
        connection.execute(run, "CALL start_cluster_replication()").await.map_err(words)?;
    }
    for row in primary.rows(run, "SELECT name FROM system.databases WHERE NOT replicated").await.map_err(words)? {
        let statement = format!("CALL set_database_for_cluster_replication('{}', true)", row[0]);
        primary.execute(run, &statement).await.map_err(words)?;
    }
    let sql = "SELECT name, history_id, seq, epoch, chain, tables, rows, state, reason, remedy FROM system.databases \
               ORDER BY name";
    let here = primary.rows(run, sql).await.map_err(words)?;
    let there = replica.rows(run, sql).await.map_err(words)?;
    let feeds = "SELECT database, state, pin_state, lag_tasks, reason FROM get_recent_slave_replication_info()";
    let feeds = primary.rows(run, feeds).await.map_err(words)?;
    let pins = "SELECT feed, database, history_id, state, reason FROM system.pins";
    let pins = primary.rows(run, pins).await.map_err(words)?;
    let is_equal = here == there && here.iter().all(|row| row[7] == "ENABLED");
    // Nothing is left of databases that were dropped.
    let is_fed = feeds.len() == here.len()
        && here
            .iter()
            .all(|row| feeds.iter().any(|feed| feed[0] == row[0] && feed[1..4] == ["ENABLED", "RESERVED", "0"]));
    let is_pinned = pins.len() == here.len()
        && here.iter().all(|row| pins.iter().any(|pin| pin[2] == row[1] && pin[3] == "RESERVED"));
    if is_equal && is_fed && is_pinned {
        return Ok(());
    }
    Err(format!("primary {here:?}\nreplica {there:?}\nfeeds {feeds:?}\npins {pins:?}"))
}
