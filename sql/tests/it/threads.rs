//! Queries that compute for ever do not stand in the way of anybody else.
//!
//! The server has a runtime with two threads, as a node on two cores has, and so have its queries; clients have another one, so
//! that they notice when nobody answers.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tailrace_sql::{FlightServer, Outcome};
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::{CancelToken, NoTls, SimpleQueryMessage, error::SqlState};
use tokio_util::sync::CancellationToken;

use crate::{
    node::Node,
    site::{self, Site},
    wire::{Served, cells, code},
};

/// How long anything may take before it is called hung. Debug builds on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(120);

const QUERY_THREADS: usize = 2;

/// No source is asked for more while joins multiply rows, and the last one gives none at all.
const HEAVY: [&str; 3] = [
    "SELECT max(a.n + b.n - c.n) FROM market.numbers a CROSS JOIN market.numbers b CROSS JOIN market.numbers c",
    "SELECT a.n % 10 AS digit, count(*) FROM market.numbers a CROSS JOIN market.numbers b CROSS JOIN market.numbers c \
     GROUP BY 1 ORDER BY 2",
    "SELECT count(*) FROM market.numbers a JOIN market.numbers b ON a.n + b.n < 0 JOIN market.numbers c ON b.n < c.n - a.n",
];

fn runtime(threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(threads).thread_stack_size(8 << 20).enable_all().build().unwrap()
}

/// The server's threads. They may be busy for ever where the test fails, which nobody waits for.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

async fn patiently<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("no answer: {what}"))
}

/// A query under way on a connection of its own; it has begun.
struct Heavy {
    cancel: CancelToken,
    ended: tokio::task::JoinHandle<Result<Vec<SimpleQueryMessage>, tokio_postgres::Error>>,
}

async fn heavy(served: &Served, sql: &str) -> Heavy {
    let client = patiently("connect", served.client("market")).await;
    let cancel = client.cancel_token();
    let mut rows = Box::pin(patiently("begin", client.simple_query_raw(sql)).await.unwrap());
    // The columns come before there are rows, once the query runs.
    let columns = patiently(sql, rows.next()).await.unwrap().unwrap();
    assert!(matches!(columns, SimpleQueryMessage::RowDescription(_)));
    let ended = tokio::spawn(async move {
        let rows = rows.try_collect().await;
        drop(client);
        rows
    });
    Heavy { cancel, ended }
}

#[test]
fn whatever_else_a_node_does_goes_on_beside_heavy_queries() {
    let (threads, clients) = (Threads(Some(runtime(2))), runtime(1));
    let server = threads.0.as_ref().unwrap().handle().clone();
    let served = server.block_on(server.spawn(Served::new())).unwrap();
    clients.block_on(async move {
        let client = patiently("connect", served.client("tailrace")).await;
        let prepare = "CREATE DATABASE market; CREATE TABLE market.numbers (n BIGINT); \
                       INSERT INTO market.numbers SELECT value FROM generate_series(1, 200000)";
        patiently("prepare", client.batch_execute(prepare)).await.unwrap();

        let mut queries = Vec::new();
        for number in 0..QUERY_THREADS + 1 {
            queries.push(heavy(&served, HEAVY[number % HEAVY.len()]).await);
        }
        for round in 0..20 {
            let what = format!("round {round}");
            assert_eq!(patiently(&what, cells(&client, "SELECT 1")).await, [[Some("1".to_owned())]]);
            let insert = format!("INSERT INTO market.numbers VALUES (-{round})");
            patiently(&what, client.batch_execute(&insert)).await.unwrap();
            patiently(&what, client.query("SELECT name FROM system.databases WHERE name <> $1", &[&"x"]))
                .await
                .unwrap();
            drop(patiently(&what, served.client("market")).await);
        }
        // Queries that compute have their turn, too.
        let counted = patiently("count", cells(&client, "SELECT count(*) FROM market.numbers WHERE n % 2 = 1")).await;
        assert_eq!(counted, [[Some("100000".to_owned())]]);

        // A limit ends one more of them,
        patiently("set", client.batch_execute("SET statement_timeout = '300ms'")).await.unwrap();
        let error = patiently("time-out", client.simple_query(HEAVY[0])).await.unwrap_err();
        assert_eq!(*code(&error), SqlState::QUERY_CANCELED, "{error:?}");
        patiently("set", client.batch_execute("SET statement_timeout = 0")).await.unwrap();

        // and who asked for the others may cancel them.
        for query in queries {
            patiently("cancel", query.cancel.cancel_query(NoTls)).await.unwrap();
            let error = patiently("cancelled", query.ended).await.unwrap().unwrap_err();
            assert_eq!(*code(&error), SqlState::QUERY_CANCELED, "{error:?}");
        }
        let largest = patiently("after", cells(&client, "SELECT max(n) FROM market.numbers WHERE n < 1000")).await;
        assert_eq!(largest, [[Some("999".to_owned())]]);

        // One whose client goes away ends as well, and one that runs when the server stops.
        let left = heavy(&served, HEAVY[2]).await;
        left.ended.abort();
        let last = heavy(&served, HEAVY[1]).await;
        drop(client);
        let stopped = server.spawn(served.server.shutdown());
        patiently("stop", stopped).await.unwrap();
        assert!(patiently("stopped", last.ended).await.unwrap().is_err());
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_queries_is_one_budget_whoever_asks() {
    let site = Site::new();
    let tls = site.issue("sitea");
    let node = Node::with(|config| {
        config.tls = Some(tls.clone());
        config.memory_bytes = 32 << 20;
    })
    .await;
    let flight = FlightServer::start(node.factory.clone(), ([127, 0, 0, 1], 0).into()).await.unwrap();
    let served = site::Served { node, flight };
    let local = served.node.client(None);
    local.tag("CREATE DATABASE market").await;
    local.tag("CREATE TABLE market.numbers (n BIGINT)").await;
    local.tag("INSERT INTO market.numbers SELECT value FROM generate_series(1, 500000)").await;
    // One side stays in memory until the last row is read.
    let sql = "SELECT a.n + b.n AS n FROM market.numbers a CROSS JOIN market.numbers b";

    let mut held = Vec::new();
    let state = loop {
        assert!(held.len() < 64, "the budget has no end");
        let session = served.node.client(None);
        let statement = session.0.parse(sql).unwrap().remove(0);
        let Outcome::Rows(mut rows) =
            session.0.execute(&statement, Vec::new(), CancellationToken::new()).await.unwrap()
        else {
            panic!("no rows")
        };
        match rows.next().await.unwrap() {
            Ok(_) => held.push(rows),
            Err(error) => break tailrace_sql::SqlError::from(error).sqlstate,
        }
    };
    assert_eq!(state, "53200");
    assert!(!held.is_empty());

    let mut client = served.client(&tls).await;
    let error = first_batch(&mut client, sql).await.unwrap_err();
    assert!(error.contains("53200"), "{error}");
    drop(held);
    let waiting = async {
        // What was dropped ends by itself.
        while first_batch(&mut client, sql).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    patiently("memory is given back", waiting).await;
    drop(client);
    served.flight.shutdown().await;
}

/// Whether there are rows; the error in words.
async fn first_batch(
    client: &mut arrow_flight::sql::client::FlightSqlServiceClient<tonic::transport::Channel>,
    sql: &str,
) -> Result<(), String> {
    let words = |error: arrow_flight::error::FlightError| format!("{error:?}");
    let info = client.execute(sql.to_owned(), None).await.map_err(words)?;
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut rows = client.do_get(ticket).await.map_err(words)?;
    rows.next().await.unwrap().map(|_| ()).map_err(words)
}
