//! What must not be followed is not, and says why.

use tailrace_replicator::ReplicationState;
use tailrace_wal::Seq;

use crate::support::{Authority, Site, acknowledged, bars, reaches};

#[tokio::test(flavor = "multi_thread")]
async fn a_local_database_is_left_alone() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    replica.engine.create_database("market").await.unwrap();
    replica.engine.create_table("market", bars("own")).await.unwrap();
    let publisher = primary.publish().await;
    primary.market("market").await;
    primary.market("other").await;
    let follower = replica.follow(publisher.local_addr()).await;
    let status = reaches(&follower, "market", ReplicationState::NameTaken).await;
    assert!(status.reason.unwrap().contains("left alone"));
    replica.catches_up(&primary, "other").await;
    assert_eq!(replica.rows("market", "own"), Some(0));
    // It is tried again when the name is free.
    replica.engine.drop_database("market").await.unwrap();
    replica.catches_up(&primary, "market").await;
    reaches(&follower, "market", ReplicationState::Enabled).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}

/// The primary is set back to an older copy of its folder and goes on differently.
#[tokio::test(flavor = "multi_thread")]
async fn a_diverged_primary_is_forked() {
    let authority = Authority::new();
    let (mut primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    primary.market("market").await;
    primary.engine.shutdown().await.unwrap();
    let saved = tempfile::tempdir().unwrap();
    copy(primary.dir.path(), saved.path());
    primary.restart().await;
    let publisher = primary.publish().await;
    let address = publisher.local_addr();
    let follower = replica.follow(address).await;
    primary.insert("market", "bars", 0..10).await;
    replica.catches_up(&primary, "market").await;
    acknowledged(&publisher, "b", "market", Seq(3)).await;
    publisher.shutdown().await;
    drop(publisher);
    primary.engine.shutdown().await.unwrap();

    std::fs::remove_dir_all(primary.dir.path()).unwrap();
    copy(saved.path(), primary.dir.path());
    primary.restart().await;
    primary.insert("market", "bars", 500..600).await;
    primary.insert("market", "bars", 600..700).await;
    let publisher = primary.publish_with(address, 8, None).await;
    let status = reaches(&follower, "market", ReplicationState::Forked).await;
    assert!(status.reason.is_some());
    assert_eq!(replica.rows("market", "bars"), Some(10), "nothing is overwritten");
    assert!(publisher.feeds().iter().any(|feed| feed.state == ReplicationState::Forked && feed.reason.is_some()));
    assert!(status.remedy.unwrap().contains("CALL repair_database('market')"));
    // By word of the operator, the primary's copy takes its place.
    follower.repair("market").await.unwrap();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(200));
    reaches(&follower, "market", ReplicationState::Enabled).await;
    primary.insert("market", "bars", 700..710).await;
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(210));
    follower.shutdown().await;
    publisher.shutdown().await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
