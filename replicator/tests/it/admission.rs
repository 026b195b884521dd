//! Who may attach.

use tailrace_replicator::{ReplicaGrant, ReplicationError, ReplicationState};

use crate::support::{Authority, Site, eventually, reaches};

/// Waits until a follower shows that it was refused for a reason that says `what`.
async fn refused(follower: &tailrace_replicator::Follower, what: &str) {
    let says = || follower.status().last_error.filter(|reason| reason.contains(what));
    eventually(&format!("a refusal that says {what:?}"), says).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let (authority, other) = (Authority::new(), Authority::new());
    let primary = Site::new(&authority, "a").await;
    let publisher = primary.publish().await;
    primary.market("market").await;
    // Trusts the primary, but was signed by another authority.
    let mut stranger = Site::new(&other, "b").await;
    stranger.tls.ca = authority.ca();
    let follower = stranger.follow(publisher.local_addr()).await;
    refused(&follower, "certificate").await;
    // Was signed by the right one, but does not trust the primary.
    let mut distrustful = Site::new(&authority, "c").await;
    distrustful.tls.ca = other.ca();
    let second = distrustful.follow(publisher.local_addr()).await;
    refused(&second, "certificate").await;
    assert_eq!(stranger.position("market"), None);
    follower.shutdown().await;
    second.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_must_be_that_of_the_certificate() {
    let authority = Authority::new();
    let mut site = Site::new(&authority, "b").await;
    site.name = "c".into();
    let config = tailrace_replicator::FollowerConfig {
        name: "c".into(),
        primary_addresses: vec!["127.0.0.1:1".into()],
        databases: None,
        tables: Default::default(),
        apply_workers: 1,
        receive_bytes: tailrace_replicator::FollowerConfig::RECEIVE_BYTES,
        apply_user: None,
        tls: site.tls.clone(),
        backoff_min: std::time::Duration::from_millis(1),
        backoff_max: std::time::Duration::from_millis(1),
        task_failures_max: 1,
    };
    let error = tailrace_replicator::Follower::start(site.engine.clone(), config).await.unwrap_err();
    assert!(matches!(&error, ReplicationError::Configuration(text) if text.contains("\"b\"")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_an_error_and_a_publisher_that_is_dropped_leaves_its_port() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let publisher = primary.publish().await;
    let taken = tailrace_replicator::PublisherConfig { listen: publisher.local_addr(), ..primary.publisher_config() };
    let error = tailrace_replicator::Publisher::start(primary.engine.clone(), taken.clone()).await.unwrap_err();
    assert!(matches!(&error, ReplicationError::Configuration(text) if text.contains("cannot listen")), "{error}");
    // Without a good-bye, and from within a task.
    drop(publisher);
    primary.publish_as(taken).await.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_over_the_limit_are_refused() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let publisher = primary.publish_with("127.0.0.1:0".parse().unwrap(), 1, None).await;
    primary.market("market").await;
    let (first, second) = (Site::new(&authority, "b").await, Site::new(&authority, "c").await);
    let one = first.follow(publisher.local_addr()).await;
    first.catches_up(&primary, "market").await;
    let two = second.follow(publisher.local_addr()).await;
    refused(&two, "not properly configured").await;
    refused(&two, "max_replicas").await;
    one.shutdown().await;
    two.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_are_honoured() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let grants = vec![ReplicaGrant {
        name: "b".into(),
        databases: Some(vec!["granted".into()]),
        compression: None,
        rate_limit: None,
    }];
    let publisher = primary.publish_with("127.0.0.1:0".parse().unwrap(), 8, Some(grants)).await;
    primary.market("granted").await;
    primary.market("denied").await;
    let (listed, unlisted) = (Site::new(&authority, "b").await, Site::new(&authority, "c").await);
    let one = listed.follow(publisher.local_addr()).await;
    listed.catches_up(&primary, "granted").await;
    reaches(&one, "granted", ReplicationState::Enabled).await;
    assert_eq!(listed.position("denied"), None);
    let two = unlisted.follow(publisher.local_addr()).await;
    refused(&two, "not listed").await;
    one.shutdown().await;
    two.shutdown().await;
    publisher.shutdown().await;
}
