//! Transactions that are larger than what a replica may hold in memory while they are open at the primary.

use tailrace_engine::{CommitOptions, OpenFragments, Transaction};
use tailrace_replicator::{Follower, ReplicationState};
use tailrace_wal::Seq;

use crate::support::{Authority, Site, acknowledged, eventually, reaches, rows};

/// Writes about 200 kB of a transaction; fragments go to the log at 64 KiB.
async fn write(transaction: &mut Transaction, first: i64) {
    transaction.append("bars", rows(first..first + 8_000)).await.unwrap();
}

fn open(follower: &Follower) -> OpenFragments {
    follower.status().databases.into_iter().find(|shown| shown.database == "market").map(|shown| shown.open).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_holds_open_transactions_within_its_memory() {
    const MEMORY: u64 = 256 << 10;
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let replica = Site::with(&authority, "b", |config| config.memtable_bytes = MEMORY).await;
    primary.market("market").await;
    let publisher = primary.publish().await;
    let follower = replica.follow(publisher.local_addr()).await;
    let (mut long, mut aborted) = (primary.engine.begin("market").unwrap(), primary.engine.begin("market").unwrap());
    for step in 0..10 {
        write(&mut long, step * 10_000).await;
        write(&mut aborted, 500_000 + step * 10_000).await;
        // What is committed meanwhile is followed meanwhile, and what was written before it has come then.
        primary.insert("market", "bars", 1_000_000 + step..1_000_001 + step).await;
        replica.catches_up(&primary, "market").await;
        let open = open(&follower);
        assert!(open.memory_bytes <= MEMORY, "{open:?}");
    }
    let both = open(&follower);
    assert!(both.transactions == 2 && both.bytes > 10 * MEMORY, "{both:?}");
    aborted.abort().await.unwrap();
    let one = eventually("the aborted one to be over", || {
        let open = open(&follower);
        (open.transactions == 1).then_some(open)
    })
    .await;
    assert!(one.bytes < both.bytes && one.memory_bytes <= MEMORY, "{one:?} of {both:?}");
    long.commit(CommitOptions::default()).await.unwrap();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(80_010));
    assert_eq!(open(&follower), OpenFragments::default());
    let end = primary.position("market").unwrap().seq;
    acknowledged(&publisher, "b", "market", end).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_too_large_stops_its_database_until_the_limit_is_raised() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let mut replica = Site::with(&authority, "b", |config| config.transaction_max_bytes = 300 << 10).await;
    primary.market("market").await;
    primary.market("other").await;
    let publisher = primary.publish().await;
    let follower = replica.follow(publisher.local_addr()).await;
    let mut long = primary.engine.begin("market").unwrap();
    for step in 0..4 {
        write(&mut long, step * 10_000).await;
    }
    // Sends what is written.
    primary.engine.log().sync().await.unwrap();
    let stopped = reaches(&follower, "market", ReplicationState::Stopped).await;
    assert!(stopped.reason.as_ref().unwrap().contains("engine.transaction_max_bytes"), "{stopped:?}");
    assert!(stopped.remedy.as_ref().unwrap().contains("raise engine.transaction_max_bytes"), "{stopped:?}");
    assert_eq!(stopped.failed_task, None, "it has no seq that could be skipped");
    assert!(stopped.open.bytes <= 320 << 10, "{stopped:?}");
    // The others go on.
    primary.insert("other", "bars", 0..10).await;
    replica.catches_up(&primary, "other").await;
    long.commit(CommitOptions::default()).await.unwrap();
    follower.shutdown().await;
    drop(follower);

    replica.restart().await;
    let follower = replica.follow(publisher.local_addr()).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(32_000));
    acknowledged(&publisher, "b", "market", Seq(3)).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}
