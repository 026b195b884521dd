//! A burst arrives whole: as many small commits from several clients, and as one large one.

use crate::harness::{Node, SUMS, Site, copy, create_ticks, insert, sums};

const VALUES: u64 = 96_000;
const CLIENTS: u64 = 8;
const ROWS_PER_COMMIT: u64 = 20;
/// Equal where the same transactions are there in the same order.
const POSITION: &str = "SELECT history_id, epoch, seq, chain FROM system.databases WHERE name = 'market'";

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_96_000_values_in_small_commits_arrives_whole() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        let connection = primary.connect().await;
        clients.push(tokio::spawn(async move {
            let share = VALUES / CLIENTS;
            let mut next = client * share;
            while next < (client + 1) * share {
                connection.rows(&insert(next..next + ROWS_PER_COMMIT)).await;
                next += ROWS_PER_COMMIT;
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
    are_equal(&primary, &replica, VALUES / ROWS_PER_COMMIT + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_96_000_values_in_one_commit_arrives_whole() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&copy(&site.ticks_file("burst.csv", 0..VALUES))).await;
    are_equal(&primary, &replica, 3).await;
}

/// The replica shows every value once, and has as many tasks, the same ones.
async fn are_equal(primary: &Node, replica: &Node, tasks: u64) {
    let wanted = sums(0..VALUES);
    assert_eq!(primary.sql(SUMS).await, std::slice::from_ref(&wanted));
    replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
    let position = primary.sql(POSITION).await;
    assert_eq!(position[0][2], tasks.to_string());
    assert_eq!(replica.sql(POSITION).await, position);
    let repairs = "SELECT count(*) FROM get_slave_replication_status() WHERE operation_type = 'REPAIR'";
    assert_eq!(replica.sql(repairs).await, [["0"]]);
}
