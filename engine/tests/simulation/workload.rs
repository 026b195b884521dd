//! Whole runs, with and without bugs.

use tailrace_engine::simulation::PlantedBug;
use tailrace_wal::simulation::{FaultClass, FaultCounts};

use crate::{
    seeds::{must, quietly, seeds},
    world::{Done, Plan, World},
};

const PLAN: Plan = Plan { steps: 60, faults: true, replica: true, skips: false, chooses: false, planted: None };

#[test]
fn what_was_acknowledged_is_there_after_anything() {
    let mut counts = FaultCounts::default();
    let (mut sum, mut calls) = (Done::default(), 0);
    let seeds = seeds(16);
    for seed in seeds.clone() {
        let done = must("what_was_acknowledged_is_there_after_anything", seed, World::new(seed, PLAN).run());
        counts.merge(&done.counts);
        sum.operations += done.operations;
        sum.recoveries += done.recoveries;
        sum.repairs += done.repairs;
        sum.refused_runs += done.refused_runs;
        sum.drops += done.drops;
        sum.conflicts += done.conflicts;
        calls += done.trace.len();
    }
    println!(
        "{} seeds: {} operations, {} transactions that drop partitions, {} that met a change, {} recoveries, {} repairs, \
         {} runs refused on replicas, {} calls of the disks",
        seeds.end - seeds.start,
        sum.operations,
        sum.drops,
        sum.conflicts,
        sum.recoveries,
        sum.repairs,
        sum.refused_runs,
        calls
    );
    println!("faults: {counts}");
    if seeds.end - seeds.start >= 30 {
        // Bits flip in the tests of the log alone: what is damaged below the durable mark is refused there.
        assert_eq!(counts.never_active(), [FaultClass::FlippedBit]);
        assert!(sum.repairs > 0 && sum.refused_runs > 0 && sum.drops > 0 && sum.conflicts > 0);
    }
}

#[test]
fn what_was_skipped_is_known_and_comes_back() {
    let mut sum = Done::default();
    let seeds = seeds(12);
    for seed in seeds.clone() {
        let plan = Plan { steps: 150, skips: true, ..PLAN };
        let done = must("what_was_skipped_is_known_and_comes_back", seed, World::new(seed, plan).run());
        sum.skips += done.skips;
        sum.retries += done.retries;
        sum.recoveries += done.recoveries;
        sum.repairs += done.repairs;
    }
    let Done { skips, retries, recoveries, repairs, .. } = sum;
    let count = seeds.end - seeds.start;
    println!("{count} seeds: {skips} skips, {retries} retries, {recoveries} recoveries, {repairs} repairs");
    if count >= 12 {
        assert!(skips > 0 && retries > 0 && repairs > 0);
    }
}

#[test]
fn no_table_lacks_rows_in_silence() {
    let mut sum = Done::default();
    let seeds = seeds(16);
    for seed in seeds.clone() {
        // Every other operator skips tasks as well.
        let plan = Plan { steps: 120, chooses: true, skips: seed % 2 == 1, ..PLAN };
        let done = must("no_table_lacks_rows_in_silence", seed, World::new(seed, plan).run());
        sum.choices += done.choices;
        sum.brought += done.brought;
        sum.skips += done.skips;
        sum.recoveries += done.recoveries;
    }
    let Done { choices, brought, skips, recoveries, .. } = sum;
    let count = seeds.end - seeds.start;
    println!(
        "{count} seeds: {choices} choices, {brought} brought back by repairs, {skips} skips, {recoveries} recoveries"
    );
    if count >= 16 {
        assert!(choices > 0 && brought > 0 && skips > 0);
    }
}

#[test]
fn the_same_seed_makes_the_same_trace() {
    for seed in seeds(2) {
        let first = must("the_same_seed_makes_the_same_trace", seed, World::new(seed, PLAN).run());
        let second = must("the_same_seed_makes_the_same_trace", seed, World::new(seed, PLAN).run());
        for (one, other) in first.trace.iter().zip(&second.trace) {
            assert_eq!(one, other, "seed {seed}");
        }
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed}");
    }
}

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in PlantedBug::ALL {
        let plan = Plan { planted: Some(*bug), ..PLAN };
        let found = (0..100).find_map(|seed| quietly(World::new(seed, plan).run()).err().map(|why| (seed, why)));
        match found {
            Some((seed, why)) => {
                println!("{bug:?}: {} seeds: {}", seed + 1, why.lines().next().unwrap_or_default());
            }
            None => missed.push(*bug),
        }
    }
    assert_eq!(missed, [], "not found within 100 seeds");
}
