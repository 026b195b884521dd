//! A repair whose session is lost in the middle goes on, with the next one, with what it has.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use tailrace_engine::CommitOptions;
use tailrace_replicator::{PublisherConfig, ReplicaFlow, ReplicationState};
use tailrace_wal::Seq;

use crate::support::{Authority, Site, eventually, reaches, rows};

const DAY: i64 = 24 * 3600 * 1_000_000;
const DAYS: i64 = 32;
const ROWS: i64 = 8_000;
/// Datafiles that are complete when the session is lost.
const COMPLETE: usize = 8;

/// Rows of so many days, which compression does not make small.
fn noise() -> RecordBatch {
    let ids = 0..DAYS * ROWS;
    let scatter = |id: i64| (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) as f64;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| id % DAYS * DAY))),
        Arc::new(Float64Array::from_iter_values(ids.map(scatter))),
    ];
    RecordBatch::try_new(rows(0..1).schema(), columns).unwrap()
}

/// Length of every datafile of a node that has its name, and how many bytes all have.
fn datafiles(dir: &Path) -> (Vec<PathBuf>, u64) {
    let (mut found, mut bytes) = (Vec::new(), 0);
    let Ok(entries) = std::fs::read_dir(dir) else { return (found, bytes) };
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            let below = datafiles(&path);
            found.extend(below.0);
            bytes += below.1;
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            bytes += entry.metadata().map_or(0, |metadata| metadata.len());
            found.push(path);
        }
    }
    (found, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_session_fetches_what_the_lost_one_did_not() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    primary.market("market").await;
    let mut transaction = primary.engine.begin("market").unwrap();
    transaction.append("bars", noise()).await.unwrap();
    transaction.commit(CommitOptions::default()).await.unwrap();
    primary.truncate("market", Seq(0)).await;
    let (all, total) = datafiles(&primary.dir.path().join("store"));
    assert_eq!(all.len(), DAYS as usize);

    // So slow that it is seen in the middle.
    let slow = ReplicaFlow { rate_limit: Some(total / 5), ..ReplicaFlow::default() };
    let publisher = primary.publish_as(PublisherConfig { flow: slow, ..primary.publisher_config() }).await;
    let address = publisher.local_addr();
    let follower = replica.follow(address).await;
    let store = replica.dir.path().join("store");
    eventually("some datafiles", || (datafiles(&store).0.len() >= COMPLETE).then_some(())).await;
    publisher.shutdown().await;
    drop(publisher);
    // What had come by then is written; nothing is under way.
    eventually("the repair to be interrupted", || follower.tasks().iter().all(|task| !task.repair).then_some(())).await;
    let (complete, kept) = datafiles(&store);
    assert!((COMPLETE..all.len()).contains(&complete.len()), "{} datafiles were complete", complete.len());
    assert_eq!(replica.rows("market", "bars").unwrap_or(0), 0, "nothing of a repair is seen before it is whole");

    let publisher = primary.publish_with(address, 8, None).await;
    replica.catches_up(&primary, "market").await;
    reaches(&follower, "market", ReplicationState::Enabled).await;
    let sent = publisher.figures().wire_bytes;
    println!(
        "{} of {} datafiles were complete, {kept} of {total} bytes; {sent} bytes were sent then",
        complete.len(),
        all.len()
    );
    // Headers and the manifest beside the datafiles.
    let rest = total - kept;
    assert!((rest..rest + (64 << 10)).contains(&sent), "{sent} bytes were sent, {rest} were missing");
    assert_eq!(replica.rows("market", "bars"), Some((DAYS * ROWS) as u64));
    let (now, bytes) = datafiles(&store);
    assert_eq!((now.len(), bytes), (all.len(), total), "nothing else is left on the disk");
    assert!(complete.iter().all(|file| now.contains(file)), "what was complete is used");
    let verified = follower.verify("market", true, Duration::from_secs(60)).await.unwrap();
    assert!(verified.partitions.iter().all(|compared| compared.difference.is_none()));
    assert_eq!(verified.partitions.len(), all.len());
    follower.shutdown().await;
    publisher.shutdown().await;
}
