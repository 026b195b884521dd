//! A crash, EIO or ENOSPC at every call of a trace.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use rand::{SeedableRng, rngs::StdRng};
use tailrace_engine::CommitOptions;
use tailrace_wal::simulation::{Failure, SimulatedDisk};

use crate::{
    node::{open_on, settle},
    oracle::Oracle,
    seeds::{must, run, seeds, variable},
    support::rows,
    world::{Plan, World},
};

const QUIET: Plan = Plan { steps: 0, faults: false, replica: false, skips: false, chooses: false, planted: None };

/// What a power loss before a call left, and what was known then.
type Image = (SimulatedDisk, Oracle);

async fn images(seed: u64, steps: usize) -> usize {
    let mut world = World::new(seed, Plan { steps, ..QUIET });
    world.start().await;
    let images: Arc<Mutex<Vec<Image>>> = Arc::default();
    let (taken, oracle) = (images.clone(), world.oracle.clone());
    world.primary.disk.observe(Some(Arc::new(move |disk, call| {
        let image = disk.image(&mut StdRng::seed_from_u64(seed ^ call.number));
        let known = oracle.lock().unwrap().clone();
        taken.lock().unwrap().push((image, known));
    })));
    for _ in 0..steps {
        world.step().await;
    }
    world.primary.disk.observe(None);
    let clock = world.primary.clock.clone();
    world.finish().await;
    let images = std::mem::take(&mut *images.lock().unwrap());
    let count = images.len();
    for (image, mut oracle) in images {
        let engine = open_on(&image, &clock, None).await.unwrap();
        oracle.recovered(&engine, false).await;
        // It goes on.
        if let Some(history) = oracle.live().first() {
            let model = &oracle.histories[*history];
            if let Some(table) = model.tables().first() {
                let mut transaction = engine.begin(&model.name).unwrap();
                transaction.append(table, rows(0..3, 2)).await.unwrap();
                let receipt = transaction.commit(CommitOptions::default()).await.unwrap();
                assert_eq!(receipt.position.seq.0 as usize, model.commits.len() + 1);
            }
        }
        engine.flush().await.unwrap();
        settle().await;
    }
    count
}

#[test]
fn every_image_of_a_crash_is_recovered() {
    let mut count = 0;
    for seed in seeds(1) {
        count += must("every_image_of_a_crash_is_recovered", seed, images(seed, 30));
    }
    println!("{count} images");
    assert!(count > 100);
}

/// The changing calls of a run, with one of them failing. Returns how many there were.
async fn failing(seed: u64, at: u64, failure: Failure) -> u64 {
    let mut world = World::new(seed, QUIET);
    world.start().await;
    let calls = Arc::new(AtomicU64::new(0));
    let counted = calls.clone();
    let observer: tailrace_wal::simulation::Observer = Arc::new(move |disk, _| {
        if counted.fetch_add(1, Ordering::SeqCst) == at {
            disk.fail_call(0, failure);
        }
    });
    for _ in 0..200 {
        // A start makes another disk of the old one.
        world.primary.disk.observe(Some(observer.clone()));
        world.step().await;
    }
    world.primary.disk.observe(None);
    world.finish().await;
    calls.load(Ordering::SeqCst)
}

#[test]
fn a_failure_at_any_call_is_survived() {
    let test = "a_failure_at_any_call_is_survived";
    let seed = 7;
    let total = must(test, seed, failing(seed, u64::MAX, Failure::Broken));
    // `TAILRACE_STRIDE` says how far the calls that are tried lie apart, `TAILRACE_SEED` is the number of one.
    let stride = variable("TAILRACE_STRIDE").unwrap_or(total / 5).max(1);
    let calls: Vec<u64> = match variable("TAILRACE_SEED") {
        Some(number) => vec![number],
        None => (0..total).step_by(stride as usize).collect(),
    };
    let (mut tried, mut wrong) = (0, Vec::new());
    for number in calls {
        for failure in [Failure::Broken, Failure::Full] {
            if let Err(why) = run(failing(seed, number, failure)) {
                let again = format!("TAILRACE_SEED={number} cargo test -p tailrace-engine --test simulation {test}");
                wrong.push(format!("{failure:?} at call {number}: {why}\nagain: {again}"));
            }
            tried += 1;
        }
        assert!(wrong.len() < 8, "{}", wrong.join("\n"));
    }
    println!("{tried} failures at {total} calls");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
