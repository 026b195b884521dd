//! DDL: databases and tables that come and go, and replication switched off and on.

use std::{sync::Arc, time::Duration};

use rand::{Rng, rngs::StdRng};

use crate::{
    Run,
    client::{Connection, Failure},
    ledger::Scratch,
    loads::insist,
    plan::Side,
};

/// Databases that come and go.
const DATABASES: u64 = 3;

/// Changes something now and then until the load ends.
pub(crate) async fn change(run: Arc<Run>) {
    let mut random = run.seed.actor("ddl", 0);
    while let Some(connection) = Connection::open(&run, Side::Primary).await {
        let mut is_usable = true;
        while is_usable && !*run.load_ends.borrow() {
            if random.random_bool(0.05) {
                if switch_off_and_on(&run, &mut random).await.is_none() {
                    return;
                }
            } else {
                is_usable = change_one(&run, &connection, &mut random).await;
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(50..500))).await;
        }
    }
}

/// The main database's replication off for a moment.
async fn switch_off_and_on(run: &Run, random: &mut StdRng) -> Option<()> {
    insist(run, Side::Primary, "CALL set_database_for_cluster_replication('chaos', false)", "").await?;
    tokio::time::sleep(Duration::from_millis(random.random_range(100..3000))).await;
    insist(run, Side::Primary, "CALL set_database_for_cluster_replication('chaos', true)", "").await
}

/// One statement. Whether the connection is of any more use.
async fn change_one(run: &Run, connection: &Connection, random: &mut StdRng) -> bool {
    let name = format!("scratch{}", random.random_range(0..DATABASES));
    let choice = random.random_range(0..100);
    let mut scratch = run.ledger.scratch.lock().unwrap().get(&name).cloned().unwrap_or_default();
    // What is unknown since an answer was lost is looked at first.
    if (scratch.exists.is_none() || scratch.table.is_none())
        && look(run, connection, &name, &mut scratch).await.is_err()
    {
        return false;
    }
    let (exists, table) = (scratch.exists == Some(true), scratch.table == Some(true));
    let (kind, statement) = match (exists, table) {
        (false, _) => ("CREATE DATABASE", format!("CREATE DATABASE {name}")),
        (true, _) if choice < 8 => ("DROP DATABASE", format!("DROP DATABASE {name}")),
        (true, _) if choice < 28 => {
            let is_on = choice % 3 != 0;
            let kind = if is_on { "replication on" } else { "replication off" };
            (kind, format!("CALL set_database_for_cluster_replication('{name}', {is_on})"))
        }
        (true, false) => {
            ("CREATE TABLE", format!("CREATE TABLE {name}.t (id BIGINT NOT NULL, words VARCHAR) ORDER BY (id)"))
        }
        (true, true) if choice < 36 => ("DROP TABLE", format!("DROP TABLE {name}.t")),
        (true, true) => ("INSERT", format!("INSERT INTO {name}.t VALUES (1, 'one'), (2, NULL)")),
    };
    // Until the answer is there it may be either.
    let sent = match kind {
        "CREATE DATABASE" => Scratch { exists: None, table: Some(false), rows: (0, 0) },
        "DROP DATABASE" => Scratch { exists: None, ..scratch.clone() },
        "CREATE TABLE" | "DROP TABLE" => Scratch { table: None, ..scratch.clone() },
        "INSERT" => Scratch { rows: (scratch.rows.0, scratch.rows.1 + 2), ..scratch.clone() },
        _ => scratch.clone(),
    };
    run.ledger.scratch.lock().unwrap().insert(name.clone(), sent.clone());
    let result = connection.execute(run, &statement).await;
    let word = result.as_ref().err().map_or("done".to_owned(), Failure::outcome);
    run.report.operation(&format!("scratch {kind}"), &word);
    let is_usable = !result.as_ref().is_err_and(Failure::ends_connection);
    let now = match (result, kind) {
        (Err(Failure::Unknown { .. }), _) => sent,
        (Err(Failure::Refused { state, message }), _) => {
            if state.starts_with("42") || state.starts_with("3F") {
                run.report.violation(format!("{statement}: {state} {message}, but known is {scratch:?}"));
            }
            scratch
        }
        (Ok(()), "CREATE DATABASE") => Scratch { exists: Some(true), table: Some(false), rows: (0, 0) },
        (Ok(()), "DROP DATABASE") => Scratch { exists: Some(false), table: Some(false), rows: (0, 0) },
        (Ok(()), "CREATE TABLE") => Scratch { table: Some(true), rows: (0, 0), ..scratch },
        (Ok(()), "DROP TABLE") => Scratch { table: Some(false), rows: (0, 0), ..scratch },
        (Ok(()), "INSERT") => Scratch { rows: (scratch.rows.0 + 2, scratch.rows.1 + 2), ..scratch },
        (Ok(()), _) => scratch,
    };
    run.ledger.scratch.lock().unwrap().insert(name, now);
    is_usable
}

/// Asks the primary what is there. A CREATE that turns out to be done has no rows yet.
async fn look(run: &Run, connection: &Connection, name: &str, scratch: &mut Scratch) -> Result<(), Failure> {
    let databases = connection.rows(run, &format!("SELECT 1 FROM system.databases WHERE name = '{name}'")).await?;
    let tables = connection.rows(run, &format!("SELECT 1 FROM system.tables WHERE database = '{name}'")).await?;
    scratch.exists = Some(!databases.is_empty());
    scratch.table = Some(!tables.is_empty());
    if tables.is_empty() {
        scratch.rows = (0, 0);
    }
    run.ledger.scratch.lock().unwrap().insert(name.to_owned(), scratch.clone());
    Ok(())
}
