//! Seeded lives of a log on a hostile disk, against an oracle that knows what was acknowledged.
//!
//! `TAILRACE_SEEDS=5000` runs that many seeds, `TAILRACE_SEED=42` one of them; see `wal/README.md`.

mod oracle;
mod peer;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tailrace_wal::simulation::{Failure, FaultClass, PlantedBug};
use world::{Plan, Sums, live};

const ACTIONS: u32 = 80;

fn plan(seed: u64) -> Plan {
    let is_told = variable("TAILRACE_SEED").is_some();
    let (faults, fails, planted) = (true, None, None);
    Plan { seed, actions: ACTIONS, images_percent: 15, images: 1, faults, fails, planted, is_told }
}

fn variable(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// The seeds to run: one, as many as asked for, or `default`.
fn seeds(default: u64) -> std::ops::Range<u64> {
    match variable("TAILRACE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("TAILRACE_SEEDS").unwrap_or(default),
    }
}

/// Lives every seed; a failure says how to see it again.
fn live_all(test: &str, seeds: std::ops::Range<u64>, plan: impl Fn(u64) -> Plan) -> Sums {
    let mut sums = Sums::default();
    let mut failures = Vec::new();
    for seed in seeds {
        match live(plan(seed)) {
            Ok(of_seed) => sums.add(&of_seed),
            Err(failure) => failures.push(format!(
                "seed {seed}: {failure}\nagain: TAILRACE_SEED={seed} cargo test -p tailrace-wal --test it {test} -- --nocapture"
            )),
        }
        if failures.len() >= 8 {
            break;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    sums
}

#[test]
fn seeded_lives() {
    let seeds = seeds(250);
    let count = seeds.end - seeds.start;
    let sums = live_all("seeded_lives", seeds, plan);
    println!("{count} seeds: {sums:?}\nfaults: {}", sums.counts);
    if count >= 100 {
        assert_eq!(sums.counts.never_active(), [], "faults that were never active");
        assert!(sums.damages_refused > 0 && sums.damages_cut > 0 && sums.truncations > 0, "{sums:?}");
        assert!(sums.poisonings > 0 && sums.fulls > 0 && sums.beside > 0, "{sums:?}");
    }
}

#[test]
fn every_boundary_crashes() {
    let sums = live_all("every_boundary_crashes", seeds(4), |seed| Plan {
        actions: 60,
        images_percent: 100,
        images: 3,
        faults: seed % 2 == 1,
        ..plan(seed + (1 << 32))
    });
    println!("{sums:?}\nfaults: {}", sums.counts);
    assert!(sums.images >= sums.boundaries * 3);
    assert!(sums.counts.of(FaultClass::TornWrite) > 0);
}

/// Every call of a trace of 200 actions fails, one in each life; every 20th call when not asked for more.
#[test]
fn every_call_fails() {
    let stride = if variable("TAILRACE_SEEDS").is_some() { 1 } else { 20 };
    for failure in [Failure::Broken, Failure::Full, Failure::DropsPages] {
        let (mut lives, mut fired) = (0, std::collections::BTreeMap::new());
        for after in (0..).step_by(stride) {
            let plan =
                Plan { actions: 200, images_percent: 0, faults: false, fails: Some((after, failure)), ..plan(7) };
            let sums = live(plan).unwrap_or_else(|wrong| panic!("{failure:?} of call {after}: {wrong}"));
            let Some(call) = sums.fired else { break };
            lives += 1;
            *fired.entry(call).or_insert(0) += 1;
        }
        println!("{failure:?}: {lives} lives, {fired:?}");
        assert!(lives > 2, "{failure:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_life() {
    for seed in seeds(5) {
        let (first, second) = (live(plan(seed)).unwrap(), live(plan(seed)).unwrap());
        assert_eq!(first.trace_hash, second.trace_hash, "seed {seed}");
        assert_eq!(format!("{first:?}"), format!("{second:?}"), "seed {seed}");
        assert_ne!(first.trace_hash, live(plan(seed + 1)).unwrap().trace_hash, "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_caught() {
    let mut missed = Vec::new();
    for bug in PlantedBug::ALL {
        let caught = (0..100).find_map(|seed| {
            let plan = Plan { planted: Some(*bug), ..plan(seed) };
            match catch_unwind(AssertUnwindSafe(|| live(plan))) {
                Ok(Ok(_)) => None,
                Ok(Err(failure)) => Some((seed, failure)),
                Err(_) => Some((seed, "the log panicked".into())),
            }
        });
        match caught {
            Some((seed, failure)) => println!("{bug:?}: {} seeds: {failure}", seed + 1),
            None => missed.push(*bug),
        }
    }
    assert_eq!(missed, [], "bugs that 100 seeds do not catch");
}
