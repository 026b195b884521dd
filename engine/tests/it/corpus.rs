//! Readers of hostile manifests: every input that is kept in `testdata/fuzz/`, and inputs made of them.
//!
//! A failure prints its seed; `CORPUS_SEED=… cargo test -p tailrace-engine --test it corpus` runs it again. How inputs are
//! looked for is in `engine/fuzz/run.sh`.

use std::path::Path;

use tailrace_engine::simulation::fuzz;
use tailrace_wal::simulation::fuzz::Corpus;

/// Inputs made of each that is kept.
const VARIANTS: usize = 300;

fn run(target: &str, variants: usize, read: fn(&[u8])) {
    Corpus::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/fuzz"), target).run(variants, read);
}

#[test]
fn manifests() {
    run("manifest", VARIANTS, fuzz::manifest);
}

#[test]
fn checkpoints() {
    run("checkpoint", VARIANTS, fuzz::checkpoint);
}

#[test]
fn logs_of_manifests() {
    run("manifest_log", VARIANTS / 3, fuzz::manifest_log);
}

#[test]
fn nodes() {
    run("node", VARIANTS / 10, fuzz::node);
}
