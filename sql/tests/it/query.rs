use crate::node::{Client, Node};

/// Ten days of a thousand rows; odd days in files.
async fn days(node: &Node, client: &Client) {
    client
        .tag(
            "CREATE TABLE ticks (id INT NOT NULL, at TIMESTAMP(0), name TEXT, px DOUBLE PRECISION) \
             PARTITION BY VALUE (day(at)) ORDER BY (id)",
        )
        .await;
    for parity in [1, 0] {
        let sql = format!(
            "INSERT INTO ticks SELECT d.value * 1000 + n.value, \
             TIMESTAMP '2023-01-01' + d.value * INTERVAL '1 day' + n.value * INTERVAL '1 second', \
             'n' || n.value, n.value / 2.0 FROM generate_series(0, 9) d, generate_series(0, 999) n \
             WHERE d.value % 2 = {parity}"
        );
        assert_eq!(client.tag(&sql).await, "INSERT 0 5000");
        if parity == 1 {
            node.engine.flush().await.unwrap();
        }
    }
}

#[tokio::test]
async fn rows_in_memory_and_in_files_are_one_table() {
    let (node, client) = Node::market().await;
    days(&node, &client).await;
    assert_eq!(
        client.rows("SELECT count(*), sum(id), min(at), max(at) FROM ticks").await,
        ["10000|49995000|2023-01-01T00:00:00|2023-01-10T00:16:39"]
    );
    let by_day = client.rows("SELECT date_trunc('day', at) d, count(*) FROM ticks GROUP BY d ORDER BY d").await;
    assert_eq!(by_day.len(), 10);
    assert!(by_day.iter().all(|row| row.ends_with("|1000")), "{by_day:?}");
    assert_eq!(client.rows("SELECT * FROM ticks WHERE id = 1007").await, ["1007|2023-01-02T00:00:07|n7|3.5"]);
    assert_eq!(client.rows("SELECT id FROM ticks ORDER BY id DESC LIMIT 2").await, ["9999", "9998"]);
    // Nobody sees the hidden columns.
    assert_eq!(client.state("SELECT _seq FROM ticks").await, "42703");
}

#[tokio::test]
async fn a_count_is_answered_without_reading() {
    let (node, client) = Node::market().await;
    days(&node, &client).await;
    for sql in ["EXPLAIN SELECT count(*) FROM ticks", "EXPLAIN SELECT count(id) FROM ticks"] {
        let plan = client.tag(sql).await;
        assert!(plan.contains("PlaceholderRowExec") && !plan.contains("DataSourceExec"), "{plan}");
    }
    node.engine.flush().await.unwrap();
    let plan = client.tag("EXPLAIN SELECT min(id), max(at), count(*) FROM ticks").await;
    assert!(plan.contains("PlaceholderRowExec") && !plan.contains("DataSourceExec"), "{plan}");
    assert_eq!(client.rows("SELECT min(id), max(at), count(*) FROM ticks").await, ["0|2023-01-10T00:16:39|10000"]);
}

#[tokio::test]
async fn partitions_and_files_that_cannot_match_are_not_read() {
    let (node, client) = Node::market().await;
    days(&node, &client).await;
    node.engine.flush().await.unwrap();
    let files = async |filter: &str| {
        let plan = client.tag(&format!("EXPLAIN SELECT name FROM ticks WHERE {filter}")).await;
        plan.matches(".parquet").count()
    };
    assert_eq!(files("px >= 0").await, 10);
    assert_eq!(files("at >= '2023-01-04 00:00:00' AND at < '2023-01-06'").await, 2);
    assert_eq!(files("at = '2023-01-04 00:00:05'").await, 1);
    assert_eq!(files("at BETWEEN TIMESTAMP '2023-01-09' AND TIMESTAMP '2023-02-01'").await, 2);
    assert_eq!(files("id IN (5, 3005)").await, 2);
    assert_eq!(files("id = 8500").await, 1);
    assert_eq!(files("at IS NULL").await, 0);
    assert_eq!(files("at < '2022-01-01'").await, 0);
    assert_eq!(
        client.rows("SELECT count(*) FROM ticks WHERE at >= '2023-01-04' AND at < '2023-01-06'").await,
        ["2000"]
    );
    assert_eq!(client.rows("SELECT count(*) FROM ticks WHERE id IN (5, 3005) OR at = '2023-01-10'").await, ["3"]);
    let plan = client.tag("EXPLAIN ANALYZE SELECT name FROM ticks WHERE id = 8500").await;
    assert!(plan.contains("output_rows=1") && plan.contains("rows returned: 1"), "{plan}");
}

