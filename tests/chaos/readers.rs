//! Readers: on either side, at any moment, whole transactions only, without holes, and a reason for every state.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::{Rng, rngs::StdRng};

use crate::{
    Run, WRITERS,
    client::{Connection, Failure},
    plan::Side,
};

/// Reads until the load ends.
pub(crate) async fn read(run: Arc<Run>, side: Side, number: u64) {
    let mut random = run.seed.actor("reader", number);
    let mut has_seen = false;
    while let Some(connection) = Connection::open(&run, side).await {
        while !*run.load_ends.borrow() {
            let result = match random.random_range(0..10) {
                0..6 => chain(&run, &connection, side, &mut random).await,
                6..8 => loads(&run, &connection, side).await,
                8 => mirror(&run, &connection, side, &mut random).await,
                _ => states(&run, &connection, side).await,
            };
            let word = result.as_ref().err().map_or("done".to_owned(), Failure::outcome);
            run.report.operation(&format!("read on the {}", side.name()), &word);
            match result {
                Ok(()) => has_seen = true,
                Err(failure) if failure.ends_connection() => break,
                Err(Failure::Refused { state, message })
                    if has_seen && !connection.has_lost_disk(&run) && !matches!(&*state, "42P01" | "3F000") =>
                {
                    run.report.violation(format!("a read on the {} failed: {state} {message}", side.name()));
                }
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One writer's transactions: whole, balanced, and every one that another names is there.
async fn chain(run: &Run, connection: &Connection, side: Side, random: &mut StdRng) -> Result<(), Failure> {
    let writer = random.random_range(1..=WRITERS);
    let sql = format!(
        "SELECT number, count(*), count(DISTINCT part), min(parts), max(parts), sum(amount), min(previous), \
         max(previous) FROM chaos.events WHERE writer = {writer} GROUP BY number"
    );
    let rows: Vec<Vec<i64>> = connection.rows(run, &sql).await?.iter().map(|row| numbers(row)).collect();
    let there: BTreeSet<i64> = rows.iter().map(|row| row[0]).collect();
    for row in &rows {
        let (number, previous) = (row[0], row[7]);
        let is_whole = row[1] == row[3] && row[2] == row[3] && row[3] == row[4] && row[5] == 0 && row[6] == row[7];
        let is_chained = previous < number && (previous == 0 || there.contains(&previous));
        if !is_whole || !is_chained {
            let side = side.name();
            run.report.violation(format!(
                "on the {side}, transaction {number} of writer {writer} is {}: {row:?}, the last is {:?}",
                if is_whole { "behind a hole" } else { "there in part, or twice" },
                there.last()
            ));
        }
    }
    if side == Side::Replica {
        let mut seen = run.ledger.seen_on_replica.lock().unwrap();
        seen.extend(there.into_iter().map(|number| (writer, number as u64)));
    }
    Ok(())
}

/// Bulk loads are there whole or not at all.
async fn loads(run: &Run, connection: &Connection, side: Side) -> Result<(), Failure> {
    let generation = run.ledger.generation.lock().unwrap().number;
    let sql = format!(
        "SELECT load, count(*), count(DISTINCT row), sum(row) FROM {} GROUP BY load",
        crate::loads::table(generation)
    );
    let rows = match connection.rows(run, &sql).await {
        // A replica behind, or a table that was just replaced.
        Err(failure) if failure.is_refused_with("42P01") => return Ok(()),
        rows => rows?,
    };
    for row in rows.iter().map(|row| numbers(row)) {
        let Some(load) = run.ledger.loads.lock().unwrap().get(&(row[0] as u64)).cloned() else {
            run.report.violation(format!("on the {}, load {} was never sent", side.name(), row[0]));
            continue;
        };
        let rows = load.rows as i64;
        if row[1] != rows || row[2] != rows || row[3] != rows * (rows - 1) / 2 {
            run.report.violation(format!("on the {}, load {row:?} should have {rows} rows", side.name()));
        }
    }
    Ok(())
}

/// A transaction over two tables shows in both.
async fn mirror(run: &Run, connection: &Connection, side: Side, random: &mut StdRng) -> Result<(), Failure> {
    let writer = random.random_range(1..=WRITERS);
    let sql = format!(
        "SELECT (SELECT count(DISTINCT number) FROM chaos.events WHERE writer = {writer} AND mirrored = 1), \
         (SELECT count(*) FROM chaos.mirror WHERE writer = {writer})"
    );
    let rows = connection.rows(run, &sql).await?;
    if rows[0][0] != rows[0][1] {
        run.report.violation(format!("on the {}, writer {writer} has {:?} mirrored", side.name(), rows[0]));
    }
    Ok(())
}

/// Whatever is not ENABLED has a reason, and no crash makes a history fork.
async fn states(run: &Run, connection: &Connection, side: Side) -> Result<(), Failure> {
    for row in connection.rows(run, "SELECT name, state, reason FROM system.databases").await? {
        let [name, state, reason] = &row[..] else { continue };
        if state != "ENABLED" && reason.is_empty() {
            run.report.violation(format!("on the {}, {name} is {state} without a reason", side.name()));
        }
        if matches!(state.as_str(), "FORKED" | "DIVERGED" | "STOPPED" | "NAME TAKEN") {
            run.report.violation(format!("on the {}, {name} is {state}: {reason}", side.name()));
        }
        run.report.operation(&format!("state on the {}", side.name()), state);
    }
    Ok(())
}

/// A row of integers; what is none is -1.
fn numbers(row: &[String]) -> Vec<i64> {
    row.iter().map(|value| value.parse().unwrap_or(-1)).collect()
}
