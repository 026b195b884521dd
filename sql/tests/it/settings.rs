use std::time::Duration;

use datafusion::common::ScalarValue;
use futures::TryStreamExt;
use tailrace_sql::{Outcome, SqlError};
use tokio_util::sync::CancellationToken;

use crate::node::Node;

#[tokio::test]
async fn what_clients_send_is_understood() {
    let (_node, client) = Node::market().await;
    for sql in [
        "SET application_name = 'test'",
        "SET client_encoding TO 'UTF8'",
        "SET NAMES 'UTF8'",
        "SET DateStyle = 'ISO'",
        "SET datestyle TO ISO, MDY",
        "SET extra_float_digits = 3",
        "SET TIME ZONE 'UTC'",
        "SET TimeZone TO 'Europe/Berlin'",
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        "SET standard_conforming_strings = on",
        "SET statement_timeout = '5s'",
        "SET synchronous_commit = local",
        "RESET ALL",
        "DISCARD ALL",
    ] {
        client.tag(sql).await;
    }
    assert_eq!(client.rows("SHOW server_version").await.len(), 1);
    assert_eq!(client.rows("SHOW TRANSACTION ISOLATION LEVEL").await, ["read committed"]);
    assert_eq!(client.rows("SHOW search_path").await, ["market"]);
    assert!(client.rows("SHOW ALL").await.len() > 20);
    assert_eq!(client.state("SET nonsense = 1").await, "42704");
    assert_eq!(client.state("SHOW nonsense").await, "42704");
    assert_eq!(client.state("SET synchronous_commit = remotely").await, "22023");
    assert_eq!(client.state("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE").await, "0A000");
}

#[tokio::test]
async fn statements_are_refused_by_name() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (a INT)").await;
    for (sql, name) in [
        ("UPDATE t SET a = 1", "UPDATE"),
        ("DELETE FROM t", "DELETE"),
        ("TRUNCATE t", "TRUNCATE"),
        ("MERGE INTO t USING t s ON t.a = s.a WHEN MATCHED THEN DELETE", "MERGE"),
        ("ALTER TABLE t ADD COLUMN b INT", "ALTER TABLE"),
        ("CREATE VIEW v AS SELECT 1", "CREATE VIEW"),
        ("CREATE INDEX i ON t (a)", "CREATE INDEX"),
        ("CREATE SCHEMA s", "CREATE SCHEMA"),
        ("COPY t TO '/tmp/x.csv'", "COPY TO"),
        ("COPY (SELECT 1) TO '/tmp/x.csv'", "COPY TO"),
        ("COPY t FROM PROGRAM 'ls'", "COPY FROM PROGRAM"),
        ("DROP VIEW v", "DROP VIEW"),
        ("GRANT SELECT ON t TO bob", "GRANT"),
        ("EXPLAIN INSERT INTO t VALUES (1)", "EXPLAIN of"),
        ("SELECT 1 INTO x", "INTO"),
        ("SAVEPOINT s", "SAVEPOINT"),
        ("VACUUM t", "VACUUM"),
    ] {
        let error = client.error(sql).await;
        assert_eq!(error.sqlstate, "0A000", "{sql}: {error:?}");
        assert!(error.message.contains(name), "{sql}: {error:?}");
    }
    assert!(!std::path::Path::new("/tmp/x.csv").exists());
    assert_eq!(client.rows("SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test]
async fn syntax_errors_have_a_position() {
    let (_node, client) = Node::market().await;
    let error = client.error("SELECT 1,\n 2 + , 3").await;
    assert_eq!((error.sqlstate.as_ref(), error.position), ("42601", Some(16)), "{error:?}");
    let error = client.error("SELECT 'a").await;
    assert_eq!(error.sqlstate, "42601");
    assert!(client.0.parse("  ; -- nothing\n").unwrap().is_empty());
}

#[tokio::test]
async fn a_long_statement_ends_at_its_timeout_or_when_cancelled() {
    let (_node, client) = Node::market().await;
    let forever = "SELECT count(*) FROM generate_series(1, 100000000000) a WHERE a.value % 7 = 8";
    client.tag("SET statement_timeout = '50ms'").await;
    assert_eq!(client.state(forever).await, "57014");
    client.tag("SET statement_timeout = 0").await;

    let statement = client.0.parse(forever).unwrap().remove(0);
    let cancel = CancellationToken::new();
    let outcome = client.0.execute(&statement, Vec::<ScalarValue>::new(), cancel.clone()).await.unwrap();
    let Outcome::Rows(rows) = outcome else { panic!("a query returns rows") };
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cancel.cancel();
    });
    let error = SqlError::from(rows.try_collect::<Vec<_>>().await.unwrap_err());
    assert_eq!(error.sqlstate, "57014");
}

#[tokio::test]
async fn memory_is_limited() {
    let node = Node::with(|config| config.memory_bytes = 4 << 20).await;
    let client = node.client(None);
    let sql = "SELECT count(*) FROM (SELECT DISTINCT a.value FROM generate_series(1, 3000000) a)";
    let outcome = client.run(sql).await;
    // Spilling to disk serves as well; what must not happen is unlimited growth.
    if let Err(error) = outcome {
        assert_eq!(error.sqlstate, "53200", "{error:?}");
    }
    let sql =
        "SELECT count(*) FROM generate_series(1, 1000000) a JOIN generate_series(1, 1000000) b ON a.value = b.value";
    assert_eq!(client.state(sql).await, "53200");
}
