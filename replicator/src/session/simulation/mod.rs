//! Both ends of a session over a simulated network: delays, chunks out of order, lost connections, crashes of either side,
//! truncation. What must hold: every replica's history is a prefix of its primary's, every commit is applied exactly
//! once and with all its fragments, and once faults cease both sides become equal.

mod copy;
mod origin;
mod world;

use std::time::Duration;

use rand::Rng;
use tailrace_wal::{HistoryId, Seq};

use self::{copy::Copy, origin::Origin, world::World};

fn run(seed: u64, truncations: bool) -> u32 {
    let mut world = World::new(seed, 3);
    for _ in 0..1_500 {
        world.now += Duration::from_millis(world.rng.random_range(0..10));
        for origin in world.origins.0.values_mut() {
            if world.rng.random_bool(0.3) {
                origin.step(&mut world.rng);
            }
        }
        match world.rng.random_range(0..400) {
            0..3 => world.disconnect(),
            3 => {
                world.disconnect();
                world.origins.0.values_mut().for_each(Origin::restart);
            }
            4 => {
                world.disconnect();
                world.copies.values_mut().for_each(Copy::crash);
            }
            5 if truncations => world.truncate(),
            6..9 => {
                let index = world.rng.random_range(1..=3);
                let origin = world.origins.0.get_mut(&HistoryId([index; 16])).unwrap();
                origin.on = !origin.on;
                let offers = world.origins.offers();
                if let Some(link) = &mut world.link {
                    link.publisher.handle_offers(true, offers, &world.origins);
                }
            }
            _ => {}
        }
        if world.link.is_none() && world.rng.random_bool(0.2) {
            world.connect();
        }
        for _ in 0..world.rng.random_range(0..4) {
            world.send_chunk();
        }
        world.deliver();
        world.run_actions();
        world.apply_some(false);
        world.run_actions();
    }
    world.check_prefixes();
    // Faults cease.
    world.origins.0.values_mut().for_each(|origin| origin.on = true);
    world.connect();
    for _ in 0..20_000 {
        world.now += Duration::from_millis(20);
        world.send_chunk();
        world.deliver();
        world.run_actions();
        world.apply_some(true);
        world.run_actions();
        if world.equal() {
            break;
        }
    }
    world.check_prefixes();
    assert!(world.equal(), "seed {seed}: the replica did not catch up");
    assert!(world.origins.0.values().all(|origin| origin.position.seq > Seq(20)), "seed {seed}: nothing happened");
    world.losses
}

#[test]
fn replicas_become_equal_whatever_the_network_does() {
    for seed in 0..20 {
        assert_eq!(run(seed, false), 0, "seed {seed}: lost although the log reached back");
    }
}

#[test]
fn truncated_histories_are_repaired() {
    let losses: u32 = (1_000..1_020).map(|seed| run(seed, true)).sum();
    assert!(losses > 5, "only {losses} losses: the test does not test");
}
