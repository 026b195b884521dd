//! Online synchronization between processes: killed at random points, a partition is the old one or the new one, and the next
//! run completes.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::harness::{CREATE_TICKS, Node, PATIENCE, Site, seed};

const FLIGHT: &str = "listen.flight=127.0.0.1:0";
const DAYS: u32 = 12;

/// Two clusters of one authority; A knows B as `siteb`.
async fn two(site: &Site) -> (Node, Node) {
    let (mut a, mut b) = (site.node("siteA", None, &[FLIGHT]), site.node("siteB", Some("siteA"), &[FLIGHT]));
    for node in [&mut a, &mut b] {
        node.start().await;
        node.sql("CREATE DATABASE market").await;
    }
    b.sql(CREATE_TICKS).await;
    let port = b.flight.unwrap().port();
    a.sql(&format!("CALL create_remote_cluster('siteb', 'localhost:{port}')")).await;
    (a, b)
}

/// Rows of one day.
fn rows(random: &mut StdRng, day: u32, count: u32) -> String {
    let mut sql = String::from("INSERT INTO market.ticks VALUES ");
    for row in 0..count {
        let (id, second) = (random.random_range(0..1_000_000), random.random_range(0..60));
        let comma = if row == 0 { "" } else { ", " };
        write!(sql, "{comma}({id}, '2023-01-{day:02} 09:30:{second:02}', {})", random.random_range(0..100)).unwrap();
    }
    sql
}

/// What each day has.
async fn days(node: &Node) -> BTreeMap<String, Vec<String>> {
    let sql = "SELECT date_trunc('day', at) AS day, count(*), sum(id), sum(id * id % 7919), sum(price) FROM market.ticks \
               GROUP BY 1 ORDER BY 1";
    node.sql(sql).await.into_iter().map(|mut row| (row.remove(0), row)).collect()
}

/// Other rows for some of B's days, and for some of A's.
async fn differ(random: &mut StdRng, a: &Node, b: &Node) {
    for node in [a, b] {
        for day in 1..=DAYS {
            match random.random_range(0..4) {
                0 => {
                    let drop = format!("ALTER TABLE market.ticks DROP IF EXISTS PARTITION ('2023-01-{day:02}')");
                    node.sql(&drop).await;
                }
                1 => {
                    let count = random.random_range(1..1500);
                    node.sql(&rows(random, day, count)).await;
                }
                _ => {}
            }
        }
    }
    if random.random_bool(0.3) {
        a.sql("CALL flush()").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_synchronization_that_is_killed_leaves_whole_partitions_and_the_next_one_completes() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let (mut a, b) = two(&site).await;
    for day in 1..=DAYS {
        b.sql(&rows(&mut random, day, 500)).await;
    }
    let call = "CALL synchronize('siteb', 'market.ticks', parallel => 2, create => true)";
    assert_eq!(a.sql(call).await.iter().filter(|row| row[1] == "COPIED").count(), DAYS as usize);
    assert_eq!(days(&a).await, days(&b).await);
    // How long a run takes here tells where it can be killed.
    let (mut longest, mut halfway, mut moved) = (Duration::from_millis(300), 0, 0);
    for round in 1..=20 {
        differ(&mut random, &a, &b).await;
        let (old, new) = (days(&a).await, days(&b).await);
        let client = a.connect().await;
        let began = std::time::Instant::now();
        let running = tokio::spawn(async move { client.try_rows(call).await });
        tokio::time::sleep(longest.mul_f64(random.random_range(0.0..1.0))).await;
        a.kill();
        let finished = tokio::time::timeout(PATIENCE, running).await.expect("it hangs").unwrap().is_ok();
        if finished {
            longest = began.elapsed();
        }
        a.start().await;
        let now = days(&a).await;
        let (mut olds, mut news) = (0, 0);
        for day in old.keys().chain(new.keys()) {
            let (old, new, now) = (old.get(day), new.get(day), now.get(day));
            assert!(now == old || now == new, "round {round}, {day}: {now:?} is neither {old:?} nor {new:?}");
            if old != new {
                olds += u32::from(now == old);
                news += u32::from(now == new);
            }
        }
        assert!(!finished || olds == 0, "round {round}: it had ended, and days are as they were");
        halfway += u32::from(olds > 0 && news > 0);
        let differing = old.keys().chain(new.keys()).collect::<std::collections::BTreeSet<_>>();
        let differing = differing.into_iter().filter(|day| now.get(*day) != new.get(*day)).count();
        let done = a.sql(call).await;
        assert_eq!(done.iter().filter(|row| row[1] != "EQUAL").count(), differing, "round {round}: {done:?}");
        moved += differing;
        assert_eq!(days(&a).await, new, "round {round}");
    }
    println!("20 kills: {halfway} in the middle of a run; {moved} days were left to the next one");
    assert!(a.sql(call).await.iter().all(|row| row[1] == "EQUAL" && row[2] == "0"));

    // The other side goes: an error that says so, and nothing has changed.
    let mut b = b;
    differ(&mut random, &a, &b).await;
    let before = days(&a).await;
    b.kill();
    let (state, words) = a.connect().await.refusal(call).await;
    assert!(state.starts_with("08") && words.contains("siteb"), "{state} {words}");
    assert_eq!(days(&a).await, before);
    let states = a.sql("SELECT state, cluster FROM system.synchronizations ORDER BY id DESC LIMIT 1").await;
    assert_eq!(states, [["FAILED", "siteb"]]);
    b.start().await;
    a.sql(call).await;
    assert_eq!(days(&a).await, days(&b).await);
    a.stop();
}
