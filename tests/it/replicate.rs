//! Rows arrive: at one replica, at two, from before replication was on; and a replica stays read-only.

use crate::harness::{CREATE_TICKS, SUMS, Site, copy, create_ticks, insert, sums};

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_and_the_task_tables_show_them() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..1000)).await;
    replica.wait_for(SUMS, &[&refs(&sums(0..1000))]).await;

    let submitted =
        "SELECT task_id, database, operation_type, \"table\" FROM get_master_replication_status() ORDER BY task_id";
    let tasks = primary.sql(submitted).await;
    let ids: Vec<_> = tasks.iter().map(|task| &*task[0]).collect();
    assert_eq!(ids, ["1", "2", "3"], "{tasks:?}");
    assert!(tasks.iter().all(|task| task[1] == "market"), "{tasks:?}");
    assert_eq!(tasks[2][3], "ticks", "{tasks:?}");
    replica
        .wait_for(
            "SELECT task_id, state FROM get_slave_replication_status() ORDER BY task_id",
            &[&["1", "FINISHED"], &["2", "FINISHED"], &["3", "FINISHED"]],
        )
        .await;
    let finished = "SELECT last_finished_task_id FROM get_recent_slave_replication_info()";
    primary.wait_for(finished, &[&["3"]]).await;
    let metrics = replica.sql("SELECT status, finished FROM get_cluster_replication_metrics(-1)").await;
    assert_eq!(metrics, [["ENABLED", "3"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writing_on_a_replica_is_refused_with_the_primarys_name() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    replica.wait_for("SELECT count(*) FROM market.ticks", &[&["0"]]).await;
    let client = replica.connect().await;
    for statement in [insert(0..1).as_str(), "DROP TABLE market.ticks", "DROP DATABASE market"] {
        let (state, message) = client.refusal(statement).await;
        assert_eq!(state, "25006", "{statement}: {message}");
        assert!(message.contains("siteA"), "{statement}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_replica_gets_everything_too() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let first = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..500)).await;
    first.wait_for(SUMS, &[&refs(&sums(0..500))]).await;
    let second = site.replica("siteC", &primary, &[]).await;
    primary.sql(&insert(500..1000)).await;
    for replica in [&first, &second] {
        replica.wait_for(SUMS, &[&refs(&sums(0..1000))]).await;
    }
    let replicas = "SELECT count(*) FROM get_recent_slave_replication_info()";
    primary.wait_for(replicas, &[&["2"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_replication_was_switched_on_arrives_from_the_log() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    before_and_on(&site, &primary, false).await;
    replica.wait_for(SUMS, &[&refs(&sums(0..20_100))]).await;
    let repairs = "SELECT count(*) FROM get_slave_replication_status() WHERE operation_type = 'REPAIR'";
    assert_eq!(replica.sql(repairs).await, [["0"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_before_replication_was_switched_on_arrives_by_repair_when_the_log_is_gone() {
    let site = Site::new();
    let primary = site.primary(&["wal.segment_bytes=64KiB"]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    before_and_on(&site, &primary, true).await;
    replica.wait_for(SUMS, &[&refs(&sums(0..20_100))]).await;
    let repairs = "SELECT count(*) FROM get_slave_replication_status() WHERE operation_type = 'REPAIR'";
    assert_eq!(replica.sql(repairs).await, [["1"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_certificate_another_authority_signed_is_not_let_in() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    create_ticks(&primary).await;
    let mut stranger = site.node("siteX", None, &[]);
    let address = primary.replication.unwrap();
    stranger.flags.push(format!("replication.replica.primary_addresses=[\"{address}\"]"));
    stranger.start().await;
    stranger.wait_for_log("ertificate").await;
    assert_eq!(stranger.sql("SELECT count(*) FROM system.databases WHERE name = 'market'").await, [["0"]]);
    assert_eq!(primary.sql("SELECT count(*) FROM get_recent_slave_replication_info()").await, [["0"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_gets_only_what_it_may_pull_and_one_that_is_not_listed_gets_nothing() {
    let site = Site::new();
    let grant = "replication.primary.replicas=[{name = \"siteB\", databases = [\"market\"]}]";
    let primary = site.primary(&[grant]).await;
    let listed = site.replica("siteB", &primary, &[]).await;
    let other = site.replica("siteC", &primary, &[]).await;
    let client = primary.connect().await;
    client.rows("CREATE DATABASE secret").await;
    client.rows("CALL set_database_for_cluster_replication('secret', true)").await;
    create_ticks(&primary).await;
    client.rows(&insert(0..10)).await;
    listed.wait_for(SUMS, &[&refs(&sums(0..10))]).await;
    other.wait_for_log("refused").await;
    let databases = "SELECT name FROM system.databases ORDER BY name";
    assert_eq!(listed.sql(databases).await, [["market"]]);
    assert!(other.sql(databases).await.is_empty());
}

/// A database with rows, then (after a flush that truncates the log, if asked for) replication on, then a few more.
async fn before_and_on(site: &Site, primary: &crate::harness::Node, flush: bool) {
    let client = primary.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    client.rows(&copy(&site.ticks_file("before.csv", 0..20_000))).await;
    if flush {
        client.rows("CALL flush()").await;
    }
    client.rows("CALL set_database_for_cluster_replication('market', true)").await;
    client.rows(&insert(20_000..20_100)).await;
}

fn refs(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}