#[tokio::test]
async fn partitions_by_value_and_null_are_pruned() {
    let (node, client) = Node::market().await;
    client.tag("CREATE TABLE p (k TEXT, n INT, v INT) PARTITION BY VALUE (k, n)").await;
    client.tag("INSERT INTO p VALUES ('a', 1, 1), ('a', 2, 2), ('b', 1, 3), (NULL, 1, 4), ('b', NULL, 5)").await;
    for flushed in [false, true] {
        if flushed {
            node.engine.flush().await.unwrap();
        }
        assert_eq!(client.rows("SELECT v FROM p WHERE k = 'a' ORDER BY v").await, ["1", "2"]);
        assert_eq!(client.rows("SELECT v FROM p WHERE k IS NULL").await, ["4"]);
        assert_eq!(client.rows("SELECT v FROM p WHERE n IS NULL").await, ["5"]);
        assert_eq!(client.rows("SELECT v FROM p WHERE k = 'b' AND n = 1").await, ["3"]);
        assert_eq!(client.rows("SELECT v FROM p WHERE k <> 'a' ORDER BY v").await, ["3", "5"]);
        assert_eq!(client.rows("SELECT count(*) FROM p WHERE v > 2").await, ["3"]);
    }
    let plan = client.tag("EXPLAIN SELECT v FROM p WHERE k = 'a'").await;
    assert_eq!(plan.matches(".parquet").count(), 2, "{plan}");
}

#[tokio::test]
async fn a_statement_reads_one_version() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (a INT); INSERT INTO t VALUES (1)").await;
    // A table that is written from itself sees what was there when the statement began.
    assert_eq!(client.tag("INSERT INTO t SELECT a + 1 FROM t UNION ALL SELECT a + 2 FROM t").await, "INSERT 0 2");
    assert_eq!(client.rows("SELECT count(*) FROM t").await, ["3"]);
    // A plan of before does not read a table of another shape.
    let statement = client.0.parse("SELECT * FROM t").unwrap().remove(0);
    client.0.describe(&statement).await.unwrap();
    client.tag("DROP TABLE t; CREATE TABLE t (b TEXT); INSERT INTO t VALUES ('x')").await;
    assert_eq!(client.rows("SELECT * FROM t").await, ["x"]);
}

#[tokio::test]
async fn errors_name_what_is_near() {
    let (node, client) = Node::market().await;
    days(&node, &client).await;
    let error = client.error("SELECT * FROM tick").await;
    assert_eq!(error.sqlstate, "42P01");
    assert!(error.message.contains("tick"), "{error:?}");
    let error = client.error("SELECT nam FROM ticks").await;
    assert_eq!((error.sqlstate.as_ref(), error.position), ("42703", Some(8)), "{error:?}");
    assert!(error.hint.unwrap().contains("name"));
    assert_eq!(client.state("SELECT * FROM nowhere.ticks").await, "42P01");
    assert_eq!(client.state("SELECT nofunction(1)").await, "42883");
    assert_eq!(client.state("SELECT sum(name) FROM ticks").await, "42883");
    assert_eq!(client.state("SELECT name, count(*) FROM ticks").await, "42803");
    assert_eq!(client.state("SELECT 1 / 0").await, "22012");
    assert_eq!(client.state("SELECT cast('x' AS int)").await, "22P02");
}
