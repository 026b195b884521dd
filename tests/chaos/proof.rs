//! At rest: every promise in the ledger is checked against the primary, and the replica against the primary.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    Run,
    client::{Connection, Failure},
    ledger::{Ending, Key, Outcome, Transaction},
    loads,
    plan::Side,
};

/// Findings of one kind that are told one by one.
const TOLD_MAX: usize = 5;

/// Checks everything.
pub(crate) async fn prove(run: &Run, when: &str) {
    let opened = (Connection::try_open(run, Side::Primary).await, Connection::try_open(run, Side::Replica).await);
    let (Some(primary), Some(replica)) = opened else {
        run.report.violation(format!("{when}: nothing can be proved, a node is down"));
        return;
    };
    let proved = async {
        transactions(run, &primary, when).await?;
        bulk_loads(run, &primary, when).await?;
        scratch(run, &primary, when).await?;
        equality(run, &primary, &replica, when).await
    };
    if let Err(failure) = proved.await {
        run.report.violation(format!("{when}: the proof itself failed: {failure:?}"));
    }
}

async fn transactions(run: &Run, primary: &Connection, when: &str) -> Result<(), Failure> {
    let sql = "SELECT writer, number, count(*), count(DISTINCT part), min(parts), max(parts), sum(amount), \
               max(mirrored), sum(CASE WHEN note = concat(writer, '/', number, '/', part) THEN 0 ELSE 1 END) \
               FROM chaos.events GROUP BY writer, number";
    let rows = primary.rows(run, sql).await?;
    let mirrored =
        primary.rows(run, "SELECT writer, number, count(*) FROM chaos.mirror GROUP BY writer, number").await?;
    let mirrored: BTreeMap<Key, u64> = mirrored.iter().map(|row| (key(row), number(&row[2]))).collect();
    let sent = run.ledger.transactions.lock().unwrap().clone();
    let mut told = Told::new(run, when);
    let mut there = BTreeSet::new();
    for row in &rows {
        let key = key(row);
        there.insert(key);
        let Some(transaction) = sent.get(&key) else {
            told.tell("never sent, but there", format!("{key:?}"));
            continue;
        };
        let parts = transaction.parts.to_string();
        let is_exact = row[2..6].iter().all(|value| *value == parts) && row[6] == "0" && row[8] == "0";
        if !is_exact {
            told.tell("not there exactly once and whole", format!("{key:?} {row:?} {transaction:?}"));
        }
        if mirrored.get(&key).copied().unwrap_or_default() != u64::from(transaction.is_mirrored) {
            told.tell("not in both of its tables", format!("{key:?} {transaction:?}"));
        }
        if transaction.outcome.wants() == Some(false) {
            told.tell("refused, but there", format!("{key:?} {transaction:?}"));
        }
    }
    if let Some(key) = mirrored.keys().find(|key| !there.contains(key)) {
        told.tell("only in its second table", format!("{key:?}"));
    }
    missing(run, &sent, &there, &mut told);
    let seen = run.ledger.seen_on_replica.lock().unwrap();
    for key in seen.difference(&there) {
        told.tell("was seen on the replica, but is not there", format!("{key:?} {:?}", sent.get(key)));
    }
    let (sent, there, seen) = (sent.len(), there.len(), seen.len());
    run.report.note(format!("{when}: {sent} transactions sent, {there} there, {seen} seen on the replica before"));
    Ok(())
}

/// What was acknowledged is there; of what was acknowledged asynchronously a suffix may be gone where the disk failed.
fn missing(run: &Run, sent: &BTreeMap<Key, Transaction>, there: &BTreeSet<Key>, told: &mut Told<'_>) {
    let endings = run.ledger.endings.lock().unwrap().clone();
    // By process: the first acknowledgement that was lost, whose, and how many.
    let mut lost: BTreeMap<u64, (Duration, Key, u64)> = BTreeMap::new();
    for (key, transaction) in sent {
        if transaction.outcome != Outcome::Acknowledged || there.contains(key) {
            continue;
        }
        let ending = endings.get(&transaction.incarnation);
        if transaction.is_asynchronous && ending == Some(&Ending::DiskLost) {
            let first = lost.entry(transaction.incarnation).or_insert((transaction.answered, *key, 0));
            first.2 += 1;
            if transaction.answered < first.0 {
                (first.0, first.1) = (transaction.answered, *key);
            }
        } else {
            told.tell("acknowledged, but lost", format!("{key:?} {transaction:?}, its process ended: {ending:?}"));
        }
    }
    for (incarnation, (answered, first, count)) in &lost {
        let after = sent.iter().find(|(key, transaction)| {
            transaction.incarnation == *incarnation && transaction.sent > *answered && there.contains(*key)
        });
        if let Some((key, transaction)) = after {
            told.tell("an asynchronous loss is no suffix", format!("{first:?} is gone, {key:?} not: {transaction:?}"));
        }
        run.report.highest("asynchronous transactions lost with one disk", *count);
    }
}

