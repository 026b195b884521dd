//! Queries that compute for ever, on both sides of a replication: what else the nodes do goes on, and they stop when told.

use futures::StreamExt;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::harness::{Node, PATIENCE, SUMS, Site, Sql, create_ticks, insert, sums};

const HEAVY: &str = "SELECT max(a.id + b.id * c.id - d.id) FROM market.ticks a CROSS JOIN market.ticks b \
                     CROSS JOIN market.ticks c CROSS JOIN market.ticks d";

/// Begins one on a connection of its own; it runs on return.
async fn begin(node: &Node) -> (Sql, tokio::task::JoinHandle<bool>) {
    let client = node.connect().await;
    let mut rows = Box::pin(client.client.simple_query_raw(HEAVY).await.unwrap());
    let columns = tokio::time::timeout(PATIENCE, rows.next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(columns, SimpleQueryMessage::RowDescription(_)));
    let ended = tokio::spawn(async move { rows.next().await.is_none_or(|message| message.is_err()) });
    (client, ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_and_commits_go_on_beside_heavy_queries() {
    let site = Site::new();
    let mut primary = site.primary(&["query.threads=2"]).await;
    let mut replica = site.replica("siteB", &primary, &["query.threads=2"]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..2000)).await;
    replica.wait_for(SUMS, &[&refs(&sums(0..2000))]).await;

    let mut heavy = Vec::new();
    for node in [&primary, &replica, &primary, &replica, &primary, &replica] {
        heavy.push(begin(node).await);
    }
    for first in 2000..2020 {
        primary.sql(&insert(first..first + 1)).await;
    }
    replica.wait_for(SUMS, &[&refs(&sums(0..2020))]).await;
    let lag = "SELECT lag_tasks FROM system.followed WHERE database = 'market'";
    replica.wait_for(lag, &[&["0"]]).await;
    assert!(heavy.iter().all(|(_, ended)| !ended.is_finished()), "the queries were not heavy");

    // A cancel gets through; so does a stop, whatever runs.
    let (client, ended) = heavy.pop().unwrap();
    client.client.cancel_token().cancel_query(NoTls).await.unwrap();
    assert!(tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap());
    replica.stop();
    primary.stop();
    for (_, ended) in heavy {
        assert!(tokio::time::timeout(PATIENCE, ended).await.unwrap().unwrap());
    }
}

fn refs(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}
