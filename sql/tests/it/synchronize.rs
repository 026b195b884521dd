//! Two nodes made to differ are made equal, and nothing else is moved. The other side is a session of another engine; over
//! the wire the same is done in the root's tests.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use datafusion::{
    arrow::array::RecordBatch, error::DataFusionError, execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{StreamExt as _, future::BoxFuture};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tailrace_sql::{
    Outcome, Result, SqlError,
    synchronize::{Action, Report, Request, Source, synchronize},
};
use tokio_util::sync::CancellationToken;

use crate::node::{Client, Node};

/// Another node, whose answers are counted and may be disturbed.
struct There {
    client: Client,
    /// Rows of partitions that were sent.
    rows: Arc<AtomicU64>,
    queries: AtomicUsize,
    /// The query for rows with this number breaks off after its first batch.
    breaks: AtomicUsize,
    /// What is done there, or here, before the next query for rows.
    meanwhile: Mutex<Vec<(Client, String)>>,
}

impl There {
    fn new(client: Client) -> Self {
        let (rows, queries) = (Arc::default(), AtomicUsize::new(0));
        Self { client, rows, queries, breaks: AtomicUsize::new(usize::MAX), meanwhile: Mutex::default() }
    }
}

impl std::fmt::Debug for There {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("There")
    }
}

impl Source for There {
    fn name(&self) -> &str {
        "siteb"
    }

    fn query<'a>(&'a self, sql: &'a str) -> BoxFuture<'a, Result<SendableRecordBatchStream>> {
        Box::pin(async move {
            let of_rows = sql.contains("partition_rows(");
            let mut number = 0;
            if of_rows {
                number = self.queries.fetch_add(1, Ordering::SeqCst);
                let next = self.meanwhile.lock().pop();
                if let Some((client, sql)) = next {
                    client.tag(&sql).await;
                }
            }
            let statement = self.client.0.parse(sql)?.pop().unwrap();
            let Outcome::Rows(rows) = self.client.0.execute(&statement, Vec::new(), CancellationToken::new()).await?
            else {
                panic!("{sql} gave no rows");
            };
            if !of_rows {
                return Ok(rows);
            }
            let (schema, counter) = (rows.schema(), self.rows.clone());
            let breaks = number == self.breaks.load(Ordering::SeqCst);
            let counted = rows.enumerate().map(move |(index, batch)| {
                let batch: RecordBatch = batch?;
                counter.fetch_add(batch.num_rows() as u64, Ordering::SeqCst);
                match breaks && index > 0 {
                    true => Err(DataFusionError::External(Box::new(SqlError::new("08006", "siteb: it is gone")))),
                    false => Ok(batch),
                }
            });
            let gone = futures::stream::once(async move {
                match breaks {
                    true => Err(DataFusionError::External(Box::new(SqlError::new("08006", "siteb: it is gone")))),
                    false => Ok(RecordBatch::new_empty(Arc::new(datafusion::arrow::datatypes::Schema::empty()))),
                }
            });
            let stream = counted.chain(gone.filter(|end| std::future::ready(end.is_err())));
            Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream)) as SendableRecordBatchStream)
        })
    }
}

const BARS: &str = "CREATE TABLE market.bars (id BIGINT NOT NULL, at TIMESTAMP(0), name TEXT, price DECIMAL(10, 2)) \
                    PARTITION BY VALUE (day(at), name) ORDER BY (id)";

async fn sites() -> (Node, Client, Node, There) {
    let (here, there) = (Node::market().await, Node::market().await);
    for client in [&here.1, &there.1] {
        client.tag(BARS).await;
    }
    (here.0, here.1, there.0, There::new(there.1))
}

async fn rows(client: &Client) -> Vec<String> {
    client.rows("SELECT id, at, name, price FROM market.bars ORDER BY 1, 2, 3, 4").await
}

async fn day(client: &Client, day: usize) -> Vec<String> {
    let of = format!("date_trunc('day', at) = '2023-01-{day:02}'");
    client.rows(&format!("SELECT id, at, price FROM market.bars WHERE {of} ORDER BY 1, 2, 3")).await
}

fn actions(report: &Report) -> Vec<(Action, u64)> {
    report.partitions.iter().map(|partition| (partition.action, partition.rows)).collect()
}

