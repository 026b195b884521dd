//! A database that fails: it stops alone, says why and what to do, and goes on when that is done.

use std::{sync::Arc, time::Duration};

use tailrace_engine::{GrantedRight, Right};
use tailrace_replicator::{FollowedDatabaseStatus, Follower, Publisher, ReplicaStage, ReplicationState, TaskState};
use tailrace_wal::Seq;

use crate::support::{Authority, Site, bars, eventually, reaches};

const USER: &str = "replicator";

async fn set(site: &Site, database: &str, right: Right, has: bool) {
    let granted = GrantedRight { user: USER.into(), database: database.into(), right };
    site.engine.set_right(granted, has).await.unwrap();
}

/// `market` and `other` on both sides; on the replica they are applied under a user's name, which may do everything.
async fn pair(authority: &Authority) -> (Site, Site, Arc<Publisher>, Arc<Follower>) {
    let (primary, replica) = (Site::new(authority, "a").await, Site::new(authority, "b").await);
    for database in ["market", "other"] {
        for right in Right::ALL {
            set(&replica, database, right, true).await;
        }
    }
    let publisher = primary.publish().await;
    let follower = replica.follow_as(publisher.local_addr(), USER).await;
    primary.market("market").await;
    primary.market("other").await;
    primary.insert("market", "bars", 0..10).await;
    replica.catches_up(&primary, "market").await;
    (primary, replica, publisher, follower)
}

