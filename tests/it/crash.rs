//! kill -9 of either side at random moments under write load.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::harness::{CREATE_TICKS, Node, SUMS, Site, copy, create_ticks, insert, seed, sums};

/// Rows per statement.
const BATCH: u64 = 10;

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_row_is_lost_or_doubled_when_a_node_alone_is_killed() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let mut node = site.node("siteA", None, &["wal.segment_bytes=256KiB", "engine.flush_age=100ms"]);
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    let mut next = 0;
    for round in 0..8 {
        let writer = Writer::start(&node, next).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1000))).await;
        node.kill();
        let acknowledged = writer.finish().await;
        node.start().await;
        next = survivors(&node, acknowledged, &format!("round {round}")).await;
    }
    assert!(next > 0, "nothing was ever acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_acknowledged_row_is_lost_or_doubled_when_the_primary_is_killed() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let mut primary = site.primary(&["wal.segment_bytes=256KiB", "engine.flush_age=300ms"]).await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    let mut next = 0;
    for round in 0..5 {
        let writer = Writer::start(&primary, next).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
        primary.kill();
        if random.random() {
            replica.kill();
            replica.start().await;
        }
        let acknowledged = writer.finish().await;
        primary.start().await;
        next = survivors(&primary, acknowledged, &format!("round {round}")).await;
    }
    assert!(next > 0, "nothing was ever acknowledged");
    same_everywhere(&primary, &replica, next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_applies_everything_once() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &["wal.segment_bytes=256KiB", "engine.flush_age=300ms"]).await;
    create_ticks(&primary).await;
    let writer = Writer::start(&primary, 0).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(random.random_range(50..1500))).await;
        replica.kill();
        replica.start().await;
    }
    let acknowledged = writer.finish().await;
    assert!(acknowledged > 0, "nothing was ever acknowledged");
    same_everywhere(&primary, &replica, acknowledged).await;
}

/// Enough rows for a transaction of several fragments.
const BULK: u64 = 400_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_load_is_there_whole_or_not_at_all_when_the_primary_is_killed_in_the_middle() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let mut primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    let load = copy(&site.ticks_file("bulk.csv", 0..BULK));
    for _ in 0..3 {
        let client = primary.connect().await;
        let (statement, pause) = (load.clone(), Duration::from_millis(random.random_range(20..500)));
        let loading = tokio::spawn(async move { client.try_rows(&statement).await.is_ok() });
        tokio::time::sleep(pause).await;
        primary.kill();
        let acknowledged = loading.await.unwrap();
        primary.start().await;
        let rows: u64 = primary.sql("SELECT count(*) FROM market.ticks").await[0][0].parse().unwrap();
        assert!(rows == BULK || (rows == 0 && !acknowledged), "killed after {pause:?}: {rows} rows, {acknowledged}");
        if rows > 0 {
            primary.sql("DROP TABLE market.ticks").await;
            primary.sql(CREATE_TICKS).await;
        }
    }
    primary.sql(&load).await;
    same_everywhere(&primary, &replica, BULK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_while_a_bulk_load_arrives_shows_it_once() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    let client = primary.connect().await;
    let load = copy(&site.ticks_file("bulk.csv", 0..BULK));
    let loading = tokio::spawn(async move { client.rows(&load).await });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..500))).await;
        replica.kill();
        replica.start().await;
    }
    loading.await.unwrap();
    same_everywhere(&primary, &replica, BULK).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_while_it_repairs_itself_ends_equal() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let primary = site.primary(&["wal.segment_bytes=64KiB"]).await;
    let client = primary.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    for part in 0..4 {
        let ids = part * 50_000..(part + 1) * 50_000;
        client.rows(&copy(&site.ticks_file(&format!("{part}.csv"), ids))).await;
    }
    client.rows("CALL flush()").await;
    client.rows("CALL set_database_for_cluster_replication('market', true)").await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        replica.kill();
        replica.start().await;
    }
    client.rows(&insert(200_000..200_010)).await;
    same_everywhere(&primary, &replica, 200_010).await;
}

/// Writes batches one after the other until told to stop, or the connection breaks.
struct Writer {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<u64>,
}

impl Writer {
    async fn start(primary: &Node, from: u64) -> Self {
        let client = primary.connect().await;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut next = from;
            while !stopped.load(Ordering::Relaxed) {
                match client.try_rows(&insert(next..next + BATCH)).await {
                    Ok(_) => next += BATCH,
                    // A broken connection is the expected end; the server's refusal is not.
                    Err(error) => {
                        assert!(error.as_db_error().is_none(), "{:?}", error.as_db_error());
                        break;
                    }
                }
            }
            next
        });
        Self { stop, task }
    }

    /// All ids below this are acknowledged.
    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// Checks what a restarted primary holds: all that was acknowledged once, and of the statement in flight all or
/// nothing. Gives the number of rows.
async fn survivors(primary: &Node, acknowledged: u64, context: &str) -> u64 {
    let rows: u64 = primary.sql("SELECT count(*) FROM market.ticks").await[0][0].parse().unwrap();
    assert!(
        rows == acknowledged || rows == acknowledged + BATCH,
        "{context}: {acknowledged} acknowledged, {rows} there"
    );
    if rows > 0 {
        assert_eq!(primary.sql(SUMS).await, [sums(0..rows)], "{context}");
    }
    rows
}

async fn same_everywhere(primary: &Node, replica: &Node, rows: u64) {
    let wanted = sums(0..rows);
    assert_eq!(primary.sql(SUMS).await, std::slice::from_ref(&wanted));
    replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
}
