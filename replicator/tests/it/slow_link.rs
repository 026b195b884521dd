//! A replica at a round trip of 100 ms whose link stalls: it has everything again, and is as quick as before.
//!
//! The stall takes 20 seconds here, beyond every time-out of a connection; `SLOW_LINK_STALL_SECONDS=120` makes it longer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use tailrace_engine::CommitOptions;
use tailrace_replicator::{Publisher, ReplicationState};
use tailrace_wal::PinState;

use crate::{
    relay::Relay,
    support::{Authority, Site, eventually, reaches, rows},
};

const ONE_WAY: Duration = Duration::from_millis(50);
const COMMITS: i64 = 20;
const ROWS: i64 = 50_000;

fn stall() -> Duration {
    let seconds = std::env::var("SLOW_LINK_STALL_SECONDS").map_or(20, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Rows that compression does not make small.
fn noise(ids: std::ops::Range<i64>) -> RecordBatch {
    let like = rows(0..1);
    let scatter =
        |id: i64| (id as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(ids.clone())),
        Arc::new(TimestampMicrosecondArray::from_iter_values(ids.clone().map(|id| id % 1000))),
        Arc::new(Float64Array::from_iter_values(ids.map(|id| scatter(id) as f64))),
    ];
    RecordBatch::try_new(like.schema(), columns).unwrap()
}

async fn load(primary: &Site, commits: std::ops::Range<i64>) {
    for commit in commits {
        let mut transaction = primary.engine.begin("market").unwrap();
        transaction.append("bars", noise(commit * ROWS..(commit + 1) * ROWS)).await.unwrap();
        transaction.commit(CommitOptions::default()).await.unwrap();
    }
}

/// When something began, and what had gone over the link by then.
type Begun = (Instant, u64);

fn begin(relay: &Relay) -> Begun {
    (Instant::now(), relay.forwarded())
}

/// Waits as long as there is progress.
async fn caught_up(replica: &Site, primary: &Site, relay: &Relay, (begun, bytes): Begun, what: &str) {
    let wanted = primary.position("market");
    let mut at = replica.position("market");
    while at != wanted {
        at = eventually("the next task", || {
            let now = replica.position("market");
            (now != at).then_some(now)
        })
        .await;
    }
    let (elapsed, bytes) = (begun.elapsed(), relay.forwarded() - bytes);
    let rate = bytes as f64 / elapsed.as_secs_f64() / 1e6;
    println!("{what}: {bytes} bytes over the link in {elapsed:.2?}, {rate:.2} MB/s");
}

fn pin_is_well(primary: &Site, publisher: &Publisher) {
    let pins = primary.engine.log().pins();
    assert!(pins.iter().all(|pin| !matches!(pin.state, PinState::Lost { .. })), "{pins:?}");
    assert_eq!(publisher.feeds().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_at_100_ms_has_everything_again_after_its_link_stalled() {
    let authority = Authority::new();
    let (primary, replica) = (Site::roomy(&authority, "a").await, Site::roomy(&authority, "b").await);
    let publisher = primary.publish().await;
    let relay = Relay::start(publisher.local_addr(), ONE_WAY).await;
    let follower = replica.follow(relay.address).await;
    primary.market("market").await;
    replica.catches_up(&primary, "market").await;

    let begun = begin(&relay);
    load(&primary, 0..COMMITS).await;
    caught_up(&replica, &primary, &relay, begun, "before").await;

    // Shorter than any time-out: the connection lives, with what it has learned of the link.
    // Longer: it is given up and made anew.
    let mut from = COMMITS;
    for (what, stall) in [("a stall of 3 s", Duration::from_secs(3)), ("a long stall", stall())] {
        relay.stall(true);
        let (swallowed, begun) = (relay.swallowed(), Instant::now());
        load(&primary, from..from + COMMITS).await;
        assert_ne!(replica.position("market"), primary.position("market"));
        tokio::time::sleep(stall.saturating_sub(begun.elapsed())).await;
        assert!(relay.swallowed() > swallowed, "the link did not stall");
        relay.stall(false);
        caught_up(&replica, &primary, &relay, begin(&relay), &format!("after {what}")).await;
        from += COMMITS;
        // As quick as before with what comes next, not only with what was waiting.
        let begun = begin(&relay);
        load(&primary, from..from + COMMITS).await;
        caught_up(&replica, &primary, &relay, begun, &format!("rows after {what}")).await;
        from += COMMITS;
        reaches(&follower, "market", ReplicationState::Enabled).await;
        pin_is_well(&primary, &publisher);
    }
    assert_eq!(replica.rows("market", "bars"), Some((from * ROWS) as u64));
    assert!(follower.tasks().iter().all(|task| !task.repair), "it was repaired");
    follower.shutdown().await;
    publisher.shutdown().await;
}
