//! The engine on a simulated disk: seeded workloads against an oracle, crashes at every call, and bugs planted to see that
//! they are found.
//!
//! `TAILRACE_SEEDS=5000` runs that many seeds, `TAILRACE_SEED=42` one of them.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod calls;
mod drops;
mod node;
mod oracle;
mod seeds;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod support;
mod workload;
mod world;
