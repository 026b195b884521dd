//! Replicas that have rows of some tables alone.

use std::sync::Arc;

use tailrace_replicator::{FollowedDatabaseStatus, Follower, PublisherConfig, ReplicaFlow, ReplicationState};
use tailrace_wal::Seq;

use crate::support::{Authority, Site, acknowledged, bars, eventually, reaches};

/// Whether a table is left out there, and how many rows it shows.
fn left_out(site: &Site, table: &str) -> Option<(bool, u64)> {
    let version = site.engine.version();
    let table = version.database("market")?.table(table)?;
    Some((table.is_left_out(), table.rows()))
}

async fn two_tables(primary: &Site) {
    primary.market("market").await;
    primary.engine.create_table("market", bars("risk")).await.unwrap();
}

async fn repaired(follower: &Arc<Follower>) {
    eventually("a repair", || follower.tasks().iter().any(|task| task.repair && task.finished.is_some()).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chosen_table_is_kept_in_step_and_what_is_passed_on_is_whole() {
    let authority = Authority::new();
    let (primary, mut middle, last) =
        (Site::new(&authority, "a").await, Site::new(&authority, "b").await, Site::new(&authority, "c").await);
    let publisher = primary.publish().await;
    let follower = middle.follow_tables(publisher.local_addr(), &["bars"]).await;
    two_tables(&primary).await;
    primary.market("other").await;
    for start in 0..20 {
        primary.insert("market", "bars", start * 100..start * 100 + 100).await;
        primary.insert("market", "risk", start * 10_000..start * 10_000 + 5_000).await;
    }
    primary.insert("other", "bars", 0..10).await;
    middle.catches_up(&primary, "market").await;
    middle.catches_up(&primary, "other").await;
    assert_eq!((left_out(&middle, "bars"), left_out(&middle, "risk")), (Some((false, 2000)), Some((true, 0))));
    assert_eq!(middle.rows("other", "bars"), Some(10));
    let shown = reaches(&follower, "market", ReplicationState::Enabled).await;
    assert_eq!((shown.reason, shown.tables), (None, Some(["bars".to_owned()].into())));
    assert_eq!(reaches(&follower, "other", ReplicationState::Enabled).await.tables, None);
    let end = primary.position("market").unwrap().seq;
    acknowledged(&publisher, "b", "market", end).await;

    // Passed on is everything.
    let passing = middle.publish().await;
    middle.engine.set_database_replication("market", true).await.unwrap();
    let second = last.follow(passing.local_addr()).await;
    last.catches_up(&primary, "market").await;
    assert_eq!((last.rows("market", "bars"), last.rows("market", "risk")), (Some(2000), Some(100_000)));

    // Tables come, go, and come back, while the replica is there and while it is away.
    for away in [false, true] {
        if away {
            follower.shutdown().await;
            second.shutdown().await;
            passing.shutdown().await;
        }
        for name in ["bars", "risk"] {
            primary.engine.drop_table("market", name).await.unwrap();
            primary.engine.create_table("market", bars(name)).await.unwrap();
            primary.insert("market", name, 0..7).await;
        }
        if !away {
            middle.catches_up(&primary, "market").await;
        }
        assert_eq!((left_out(&middle, "bars"), left_out(&middle, "risk")), (Some((false, 7)), Some((true, 0))));
    }
    drop((follower, second, passing));
    middle.restart().await;
    assert_eq!((left_out(&middle, "bars"), left_out(&middle, "risk")), (Some((false, 7)), Some((true, 0))));
    let follower = middle.follow_tables(publisher.local_addr(), &["bars"]).await;
    middle.catches_up(&primary, "market").await;
    assert_eq!((left_out(&middle, "bars"), left_out(&middle, "risk")), (Some((false, 7)), Some((true, 0))));
    assert!(follower.tasks().iter().all(|task| !task.repair));
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_choice_is_in_force_after_a_start_and_a_table_comes_by_a_repair() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    let address = publisher.local_addr();
    let follower = replica.follow(address).await;
    two_tables(&primary).await;
    for table in ["bars", "risk"] {
        primary.insert("market", table, 0..1000).await;
    }
    replica.catches_up(&primary, "market").await;
    assert_eq!(left_out(&replica, "risk"), Some((false, 1000)));
    follower.shutdown().await;

    // Taken out, it is gone before a primary is there.
    let alone = replica.follow_tables("127.0.0.1:1".parse().unwrap(), &["bars"]).await;
    assert_eq!((left_out(&replica, "bars"), left_out(&replica, "risk")), (Some((false, 1000)), Some((true, 0))));
    alone.shutdown().await;
    let follower = replica.follow_tables(address, &["bars"]).await;
    for table in ["bars", "risk"] {
        primary.insert("market", table, 1000..1100).await;
    }
    replica.catches_up(&primary, "market").await;
    assert_eq!((left_out(&replica, "bars"), left_out(&replica, "risk")), (Some((false, 1100)), Some((true, 0))));
    // A repair that is asked for brings what is chosen.
    follower.repair("market").await.unwrap();
    assert_eq!((left_out(&replica, "bars"), left_out(&replica, "risk")), (Some((false, 1100)), Some((true, 0))));
    follower.shutdown().await;

    // Put back, it is waited for and says so; then a repair brings it, and nobody has to call for it.
    let alone = replica.follow_tables("127.0.0.1:1".parse().unwrap(), &["bars", "risk"]).await;
    assert_eq!(left_out(&replica, "risk"), Some((true, 0)));
    let shown = reaches(&alone, "market", ReplicationState::Enabled).await;
    let reason = shown.reason.unwrap();
    assert!(reason.contains("risk") && reason.contains("repair"), "{reason}");
    assert_eq!(shown.remedy.as_deref(), Some("CALL repair_database('market')"));
    alone.shutdown().await;
    let follower = replica.follow_tables(address, &["bars", "risk"]).await;
    repaired(&follower).await;
    eventually("the table", || (left_out(&replica, "risk") == Some((false, 1100))).then_some(())).await;
    for table in ["bars", "risk"] {
        primary.insert("market", table, 1100..1200).await;
    }
    replica.catches_up(&primary, "market").await;
    assert_eq!((left_out(&replica, "bars"), left_out(&replica, "risk")), (Some((false, 1200)), Some((false, 1200))));
    let shown = reaches(&follower, "market", ReplicationState::Enabled).await;
    assert_eq!((shown.reason, shown.remedy), (None, None));
    follower.shutdown().await;

    // All of them again; the primary's database ends while the replica waits for a table.
    let alone = replica.follow_tables("127.0.0.1:1".parse().unwrap(), &[]).await;
    alone.shutdown().await;
    let alone = replica.follow("127.0.0.1:1".parse().unwrap()).await;
    assert_eq!(left_out(&replica, "bars"), Some((true, 0)));
    alone.shutdown().await;
    primary.engine.drop_database("market").await.unwrap();
    primary.market("market").await;
    primary.insert("market", "bars", 0..5).await;
    let follower = replica.follow(address).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(left_out(&replica, "bars"), Some((false, 5)));
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_fetches_the_chosen_tables_and_a_limited_copy_serves_none() {
    let authority = Authority::new();
    let (primary, middle, last) =
        (Site::new(&authority, "a").await, Site::new(&authority, "b").await, Site::new(&authority, "c").await);
    let publisher = primary.publish().await;
    two_tables(&primary).await;
    primary.insert("market", "bars", 0..1000).await;
    for batch in 0..20 {
        primary.insert("market", "risk", batch * 5_000..(batch + 1) * 5_000).await;
    }
    primary.truncate("market", Seq(1)).await;
    // The log does not reach back.
    let follower = middle.follow_tables(publisher.local_addr(), &["bars"]).await;
    middle.catches_up(&primary, "market").await;
    repaired(&follower).await;
    assert_eq!((left_out(&middle, "bars"), left_out(&middle, "risk")), (Some((false, 1000)), Some((true, 0))));
    let fetched: u64 = primary
        .engine
        .version()
        .database("market")
        .unwrap()
        .table("risk")
        .unwrap()
        .partitions()
        .flat_map(|(_, partition)| &partition.datafiles)
        .map(|datafile| datafile.meta.bytes)
        .sum();
    let wire = follower.status().wire_bytes;
    assert!(wire < fetched, "{wire} bytes came, and {fetched} are those of a table that is left out");
    primary.insert("market", "risk", 0..10).await;
    primary.insert("market", "bars", 1000..1010).await;
    middle.catches_up(&primary, "market").await;
    assert_eq!((left_out(&middle, "bars"), left_out(&middle, "risk")), (Some((false, 1010)), Some((true, 0))));

    // Nobody is repaired from it: the reason names the table.
    let passing = middle.publish().await;
    middle.engine.set_database_replication("market", true).await.unwrap();
    let second = last.follow(passing.local_addr()).await;
    let refused = reaches(&second, "market", ReplicationState::Stopped).await;
    let reason = refused.reason.unwrap();
    assert!(reason.contains("left out: risk") && reason.contains("\"a\""), "{reason}");
    assert_eq!(last.rows("market", "bars"), None);
    second.shutdown().await;
    // Its own primary does it.
    let second = last.follow_tables(publisher.local_addr(), &["risk"]).await;
    last.catches_up(&primary, "market").await;
    assert_eq!((left_out(&last, "bars"), left_out(&last, "risk")), (Some((true, 0)), Some((false, 100_010))));
    second.shutdown().await;
    follower.shutdown().await;
    passing.shutdown().await;
    publisher.shutdown().await;
}

/// A name that is wrong would leave tables out in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_chosen_name_that_the_primary_does_not_have_is_told() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    let follower = replica.follow_tables(publisher.local_addr(), &["bars", "riks"]).await;
    two_tables(&primary).await;
    replica.catches_up(&primary, "market").await;
    let shown = eventually("the name to be told", || {
        let of = |shown: &FollowedDatabaseStatus| shown.reason.as_ref().is_some_and(|reason| reason.contains("riks"));
        follower.status().databases.into_iter().find(of)
    })
    .await;
    assert_eq!(shown.state, ReplicationState::Enabled);
    let reason = shown.reason.unwrap();
    assert!(reason.ends_with("does not have: riks"), "{reason}");
    assert!(shown.remedy.unwrap().contains("[replication.replica] tables"));
    primary.engine.create_table("market", bars("riks")).await.unwrap();
    replica.catches_up(&primary, "market").await;
    eventually("nothing to tell", || {
        let shown = follower.status().databases.pop()?;
        (shown.reason.is_none() && shown.remedy.is_none()).then_some(())
    })
    .await;
    assert_eq!((left_out(&replica, "riks"), left_out(&replica, "risk")), (Some((false, 0)), Some((true, 0))));
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_ends_while_a_table_of_it_is_fetched_ends_here() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    let follower = replica.follow_tables(publisher.local_addr(), &["bars"]).await;
    two_tables(&primary).await;
    for batch in 0..5 {
        primary.insert("market", "risk", batch * 20_000..(batch + 1) * 20_000).await;
    }
    replica.catches_up(&primary, "market").await;
    follower.shutdown().await;
    publisher.shutdown().await;
    let former = primary.position("market").unwrap().history;

    // So slow that the table is on its way for some seconds.
    let flow = ReplicaFlow { rate_limit: Some(128 << 10), ..ReplicaFlow::default() };
    let publisher = primary.publish_as(PublisherConfig { flow, ..primary.publisher_config() }).await;
    let follower = replica.follow_tables(publisher.local_addr(), &["bars", "risk"]).await;
    eventually("a repair", || follower.tasks().iter().any(|task| task.repair && task.finished.is_none()).then_some(()))
        .await;
    primary.engine.drop_database("market").await.unwrap();
    primary.market("market").await;
    primary.insert("market", "bars", 0..5).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!((left_out(&replica, "bars"), left_out(&replica, "risk")), (Some((false, 5)), None));
    assert!(replica.engine.history(former).unwrap().ended);
    let shown = reaches(&follower, "market", ReplicationState::Enabled).await;
    assert_ne!(shown.history, former);
    follower.shutdown().await;
    publisher.shutdown().await;
}
