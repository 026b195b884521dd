//! What sees every changing call, and takes images of crashes.

use rand::{Rng, rngs::StdRng};
use tailrace_wal::{LogConfig, Lsn, simulation::SimulatedDisk};

use super::{
    super::oracle::{Check, Oracle},
    Plan, Sums, open, replay_all,
};

/// What sees every changing call before it happens.
pub(super) struct Watcher {
    pub(super) oracle: Oracle,
    pub(super) random: StdRng,
    pub(super) plan: Plan,
    pub(super) config: LogConfig,
    pub(super) sums: Sums,
}

impl Watcher {
    pub(super) fn sees(&mut self, disk: &SimulatedDisk) {
        self.oracle.poll();
        self.sums.boundaries += 1;
        if self.oracle.failure.is_none() && self.random.random_ratio(self.plan.images_percent, 100) {
            for _ in 0..self.plan.images {
                if let Err(failure) = self.image(disk) {
                    self.oracle.failure.get_or_insert(format!("an image of a crash: {failure}"));
                }
            }
        }
    }

    /// Takes an image of a crash now, recovers and checks it.
    pub(super) fn image(&mut self, disk: &SimulatedDisk) -> Check {
        let image = disk.image(&mut self.random);
        if self.plan.is_told {
            println!("{:6} image of {:?}", disk.calls(), image.files());
        }
        self.sums.images += 1;
        let floor = if self.random.random_bool(0.3) { self.oracle.durable } else { Lsn::ZERO };
        let opened = open(&image, &self.config, floor, self.random.random());
        let (log, _stepper, recovery) = opened.map_err(|error| format!("refused: {error}"))?;
        if self.plan.is_told {
            println!("       {} to {}, torn: {:?}", recovery.first, recovery.last, recovery.torn);
        }
        let frames = replay_all(&log, &recovery)?;
        self.sums.counts.merge(&image.counts());
        self.oracle.check_recovered(&recovery, &frames, self.oracle.durable).map(|_| ())
    }
}
