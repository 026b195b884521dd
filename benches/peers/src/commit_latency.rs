//! Single-row synchronous commits through the PostgreSQL protocol: two servers, the same client, rounds in turn.
//!
//! `cargo run --release --bin commit-latency -- --tailrace 'host=… port=…' --postgres 'host=… port=…'`

mod rounds;

use std::time::{Duration, Instant};

use clap::Parser;
use rounds::median;
use tokio_postgres::{Client, NoTls};

#[derive(Parser)]
struct Arguments {
    /// Connection string of a running Tailrace node.
    #[arg(long)]
    tailrace: String,
    /// Connection string of a running PostgreSQL server.
    #[arg(long)]
    postgres: String,
    /// Rounds that count.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Commits per round and server.
    #[arg(long, default_value_t = 300)]
    commits: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments = Arguments::parse();
    let tailrace = connect(&arguments.tailrace).await;
    for statement in [
        "CREATE DATABASE latency",
        "CREATE TABLE latency.bars (security_id VARCHAR, datetime TIMESTAMP, last_px DOUBLE, volume BIGINT) \
         PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)",
    ] {
        tailrace.batch_execute(statement).await.unwrap();
    }
    let postgres = connect(&arguments.postgres).await;
    for statement in [
        "DROP SCHEMA IF EXISTS latency CASCADE",
        "CREATE SCHEMA latency",
        "CREATE TABLE latency.bars (security_id VARCHAR, datetime TIMESTAMP, last_px DOUBLE PRECISION, volume BIGINT)",
        "CREATE INDEX ON latency.bars (security_id, datetime)",
    ] {
        postgres.batch_execute(statement).await.unwrap();
    }
    for mode in ["on", "off"] {
        for client in [&tailrace, &postgres] {
            client.batch_execute(&format!("SET synchronous_commit = {mode}")).await.unwrap();
        }
        for (kind, is_prepared) in [("statement with literals", false), ("prepared statement", true)] {
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for round in 0..=arguments.rounds {
                let count = arguments.commits;
                let (first, second) = if round % 2 == 0 { (&tailrace, &postgres) } else { (&postgres, &tailrace) };
                let first = commits(first, count, is_prepared).await;
                let second = commits(second, count, is_prepared).await;
                if round == 0 {
                    continue;
                }
                let (of_ours, of_theirs) = if round % 2 == 0 { (first, second) } else { (second, first) };
                ours.extend(of_ours);
                theirs.extend(of_theirs);
            }
            let (p50, peer) = (median(ours.clone()), median(theirs.clone()));
            println!(
                "synchronous_commit = {mode:3} {kind:24} tailrace p50 {:4} us p99 {:4} us   postgres p50 {:4} us p99 {:4} us   ratio {:.2}",
                p50.as_micros(),
                p99(ours).as_micros(),
                peer.as_micros(),
                p99(theirs).as_micros(),
                p50.as_secs_f64() / peer.as_secs_f64()
            );
        }
    }
    tailrace.batch_execute("DROP DATABASE latency").await.unwrap();
    postgres.batch_execute("DROP SCHEMA latency CASCADE").await.unwrap();
}

async fn connect(address: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(address, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn commits(client: &Client, count: usize, is_prepared: bool) -> Vec<Duration> {
    let mut took = Vec::with_capacity(count);
    let sql = "INSERT INTO latency.bars VALUES ($1, TIMESTAMP '2023-01-08 09:30:00', $2, $3)";
    let prepared = if is_prepared { Some(client.prepare(sql).await.unwrap()) } else { None };
    for number in 0..count {
        let start = Instant::now();
        match &prepared {
            Some(prepared) => {
                client.execute(prepared, &[&"000001", &12.5f64, &(number as i64)]).await.unwrap();
            }
            None => {
                let sql = format!(
                    "INSERT INTO latency.bars VALUES ('000001', TIMESTAMP '2023-01-08 09:30:00', 12.5, {number})"
                );
                client.simple_query(&sql).await.unwrap();
            }
        }
        took.push(start.elapsed());
    }
    took
}

fn p99(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() * 99 / 100]
}
