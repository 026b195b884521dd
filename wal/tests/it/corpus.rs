//! Readers of hostile bytes: every input that is kept in `testdata/fuzz/`, and inputs made of them.
//!
//! A failure prints its seed; `CORPUS_SEED=… cargo test -p tailrace-wal --test it corpus` runs it again. How inputs are
//! looked for is in `wal/fuzz/run.sh`.

use std::path::Path;

use tailrace_wal::simulation::fuzz::{self, Corpus};

/// Inputs made of each that is kept.
const VARIANTS: usize = 300;

fn corpus(target: &str) -> Corpus {
    Corpus::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/fuzz"), target)
}

#[test]
fn segments() {
    corpus("segment").run(VARIANTS, fuzz::segment);
}

#[test]
fn frames() {
    let corpus = corpus("frame");
    corpus.run(VARIANTS, fuzz::frame);
    for input in corpus.inputs() {
        if let Some(half) = input.get(1 + 64..1 + 192) {
            fuzz::history_header(half);
        }
    }
}

#[test]
fn directories() {
    corpus("directory").run(VARIANTS, fuzz::directory);
}

#[test]
fn footers() {
    corpus("footer").run(VARIANTS, fuzz::footer);
}

#[test]
fn archived_segments() {
    corpus("archived_segment").run(VARIANTS, fuzz::archived_segment);
}

#[test]
fn archive_manifests() {
    corpus("archive_manifest").run(VARIANTS, fuzz::archive_manifest);
}