fn shown(follower: &Follower, database: &str) -> FollowedDatabaseStatus {
    follower.status().databases.into_iter().find(|shown| shown.database == database).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_stops_its_database_alone_until_it_is_granted() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = pair(&authority).await;
    set(&replica, "market", Right::Write, false).await;
    primary.insert("market", "bars", 10..20).await;
    let failing = reaches(&follower, "market", ReplicationState::Stopped).await;
    let reason = failing.reason.unwrap();
    assert!(reason.contains("\"replicator\" lacks the right \"write\" on database \"market\""), "{reason}");
    assert!(reason.contains("failed 3 times"), "{reason}");
    assert_eq!(failing.remedy.as_deref(), Some("CALL grant_right('replicator', 'market', 'write')"));
    assert_eq!((failing.attempts, failing.next_try, failing.failed_task), (3, None, Some(Seq(4))));
    let task = follower.tasks().into_iter().find(|task| task.state == TaskState::Failed).unwrap();
    assert_eq!((task.database.as_str(), task.task.seq), ("market", Seq(4)));
    // The neighbour does not notice.
    primary.insert("other", "bars", 0..100).await;
    replica.catches_up(&primary, "other").await;
    assert_eq!(shown(&follower, "other").state, ReplicationState::Enabled);
    assert_eq!(follower.status().state, ReplicationState::Enabled);
    // Another right does not help; the right one does at once, and nobody has to call for it.
    set(&replica, "other", Right::Write, true).await;
    assert_eq!(replica.rows("market", "bars"), Some(10));
    set(&replica, "market", Right::Write, true).await;
    replica.catches_up(&primary, "market").await;
    let well = reaches(&follower, "market", ReplicationState::Enabled).await;
    assert_eq!((well.reason, well.remedy, well.attempts, well.failed_task), (None, None, 0, None));
    // DDL is another right.
    set(&replica, "market", Right::Ddl, false).await;
    primary.insert("market", "bars", 20..30).await;
    primary.engine.create_table("market", bars("more")).await.unwrap();
    let failing = reaches(&follower, "market", ReplicationState::Stopped).await;
    assert!(failing.reason.unwrap().contains("\"ddl\""));
    assert_eq!(replica.rows("market", "bars"), Some(30));
    set(&replica, "market", Right::Ddl, true).await;
    replica.catches_up(&primary, "market").await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

/// Tasks of `market` that are shown as skipped, with the reason.
fn skipped(follower: &Follower) -> Vec<(u64, String)> {
    let tasks = follower.tasks();
    let skipped = tasks.iter().filter(|task| task.state == TaskState::Skipped && task.database == "market");
    skipped.map(|task| (task.task.seq.0, task.details.clone().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_task_leaves_its_database_diverged_until_it_is_retried() {
    let authority = Authority::new();
    let (primary, mut replica, publisher, mut follower) = pair(&authority).await;
    let address = publisher.local_addr();
    let nothing = follower.skip(Some("market"), &[Seq(4)]).await.unwrap_err();
    assert!(nothing.reason.contains("no task of database \"market\" fails"), "{nothing}");
    assert!(follower.skip(None, &[Seq(4)]).await.unwrap_err().reason.contains("nothing to skip"));
    set(&replica, "market", Right::Write, false).await;
    for start in 1..4 {
        primary.insert("market", "bars", start * 10..start * 10 + 10).await;
    }
    reaches(&follower, "market", ReplicationState::Stopped).await;
    // What may not be skipped, with what may.
    let wrong = follower.skip(Some("market"), &[Seq(5)]).await.unwrap_err();
    assert!(wrong.reason.contains("not the one that fails: that is task 4"), "{wrong}");
    assert_eq!(wrong.hint.as_deref(), Some("CALL skip_cluster_replication_task('market', 4)"));
    let wrong = follower.skip(None, &[Seq(4), Seq(6)]).await.unwrap_err();
    assert!(wrong.reason.contains("task 5 comes before 6"), "{wrong}");
    let wrong = follower.skip(None, &(4..9).map(Seq).collect::<Vec<_>>()).await.unwrap_err();
    assert!(wrong.reason.contains("no task 7 at the primary"), "{wrong}");
    assert!(follower.skip(Some("markt"), &[Seq(4)]).await.unwrap_err().hint.unwrap().contains("market"));

    assert_eq!(follower.skip(None, &[Seq(5), Seq(4), Seq(5)]).await.unwrap(), [""; 0]);
    // The third fails like the others.
    let failing = reaches(&follower, "market", ReplicationState::Stopped).await;
    assert_eq!((failing.failed_task, failing.applied), (Some(Seq(6)), Seq(5)));
    set(&replica, "market", Right::Write, true).await;
    replica.catches_up(&primary, "market").await;
    let diverged = reaches(&follower, "market", ReplicationState::Diverged).await;
    assert!(diverged.reason.unwrap().contains("tasks 4, 5 were skipped"));
    assert_eq!(replica.rows("market", "bars"), Some(20));
    let details = skipped(&follower);
    assert_eq!(details.len(), 2, "{details:?}");
    assert!(details[0].0 == 4 && details[0].1.contains("lacks the right \"write\""), "{details:?}");
    assert!(details[1].0 == 5 && details[1].1.contains("together with task 4"), "{details:?}");
    // What follows is applied; a start changes nothing.
    primary.insert("market", "bars", 40..50).await;
    replica.catches_up(&primary, "market").await;
    follower.shutdown().await;
    drop(follower);
    // So that the log has nothing to tell of them.
    replica.engine.flush().await.unwrap();
    replica.restart().await;
    follower = replica.follow_as(address, USER).await;
    assert_eq!(skipped(&follower), details);
    primary.insert("market", "bars", 50..60).await;
    replica.catches_up(&primary, "market").await;
    reaches(&follower, "market", ReplicationState::Diverged).await;
    // Everything is on its disk, and what follows the tasks that were skipped does not count as applied.
    let end = primary.position("market").unwrap();
    let reached = async |stage, seq, patience| publisher.wait_for_replicas(end.history, seq, stage, 1, patience).await;
    let patience = Duration::from_secs(60);
    assert_eq!(reached(ReplicaStage::Durable, end.seq, patience).await, 1);
    assert_eq!(reached(ReplicaStage::Applied, Seq(3), patience).await, 1);
    for seq in [Seq(4), Seq(5), end.seq] {
        assert_eq!(reached(ReplicaStage::Applied, seq, Duration::ZERO).await, 0, "{seq}");
    }
    replica.engine.retry_dead_letter("market", Seq(5)).await.unwrap();
    assert_eq!(shown(&follower, "market").state, ReplicationState::Diverged);
    assert_eq!(reached(ReplicaStage::Applied, end.seq, Duration::ZERO).await, 0);
    replica.engine.retry_dead_letter("market", Seq(4)).await.unwrap();
    // Nothing has to be written for that to be told.
    assert_eq!(reached(ReplicaStage::Applied, end.seq, patience).await, 1);
    reaches(&follower, "market", ReplicationState::Enabled).await;
    assert_eq!(replica.rows("market", "bars"), Some(60));
    primary.insert("market", "bars", 60..70).await;
    replica.catches_up(&primary, "market").await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_is_asked_for_makes_a_diverged_database_equal_although_the_log_reaches_back() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = pair(&authority).await;
    set(&replica, "market", Right::Ddl, false).await;
    primary.engine.create_table("market", bars("more")).await.unwrap();
    primary.insert("market", "more", 0..10).await;
    reaches(&follower, "market", ReplicationState::Stopped).await;
    follower.skip(None, &[Seq(4)]).await.unwrap();
    // Its rows fail by its name.
    let failing = eventually("its rows to fail", || {
        let shown = shown(&follower, "market");
        (shown.failed_task == Some(Seq(5))).then_some(shown)
    })
    .await;
    let reason = failing.reason.unwrap();
    assert!(reason.contains("table \"more\" (id 2)") && reason.contains("task 4"), "{reason}");
    // A repair needs both rights; it is tried again and runs once they are there.
    let refused = follower.repair("market").await.unwrap_err();
    assert!(refused.reason.contains("\"ddl\""), "{refused}");
    set(&replica, "market", Right::Ddl, true).await;
    replica.catches_up(&primary, "market").await;
    let well = eventually("the repair to be over", || {
        let shown = shown(&follower, "market");
        (shown.state == ReplicationState::Enabled && shown.reason.is_none()).then_some(shown)
    })
    .await;
    assert_eq!((well.attempts, well.failed_task), (0, None));
    assert_eq!(replica.rows("market", "more"), Some(10));
    assert!(follower.tasks().iter().any(|task| task.repair && task.state == TaskState::Finished));
    // Of a database that is well: it is the same as before.
    follower.repair("market").await.unwrap();
    primary.insert("market", "more", 10..20).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "more"), Some(20));
    assert!(follower.repair("nothing").await.unwrap_err().reason.contains("no database \"nothing\""));
    follower.shutdown().await;
    publisher.shutdown().await;
}

/// Failures while the primary cannot be reached: skipping is done when it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_outlives_the_session_in_which_the_task_failed() {
    let authority = Authority::new();
    let (primary, replica, publisher, follower) = pair(&authority).await;
    let address = publisher.local_addr();
    set(&replica, "market", Right::Write, false).await;
    primary.insert("market", "bars", 10..20).await;
    reaches(&follower, "market", ReplicationState::Stopped).await;
    publisher.shutdown().await;
    drop(publisher);
    eventually("the session to end", || follower.status().connected.is_none().then_some(())).await;
    assert!(follower.repair("market").await.unwrap_err().reason.contains("no primary is connected"));
    let skipping = follower.clone();
    let skipped = tokio::spawn(async move { skipping.skip(Some("market"), &[Seq(4)]).await });
    eventually("the request to be taken", || shown(&follower, "market").failed_task.is_none().then_some(())).await;
    let publisher = primary.publish_with(address, 8, None).await;
    skipped.await.unwrap().unwrap();
    replica.catches_up(&primary, "market").await;
    let diverged = reaches(&follower, "market", ReplicationState::Diverged).await;
    assert!(diverged.since.0 > 0 && diverged.remedy.unwrap().contains("retry_dead_letter('market', 4)"));
    follower.shutdown().await;
    publisher.shutdown().await;
}

/// The primary comes back after the replica was started anew: what was asked is not forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_skip_that_waits_for_its_record_outlives_a_start() {
    let authority = Authority::new();
    let (primary, mut replica, publisher, follower) = pair(&authority).await;
    let (address, history) = (publisher.local_addr(), primary.position("market").unwrap().history);
    set(&replica, "market", Right::Write, false).await;
    primary.insert("market", "bars", 10..20).await;
    let reason = reaches(&follower, "market", ReplicationState::Stopped).await.reason.unwrap();
    publisher.shutdown().await;
    drop(publisher);
    eventually("the session to end", || follower.status().connected.is_none().then_some(())).await;
    let skipping = follower.clone();
    let asked = tokio::spawn(async move { skipping.skip(Some("market"), &[Seq(4)]).await });
    eventually("the request to be noted", || {
        (replica.engine.asked_skips(history).into_iter().collect::<Vec<_>>() == [(Seq(4), reason.clone())])
            .then_some(())
    })
    .await;
    asked.abort();
    let _ = asked.await;
    follower.shutdown().await;
    drop(follower);

    replica.restart().await;
    assert_eq!(replica.engine.asked_skips(history).len(), 1);
    let publisher = primary.publish_with(address, 8, None).await;
    let follower = replica.follow_as(address, USER).await;
    replica.catches_up(&primary, "market").await;
    reaches(&follower, "market", ReplicationState::Diverged).await;
    assert_eq!(replica.rows("market", "bars"), Some(10));
    eventually("the task to be listed", || (skipped(&follower) == [(4, reason.clone())]).then_some(())).await;
    assert!(replica.engine.asked_skips(history).is_empty());
    follower.shutdown().await;
    publisher.shutdown().await;
}

