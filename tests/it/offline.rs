//! A replica that is away while much arrives.

use crate::harness::{SUMS, Site, copy, create_ticks, insert, sums};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_for_100000_rows_catches_up() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..100)).await;
    replica.wait_for("SELECT count(*) FROM market.ticks", &[&["100"]]).await;
    replica.stop();

    let client = primary.connect().await;
    for part in 0..10 {
        let (from, to) = (100 + part * 10_000, 100 + (part + 1) * 10_000);
        client.rows(&copy(&site.ticks_file(&format!("{part}.csv"), from..to))).await;
    }
    // The pin holds what the replica needs, flush or not.
    client.rows("CALL flush()").await;
    replica.start().await;
    let wanted = sums(0..100_100);
    replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
    let repairs = "SELECT count(*) FROM get_slave_replication_status() WHERE operation_type = 'REPAIR'";
    assert_eq!(replica.sql(repairs).await, [["0"]], "the log was there: no repair was needed");
}
