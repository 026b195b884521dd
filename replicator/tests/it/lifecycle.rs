//! Connections lost, nodes restarted, switches off and on.

use std::time::{Duration, Instant};

use tailrace_engine::ReplicationSwitches;
use tailrace_replicator::{ReplicaTask, ReplicationState, TaskState};
use tailrace_wal::{PinKey, Seq};

use crate::support::{Authority, Site, acknowledged, eventually, followed, reaches};

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_restart_in_mid_stream() {
    let authority = Authority::new();
    let (mut primary, mut replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let mut publisher = primary.publish().await;
    let address = publisher.local_addr();
    let mut follower = replica.follow(address).await;
    primary.market("market").await;
    let mut next = 0;
    for round in 0..6 {
        for _ in 0..20 {
            primary.insert("market", "bars", next..next + 100).await;
            next += 100;
        }
        // A peer that goes away within its handshake would hold the primary's port for the idle timeout.
        eventually("a connection", || follower.status().connected).await;
        if round % 2 == 0 {
            follower.shutdown().await;
            drop(follower);
            replica.restart().await;
            follower = replica.follow(address).await;
        } else {
            publisher.shutdown().await;
            drop(publisher);
            primary.restart().await;
            publisher = primary.publish_with(address, 8, None).await;
        }
    }
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(next as u64));
    let seqs: Vec<u64> = follower.tasks().iter().map(|task| task.task.seq.0).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "each task once");
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_replica_stops_and_goes_on() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = followed(&authority).await;
    replica.catches_up(&primary, "market").await;
    let off = ReplicationSwitches { replica: false, ..replica.engine.replication_switches() };
    replica.engine.set_replication_switches(off).await.unwrap();
    assert_eq!(follower.status().state, ReplicationState::Disabled);
    eventually("disconnected", || follower.status().connected.is_none().then_some(())).await;
    let shown = reaches(&follower, "market", ReplicationState::Disabled).await;
    assert!(shown.reason.is_some() && shown.remedy.is_some());
    primary.insert("market", "bars", 0..100).await;
    assert_eq!(replica.rows("market", "bars"), Some(0));
    let on = ReplicationSwitches { replica: true, ..off };
    replica.engine.set_replication_switches(on).await.unwrap();
    follower.retry();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(100));
    reaches(&follower, "market", ReplicationState::Enabled).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_stops_and_goes_on_while_the_log_reaches_back() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = followed(&authority).await;
    replica.catches_up(&primary, "market").await;
    acknowledged(&publisher, "b", "market", Seq(2)).await;
    primary.engine.set_database_replication("market", false).await.unwrap();
    reaches(&follower, "market", ReplicationState::Disabled).await;
    eventually("pins released", || publisher.feeds().is_empty().then_some(())).await;
    primary.insert("market", "bars", 0..100).await;
    primary.engine.set_database_replication("market", true).await.unwrap();
    replica.catches_up(&primary, "market").await;
    reaches(&follower, "market", ReplicationState::Enabled).await;
    assert!(follower.tasks().iter().all(|task| !task.repair));

    let switches = primary.engine.replication_switches();
    primary.engine.set_replication_switches(ReplicationSwitches { primary: false, ..switches }).await.unwrap();
    reaches(&follower, "market", ReplicationState::Disabled).await;
    primary.insert("market", "bars", 100..200).await;
    primary.engine.set_replication_switches(ReplicationSwitches { primary: true, ..switches }).await.unwrap();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(200));
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_too_late_is_repaired() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = followed(&authority).await;
    replica.catches_up(&primary, "market").await;
    acknowledged(&publisher, "b", "market", Seq(2)).await;
    primary.engine.set_database_replication("market", false).await.unwrap();
    reaches(&follower, "market", ReplicationState::Disabled).await;
    eventually("pins released", || publisher.feeds().is_empty().then_some(())).await;
    for batch in 0..40 {
        primary.insert("market", "bars", batch * 5_000..(batch + 1) * 5_000).await;
    }
    primary.truncate("market", Seq(2)).await;
    primary.engine.set_database_replication("market", true).await.unwrap();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(200_000));
    let finished = |task: &ReplicaTask| task.repair && task.state == TaskState::Finished;
    let repair = eventually("the repair to be listed", || follower.tasks().into_iter().find(finished)).await;
    assert_eq!(repair.task.seq, Seq(42));
    // It goes on after it.
    primary.insert("market", "bars", 200_000..200_100).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(200_100));
    reaches(&follower, "market", ReplicationState::Enabled).await;
    acknowledged(&publisher, "b", "market", Seq(43)).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_replica_of_a_truncated_history_is_repaired_however_often_it_is_interrupted() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    primary.market("market").await;
    for batch in 0..40 {
        primary.insert("market", "bars", batch * 5_000..(batch + 1) * 5_000).await;
    }
    primary.truncate("market", Seq(0)).await;
    for pause in [5, 20, 60, 120] {
        let follower = replica.follow(publisher.local_addr()).await;
        tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
        follower.shutdown().await;
        primary.insert("market", "bars", 0..10).await;
    }
    let follower = replica.follow(publisher.local_addr()).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(200_040));
    reaches(&follower, "market", ReplicationState::Enabled).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_created_anew_while_away() {
    let authority = Authority::new();
    for truncated in [false, true] {
        let (primary, replica, publisher, follower) = followed(&authority).await;
        primary.insert("market", "bars", 0..100).await;
        replica.catches_up(&primary, "market").await;
        acknowledged(&publisher, "b", "market", Seq(3)).await;
        follower.shutdown().await;
        primary.insert("market", "bars", 100..200).await;
        if truncated {
            // Nothing holds the log for the replica any more.
            primary.engine.set_database_replication("market", false).await.unwrap();
            eventually("pins released", || publisher.feeds().is_empty().then_some(())).await;
        }
        primary.engine.drop_database("market").await.unwrap();
        primary.market("market").await;
        primary.insert("market", "bars", 0..7).await;
        if truncated {
            primary.engine.log().roll().await.unwrap();
            primary.engine.flush().await.unwrap();
        }
        let follower = replica.follow(publisher.local_addr()).await;
        replica.catches_up(&primary, "market").await;
        assert_eq!(replica.rows("market", "bars"), Some(7), "truncated: {truncated}");
        reaches(&follower, "market", ReplicationState::Enabled).await;
        // The former one ends here once its end is durable, which the rows of the new one do not wait for.
        eventually("one followed", || (follower.status().databases.len() == 1).then_some(())).await;
        eventually("nothing left of the former database", || (publisher.feeds().len() == 1).then_some(())).await;
        primary.engine.drop_database("market").await.unwrap();
        eventually("nothing left of the database", || publisher.feeds().is_empty().then_some(())).await;
        eventually("no pin left", || primary.engine.log().pins().is_empty().then_some(())).await;
        follower.shutdown().await;
        publisher.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_while_its_replication_is_off() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = followed(&authority).await;
    primary.insert("market", "bars", 0..100).await;
    replica.catches_up(&primary, "market").await;
    primary.engine.set_database_replication("market", false).await.unwrap();
    reaches(&follower, "market", ReplicationState::Disabled).await;
    primary.engine.drop_database("market").await.unwrap();
    eventually("the copy to be dropped", || replica.position("market").is_none().then_some(())).await;
    primary.market("market").await;
    primary.insert("market", "bars", 0..7).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(7));
    eventually("nothing left of the former database", || (publisher.feeds().len() == 1).then_some(())).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_word_of_an_end_was_lost() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = followed(&authority).await;
    primary.insert("market", "bars", 0..100).await;
    replica.catches_up(&primary, "market").await;
    let history = primary.position("market").unwrap().history;
    primary.engine.drop_database("market").await.unwrap();
    eventually("the copy to be dropped", || replica.position("market").is_none().then_some(())).await;
    eventually("the end to be acknowledged", || primary.engine.log().pins().is_empty().then_some(())).await;
    follower.shutdown().await;
    // As if the connection had broken before that word came: the pin holds log for what has ended.
    let pinned = |feed: &str| {
        let log = primary.engine.log();
        drop(log.pin(PinKey { feed: feed.to_owned(), history }, Seq(3), Seq(3)).unwrap());
    };
    pinned("replica/b");
    // This one has lost its copy, and follows what there is now.
    pinned("replica/c");
    primary.market("market").await;
    let follower = replica.follow(publisher.local_addr()).await;
    let other = Site::new(&authority, "c").await;
    let follows = other.follow(publisher.local_addr()).await;
    eventually("nothing to be held for what has ended", || {
        primary.engine.log().pins().iter().all(|pin| pin.key.history != history).then_some(())
    })
    .await;
    primary.insert("market", "bars", 0..7).await;
    for site in [&replica, &other] {
        site.catches_up(&primary, "market").await;
        assert_eq!(site.rows("market", "bars"), Some(7));
    }
    eventually("both feeds alone to be shown", || (publisher.feeds().len() == 2).then_some(())).await;
    follower.shutdown().await;
    follows.shutdown().await;
    publisher.shutdown().await;
}

