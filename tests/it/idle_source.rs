//! A replicated database in which nothing happens, beside a busy one: it does not hold the log.

use crate::harness::{Node, SUMS, Site, copy, create_ticks, insert, sums};

const SEGMENT: u64 = 64 << 10;
const LOADS: u64 = 12;
const ROWS_PER_LOAD: u64 = 5_000;

async fn number(node: &Node, sql: &str) -> u64 {
    node.sql(sql).await[0][0].parse().unwrap()
}

async fn busy(site: &Site, primary: &Node, replicated: bool) {
    let client = primary.connect().await;
    client.rows("CREATE DATABASE busy").await;
    client.rows("CREATE TABLE busy.ticks (id BIGINT NOT NULL, at TIMESTAMP(3) NOT NULL, price DOUBLE PRECISION)").await;
    if replicated {
        client.rows("CALL set_database_for_cluster_replication('busy', true)").await;
    }
    let mut most = 0;
    for load in 0..LOADS {
        let file = site.ticks_file("busy.csv", load * ROWS_PER_LOAD..(load + 1) * ROWS_PER_LOAD);
        client.rows(&copy(&file).replace("market.ticks", "busy.ticks")).await;
        client.rows("CALL flush()").await;
        if replicated {
            // Its own tasks may hold the log until they have arrived.
            let seq = number(primary, "SELECT seq FROM system.databases WHERE name = 'busy'").await.to_string();
            let there = "SELECT acknowledged_seq FROM system.pins WHERE database = 'busy'";
            primary.wait_for(there, &[&[&seq]]).await;
            client.rows("CALL flush()").await;
        }
        most = most.max(number(primary, "SELECT bytes FROM system.wal").await);
    }
    let written = number(primary, "SELECT appended_bytes FROM system.wal").await;
    println!("{written} bytes of log were written, at most {most} were kept");
    assert!(written > 20 * SEGMENT, "{written} bytes are too few to tell");
    // A segment that is written, the one before it that holds the flushed record, and what one load may take beyond.
    assert!(most < written / 3, "{most} bytes of log were kept of {written}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_database_does_not_hold_the_log_that_its_neighbour_writes() {
    for replicated in [false, true] {
        let site = Site::new();
        let primary = site.primary(&["wal.segment_bytes=64KiB"]).await;
        let mut replica = site.replica("siteB", &primary, &[]).await;
        create_ticks(&primary).await;
        primary.sql(&insert(0..100)).await;
        let shown: Vec<String> = sums(0..100);
        let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        replica.wait_for(SUMS, &[&shown]).await;
        const PIN: &str = "SELECT acknowledged_seq, state FROM system.pins WHERE database = 'market'";
        primary.wait_for(PIN, &[&["3", "RESERVED"]]).await;
        let first = number(&primary, "SELECT first_lsn FROM system.wal").await;

        busy(&site, &primary, replicated).await;

        // The log was truncated, far behind the idle database's last task, which no new one followed.
        assert_eq!(primary.sql(PIN).await, [["3", "RESERVED"]], "replicated: {replicated}");
        let first = number(&primary, "SELECT first_lsn FROM system.wal").await - first;
        assert!(first > LOADS, "the log begins {first} records later");
        let held = number(&primary, "SELECT held_bytes FROM system.pins WHERE database = 'market'").await;
        assert!(held < 4 * SEGMENT, "the idle pin holds {held} bytes");

        // Nor is the pin lost: what comes next goes on from the log, though the replica was away.
        replica.stop();
        primary.sql(&insert(100..200)).await;
        replica.start().await;
        let shown: Vec<String> = sums(0..200);
        replica.wait_for(SUMS, &[&shown.iter().map(String::as_str).collect::<Vec<_>>()]).await;
        let repairs = "SELECT count(*) FROM get_slave_replication_status() WHERE operation_type = 'REPAIR'";
        assert_eq!(replica.sql(repairs).await, [["0"]]);
    }
}
