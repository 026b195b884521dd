//! Writers: each sends numbered transactions whose rows sum to zero and name the one before. So any part of a
//! transaction, any hole and any row too many shows in what a single query reads.

use std::{sync::Arc, time::Duration};

use rand::{Rng, rngs::StdRng};

use crate::{
    PATIENCE, Run,
    client::{Connection, Failure},
    ledger::{Outcome, Transaction},
    plan::Side,
};

/// `previous`: the number of the writer's last transaction that was known to be there when this one was sent; so where
/// this one is, that one is. `mirrored`: 1 when the transaction has a row in the second table, too.
const EVENTS: &str = "CREATE TABLE chaos.events (writer BIGINT NOT NULL, number BIGINT NOT NULL, part BIGINT NOT NULL, \
     parts BIGINT NOT NULL, previous BIGINT NOT NULL, amount BIGINT NOT NULL, mirrored BIGINT NOT NULL, \
     note VARCHAR NOT NULL, at TIMESTAMP(3) NOT NULL) PARTITION BY VALUE (day(at)) ORDER BY (writer, number)";

const MIRROR: &str = "CREATE TABLE chaos.mirror (writer BIGINT NOT NULL, number BIGINT NOT NULL, \
     at TIMESTAMP(3) NOT NULL) PARTITION BY VALUE (day(at)) ORDER BY (writer, number)";

const PROBE: &str = "CREATE TABLE chaos.probe (id BIGINT NOT NULL) ORDER BY (id)";

/// Before any fault, so it must succeed.
pub(crate) async fn create_tables(run: &Run) {
    let connection = Connection::try_open(run, Side::Primary).await.unwrap();
    let switch = "CALL set_database_for_cluster_replication('chaos', true)";
    for statement in ["CREATE DATABASE chaos", switch, EVENTS, MIRROR, PROBE, &crate::loads::create_table(0)] {
        connection.execute(run, statement).await.unwrap();
    }
}

/// One writer, until the load ends.
pub(crate) async fn write(run: Arc<Run>, writer: u64) {
    let mut random = run.seed.actor("writer", writer);
    let mut number = 0;
    while let Some(connection) = Connection::open(&run, Side::Primary).await {
        let Ok(mut previous) = last_there(&run, &connection, writer).await else { continue };
        let mut is_asynchronous = false;
        while !*run.load_ends.borrow() {
            if random.random_bool(0.1) {
                let value = ["off", "local", "on"][random.random_range(0..3)];
                if connection.execute(&run, &format!("SET synchronous_commit TO {value}")).await.is_err() {
                    break;
                }
                is_asynchronous = value == "off";
            }
            number += 1;
            let shape = Shape::draw(&mut random, writer, number, previous);
            run.ledger.send(
                (writer, number),
                Transaction {
                    parts: shape.amounts.len() as u64,
                    is_mirrored: shape.is_mirrored,
                    is_asynchronous,
                    incarnation: connection.incarnation,
                    sent: run.ledger.now(),
                    answered: Duration::MAX,
                    outcome: Outcome::Sent,
                },
            );
            let result = shape.send(&run, &connection).await;
            let outcome = if shape.rolls_back && result.is_ok() { Outcome::Refused } else { Outcome::of(&result) };
            run.ledger.answer((writer, number), outcome);
            let word = result.as_ref().err().map_or("done".to_owned(), Failure::outcome);
            let mode = if is_asynchronous { "asynchronous" } else { "synchronous" };
            run.report.operation(&format!("{} ({mode})", shape.name()), &word);
            match (outcome, result) {
                (Outcome::Acknowledged, _) => previous = number,
                (_, Err(failure)) if failure.ends_connection() => break,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(0..150))).await;
        }
    }
}

/// The number of the writer's last transaction that is there.
async fn last_there(run: &Run, connection: &Connection, writer: u64) -> Result<u64, Failure> {
    let rows = connection.rows(run, &format!("SELECT max(number) FROM chaos.events WHERE writer = {writer}")).await?;
    Ok(rows[0][0].parse().unwrap_or(0))
}