#[test]
fn a_primary_that_was_killed_resets_its_former_connections() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (doomed, rest) = (runtime(), runtime());
    let authority = Authority::new();
    let (mut primary, publisher) = doomed.block_on(async {
        let primary = Site::new(&authority, "a").await;
        primary.market("market").await;
        let publisher = primary.publish().await;
        (primary, publisher)
    });
    let address = publisher.local_addr();
    let (replica, follower) = rest.block_on(async {
        let replica = Site::new(&authority, "b").await;
        let follower = replica.follow(address).await;
        replica.catches_up(&primary, "market").await;
        (replica, follower)
    });
    // Its tasks end where they are, and its socket with them: nobody is told.
    let killed = Instant::now();
    drop(publisher);
    doomed.shutdown_background();
    rest.block_on(async {
        primary.revive().await;
        let publisher = primary.publish_with(address, 8, None).await;
        let away = killed.elapsed();
        let started = Instant::now();
        primary.insert("market", "bars", 0..100).await;
        replica.catches_up(&primary, "market").await;
        println!(
            "{away:?} after it was killed the primary was there again, {:?} later records came",
            started.elapsed()
        );
        let reason = follower.status().last_error.unwrap_or_default();
        // Had it been away for as long as the idle timeout, that would have come first.
        assert!(reason.contains("reset") || away > Duration::from_secs(3), "it was noticed by: {reason}");
        follower.shutdown().await;
        publisher.shutdown().await;
    });
}
