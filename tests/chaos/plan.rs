//! The plan: which fault happens when, all of it from the seed. Four lanes run side by side, each one fault at a time.

use std::{fmt, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Where every choice of a run comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(pub(crate) u64);

impl Seed {
    /// A source of choices for one actor, independent of what the others draw.
    pub(crate) fn actor(self, kind: &str, number: u64) -> StdRng {
        let name = kind
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        StdRng::seed_from_u64(self.0 ^ name ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One of the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Primary,
    Replica,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// What happens to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeFault {
    /// SIGKILL.
    Kill,
    /// SIGTERM: ends with 0, loses nothing.
    Terminate,
    /// SIGSTOP, and SIGCONT later.
    Pause,
    /// Its disk has only this many bytes left.
    Full { spare: u64, kill: bool },
    /// Its file system turns read-only, as after an error of the disk.
    ReadOnly,
    /// Everything that was not synced is gone.
    PowerLoss,
}

/// What the network between the two does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkFault {
    /// Loses some datagrams, in percent.
    Drop(u32),
    /// Delivers some twice, in percent.
    Duplicate(u32),
    /// Each takes up to this long, so that they overtake one another.
    Delay(Duration),
    /// Nothing passes.
    Cut,
}

/// A fault, how long after the one before in its lane, and how long it lasts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step<F> {
    pub(crate) after: Duration,
    pub(crate) fault: F,
    pub(crate) lasts: Duration,
}

/// All faults of a run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) length: Duration,
    pub(crate) primary: Vec<Step<NodeFault>>,
    pub(crate) replica: Vec<Step<NodeFault>>,
    pub(crate) network: Vec<Step<NetworkFault>>,
    /// `stop_cluster_replication`, and `start_cluster_replication` later.
    pub(crate) switches: Vec<Step<Side>>,
}

impl Plan {
    pub(crate) fn new(seed: Seed, length: Duration) -> Self {
        Self {
            length,
            primary: lane(seed.actor("primary", 0), length, 2..8, node_fault),
            replica: lane(seed.actor("replica", 0), length, 2..8, node_fault),
            network: lane(seed.actor("network", 0), length, 3..10, network_fault),
            switches: lane(seed.actor("switches", 0), length, 8..20, |random| {
                let side = if random.random() { Side::Primary } else { Side::Replica };
                (side, Duration::from_millis(random.random_range(200..6000)))
            }),
        }
    }
}

/// Faults until the lane's time is used up.
fn lane<F>(
    mut random: StdRng,
    length: Duration,
    gap_seconds: std::ops::Range<u64>,
    mut draw: impl FnMut(&mut StdRng) -> (F, Duration),
) -> Vec<Step<F>> {
    let mut steps = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        let gap = gap_seconds.start * 1000..gap_seconds.end * 1000;
        let after = Duration::from_millis(random.random_range(gap));
        let (fault, lasts) = draw(&mut random);
        at += after + lasts;
        if at > length {
            return steps;
        }
        steps.push(Step { after, fault, lasts });
    }
}

fn node_fault(random: &mut StdRng) -> (NodeFault, Duration) {
    let millis = |random: &mut StdRng, range: std::ops::Range<u64>| Duration::from_millis(random.random_range(range));
    match random.random_range(0..100) {
        0..30 => (NodeFault::Kill, millis(random, 0..2000)),
        30..42 => (NodeFault::Terminate, millis(random, 0..1000)),
        42..57 => (NodeFault::Pause, millis(random, 300..5000)),
        57..74 => {
            let spare = [0, 0, 64 << 10, 1 << 20, 6 << 20][random.random_range(0..5)];
            (NodeFault::Full { spare, kill: random.random_bool(0.4) }, millis(random, 1000..6000))
        }
        74..86 => (NodeFault::ReadOnly, millis(random, 500..3000)),
        _ => (NodeFault::PowerLoss, millis(random, 0..1500)),
    }
}

fn network_fault(random: &mut StdRng) -> (NetworkFault, Duration) {
    let fault = match random.random_range(0..4) {
        0 => NetworkFault::Drop(random.random_range(1..40)),
        1 => NetworkFault::Duplicate(random.random_range(1..60)),
        2 => NetworkFault::Delay(Duration::from_millis(random.random_range(1..300))),
        _ => NetworkFault::Cut,
    };
    (fault, Duration::from_millis(random.random_range(500..8000)))
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan (seconds between faults, fault, how long):")?;
        lane_text(f, "primary", &self.primary)?;
        lane_text(f, "replica", &self.replica)?;
        lane_text(f, "network", &self.network)?;
        lane_text(f, "switches", &self.switches)
    }
}

fn lane_text<F: fmt::Debug>(f: &mut fmt::Formatter<'_>, name: &str, steps: &[Step<F>]) -> fmt::Result {
    let steps: Vec<_> = steps
        .iter()
        .map(|step| format!("+{:.1} {:?} {:.1}", step.after.as_secs_f64(), step.fault, step.lasts.as_secs_f64()))
        .collect();
    writeln!(f, "  {name}: {}", steps.join(", "))
}
