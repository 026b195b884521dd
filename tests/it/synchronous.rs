//! Commits that wait for replicas.

use std::future::poll_fn;

use tokio::sync::mpsc;
use tokio_postgres::{AsyncMessage, NoTls};

use crate::harness::{Node, PATIENCE, SUMS, Site, Sql, create_ticks, insert, sums};

/// A connection, and what it is told beside results.
async fn hearing(node: &Node) -> (Sql, mpsc::UnboundedReceiver<(String, String)>) {
    let address = node.pgwire();
    let mut config = tokio_postgres::Config::new();
    config.host(address.ip().to_string()).port(address.port()).user("test").dbname("tailrace");
    let (client, mut connection) = config.connect(NoTls).await.unwrap();
    let (heard, notices) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message {
                let _ = heard.send((notice.severity().to_owned(), notice.message().to_owned()));
            }
        }
    });
    (Sql::new(client, node), notices)
}

async fn next(notices: &mut mpsc::UnboundedReceiver<(String, String)>) -> (String, String) {
    tokio::time::timeout(PATIENCE, notices.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_was_acknowledged_with_remote_apply_is_readable_on_the_replica() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    replica.wait_for(SUMS, &[&["0", "0", "0", "0", "0", "0"]]).await;
    let (client, mut notices) = hearing(&primary).await;
    let there = replica.connect().await;
    client.rows("SET synchronous_commit = remote_apply").await;
    client.rows("SET synchronous_timeout = '2min'").await;
    for last in 1..=40 {
        client.rows(&insert(last - 1..last)).await;
        assert_eq!(there.rows(SUMS).await, [sums(0..last)]);
    }
    client.rows("BEGIN").await;
    client.rows("SET LOCAL synchronous_commit = remote_write").await;
    client.rows(&insert(40..50)).await;
    client.rows(&insert(50..60)).await;
    client.rows("COMMIT").await;
    // CREATE DATABASE and TABLE, forty inserts, one transaction: written there when it was answered, finished a moment later.
    primary.wait_for("SELECT last_finished_task_id FROM get_recent_slave_replication_info()", &[&["43"]]).await;
    client.rows("CREATE TABLE market.other (id BIGINT)").await;
    assert_eq!(there.rows("SELECT count(*) FROM market.other").await, [["0"]]);
    assert!(notices.try_recv().is_err());
}

#[tokio::test]
async fn a_wait_in_vain_ends_with_a_warning_and_the_transaction_stays() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    replica.wait_for(SUMS, &[&["0", "0", "0", "0", "0", "0"]]).await;
    let (client, mut notices) = hearing(&primary).await;

    // Two replicas are wanted, there is one.
    client.rows("SET synchronous_commit = remote_write").await;
    client.rows("SET synchronous_replicas = 2").await;
    client.rows("SET synchronous_timeout = '300ms'").await;
    client.rows(&insert(0..3)).await;
    let (severity, text) = next(&mut notices).await;
    assert_eq!(severity, "WARNING");
    assert!(text.contains("committed here") && text.contains("2 replicas") && text.contains("300ms"), "{text}");
    assert_eq!(primary.sql(SUMS).await, [sums(0..3)]);

    // The one goes on without being waited for.
    replica.wait_for(SUMS, &[&sums(0..3).iter().map(String::as_str).collect::<Vec<_>>()]).await;

    // Replication is switched off while a commit waits: it does not wait for ever.
    client.rows("SET synchronous_timeout = '1h'").await;
    let (statement, ()) =
        tokio::join!(client.try_rows("INSERT INTO market.ticks VALUES (3, '2023-01-08 09:31:00', 1)"), async {
            primary.wait_for("SELECT count(*) FROM market.ticks", &[&["4"]]).await;
            primary.sql("CALL set_database_for_cluster_replication('market', false)").await;
        });
    statement.unwrap();
    let (severity, text) = next(&mut notices).await;
    assert_eq!(severity, "WARNING");
    assert!(text.contains("switched off"), "{text}");

    // From now on nobody could acknowledge: refused before anything is committed.
    let (state, words) = client.refusal(&insert(10..11)).await;
    assert_eq!(state, "55000");
    assert!(words.contains("is not replicated") && words.contains("set_database_for_cluster_replication"), "{words}");
    assert_eq!(primary.sql("SELECT count(*) FROM market.ticks").await, [["4"]]);
}

#[tokio::test]
async fn a_cancelled_wait_is_no_failed_statement() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    create_ticks(&primary).await;
    let (client, mut notices) = hearing(&primary).await;
    client.rows("SET synchronous_commit = remote_apply").await;
    client.rows("SET synchronous_timeout = '1h'").await;
    let cancel = client.client.cancel_token();
    let statement = insert(0..3);
    let (statement, ()) = tokio::join!(client.try_rows(&statement), async {
        primary.wait_for("SELECT count(*) FROM market.ticks", &[&["3"]]).await;
        cancel.cancel_query(NoTls).await.unwrap();
    });
    statement.unwrap();
    let (severity, text) = next(&mut notices).await;
    assert_eq!(severity, "WARNING");
    assert!(text.contains("cancelled"), "{text}");
    assert_eq!(primary.sql(SUMS).await, [sums(0..3)]);
}

#[tokio::test]
async fn a_reader_on_the_replica_waits_for_what_was_written() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    replica.wait_for(SUMS, &[&["0", "0", "0", "0", "0", "0"]]).await;
    let (client, there) = (primary.connect().await, replica.connect().await);
    for last in 1..=40 {
        client.rows(&insert(last - 1..last)).await;
        let seq = client.rows("SELECT seq FROM system.databases WHERE name = 'market'").await[0][0].clone();
        there.rows(&format!("CALL wait_for('market', {seq})")).await;
        assert_eq!(there.rows(SUMS).await, [sums(0..last)]);
    }
    // What is asked for before it exists is waited for.
    let ((), _) = tokio::join!(async { drop(there.rows("CALL wait_for('market', 43)").await) }, async {
        client.rows(&insert(40..41)).await
    });
    assert_eq!(there.rows(SUMS).await, [sums(0..41)]);
    // Not for longer than is said.
    let (state, words) = there.refusal("CALL wait_for('market', 50, timeout => 100)").await;
    assert_eq!(state, "57014");
    assert!(words.contains("is at 43, not at 50, after 100 ms"), "{words}");
    there.rows("SET statement_timeout = '100ms'").await;
    assert_eq!(there.refusal("CALL wait_for('market', 50)").await.0, "57014");
    assert_eq!(there.refusal("CALL wait_for('market', -1)").await.0, "22023");
    assert_eq!(there.refusal("CALL wait_for('markt', 1)").await.0, "3D000");
}
