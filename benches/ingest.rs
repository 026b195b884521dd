//! `ingest`: rows into the engine, durable and asynchronous, beside DataFusion's memory table, which keeps nothing.

use std::{sync::Arc, time::Duration};

use criterion::{Criterion, Throughput};
use datafusion::{datasource::MemTable, prelude::SessionContext};
use tailrace_engine::Durability;
use tokio::runtime::Runtime;

use crate::support::{Bed, ROWS, bars};

pub(crate) fn group(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    bulk(criterion, &runtime);
    single(criterion, &runtime);
}

/// 1,210,000 rows as one transaction.
fn bulk(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("ingest/tutorial_rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    group.measurement_time(Duration::from_secs(10));
    let batches = bars();

    group.bench_function("baseline_datafusion_memory", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let context = SessionContext::new();
                let empty = MemTable::try_new(batches[0].schema(), vec![vec![]]).unwrap();
                context.register_table("bars", Arc::new(empty)).unwrap();
                let source = MemTable::try_new(batches[0].schema(), vec![batches.clone()]).unwrap();
                context.register_table("source", Arc::new(source)).unwrap();
                context.sql("INSERT INTO bars SELECT * FROM source").await.unwrap().collect().await.unwrap()
            })
        });
    });
    for (name, durability) in [("sync", Durability::Durable), ("async", Durability::Written)] {
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || runtime.block_on(Bed::with_table()),
                |bed| {
                    runtime.block_on(bed.load(&batches, durability));
                    bed
                },
                criterion::BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// One row, one commit.
fn single(criterion: &mut Criterion, runtime: &Runtime) {
    let mut group = criterion.benchmark_group("ingest/one_row");
    group.throughput(Throughput::Elements(1));
    let row = vec![bars()[0].slice(0, 1)];
    for (name, durability) in [("sync", Durability::Durable), ("async", Durability::Written)] {
        group.bench_function(name, |bencher| {
            let bed = runtime.block_on(Bed::with_table());
            bencher.iter(|| runtime.block_on(bed.load(&row, durability)));
        });
    }
    group.finish();
}
