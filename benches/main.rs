//! Throughput and latency of every stage, each beside a bare baseline measured in the same run.
//!
//! `cargo bench` runs all groups; `cargo bench -- wal_append` one of them. What counts is the ratio between a
//! benchmark and the baseline of its group, not the figure of one machine.

#![allow(missing_docs, clippy::unwrap_used, reason = "criterion's macros; a benchmark may panic")]

mod flow;
mod ingest;
mod query;
mod replication;
mod support;
mod taker;
mod wal_append;

criterion::criterion_group! {
    name = benches;
    config = criterion::Criterion::default().sample_size(10);
    targets = wal_append::group, ingest::group, query::group, replication::group, flow::group
}
criterion::criterion_main!(benches);