fn all() -> Request {
    Request::new("market.bars")
}

/// Rows of one partition.
fn values(random: &mut StdRng, day: u64, name: Option<&str>, count: usize) -> String {
    let name = name.map_or("NULL".to_owned(), |name| format!("'{}'", name.replace('\'', "''")));
    let rows = (0..count).map(|_| {
        let at = format!("'2023-01-{day:02} {:02}:{:02}:00'", random.random_range(0..24), random.random_range(0..60));
        let price =
            if random.random_bool(0.1) { "NULL".to_owned() } else { format!("{}.5", random.random_range(0..99)) };
        format!("({}, {at}, {name}, {price})", random.random_range(0..10_000))
    });
    rows.collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_differ_at_random_are_equal_afterwards_and_only_that_was_moved() {
    let first: u64 = std::env::var("TAILRACE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    for seed in (first..).take(3) {
        println!("TAILRACE_SEED={seed} cargo test -p tailrace-sql --test it two_nodes_that_differ");
        let mut random = StdRng::seed_from_u64(seed);
        let (here_node, here, there_node, there) = sites().await;
        // As their keys order.
        let names = [Some("a"), Some("a/b %"), Some("it's"), None];
        let (mut wanted, mut moved) = (Vec::new(), 0);
        for day in 1..=random.random_range(3..7) {
            for name in names {
                let count = random.random_range(1..40);
                let rows = values(&mut random, day, name, count);
                let insert = |rows: &str| format!("INSERT INTO market.bars VALUES {rows}");
                match random.random_range(0..5) {
                    // Equal, inserted in other pieces.
                    0 | 1 => {
                        here.tag(&insert(&rows)).await;
                        for piece in rows.split("), ") {
                            there.client.tag(&insert(&format!("{})", piece.trim_end_matches(')')))).await;
                        }
                        wanted.push((Action::Equal, 0));
                    }
                    2 => {
                        there.client.tag(&insert(&rows)).await;
                        wanted.push((Action::Copied, count as u64));
                        moved += count as u64;
                    }
                    3 => {
                        here.tag(&insert(&rows)).await;
                        wanted.push((Action::Removed, count as u64));
                    }
                    _ => {
                        here.tag(&insert(&rows)).await;
                        there.client.tag(&insert(&rows)).await;
                        let more = values(&mut random, day, name, 1);
                        let side = if random.random_bool(0.5) { &here } else { &there.client };
                        side.tag(&insert(&more)).await;
                        let count = count as u64 + u64::from(std::ptr::eq(side, &there.client));
                        wanted.push((Action::Replaced, count));
                        moved += count;
                    }
                }
                if random.random_bool(0.1) {
                    here_node.engine.flush().await.unwrap();
                    there_node.engine.flush().await.unwrap();
                }
            }
        }
        let request = Request { parallel: random.random_range(1..6), by_partition: random.random_bool(0.7), ..all() };
        let report = synchronize(&here.0, &there, request).await.unwrap();
        assert_eq!(actions(&report), wanted, "seed {seed}");
        assert_eq!(there.rows.load(Ordering::SeqCst), moved, "seed {seed}");
        assert_eq!(rows(&here).await, rows(&there.client).await, "seed {seed}");
        // Again: nothing is moved.
        let before = here_node.engine.version().database("market").unwrap().position;
        let again = synchronize(&here.0, &there, all()).await.unwrap();
        assert!(again.partitions.iter().all(|partition| partition.action == Action::Equal), "seed {seed}");
        assert_eq!(there.rows.load(Ordering::SeqCst), moved, "seed {seed}");
        assert_eq!(here_node.engine.version().database("market").unwrap().position, before, "seed {seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let (here_node, here, _there_node, there) = sites().await;
    let insert = "INSERT INTO market.bars VALUES";
    let day = |day: u32| format!("'2023-01-{day:02} 10:00:00', 'a', 1");
    here.tag(&format!("{insert} (1, {}), (2, {}), (3, {}), (4, {})", day(1), day(2), day(3), day(3))).await;
    there.client.tag(&format!("{insert} (1, {}), (7, {}), (8, {}), (5, {})", day(1), day(2), day(2), day(4))).await;
    let before = (here_node.engine.version().database("market").unwrap().position, rows(&here).await);
    let dry = Request { dry_run: true, ..all() };
    let report = synchronize(&here.0, &there, dry.clone()).await.unwrap();
    let expected = [(Action::Equal, 0), (Action::Replace, 2), (Action::Remove, 2), (Action::Copy, 1)];
    assert_eq!(actions(&report), expected);
    let keeps = Request { delete_extra: false, by_partition: false, ..dry.clone() };
    assert_eq!(actions(&synchronize(&here.0, &there, keeps).await.unwrap())[2], (Action::Extra, 0));
    let after = (here_node.engine.version().database("market").unwrap().position, rows(&here).await);
    assert_eq!(after, before);
    assert_eq!(there.rows.load(Ordering::SeqCst), 0, "no rows were asked for");
    let runs = here.rows("SELECT DISTINCT state, message FROM system.synchronizations").await;
    assert_eq!(runs, ["FINISHED|a dry run: nothing was changed"]);
    // What it says is what is done.
    let done = synchronize(&here.0, &there, all()).await.unwrap();
    let expected = [(Action::Equal, 0), (Action::Replaced, 2), (Action::Removed, 2), (Action::Copied, 1)];
    assert_eq!(actions(&done), expected);
    // A table that is not here is not made.
    here.tag("DROP TABLE market.bars").await;
    synchronize(&here.0, &there, dry.clone()).await.unwrap_err();
    let creates = Request { create: true, ..dry };
    let report = synchronize(&here.0, &there, creates.clone()).await.unwrap();
    assert_eq!(actions(&report), [(Action::Copy, 1), (Action::Copy, 2), (Action::Copy, 1)]);
    assert_eq!(here.state("SELECT * FROM market.bars").await, "42P01");
    // Nor its database.
    here.tag("DROP DATABASE market").await;
    let report = synchronize(&here.0, &there, creates).await.unwrap();
    assert_eq!(report.partitions.len(), 3);
    assert!(here_node.engine.version().database("market").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_condition_other_rows_stay() {
    let (_here_node, here, _there_node, there) = sites().await;
    let insert = "INSERT INTO market.bars VALUES";
    let day = |day: u32| format!("'2023-01-{day:02} 10:00:00', 'a', 1");
    // Day 1: equal where it counts. Day 2: other rows. Day 3: here alone. Day 4: there alone, beside rows here that do not
    // count. Day 5: nothing counts.
    here.tag(&format!("{insert} (1, {}), (2, {}), (11, {}), (12, {})", day(1), day(2), day(1), day(2))).await;
    here.tag(&format!("{insert} (3, {}), (13, {}), (14, {}), (15, {})", day(3), day(3), day(4), day(5))).await;
    let there_rows =
        format!("{insert} (1, {}), (7, {}), (99, {}), (4, {}), (98, {})", day(1), day(2), day(2), day(4), day(5));
    there.client.tag(&there_rows).await;
    // NULL is not true: the row stays.
    here.tag(&format!("{insert} (20, {}), (21, '2023-01-02 00:00:00', NULL, NULL)", day(1))).await;
    let request = Request { predicate: Some("id < 10 -- that's it".to_owned()), ..all() };
    let keeps = Request { delete_extra: false, ..request.clone() };
    let report = synchronize(&here.0, &there, keeps).await.unwrap();
    let expected = [(Action::Equal, 0), (Action::Replaced, 1), (Action::Extra, 0), (Action::Copied, 1)];
    assert_eq!(actions(&report), expected);
    let ids = "SELECT id FROM market.bars ORDER BY id";
    assert_eq!(here.rows(ids).await, ["1", "3", "4", "7", "11", "12", "13", "14", "15", "20", "21"]);
    let report = synchronize(&here.0, &there, request.clone()).await.unwrap();
    assert_eq!(actions(&report)[2], (Action::Removed, 1));
    assert_eq!(here.rows(ids).await, ["1", "4", "7", "11", "12", "13", "14", "15", "20", "21"]);
    let report = synchronize(&here.0, &there, request).await.unwrap();
    assert!(report.partitions.iter().all(|partition| partition.action == Action::Equal));
    for (predicate, state) in [
        ("id <", "42601"),
        ("id < 10); DROP TABLE market.bars", "42601"),
        ("id < 10 ORDER BY id", "42601"),
        ("nothing = 1", "42703"),
        ("at < now()", "0A000"),
        ("random() < 0.5", "0A000"),
        ("id IN (SELECT id FROM market.bars)", "0A000"),
        ("sum(id) > 1", "0A000"),
        ("id", "42804"),
    ] {
        let request = Request { predicate: Some(predicate.to_owned()), ..all() };
        let error = synchronize(&here.0, &there, request).await.unwrap_err();
        assert_eq!(error.sqlstate, state, "{predicate}: {}", error.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_is_there_is_named_before_anything_changes() {
    let (_here_node, here, _there_node, there) = sites().await;
    there.client.tag("INSERT INTO market.bars VALUES (1, '2023-01-08 10:00:00', 'a', 1)").await;
    let error = async |request: Request| synchronize(&here.0, &there, request).await.unwrap_err();
    let missing = error(Request::new("market.nothing")).await;
    assert_eq!(missing.sqlstate, "42P01");
    assert_eq!(error(Request::new("other.bars")).await.sqlstate, "42P01");
    assert_eq!(error(Request { parallel: 0, ..all() }).await.sqlstate, "22023");
    here.tag("DROP TABLE market.bars").await;
    let missing = error(all()).await;
    assert_eq!(missing.sqlstate, "42P01");
    assert!(missing.hint.unwrap().contains("create => true"));
    here.tag("CREATE TABLE market.bars (id INT, at TIMESTAMP(0), name TEXT, extra INT) PARTITION BY VALUE (at)").await;
    let differs = error(all()).await;
    assert_eq!(differs.sqlstate, "42804");
    for part in ["\"id\" is Int32 here and Int64 there", "\"extra\" is not there", "\"price\"", "day(at), name"] {
        assert!(differs.message.contains(part), "{}", differs.message);
    }
    // Made as it is there.
    here.tag("DROP TABLE market.bars").await;
    let report = synchronize(&here.0, &there, Request { create: true, ..all() }).await.unwrap();
    assert_eq!(actions(&report), [(Action::Copied, 1)]);
    assert_eq!(rows(&here).await, rows(&there.client).await);
    let shown = "SELECT partition_by, order_by, columns FROM system.tables WHERE name = 'bars'";
    assert_eq!(here.rows(shown).await, there.client.rows(shown).await);
    let runs = here.rows("SELECT state, count(*) FROM system.synchronizations GROUP BY 1 ORDER BY 1").await;
    assert_eq!(runs, ["FAILED|4", "FINISHED|1"], "what was asked for wrongly never began");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_columns_orders_and_unpartitioned_tables() {
    let (_here_node, here, _there_node, there) = sites().await;
    here.tag("CREATE TABLE plain (a INT, b TEXT)").await;
    there.client.tag("CREATE TABLE plain (b TEXT, a INT)").await;
    there.client.tag("INSERT INTO plain VALUES ('x', 1), (NULL, 2)").await;
    here.tag("INSERT INTO plain VALUES (7, 'y')").await;
    let report = synchronize(&here.0, &there, Request::new("market.plain")).await.unwrap();
    assert_eq!(actions(&report), [(Action::Replaced, 2)]);
    assert_eq!(here.rows("SELECT a, b FROM plain ORDER BY a").await, ["1|x", "2|"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_meanwhile_is_seen() {
    let (here_node, here, there_node, there) = sites().await;
    let insert =
        |id: u32, day: u32| format!("INSERT INTO market.bars VALUES ({id}, '2023-01-{day:02} 10:00:00', 'a', 1)");
    there.client.tag(&insert(1, 1)).await;
    // Somebody inserts here while the partition is read there: his row is not lost unseen, it is looked at again.
    let other = || here_node.client(Some("market"));
    *there.meanwhile.lock() = vec![(other(), insert(5, 1))];
    let report = synchronize(&here.0, &there, all()).await.unwrap();
    assert_eq!(actions(&report), [(Action::Copied, 1)]);
    assert_eq!(there.queries.load(Ordering::SeqCst), 2);
    assert_eq!(rows(&here).await, rows(&there.client).await);
    // Rows come there between the comparison and the reading: they are taken along.
    here.tag(&insert(6, 1)).await;
    *there.meanwhile.lock() = vec![(there_node.client(Some("market")), insert(2, 1))];
    let report = synchronize(&here.0, &there, all()).await.unwrap();
    assert_eq!(actions(&report), [(Action::Replaced, 2)]);
    assert_eq!(rows(&here).await, rows(&there.client).await);
    // A partition that does not stand still is given up, by name, and is as it was.
    here.tag(&insert(7, 1)).await;
    *there.meanwhile.lock() = (10..20).map(|id| (other(), insert(id, 1))).collect();
    let error = synchronize(&here.0, &there, all()).await.unwrap_err();
    assert_eq!(error.sqlstate, "40001");
    assert!(error.message.contains("('2023-01-01', 'a')"), "{}", error.message);
    assert!(error.detail.unwrap().contains("0 of 1 partitions"));
    assert_eq!(rows(&here).await.len(), 2 + 1 + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_other_side_goes_away_partitions_are_whole_and_the_next_run_goes_on() {
    let (here_node, here, _there_node, there) = sites().await;
    let mut random = StdRng::seed_from_u64(7);
    for day in 1..=6 {
        let (old, new) = (values(&mut random, day, Some("a"), 30), values(&mut random, day, Some("a"), 30));
        here.tag(&format!("INSERT INTO market.bars VALUES {old}")).await;
        there.client.tag(&format!("INSERT INTO market.bars VALUES {new}")).await;
    }
    let mut old = Vec::new();
    for number in 1..=6 {
        old.push(day(&here, number).await);
    }
    there.breaks.store(2, Ordering::SeqCst);
    let request = Request { parallel: 1, ..all() };
    let error = synchronize(&here.0, &there, request.clone()).await.unwrap_err();
    assert_eq!(error.sqlstate, "08006");
    assert!(error.detail.as_ref().unwrap().contains("2 of 6 partitions"), "{error:?}");
    for number in 1..=6 {
        let expected = if number <= 2 { day(&there.client, number).await } else { old[number - 1].clone() };
        assert_eq!(day(&here, number).await, expected, "day {number}");
    }
    let shown = "SELECT state, done, differing, message LIKE '%gone%' FROM system.synchronizations";
    assert_eq!(here.rows(shown).await, ["FAILED|2|6|true"]);
    let report = synchronize(&here.0, &there, request.clone()).await.unwrap();
    let moved = report.partitions.iter().filter(|partition| partition.action == Action::Replaced).count();
    assert_eq!((moved, report.partitions.len()), (4, 6));
    assert_eq!(rows(&here).await, rows(&there.client).await);

    // In one transaction: all or nothing.
    here.tag("ALTER TABLE market.bars DROP PARTITION (('2023-01-01', 'a'), ('2023-01-04', 'a'))").await;
    let before = rows(&here).await;
    there.breaks.store(there.queries.load(Ordering::SeqCst) + 1, Ordering::SeqCst);
    let whole = Request { by_partition: false, ..request };
    synchronize(&here.0, &there, whole.clone()).await.unwrap_err();
    assert_eq!(rows(&here).await, before);
    let seq = here_node.engine.version().database("market").unwrap().position.seq;
    synchronize(&here.0, &there, whole).await.unwrap();
    assert_eq!(rows(&here).await, rows(&there.client).await);
    assert_eq!(here_node.engine.version().database("market").unwrap().position.seq, seq.next());
}

#[tokio::test]
async fn a_partition_is_read_by_its_key() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (id INT, name TEXT) PARTITION BY VALUE (name)").await;
    client.tag("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, NULL), (4, 'a')").await;
    let read = |key: &str| format!("SELECT id FROM partition_rows('market.t', '{key}') WHERE id < 4 ORDER BY id");
    assert_eq!(client.rows(&read("01610001")).await, ["1"]);
    assert_eq!(client.rows(&read("02")).await, ["3"]);
    assert_eq!(client.rows(&read("017a0001")).await, Vec::<String>::new());
    for wrong in ["zz", "61", "0161", "016100016100"] {
        let error = client.error(&read(wrong)).await;
        assert!(matches!(&*error.sqlstate, "42883" | "22023"), "{wrong}: {error:?}");
    }
    assert_eq!(client.state("SELECT * FROM partition_rows('market.t')").await, "42883");
    assert_eq!(client.state("SELECT * FROM partition_rows('market.x', '02')").await, "42P01");
}
