//! Readers of hostile bytes: every input that is kept in `testdata/fuzz/`, and inputs made of them.
//!
//! A failure prints its seed; `CORPUS_SEED=… cargo test -p tailrace-wal --test it corpus` runs it again. How inputs are
//! looked for is in `wal/fuzz/run.sh`.

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::simulation::fuzz;

/// Inputs made of each that is kept.
const VARIANTS: usize = 300;

fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/fuzz").join(target);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut inputs: Vec<_> = paths.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "no inputs for {target}");
    inputs
}

fn run(target: &str, read: fn(&[u8])) {
    let seed = std::env::var("CORPUS_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed}: CORPUS_SEED={seed} repeats it");
    let mut random = StdRng::seed_from_u64(seed);
    let inputs = inputs(target);
    for (path, input) in &inputs {
        println!("{}", path.display());
        read(input);
    }
    for (path, input) in &inputs {
        println!("variants of {}", path.display());
        for _ in 0..VARIANTS {
            read(&varied(input, &inputs, &mut random));
        }
    }
}

/// `input` with a few bytes changed, cut, doubled, or replaced by another input's.
fn varied(input: &[u8], inputs: &[(PathBuf, Vec<u8>)], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        match random.random_range(0..8) {
            0 => bytes.truncate(at),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            2 => {
                let end = (at + random.random_range(1..=64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => {
                let other = &inputs[random.random_range(0..inputs.len())].1;
                let from = random.random_range(0..other.len());
                let len = random.random_range(1..=64).min(other.len() - from).min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            4 => {
                let end = (at + 8).min(bytes.len());
                bytes[at..end].fill(0xff);
            }
            _ => bytes[at] ^= 1 << random.random_range(0..8),
        }
    }
    bytes
}

#[test]
fn segments() {
    run("segment", fuzz::segment);
}

#[test]
fn frames() {
    run("frame", fuzz::frame);
    for (_, input) in inputs("frame") {
        if let Some(half) = input.get(1 + 64..1 + 192) {
            fuzz::history_header(half);
        }
    }
}

#[test]
fn directories() {
    run("directory", fuzz::directory);
}

#[test]
fn footers() {
    run("footer", fuzz::footer);
}
