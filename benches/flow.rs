//! `replication/flow`: what replicas cost and how fast they are served. Throughput on the wire beside bare quinn; the
//! primary's commits without replicas, with one that is gone, one that takes nothing, and eight that take all; and that a
//! chunk is compressed once for all of them.
//!
//! Beside criterion's figures there are paired rounds: every contender once a round, in an order that turns, so that a
//! slow minute of the machine hits all alike. What counts is the median of the rounds' ratios.

#![allow(clippy::disallowed_methods, reason = "a benchmark takes the time")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arrow_array::RecordBatch;
use criterion::{Criterion, Throughput};
use tailrace_engine::Durability;
use tailrace_replicator::{CompressionPolicy, Follower, Publisher, ReplicaFlow, TlsConfig};
use tailrace_wal::{Position, Seq};
use tokio::runtime::Runtime;

use crate::{
    replication::bare,
    support::{Bed, Certificates, bars, follower_config, publisher_config},
    taker::Taker,
};

const ID: &str = "replication/flow";
/// Rounds that count; one before them does not.
const ROUNDS: usize = 5;
/// Commits of a contender in a round, one after another: its p99 rests on twenty of them.
const COMMITS: usize = 2_000;
/// Before a block, where the one before it leaves work behind.
const SETTLE: Duration = Duration::from_millis(50);
/// Fewer where most of the time is pauses.
const COMMITS_WITH_PAUSES: usize = 500;
/// So many of one contender, then as many of the next: what the disk does for a while happens to all.
const BLOCK: usize = 25;
const REPLICAS: usize = 8;
/// Between commits that leave the processors time for the replicas.
const PAUSE: Duration = Duration::from_millis(3);

pub(crate) fn group(criterion: &mut Criterion) {
    if !is_wanted() {
        return;
    }
    let runtime = Runtime::new().unwrap();
    wire(criterion, &runtime);
    commits(criterion, &runtime);
    eight(&runtime);
}

/// Uncompressed chunks from the primary's log to a replica that drops them, beside bare quinn with as many bytes from
/// memory. Both begin on a connection that has carried nothing yet: neither knows how fast its link is.
fn wire(criterion: &mut Criterion, runtime: &Runtime) {
    let primary = runtime.block_on(Primary::new(CompressionPolicy::None));
    let batches = bars();
    let batches = if is_test() { &batches[..1] } else { &batches[..] };
    runtime.block_on(primary.bed.load(batches, Durability::Durable));
    let end = primary.position();
    let transfer = || {
        runtime.block_on(async {
            let mut taker = primary.taker("wire", Position::start(end.history)).await;
            let began = Instant::now();
            let taken = taker.take_until(end.seq).await;
            (began.elapsed(), taken)
        })
    };
    let taken = transfer().1;
    let (bytes, first_mib) = (taken.wire_bytes, taken.first_mib);
    // In a runtime: it binds a socket.
    let server = runtime.block_on(async { bare::Server::new() });
    let memory = bytes::Bytes::from(vec![7; bytes as usize]);
    let bare = || {
        runtime.block_on(async {
            let link = server.connect().await;
            let began = Instant::now();
            link.transfer(&memory).await;
            began.elapsed()
        })
    };

    let mut group = criterion.benchmark_group(format!("{ID}/wire"));
    group.throughput(Throughput::Bytes(bytes));
    group.bench_function("baseline_quinn", |bencher| bencher.iter_custom(|count| (0..count).map(|_| bare()).sum()));
    group.bench_function("chunks", |bencher| bencher.iter_custom(|count| (0..count).map(|_| transfer().0).sum()));
    group.finish();

    let mut rounds = Rounds::default();
    for round in 0..=rounds_wanted() {
        rounds.take(round, &mut [("quinn", &mut || bare()), ("chunks", &mut || transfer().0)]);
    }
    let rate = |name| bytes as f64 / rounds.median(name) / 1e6;
    println!(
        "{ID}/wire: {} bytes; quinn {:.0} MB/s, chunks {:.0} MB/s; chunks / quinn {:.3} (median of paired rounds {:?}); \
         first MiB of chunks after {:.1} ms",
        bytes,
        rate("quinn"),
        rate("chunks"),
        rounds.ratio("quinn", "chunks"),
        rounds.ratios("quinn", "chunks"),
        first_mib.as_secs_f64() * 1e3,
    );
}

