//! `query`: five queries over hot rows, over datafiles, and over DataFusion's own memory table; and what it costs to hand a plan
//! over to the query threads.

use std::sync::Arc;

use criterion::Criterion;
use datafusion::{datasource::MemTable, prelude::SessionContext};
use futures::TryStreamExt;
use tailrace_engine::Durability;
use tailrace_sql::{Instance, Outcome, Remotes, Session, SessionFactory, SqlConfig};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::support::{Bed, bars};

const QUERIES: [(&str, &str); 5] = [
    ("count", "SELECT count(*) FROM bars"),
    (
        "group_by",
        "SELECT security_id, avg(last_px), max(high_px), min(low_px), sum(volume) FROM bars GROUP BY security_id",
    ),
    ("sums", "SELECT sum(last_px), sum(amount), max(high_px) FROM bars"),
    ("point", "SELECT * FROM bars WHERE security_id = '001234'"),
    ("top", "SELECT * FROM bars ORDER BY amount DESC LIMIT 10"),
];

pub(crate) fn group(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let batches = bars();

    let memory = SessionContext::new();
    let table = MemTable::try_new(batches[0].schema(), vec![batches.clone()]).unwrap();
    memory.register_table("bars", Arc::new(table)).unwrap();

    let bed = runtime.block_on(Bed::with_table());
    runtime.block_on(bed.load(&batches, Durability::Durable));
    let session = runtime.block_on(session(&bed));

    for (name, sql) in QUERIES {
        criterion.bench_function(&format!("query/{name}/baseline_datafusion_memory"), |bencher| {
            bencher.iter(|| runtime.block_on(async { memory.sql(sql).await.unwrap().collect().await.unwrap() }));
        });
        criterion.bench_function(&format!("query/{name}/hot"), |bencher| {
            bencher.iter(|| runtime.block_on(rows(&session, sql)));
        });
    }
    // The most rows that a plan may look at where it is asked for, and one more.
    for (name, count) in [("not_handed_over", 16 << 10), ("handed_over", (16 << 10) + 1)] {
        let fill =
            format!("CREATE TABLE {name} (n BIGINT); INSERT INTO {name} SELECT value FROM generate_series(1, {count})");
        runtime.block_on(run(&session, &fill));
        let sql = format!("SELECT n FROM {name} WHERE n = 5");
        criterion.bench_function(&format!("query/{name}"), |bencher| {
            bencher.iter(|| runtime.block_on(rows(&session, &sql)));
        });
    }
    runtime.block_on(bed.engine.flush()).unwrap();
    for (name, sql) in QUERIES {
        criterion.bench_function(&format!("query/{name}/flushed"), |bencher| {
            bencher.iter(|| runtime.block_on(rows(&session, sql)));
        });
    }
}

async fn session(bed: &Bed) -> Session {
    let config = SqlConfig {
        node_name: "bench".into(),
        pgwire: ([127, 0, 0, 1], 0).into(),
        tls: None,
        files_allow: Vec::new(),
        memory_bytes: 4 << 30,
        threads: 0,
        statement_timeout: None,
        settings: Vec::new(),
    };
    let jobs = tailrace_sql::Jobs::new(Arc::clone(&bed.engine), std::num::NonZeroUsize::MIN);
    let remotes = Arc::new(Remotes::new(Arc::clone(&bed.engine), None, Vec::new()));
    let instance = Instance { engine: Arc::clone(&bed.engine), publisher: None, follower: None, remotes, jobs, config };
    SessionFactory::new(Arc::new(instance)).await.unwrap().session("bench", Some("market"))
}

async fn run(session: &Session, sql: &str) {
    for statement in session.parse(sql).unwrap() {
        session.execute(&statement, Vec::new(), CancellationToken::new()).await.unwrap();
    }
}

async fn rows(session: &Session, sql: &str) -> usize {
    let statement = session.parse(sql).unwrap().remove(0);
    match session.execute(&statement, Vec::new(), CancellationToken::new()).await.unwrap() {
        Outcome::Rows(stream) => {
            stream.try_fold(0, |sum, batch| async move { Ok(sum + batch.num_rows()) }).await.unwrap()
        }
        Outcome::Done { .. } => panic!("a query gives rows"),
    }
}
