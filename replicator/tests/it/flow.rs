//! How much, how fast and in which form: compression, rate limits, bounded memory.

use tailrace_replicator::{
    CompressionPolicy, Publisher, PublisherConfig, ReplicaFlow, ReplicaGrant, ReplicaLinkStatus,
};

use crate::support::{Authority, Site, eventually};

fn grant(name: &str, compression: Option<CompressionPolicy>, rate_limit: Option<u64>) -> ReplicaGrant {
    ReplicaGrant { name: name.into(), databases: None, compression, rate_limit }
}

fn link(publisher: &Publisher, replica: &str) -> Option<ReplicaLinkStatus> {
    publisher.feeds().into_iter().find(|feed| feed.replica == replica)?.link
}

/// About 70 bytes a row, in transactions of a few chunks.
async fn load(site: &Site, rows: i64) {
    for first in (0..rows).step_by(20_000) {
        site.insert("market", "bars", first..(first + 20_000).min(rows)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_made_once_and_compressed_for_those_who_take_it_so() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let names = ["b", "c", "d", "e"];
    let publisher = primary
        .publish_as(PublisherConfig {
            replicas: Some(vec![
                grant("b", None, None),
                grant("c", Some(CompressionPolicy::None), None),
                grant("d", Some(CompressionPolicy::Zstd), None),
                grant("e", Some(CompressionPolicy::Zstd), None),
            ]),
            flow: ReplicaFlow { compression: CompressionPolicy::None, rate_limit: None },
            ..primary.publisher_config()
        })
        .await;
    primary.market("market").await;
    let mut replicas = Vec::new();
    for name in names {
        replicas.push(Site::new(&authority, name).await);
    }
    let (raw, compressed) = replicas.split_at(2);

    let mut followers = Vec::new();
    for replica in raw {
        followers.push(replica.follow(publisher.local_addr()).await);
    }
    load(&primary, 100_000).await;
    for replica in raw {
        replica.catches_up(&primary, "market").await;
    }
    let figures = publisher.figures();
    assert_eq!(figures.compressions, 0, "nobody asked for it");
    assert!(figures.chunks > 0 && figures.wire_bytes > figures.raw_bytes);

    for replica in compressed {
        followers.push(replica.follow(publisher.local_addr()).await);
    }
    for replica in compressed {
        replica.catches_up(&primary, "market").await;
    }
    // All four are at the end now, and go on together.
    let before = publisher.figures();
    load(&primary, 200_000).await;
    for replica in &replicas {
        replica.catches_up(&primary, "market").await;
    }
    let after = publisher.figures();
    let (made, compressions) = (after.chunks - before.chunks, after.compressions - before.compressions);
    assert!(compressions > 0 && compressions <= made, "{made} chunks, {compressions} compressions");
    let sent = |from: &tailrace_replicator::PublisherFigures| (from.raw_bytes, from.wire_bytes);
    assert!(sent(&after).1 - sent(&before).1 < sent(&after).0 - sent(&before).0);
    for (name, form) in names.into_iter().zip(["none", "none", "zstd", "zstd"]) {
        assert_eq!(link(&publisher, name).unwrap().compression(), form, "{name}");
    }
    for follower in followers {
        follower.shutdown().await;
    }
    eventually("no links", || link(&publisher, "b").is_none().then_some(())).await;
    publisher.shutdown().await;
}

/// At this rate the rows take two minutes: a replica that had them within this test would have had them too fast.
#[tokio::test(flavor = "multi_thread")]
async fn a_limited_replica_is_slow_hears_of_progress_and_slows_nobody() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let rate = 64 << 10;
    let publisher = primary
        .publish_as(PublisherConfig {
            replicas: Some(vec![
                grant("b", Some(CompressionPolicy::None), Some(rate)),
                grant("c", Some(CompressionPolicy::None), None),
            ]),
            ..primary.publisher_config()
        })
        .await;
    primary.market("market").await;
    let (limited, free) = (Site::new(&authority, "b").await, Site::new(&authority, "c").await);
    let slow = limited.follow(publisher.local_addr()).await;
    let fast = free.follow(publisher.local_addr()).await;
    limited.catches_up(&primary, "market").await;
    load(&primary, 400_000).await;
    free.catches_up(&primary, "market").await;
    let end = primary.position("market").unwrap().seq;
    eventually("the limited replica to know how far its primary is", || {
        let status = slow.status();
        let followed = status.databases.iter().find(|followed| followed.database == "market")?;
        (followed.primary_seq == Some(end)).then_some(())
    })
    .await;
    assert!(limited.position("market").unwrap().seq < end, "it was sent everything at once");
    assert_eq!(link(&publisher, "b").unwrap().rate_limit, Some(rate));
    assert_eq!(link(&publisher, "c").unwrap().rate_limit, None);
    slow.shutdown().await;
    fast.shutdown().await;
    publisher.shutdown().await;
}

/// Repairs go the same way as chunks, a limit does not break them, and a budget smaller than a piece lets one pass.
#[tokio::test(flavor = "multi_thread")]
async fn a_repair_passes_a_limit_and_a_small_budget() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let publisher = primary
        .publish_as(PublisherConfig {
            flow: ReplicaFlow { rate_limit: Some(4 << 20), ..ReplicaFlow::default() },
            cache_bytes: 64 << 10,
            send_bytes: 64 << 10,
            ..primary.publisher_config()
        })
        .await;
    primary.market("market").await;
    load(&primary, 100_000).await;
    // Nothing holds the log: who comes now needs a repair.
    primary.engine.flush().await.unwrap();
    let replica = Site::new(&authority, "b").await;
    let follower = replica.follow(publisher.local_addr()).await;
    replica.catches_up(&primary, "market").await;
    assert!(follower.tasks().iter().any(|task| task.repair), "it was to be repaired");
    load(&primary, 50_000).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(150_000));
    follower.shutdown().await;
    publisher.shutdown().await;
}