type Contender = (&'static str, Arc<Attached>);

/// Commits of one row, each durable.
fn commits(criterion: &mut Criterion, runtime: &Runtime) {
    let row = vec![bars()[0].slice(0, 1)];
    let replicas = elsewhere();
    let contenders: Vec<Contender> = runtime.block_on(async {
        vec![
            ("alone", Attached::none().await.into()),
            ("dead", Attached::dead().await.into()),
            ("stalled", Attached::stalled().await.into()),
            ("eight", Attached::eight(&replicas).await.into()),
        ]
    });
    let mut group = criterion.benchmark_group(format!("{ID}/commit"));
    for (name, attached) in &contenders {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| runtime.block_on(attached.primary.bed.load(&row, Durability::Durable)));
        });
    }
    group.finish();

    let commits = |count| if is_test() { BLOCK } else { count };
    let paces =
        [("one after another", commits(COMMITS), Duration::ZERO), ("with pauses", commits(COMMITS_WITH_PAUSES), PAUSE)];
    // Eight replicas still have to do when their block is over: who comes next would pay for it.
    for (names, settle) in [(&["alone", "dead", "stalled"][..], Duration::ZERO), (&["alone", "eight"][..], SETTLE)] {
        let contenders: Vec<_> = contenders.iter().filter(|(name, _)| names.contains(name)).collect();
        for pace in paces {
            commit_rounds(runtime, &contenders, &row, pace, settle);
        }
    }
}

/// Rounds of commits, each after a pause: without one they take what processors and disk give.
fn commit_rounds(
    runtime: &Runtime,
    contenders: &[&Contender],
    row: &[RecordBatch],
    (pace, count, pause): (&str, usize, Duration),
    settle: Duration,
) {
    let (mut p99, mut mean) = (Rounds::default(), Rounds::default());
    for round in 0..=rounds_wanted() {
        let mut taken = vec![Vec::with_capacity(count); contenders.len()];
        for block in 0..count.div_ceil(BLOCK) {
            for place in 0..contenders.len() {
                let which = (place + round + block) % contenders.len();
                std::thread::sleep(settle);
                let (attached, row) = (contenders[which].1.clone(), row.to_vec());
                // A task, as a client's session is one.
                let block = runtime.spawn(async move {
                    let mut times = Vec::with_capacity(BLOCK);
                    for _ in 0..BLOCK {
                        if !pause.is_zero() {
                            tokio::time::sleep(pause).await;
                        }
                        let began = Instant::now();
                        attached.primary.bed.load(&row, Durability::Durable).await;
                        times.push(began.elapsed());
                    }
                    times
                });
                taken[which].extend(runtime.block_on(block).unwrap());
            }
        }
        for ((name, _), mut times) in contenders.iter().copied().zip(taken) {
            times.sort();
            p99.add(round, name, times[(count * 99).div_ceil(100) - 1]);
            mean.add(round, name, times.iter().sum::<Duration>() / count as u32);
        }
    }
    for (name, _) in contenders.iter().filter(|(name, _)| *name != "alone") {
        println!(
            "{ID}/commit {pace}: {name}: p99 {:.3} ms, alone {:.3} ms, ratio {:.3} ({:?}); mean {:.3} ms, alone {:.3} ms, ratio \
             {:.3} ({:?})",
            p99.median(name) * 1e3,
            p99.median("alone") * 1e3,
            p99.ratio(name, "alone"),
            p99.ratios(name, "alone"),
            mean.median(name) * 1e3,
            mean.median("alone") * 1e3,
            mean.ratio(name, "alone"),
            mean.ratios(name, "alone"),
        );
    }
}

/// Eight replicas that are at the end take a load together: every chunk is made and compressed once.
fn eight(runtime: &Runtime) {
    let batches = bars();
    let batches = if is_test() { &batches[..2] } else { &batches[..] };
    let (made, compressed, taken, wire, raw, took) = runtime.block_on(async {
        let primary = Primary::new(CompressionPolicy::Zstd).await;
        let start = primary.position();
        let end = start.seq.next();
        let mut takers = Vec::new();
        for number in 0..REPLICAS {
            let mut taker = primary.taker(&format!("r{number}"), start).await;
            takers.push(tokio::spawn(async move { taker.take_until(end).await }));
        }
        primary.attached(REPLICAS).await;
        let began = Instant::now();
        primary.bed.load(batches, Durability::Durable).await;
        let mut taken = Vec::new();
        for taker in takers {
            taken.push(taker.await.unwrap().chunks);
        }
        let figures = primary.publisher.figures();
        (figures.chunks, figures.compressions, taken, figures.wire_bytes, figures.raw_bytes, began.elapsed())
    });
    let most = taken.iter().copied().max().unwrap();
    println!(
        "{ID}/eight: {} chunks sent to {REPLICAS} replicas, {made} made, {compressed} compressed; {raw} bytes raw, {wire} \
         on the wire, {:.3} s",
        taken.iter().sum::<u64>(),
        took.as_secs_f64(),
    );
    // Who is further behind than `cache_bytes` would have it made anew.
    assert!(most <= made && compressed <= made, "{made} made, {compressed} compressed, {most} for one replica");
    if made > most {
        println!("{ID}/eight: {} chunks were made anew", made - most);
    }
}

/// A primary with an empty table.
struct Primary {
    bed: Bed,
    publisher: Arc<Publisher>,
    certificates: Certificates,
}

impl Primary {
    async fn new(compression: CompressionPolicy) -> Self {
        let certificates = Certificates::new();
        let bed = Bed::with_table().await;
        bed.engine.set_database_replication("market", true).await.unwrap();
        let config = publisher_config(certificates.issue("primary"), ReplicaFlow { compression, rate_limit: None });
        let publisher = Publisher::start(Arc::clone(&bed.engine), config).await.unwrap();
        Self { bed, publisher, certificates }
    }