async fn bulk_loads(run: &Run, primary: &Connection, when: &str) -> Result<(), Failure> {
    let generation = *run.ledger.generation.lock().unwrap();
    let sent = run.ledger.loads.lock().unwrap().clone();
    let mut told = Told::new(run, when);
    let mut there = BTreeSet::new();
    for table in generation.number - u64::from(generation.is_dropping)..=generation.number {
        let name = loads::table(table);
        let sql = format!("SELECT load, count(*), count(DISTINCT row), sum(row) FROM {name} GROUP BY load");
        let rows = match primary.rows(run, &sql).await {
            Err(failure) if table < generation.number && failure.is_refused_with("42P01") => continue,
            rows => rows?,
        };
        for row in rows {
            let load = number(&row[0]);
            there.insert(load);
            let wanted = sent.get(&load).map_or(0, |load| load.rows);
            let sum = wanted * wanted.saturating_sub(1) / 2;
            if row[1..] != [wanted.to_string(), wanted.to_string(), sum.to_string()] {
                told.tell("a bulk load is not whole", format!("{row:?}, wanted {wanted} rows"));
            }
        }
    }
    for (number, load) in sent.iter().filter(|(_, load)| load.generation == generation.number) {
        if load.outcome.wants().is_some_and(|wanted| wanted != there.contains(number)) {
            told.tell("a bulk load is there or not, against what was said", format!("{number} {load:?}"));
        }
    }
    Ok(())
}

async fn scratch(run: &Run, primary: &Connection, when: &str) -> Result<(), Failure> {
    let sent = run.ledger.scratch.lock().unwrap().clone();
    let databases = primary.rows(run, "SELECT name FROM system.databases").await?;
    let tables = primary.rows(run, "SELECT database, rows FROM system.tables WHERE name = 't'").await?;
    let mut told = Told::new(run, when);
    for (name, scratch) in sent {
        let exists = databases.iter().any(|row| row[0] == name);
        let rows = tables.iter().find(|row| row[0] == name).map(|row| number(&row[1]));
        let is_as_said = scratch.exists.is_none_or(|wanted| wanted == exists);
        let table_as_said = !exists || scratch.table.is_none_or(|wanted| wanted == rows.is_some());
        let is_known = scratch.exists == Some(true) && scratch.table == Some(true);
        let rows_as_said = !is_known || rows.is_some_and(|rows| (scratch.rows.0..=scratch.rows.1).contains(&rows));
        if !is_as_said || !table_as_said || !rows_as_said {
            told.tell("DDL", format!("{name}: exists {exists}, rows {rows:?}, known is {scratch:?}"));
        }
    }
    Ok(())
}

/// Same databases, tables, columns, rows.
async fn equality(run: &Run, primary: &Connection, replica: &Connection, when: &str) -> Result<(), Failure> {
    let mut told = Told::new(run, when);
    for sql in [
        "SELECT name, history_id, seq, epoch, chain, commit_time, tables, rows FROM system.databases ORDER BY name",
        "SELECT database, name, table_id, schema_version, columns, partition_by, order_by, rows FROM system.tables \
         ORDER BY database, name",
        "SELECT table_schema, table_name, column_name, ordinal_position, is_nullable, data_type \
         FROM information_schema.columns WHERE table_schema NOT IN ('system', 'information_schema', 'pg_catalog') \
         ORDER BY table_schema, table_name, ordinal_position",
    ] {
        let (here, there) = (primary.rows(run, sql).await?, replica.rows(run, sql).await?);
        if here != there {
            told.tell("the replica differs", format!("{sql}: {here:?} and {there:?}"));
        }
    }
    let mut rows = 0;
    for table in primary.rows(run, "SELECT database, name FROM system.tables").await? {
        let sql = format!("SELECT * FROM {}.{}", table[0], table[1]);
        let (here, there) = (content(run, primary, &sql).await?, content(run, replica, &sql).await?);
        rows += here.0;
        if here != there {
            told.tell("the replica's rows differ", format!("{sql}: {here:?} and {there:?}"));
        }
    }
    run.report.note(format!("{when}: {rows} rows compared"));
    Ok(())
}

/// Number of rows and a sum of their hashes, whatever their order.
async fn content(run: &Run, connection: &Connection, sql: &str) -> Result<(u64, u128), Failure> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let rows = connection.rows(run, sql).await?;
    let sum = rows.iter().fold(0_u128, |sum, row| {
        let mut hasher = DefaultHasher::new();
        row.hash(&mut hasher);
        sum.wrapping_add(u128::from(hasher.finish()))
    });
    Ok((rows.len() as u64, sum))
}

/// Tells findings of each kind a few times.
struct Told<'a> {
    run: &'a Run,
    when: &'a str,
    counts: BTreeMap<&'static str, usize>,
}

impl<'a> Told<'a> {
    fn new(run: &'a Run, when: &'a str) -> Self {
        Self { run, when, counts: BTreeMap::new() }
    }

    fn tell(&mut self, kind: &'static str, what: String) {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        if *count <= TOLD_MAX {
            self.run.report.violation(format!("{}: {kind}: {what}", self.when));
        }
    }
}

fn key(row: &[String]) -> Key {
    (number(&row[0]), number(&row[1]))
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}
