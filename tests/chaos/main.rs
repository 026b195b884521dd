//! Chaos: a real primary and a real replica under mixed load, while either side is killed, paused, stopped, loses its
//! power, its disk's space or the right to write, and the network between them misbehaves. Then everything is counted.
//!
//! `CHAOS_SECONDS` says how long (60), `CHAOS_SEED` which plan of faults and which choices of the load;
//! `tests/chaos.sh` runs several in turn. What is where, in reading order:
//!
//! | file | holds |
//! |---|---|
//! | `plan.rs` | which fault comes when, from the seed |
//! | `volume.rs`, `node.rs`, `proxy.rs` | a small disk, a process, a bad network: the things that fail; `../shared/port.rs` |
//! | `faults.rs` | makes the plan happen, brings back what fell, checks how it fell |
//! | `client.rs` | a connection, and what an error says about the statement's outcome |
//! | `writers.rs`, `loads.rs`, `ddl.rs`, `readers.rs` | the load |
//! | `ledger.rs` | what the nodes have promised |
//! | `settle.rs`, `proof.rs` | both sides come to rest; every promise is checked |
//! | `report.rs` | counters, times to recover, what was found |

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may stop at the first surprise")]

mod client;
mod ddl;
mod faults;
mod ledger;
mod loads;
mod node;
mod plan;
#[path = "../shared/port.rs"]
mod port;
mod proof;
mod proxy;
mod readers;
mod report;
mod settle;
mod volume;
mod writers;

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    faults::Site,
    ledger::Ledger,
    plan::{Plan, Seed},
    report::Report,
};

/// Connections that write rows.
const WRITERS: u64 = 64;

/// How long anything may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// What all actors of a run share.
struct Run {
    seed: Seed,
    site: Site,
    ledger: Ledger,
    report: Arc<Report>,
    /// Becomes true when the load is to end.
    load_ends: tokio::sync::watch::Sender<bool>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_promised_holds_through_crashes_full_disks_and_a_bad_network() {
    let seconds = variable("CHAOS_SECONDS").unwrap_or(60);
    let seed = Seed(variable("CHAOS_SEED").unwrap_or_else(rand::random));
    println!("seed {seed}: CHAOS_SEED={seed} CHAOS_SECONDS={seconds} cargo test --test chaos -- --nocapture");
    let plan = Plan::new(seed, Duration::from_secs(seconds));
    println!("{plan}");

    let folder = Folder::new();
    let report = Arc::new(Report::default());
    let site = Site::start(&folder.0, seed).await;
    let run = Arc::new(Run {
        seed,
        site,
        ledger: Ledger::default(),
        report: report.clone(),
        load_ends: tokio::sync::watch::Sender::new(false),
    });

    writers::create_tables(&run).await;
    let load = spawn_load(&run);
    faults::happen(&run, plan).await;
    // Under load, without faults, for a moment: what comes next starts from a working pair.
    tokio::time::sleep(Duration::from_secs(2)).await;
    run.load_ends.send_replace(true);
    for (name, task) in load {
        match tokio::time::timeout(PATIENCE, task).await {
            Ok(ended) => ended.unwrap(),
            Err(_) => report.violation(format!("{name} still waits for an answer {PATIENCE:?} after the last fault")),
        }
    }
    settle::settle(&run, "after the last fault").await;
    proof::prove(&run, "after the last fault").await;
    faults::restart_both(&run).await;
    settle::settle(&run, "after a restart of both").await;
    proof::prove(&run, "after a restart of both").await;
    run.site.note_end(&report);

    println!("{report}");
    let violations = report.violations();
    if !violations.is_empty() {
        println!("{}", run.site.last_words());
        folder.keep();
        panic!("seed {seed}: {} violations, the first: {}", violations.len(), violations[0]);
    }
}

fn spawn_load(run: &Arc<Run>) -> Vec<(String, tokio::task::JoinHandle<()>)> {
    let mut load = Vec::new();
    for writer in 1..=WRITERS {
        load.push((format!("writer {writer}"), tokio::spawn(writers::write(run.clone(), writer))));
    }
    load.push(("the bulk loader".to_owned(), tokio::spawn(loads::load(run.clone()))));
    load.push(("the DDL".to_owned(), tokio::spawn(ddl::change(run.clone()))));
    for (number, side) in [plan::Side::Primary, plan::Side::Replica, plan::Side::Replica].into_iter().enumerate() {
        load.push((format!("reader {number}"), tokio::spawn(readers::read(run.clone(), side, number as u64))));
    }
    load
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value:?} is no number")))
}

/// Where a run's files lie; removed unless something was found.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("tailrace-chaos-").tempdir().unwrap().keep())
    }

    fn keep(self) {
        println!("logs and disk images are kept in {}", self.0.display());
        std::mem::forget(self);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("logs and disk images are kept in {}", self.0.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
