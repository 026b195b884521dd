//! A primary of a later version writes what this one does not know: that is said by name, wherever it could be passed over.

use tailrace_engine::{Changes, ChangesRequest, EngineError, OperationCode};
use tailrace_replicator::{ReplicationState, TaskState};
use tailrace_wal::Seq;

use crate::support::{Authority, Site, eventually, reaches};

const UNKNOWN: OperationCode = OperationCode(4040);

/// The changes of `market.bars` up to a transaction.
fn feed(site: &Site, upto: Seq) -> Changes {
    let version = site.engine.version();
    let market = version.database("market").unwrap();
    let table = market.table("bars").unwrap().table.clone();
    let columns = table.columns.iter().map(|column| column.id).collect();
    let request = ChangesRequest {
        history: market.id,
        table,
        columns,
        after: Seq::ZERO,
        restart: None,
        upto: Some(upto),
        from_time: None,
        upto_time: None,
        partitions: None,
    };
    site.engine.changes(request).unwrap()
}

/// Rows that a feed gives before its error.
async fn read(site: &Site, upto: Seq) -> (usize, EngineError) {
    let (mut changes, mut rows) = (feed(site, upto), 0);
    loop {
        match changes.next().await {
            Ok(Some(batch)) => rows += batch.num_rows(),
            Ok(None) => panic!("the feed ended after {rows} rows without a word"),
            Err(error) => return (rows, error),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_that_is_not_known_stops_by_name_and_is_kept_when_it_is_skipped() {
    let authority = Authority::new();
    let (primary, mut replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    let publisher = primary.publish().await;
    let address = publisher.local_addr();
    let mut follower = replica.follow(address).await;
    primary.market("market").await;
    primary.insert("market", "bars", 0..10).await;
    replica.catches_up(&primary, "market").await;
    primary.engine.commit_as_newer("market", "bars", UNKNOWN).await.unwrap();
    primary.insert("market", "bars", 10..20).await;

    // It stops there, by name; what comes after it is not applied.
    let stopped = reaches(&follower, "market", ReplicationState::Stopped).await;
    let reason = stopped.reason.unwrap();
    assert!(reason.contains("operation 4040") && reason.contains("upgrade this node first"), "{reason}");
    assert_eq!((stopped.failed_task, stopped.applied), (Some(Seq(4)), Seq(3)));
    assert!(stopped.remedy.unwrap().contains("CALL skip_cluster_replication_task('market', 4)"));
    let tasks = follower.tasks();
    let failed = tasks.iter().find(|task| task.state == TaskState::Failed).unwrap();
    assert_eq!((failed.task.seq, &*failed.task.operation.name()), (Seq(4), "OPERATION 4040"));
    assert!(failed.details.as_ref().is_some_and(|details| details.contains("4040")), "{failed:?}");

    // Skipped: a feed gives what lies before it, then an error, never what lies behind it; the database is DIVERGED and
    // what was left out is kept, by name, over a start of the replica too.
    assert_eq!(follower.skip(None, &[Seq(4)]).await.unwrap(), [""; 0]);
    replica.catches_up(&primary, "market").await;
    let (rows, error) = read(&replica, Seq(5)).await;
    assert!(matches!(error, EngineError::ChangesSkipped { seq: Seq(4), .. }), "{error}");
    assert_eq!(rows, 10);
    let tasks = follower.tasks();
    let skipped = tasks.iter().find(|task| task.task.seq == Seq(4)).unwrap();
    assert_eq!((skipped.state, &*skipped.task.operation.name()), (TaskState::Skipped, "OPERATION 4040"));
    for _ in 0..2 {
        let diverged = reaches(&follower, "market", ReplicationState::Diverged).await;
        assert!(diverged.reason.unwrap().contains("task 4 was skipped"));
        let version = replica.engine.version();
        let letters: Vec<_> = version.database("market").unwrap().dead_letters().collect();
        assert_eq!((letters.len(), letters[0].seq, letters[0].operation_name()), (1, Seq(4), "OPERATION 4040".into()));
        assert_eq!(letters[0].tables[0].1, "bars");
        assert!(letters[0].bytes > 0 && letters[0].reason.contains("operation 4040"), "{:?}", letters[0]);
        drop(letters);
        drop(version);
        let error = replica.engine.retry_dead_letter("market", Seq(4)).await.unwrap_err().to_string();
        assert!(error.contains("operation 4040"), "{error}");
        follower.shutdown().await;
        drop(follower);
        replica.restart().await;
        follower = replica.follow(address).await;
    }
    // Where it was applied, a feed that cannot say what it does says that.
    let (rows, error) = read(&primary, Seq(5)).await;
    assert_eq!(rows, 10);
    assert!(error.to_string().contains("operation 4040 of transaction 4"), "{error}");

    // The primary's copy is equal.
    eventually("the primary to be connected", || follower.status().connected.map(drop)).await;
    follower.repair("market").await.unwrap();
    reaches(&follower, "market", ReplicationState::Enabled).await;
    assert_eq!(replica.rows("market", "bars"), Some(20));
    primary.insert("market", "bars", 20..30).await;
    replica.catches_up(&primary, "market").await;
    follower.shutdown().await;
    publisher.shutdown().await;
}
