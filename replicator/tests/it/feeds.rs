//! Rows arrive, in order, once.

use std::time::Instant;

use tailrace_replicator::{PublisherFigures, ReplicationState, TaskState};
use tailrace_wal::Seq;

use crate::support::{Authority, Site, acknowledged, bars, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_ddl_arrive() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    let follower = replica.follow(publisher.local_addr()).await;
    primary.market("market").await;
    primary.insert("market", "bars", 0..1_000).await;
    primary.engine.create_table("market", bars("more")).await.unwrap();
    primary.insert("market", "more", 0..10).await;
    primary.engine.drop_table("market", "bars").await.unwrap();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), None);
    assert_eq!(replica.rows("market", "more"), Some(10));

    acknowledged(&publisher, "b", "market", Seq(6)).await;
    let feeds = publisher.feeds();
    assert_eq!(feeds.len(), 1);
    assert_eq!((feeds[0].lag_tasks, feeds[0].lag_bytes), (0, Some(0)));
    assert!(feeds[0].last_pull.is_some() && feeds[0].address.is_some());

    let tasks = follower.tasks();
    let shown: Vec<_> = tasks.iter().map(|task| (task.task.seq.0, task.task.operation.name(), task.state)).collect();
    let operations = ["CREATE_DATABASE", "CREATE_TABLE", "APPEND", "CREATE_TABLE", "APPEND", "DROP_TABLE"];
    let wanted: Vec<_> =
        operations.into_iter().zip(1..).map(|(operation, seq)| (seq, operation.into(), TaskState::Finished)).collect();
    assert_eq!(shown, wanted);
    assert!(tasks.iter().all(|task| task.received.is_some() && task.finished.is_some() && task.worker.is_some()));
    let metrics = follower.metrics(None);
    assert_eq!((metrics.finished, metrics.unfinished), (6, 0));
    assert!(metrics.mean_group_size >= 1.0 && metrics.max_cost >= metrics.mean_cost);
    let status = follower.status();
    assert_eq!(status.state, ReplicationState::Enabled);
    assert!(status.wire_bytes > 0 && status.raw_bytes > 0 && status.connected.is_some());
    assert_eq!(publisher.figures().raw_bytes, status.raw_bytes);
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_transactions_come_in_fragments() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    let follower = replica.follow(publisher.local_addr()).await;
    primary.market("market").await;
    let mut transaction = primary.engine.begin("market").unwrap();
    for part in 0..20 {
        transaction.append("bars", crate::support::rows(part * 10_000..(part + 1) * 10_000)).await.unwrap();
        if part == 10 {
            // Others commit meanwhile.
            primary.insert("market", "bars", 0..5).await;
        }
    }
    transaction.commit(Default::default()).await.unwrap();
    primary.engine.begin("market").unwrap().abort().await.unwrap();
    replica.catches_up(&primary, "market").await;
    assert_eq!(replica.rows("market", "bars"), Some(200_005));
    follower.shutdown().await;
    publisher.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_databases_and_replicas() {
    let authority = Authority::new();
    let primary = Site::new(&authority, "a").await;
    let replicas = [Site::new(&authority, "b").await, Site::new(&authority, "c").await];
    let publisher = primary.publish().await;
    primary.market("early").await;
    primary.insert("early", "bars", 0..100).await;
    let all = replicas[0].follow(publisher.local_addr()).await;
    let addresses = vec!["127.0.0.1:9".to_owned(), publisher.local_addr().to_string()];
    let some = replicas[1].follow_with(addresses, Some(vec!["late".into()])).await;
    primary.engine.create_database("private").await.unwrap();
    primary.market("late").await;
    for batch in 0..50 {
        primary.insert("late", "bars", batch * 100..(batch + 1) * 100).await;
        primary.insert("early", "bars", batch * 10..(batch + 1) * 10).await;
    }
    replicas[0].catches_up(&primary, "early").await;
    replicas[0].catches_up(&primary, "late").await;
    replicas[1].catches_up(&primary, "late").await;
    assert_eq!(replicas[0].rows("late", "bars"), Some(5_000));
    assert_eq!(replicas[0].rows("early", "bars"), Some(600));
    assert_eq!(replicas[1].rows("late", "bars"), Some(5_000));
    assert_eq!(replicas[1].position("early"), None, "not selected");
    assert_eq!(replicas[0].position("private"), None, "not replicated");
    eventually("three feeds", || (publisher.feeds().len() == 3).then_some(())).await;
    all.shutdown().await;
    some.shutdown().await;
    publisher.shutdown().await;
}

/// Figures, not a check: `cargo test -p tailrace-replicator --release -- --ignored --nocapture throughput`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures"]
async fn throughput() {
    let authority = Authority::new();
    let (primary, replica) = (Site::roomy(&authority, "a").await, Site::roomy(&authority, "b").await);
    let publisher = primary.publish().await;
    primary.market("market").await;
    let load = |from: i64| {
        let primary = &primary;
        async move {
            let mut transaction = primary.engine.begin("market").unwrap();
            for part in 0..64 {
                let first = from + part * 62_500;
                transaction.append("bars", crate::support::rows(first..first + 62_500)).await.unwrap();
            }
            transaction.commit(Default::default()).await.unwrap();
        }
    };
    load(0).await;
    let began = Instant::now();
    let follower = replica.follow(publisher.local_addr()).await;
    replica.catches_up(&primary, "market").await;
    let report =
        |what: &str, seconds: f64, PublisherFigures { wire_bytes: wire, raw_bytes: raw, .. }: PublisherFigures| {
            let rate = raw as f64 / seconds / 1e6;
            println!(
                "{what}: {:.1} MB raw, {:.1} MB sent, {seconds:.3} s, {rate:.0} MB/s",
                raw as f64 / 1e6,
                wire as f64 / 1e6
            );
        };
    let sent = publisher.figures();
    report("catching up", began.elapsed().as_secs_f64(), sent);
    let began = Instant::now();
    load(4_000_000).await;
    let loaded = began.elapsed().as_secs_f64();
    replica.catches_up(&primary, "market").await;
    let seconds = began.elapsed().as_secs_f64();
    let now = publisher.figures();
    let (wire_bytes, raw_bytes) = (now.wire_bytes - sent.wire_bytes, now.raw_bytes - sent.raw_bytes);
    report("beside a load", seconds, PublisherFigures { wire_bytes, raw_bytes, ..now });
    println!("the load took {loaded:.3} s, the replica showed it {:.3} s later", seconds - loaded);
    acknowledged(&publisher, "b", "market", Seq(4)).await;
    follower.shutdown().await;
    publisher.shutdown().await;
}
