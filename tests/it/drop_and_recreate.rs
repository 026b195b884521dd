//! A database dropped and made anew under the same name while a replica is away.

use crate::harness::{SUMS, Site, create_ticks, insert, sums};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_ends_the_old_history_and_follows_the_new_one() {
    for flush in [false, true] {
        let site = Site::new();
        let primary = site.primary(&["wal.segment_bytes=64KiB"]).await;
        let mut replica = site.replica("siteB", &primary, &[]).await;
        create_ticks(&primary).await;
        primary.sql(&insert(0..1000)).await;
        replica.wait_for("SELECT count(*) FROM market.ticks", &[&["1000"]]).await;
        replica.stop();

        primary.sql("DROP DATABASE market").await;
        create_ticks(&primary).await;
        primary.sql(&insert(5000..5300)).await;
        if flush {
            primary.sql("CALL flush()").await;
        }
        replica.start().await;
        let wanted = sums(5000..5300);
        replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
        assert_eq!(primary.sql(SUMS).await, [wanted]);
    }
}