/// A transaction to send.
struct Shape {
    writer: u64,
    number: u64,
    previous: u64,
    amounts: Vec<i64>,
    is_mirrored: bool,
    is_explicit: bool,
    rolls_back: bool,
}

impl Shape {
    fn draw(random: &mut StdRng, writer: u64, number: u64, previous: u64) -> Self {
        let kind = random.random_range(0..100);
        let parts = if kind < 50 { 1 } else { random.random_range(2..=8) };
        let mut amounts: Vec<i64> = (1..parts).map(|_| random.random_range(-1000..1000)).collect();
        amounts.push(-amounts.iter().sum::<i64>());
        let is_explicit = kind >= 80;
        let rolls_back = kind >= 93;
        Self { writer, number, previous, amounts, is_mirrored: is_explicit && kind % 2 == 0, is_explicit, rolls_back }
    }

    fn name(&self) -> &'static str {
        match (self.rolls_back, self.is_explicit, self.amounts.len()) {
            (true, _, _) => "transaction with rollback",
            (_, true, _) => "transaction of several statements",
            (_, _, 1) => "insert of one row",
            _ => "insert of several rows",
        }
    }

    async fn send(&self, run: &Run, connection: &Connection) -> Result<(), Failure> {
        if !self.is_explicit {
            return connection.execute(run, &self.insert(0..self.amounts.len())).await;
        }
        let (first, second) = (0..self.amounts.len() / 2, self.amounts.len() / 2..self.amounts.len());
        let mut statements = vec!["BEGIN".to_owned()];
        statements
            .extend([first, second].into_iter().filter(|parts| !parts.is_empty()).map(|parts| self.insert(parts)));
        if self.is_mirrored {
            let (writer, number, at) = (self.writer, self.number, self.at());
            statements.push(format!("INSERT INTO chaos.mirror VALUES ({writer}, {number}, '{at}')"));
        }
        for statement in &statements {
            if let Err(failure) = connection.execute(run, statement).await {
                return match failure {
                    // Without its COMMIT nothing of it may ever show; but the connection is gone.
                    Failure::Unknown { reason } => Err(Failure::Refused { state: "57000".to_owned(), message: reason }),
                    refused => {
                        let _ = connection.execute(run, "ROLLBACK").await;
                        Err(refused)
                    }
                };
            }
        }
        let end = if self.rolls_back { "ROLLBACK" } else { "COMMIT" };
        match connection.execute(run, end).await {
            Err(Failure::Unknown { reason }) if self.rolls_back => {
                Err(Failure::Refused { state: "57000".to_owned(), message: reason })
            }
            result => result,
        }
    }

    fn insert(&self, parts: std::ops::Range<usize>) -> String {
        let Self { writer, number, previous, amounts, .. } = self;
        let (count, mirrored, at) = (amounts.len(), u8::from(self.is_mirrored), self.at());
        let rows: Vec<_> = parts
            .map(|part| {
                let amount = amounts[part];
                let note = format!("{writer}/{number}/{part}");
                format!("({writer}, {number}, {part}, {count}, {previous}, {amount}, {mirrored}, '{note}', '{at}')")
            })
            .collect();
        format!("INSERT INTO chaos.events VALUES {}", rows.join(", "))
    }

    fn at(&self) -> String {
        format!("2024-01-{:02} 12:00:{:02}", 1 + self.number % 4, self.number % 60)
    }
}

/// Waits until the primary takes writes again; how long that took.
pub(crate) async fn wait_for_writes(run: &Run) -> Option<Duration> {
    let began = run.ledger.now();
    let mut last = "no connection".to_owned();
    while run.ledger.now() - began < PATIENCE {
        if let Some(connection) = Connection::try_open(run, Side::Primary).await {
            match connection.execute(run, "INSERT INTO chaos.probe VALUES (1)").await {
                Ok(()) => return Some(run.ledger.now() - began),
                Err(failure) => last = format!("{failure:?}"),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run.report.violation(format!("the primary takes no writes {PATIENCE:?} after its disk has space again: {last}"));
    None
}