/// Two replicas in a row: what the middle one skipped reaches the last one.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_skipped_here_goes_on_downstream() {
    let authority = Authority::new();
    let (primary, middle) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let last = Site::new(&authority, "c").await;
    set(&middle, "market", Right::Ddl, true).await;
    let publisher = primary.publish().await;
    let follower = middle.follow_as(publisher.local_addr(), USER).await;
    primary.market("market").await;
    primary.insert("market", "bars", 0..10).await;
    reaches(&follower, "market", ReplicationState::Stopped).await;
    follower.skip(None, &[Seq(3)]).await.unwrap();
    reaches(&follower, "market", ReplicationState::Diverged).await;
    assert_eq!(middle.rows("market", "bars"), Some(0));
    middle.engine.set_database_replication("market", true).await.unwrap();
    let second = middle.publish().await;
    let downstream = last.follow(second.local_addr()).await;
    last.catches_up(&primary, "market").await;
    assert_eq!(last.rows("market", "bars"), Some(10));
    assert_eq!(shown(&downstream, "market").state, ReplicationState::Enabled);
    // A copy that lacks something serves no repairs.
    let refused = downstream.repair("market").await;
    let reason = refused.unwrap_err().reason;
    assert!(reason.contains("DIVERGED"), "{reason}");
    middle.engine.retry_dead_letter("market", Seq(3)).await.unwrap();
    downstream.retry();
    let well = eventually("the repair", || {
        let shown = shown(&downstream, "market");
        (shown.attempts == 0 && shown.reason.is_none()).then_some(shown)
    });
    tokio::time::timeout(Duration::from_secs(60), well).await.unwrap();
    assert_eq!(last.rows("market", "bars"), Some(10));
    downstream.shutdown().await;
    second.shutdown().await;
    follower.shutdown().await;
    publisher.shutdown().await;
}
