//! How far behind a replica is, seen from both sides.

use crate::harness::{SUMS, Site, create_ticks, insert, sums};

const FOLLOWED: &str = "SELECT lag_tasks, lag_bytes, lag_seconds, catch_up_seconds, stuck_seconds, stuck_in \
     FROM system.followed WHERE database = 'market'";
const REPLICAS: &str = "SELECT lag_tasks, lag_seconds > 0, catch_up_seconds, stuck_seconds IS NULL, headroom_bytes > 0, \
     headroom_seconds > 0 FROM system.replicas WHERE database = 'market'";
/// Before anything of size was sent, `auto` is zstd. Nothing is known of who is not connected.
const SERVED: &str = "SELECT compression, rate_limit FROM system.replicas WHERE database = 'market'";

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_know_how_far_and_what_is_not_known_is_not_shown_as_nothing() {
    let site = Site::new();
    let mut primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..50)).await;
    replica.wait_for(SUMS, &[&refs(&sums(0..50))]).await;
    replica.wait_for(FOLLOWED, &[&["0", "0", "0", "0", "", ""]]).await;
    primary.wait_for(REPLICAS, &[&["0", "f", "0", "t", "t", "t"]]).await;
    primary.wait_for(SERVED, &[&["zstd", ""]]).await;

    // Without a word of the primary nobody can say that there is nothing.
    primary.stop();
    replica.wait_for(FOLLOWED, &[&["", "", "", "", "", ""]]).await;
    primary.start().await;
    replica.wait_for(FOLLOWED, &[&["0", "0", "0", "0", "", ""]]).await;

    // Without a word of the replica, the primary knows what it has not acknowledged.
    replica.stop();
    for first in 50..53 {
        primary.sql(&insert(first..first + 1)).await;
    }
    primary.wait_for(REPLICAS, &[&["3", "t", "", "f", "t", "t"]]).await;
    primary.wait_for(SERVED, &[&["", ""]]).await;
    replica.start().await;
    replica.wait_for(FOLLOWED, &[&["0", "0", "0", "0", "", ""]]).await;
    primary.wait_for(REPLICAS, &[&["0", "f", "0", "t", "t", "t"]]).await;
}

fn refs(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}
