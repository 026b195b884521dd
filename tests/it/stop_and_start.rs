//! `stop_cluster_replication` and `start_cluster_replication` on either side: with the log still there, and without.

use crate::harness::{Node, SUMS, Site, copy, create_ticks, insert, sums};

const REPAIRS: &str = "SELECT count(*) FROM get_slave_replication_status() WHERE operation_type = 'REPAIR'";
const STATUS: &str = "SELECT status FROM get_cluster_replication_metrics(-1)";

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_stopped_goes_on_where_it_was() {
    let site = Site::new();
    let (primary, replica) = both(&site, &[]).await;
    primary.sql("CALL stop_cluster_replication()").await;
    primary.sql(&insert(1000..1500)).await;
    assert_eq!(replica.sql("SELECT count(*) FROM market.ticks").await, [["1000"]]);
    primary.sql("CALL start_cluster_replication()").await;
    shows(&replica, 1500).await;
    assert_eq!(replica.sql(REPAIRS).await, [["0"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_was_stopped_and_has_truncated_its_log_has_the_replica_repair_itself() {
    let site = Site::new();
    let (primary, replica) = both(&site, &["wal.segment_bytes=64KiB"]).await;
    primary.sql("CALL stop_cluster_replication()").await;
    // The second load begins another segment, so that the flush can take the first one's.
    primary.sql(&copy(&site.ticks_file("more.csv", 1000..11_000))).await;
    primary.sql(&copy(&site.ticks_file("most.csv", 11_000..21_000))).await;
    primary.sql("CALL flush()").await;
    primary.sql("CALL start_cluster_replication()").await;
    shows(&replica, 21_000).await;
    assert_eq!(replica.sql(REPAIRS).await, [["1"]]);
    primary.sql(&insert(21_000..21_010)).await;
    shows(&replica, 21_010).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_stopped_goes_on_where_it_was_even_after_a_restart() {
    let site = Site::new();
    let (primary, mut replica) = both(&site, &[]).await;
    replica.sql("CALL stop_cluster_replication()").await;
    replica.wait_for(STATUS, &[&["DISABLED"]]).await;
    primary.sql(&insert(1000..1500)).await;
    replica.stop();
    replica.start().await;
    assert_eq!(replica.sql(STATUS).await, [["DISABLED"]], "the switch is forgotten");
    assert_eq!(replica.sql("SELECT count(*) FROM market.ticks").await, [["1000"]]);
    replica.sql("CALL start_cluster_replication()").await;
    shows(&replica, 1500).await;
    replica.wait_for(STATUS, &[&["ENABLED"]]).await;
    assert_eq!(replica.sql(REPAIRS).await, [["0"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_stopped_for_too_long_repairs_itself() {
    let site = Site::new();
    let (primary, replica) = both(&site, &["wal.segment_bytes=64KiB", "wal.pin_max_bytes=128KiB"]).await;
    replica.sql("CALL stop_cluster_replication()").await;
    replica.wait_for(STATUS, &[&["DISABLED"]]).await;
    // More than the pin may hold back: it is lost, the primary goes on.
    for part in 1..=3 {
        let (from, to) = (1000 + (part - 1) * 20_000, 1000 + part * 20_000);
        primary.sql(&copy(&site.ticks_file(&format!("{part}.csv"), from..to))).await;
        primary.sql("CALL flush()").await;
    }
    replica.sql("CALL start_cluster_replication()").await;
    shows(&replica, 61_000).await;
    assert_eq!(replica.sql(REPAIRS).await, [["1"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_replica_neither_stops_the_primary_nor_fills_its_disk_and_repairs_itself_when_it_returns() {
    const BUDGET: u64 = 256 << 10;
    const SEGMENT: u64 = 64 << 10;
    let site = Site::new();
    let flags = ["wal.segment_bytes=64KiB", "wal.pin_max_bytes=256KiB"];
    let (primary, mut replica) = both(&site, &flags).await;
    primary
        .wait_for(
            "SELECT feed, database, state, attached FROM system.pins",
            &[&["replica/siteB", "market", "RESERVED", "t"]],
        )
        .await;
    let (state, message) = primary.connect().await.refusal("CALL forget_pin('replica/siteB')").await;
    assert_eq!(state, "55006", "{message}");
    replica.kill();
    let mut extended = false;
    for part in 0..40 {
        let from = 1000 + part * 1000;
        primary.sql(&insert(from..from + 1000)).await;
        primary.sql("CALL flush()").await;
        let pin = primary.sql("SELECT state, bytes_left, max_bytes FROM system.pins").await;
        extended |= pin[0][0] == "EXTENDED" && pin[0][1].parse::<u64>().unwrap() < BUDGET;
        // One segment that is written, and what a frame takes beyond its end.
        let bytes: u64 = primary.sql("SELECT bytes FROM system.wal").await[0][0].parse().unwrap();
        assert!(bytes < BUDGET + 3 * SEGMENT, "{bytes} bytes of log after {part} loads: {pin:?}");
    }
    assert!(extended, "the pin never held log back");
    let lost = "SELECT state, bytes_left, reason LIKE '%its budget is 262144', since > '2020-01-01' FROM system.pins";
    assert_eq!(primary.sql(lost).await, [["LOST", "0", "t", "t"]]);
    let shown = "SELECT pin_state, state FROM get_recent_slave_replication_info()";
    assert_eq!(primary.sql(shown).await, [["LOST", "LOST"]]);
    assert_eq!(primary.log().matches("is lost:").count(), 1, "told once");
    // It is lost after a restart of the primary, too, with its reason and time.
    let since = primary.sql("SELECT since, reason FROM system.pins").await;
    let mut primary = primary;
    primary.stop();
    primary.start().await;
    assert_eq!(primary.sql("SELECT since, reason FROM system.pins").await, since);
    replica.start().await;
    shows(&replica, 41_000).await;
    assert_eq!(replica.sql(REPAIRS).await, [["1"]]);
    primary.wait_for("SELECT state, attached, reason FROM system.pins", &[&["RESERVED", "t", ""]]).await;
    primary.wait_for(shown, &[&["RESERVED", "ENABLED"]]).await;
    primary.sql(&insert(41_000..41_100)).await;
    shows(&replica, 41_100).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_will_not_come_back_is_forgotten() {
    let site = Site::new();
    let (mut primary, mut replica) = both(&site, &[]).await;
    replica.kill();
    primary.wait_for("SELECT attached FROM system.pins", &[&["f"]]).await;
    let client = primary.connect().await;
    let (state, message) = client.refusal("CALL forget_pin('replica/siteX')").await;
    assert!(state == "42704" && message.contains("\"replica/siteB\""), "{state} {message}");
    let (state, message) = client.refusal("CALL forget_pin('replica/siteB', 'markt')").await;
    assert!(state == "42704" && message.contains("\"market\""), "{state} {message}");
    client.rows("CALL forget_pin('replica/siteB', 'market')").await;
    for _ in 0..2 {
        assert_eq!(primary.sql("SELECT count(*) FROM system.pins").await, [["0"]]);
        assert_eq!(primary.sql("SELECT count(*) FROM get_recent_slave_replication_info()").await, [["0"]]);
        primary.kill();
        primary.start().await;
    }
}

/// A primary with 1,000 rows and a replica that shows them.
async fn both(site: &Site, flags: &[&str]) -> (Node, Node) {
    let primary = site.primary(flags).await;
    let replica = site.replica("siteB", &primary, flags).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..1000)).await;
    shows(&replica, 1000).await;
    (primary, replica)
}

async fn shows(replica: &Node, rows: u64) {
    let wanted = sums(0..rows);
    replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
}