    fn position(&self) -> Position {
        self.bed.engine.version().database("market").unwrap().position
    }

    fn tls(&self, name: &str) -> TlsConfig {
        self.certificates.issue(name)
    }

    async fn taker(&self, name: &str, position: Position) -> Taker {
        Taker::attach(name, &self.tls(name), self.publisher.local_addr(), position).await
    }

    /// Waits until so many feeds are open.
    async fn attached(&self, feeds: usize) {
        while self.publisher.feeds().iter().filter(|feed| feed.link.is_some()).count() < feeds {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A primary and what is attached to it.
struct Attached {
    primary: Primary,
    _stalled: Option<Taker>,
}

impl Attached {
    async fn none() -> Self {
        Self { primary: Primary::new(CompressionPolicy::Auto).await, _stalled: None }
    }

    /// A replica that was there and is gone: its pin holds the log.
    async fn dead() -> Self {
        let primary = Primary::new(CompressionPolicy::Auto).await;
        let replica = Bed::new().await;
        let config = follower_config("dead", primary.tls("dead"), primary.publisher.local_addr());
        let follower = Follower::start(Arc::clone(&replica.engine), config).await.unwrap();
        let end = primary.position().seq;
        while primary.publisher.feeds().iter().all(|feed| feed.acknowledged < end) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        follower.shutdown().await;
        Self { primary, _stalled: None }
    }

    /// A replica that is connected, has given credit and takes nothing, with more to send than its connection holds.
    async fn stalled() -> Self {
        let primary = Primary::new(CompressionPolicy::None).await;
        let start = Position::start(primary.position().history);
        primary.bed.load(&bars()[..2], Durability::Durable).await;
        let stalled = Taker::stalled("stalled", &primary.tls("stalled"), primary.publisher.local_addr(), start).await;
        primary.attached(1).await;
        Self { primary, _stalled: Some(stalled) }
    }

    /// Replicas that take everything as it comes, in a runtime that leaves the processors to the primary.
    async fn eight(replicas: &Runtime) -> Self {
        let primary = Primary::new(CompressionPolicy::Auto).await;
        let (address, start) = (primary.publisher.local_addr(), primary.position());
        for number in 0..REPLICAS {
            let name = format!("r{number}");
            let tls = primary.tls(&name);
            replicas.spawn(async move {
                let mut taker = Taker::attach(&name, &tls, address, start).await;
                taker.take_until(Seq(u64::MAX)).await
            });
        }
        primary.attached(REPLICAS).await;
        Self { primary, _stalled: None }
    }
}

/// A runtime for what would be on other machines: it gets what processors the rest leaves over, where `renice` is there.
fn elsewhere() -> Runtime {
    let give_way = || {
        // On Linux a priority is a thread's.
        let thread = std::fs::read_link("/proc/thread-self").ok();
        if let Some(thread) = thread.as_ref().and_then(|path| path.file_name()) {
            let _ = std::process::Command::new("renice").args(["-n", "19", "-p"]).arg(thread).output();
        }
    };
    tokio::runtime::Builder::new_multi_thread().enable_all().on_thread_start(give_way).build().unwrap()
}

/// Seconds by contender, a value a round.
#[derive(Default)]
struct Rounds(Vec<(&'static str, Vec<f64>)>);

impl Rounds {
    fn take(&mut self, round: usize, contenders: &mut [(&'static str, &mut dyn FnMut() -> Duration)]) {
        for place in 0..contenders.len() {
            let at = (place + round) % contenders.len();
            let (name, contender) = &mut contenders[at];
            let took = contender();
            self.add(round, name, took);
        }
    }

    /// The first round is for warming up.
    fn add(&mut self, round: usize, name: &'static str, took: Duration) {
        if round == 0 {
            return;
        }
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(took.as_secs_f64()),
            None => self.0.push((name, vec![took.as_secs_f64()])),
        }
    }

    fn values(&self, name: &str) -> &[f64] {
        &self.0.iter().find(|(known, _)| *known == name).unwrap().1
    }

    fn median(&self, name: &str) -> f64 {
        median(self.values(name).to_vec())
    }

    fn ratio(&self, name: &str, beside: &str) -> f64 {
        median(self.ratios(name, beside))
    }

    /// Round by round, to three places.
    fn ratios(&self, name: &str, beside: &str) -> Vec<f64> {
        let pairs = self.values(name).iter().zip(self.values(beside));
        pairs.map(|(value, beside)| (value / beside * 1e3).round() / 1e3).collect()
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn rounds_wanted() -> usize {
    if is_test() { 1 } else { ROUNDS }
}

/// `cargo bench -- --test`: everything once, small.
fn is_test() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

/// Criterion's filter, for what runs beside it.
fn is_wanted() -> bool {
    let mut filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).peekable();
    filters.peek().is_none() || filters.any(|filter| ID.contains(&filter) || filter.contains(ID))
}
