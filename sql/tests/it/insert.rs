use datafusion::common::ScalarValue;

use crate::node::Node;

#[tokio::test]
async fn literal_rows_and_missing_columns() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (a INT NOT NULL, b TEXT, c TIMESTAMP(0), d DECIMAL(8, 2), e BYTEA, f BOOLEAN)").await;
    let sql = "INSERT INTO t VALUES (1, 'x', '2023-01-08 09:30:00', 1.255, '\\x00ff', true), (2, NULL, NULL, NULL, NULL, NULL)";
    assert_eq!(client.tag(sql).await, "INSERT 0 2");
    assert_eq!(client.tag("INSERT INTO t (b, a) VALUES ('y', 3)").await, "INSERT 0 1");
    assert_eq!(
        client.rows("SELECT a, b, c, e, f FROM t ORDER BY a").await,
        ["1|x|2023-01-08T09:30:00|00ff|true", "2||||", "3|y|||"]
    );
    // An expression is planned, with the same casts.
    assert_eq!(
        client.tag("INSERT INTO t (a, c) VALUES (2 + 2, TIMESTAMP '2023-01-08' + INTERVAL '1 hour')").await,
        "INSERT 0 1"
    );
    assert_eq!(client.rows("SELECT c FROM t WHERE a = 4").await, ["2023-01-08T01:00:00"]);
}

#[tokio::test]
async fn values_that_do_not_fit_are_refused_with_the_column() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (a INT NOT NULL, b SMALLINT, c TIMESTAMP(0), d DECIMAL(4, 2), e BOOLEAN)").await;
    for (values, state, column) in [
        ("(NULL, 1, NULL, 1, NULL)", "23502", "a"),
        ("('x', 1, NULL, 1, NULL)", "22P02", "a"),
        ("(1, 40000, NULL, 1, NULL)", "22003", "b"),
        ("(1, 1, 'noon', 1, NULL)", "22007", "c"),
        ("(1, 1, 5, 1, NULL)", "42804", "c"),
        ("(1, 1, NULL, 123.45, NULL)", "22003", "d"),
        ("(1, 1, NULL, 1, 7)", "42804", "e"),
    ] {
        let error = client.error(&format!("INSERT INTO t VALUES {values}")).await;
        assert_eq!(error.sqlstate, state, "{values}: {error:?}");
        assert!(error.message.contains(&format!("{column:?}")), "{values}: {error:?}");
    }
    assert_eq!(client.state("INSERT INTO t VALUES (1)").await, "42601");
    assert_eq!(client.state("INSERT INTO t (a, nope) VALUES (1, 2)").await, "42703");
    assert_eq!(client.state("INSERT INTO t (a, a) VALUES (1, 2)").await, "42701");
    assert_eq!(client.state("INSERT INTO t (b) VALUES (1)").await, "23502");
    assert_eq!(client.state("INSERT INTO t (a) VALUES (1) ON CONFLICT DO NOTHING").await, "0A000");
    assert_eq!(client.state("INSERT INTO t (a) VALUES (1) RETURNING a").await, "0A000");
    assert_eq!(client.state("INSERT INTO t (a) SELECT 5000000000").await, "22003");
    assert_eq!(client.state("INSERT INTO t (a) SELECT true").await, "42804");
    assert_eq!(client.state("INSERT INTO nope VALUES (1)").await, "42P01");
    assert_eq!(client.state("INSERT INTO system.databases VALUES (1)").await, "42501");
    assert_eq!(client.rows("SELECT count(*) FROM t").await, ["0"]);
}

#[tokio::test]
async fn parameters_have_the_types_of_their_columns() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (a INT, b TEXT, c TIMESTAMP(3))").await;
    let statement = client.0.parse("INSERT INTO t VALUES ($1, $2, $3)").unwrap().remove(0);
    let (types, schema) = client.0.describe(&statement).await.unwrap();
    let types: Vec<String> = types.into_iter().map(|t| t.unwrap().to_string()).collect();
    assert_eq!(types, ["Int32", "Utf8", "Timestamp(ms)"]);
    assert!(schema.fields().is_empty());
    let values = vec![
        ScalarValue::Int32(Some(1)),
        ScalarValue::Utf8(None),
        ScalarValue::TimestampMillisecond(Some(1_673_170_200_123), None),
    ];
    assert_eq!(client.run_with("INSERT INTO t VALUES ($1, $2, $3)", values).await.unwrap(), "INSERT 0 1");
    assert_eq!(client.rows("SELECT * FROM t").await, ["1||2023-01-08T09:30:00.123"]);

    let statement = client.0.parse("SELECT b FROM t WHERE a = $1 AND c > $2").unwrap().remove(0);
    let (types, schema) = client.0.describe(&statement).await.unwrap();
    let types: Vec<String> = types.into_iter().map(|t| t.unwrap().to_string()).collect();
    assert_eq!((types, schema.field(0).name().as_str()), (vec!["Int32".to_owned(), "Timestamp(ms)".to_owned()], "b"));
    // Values are cast to what the plan wants.
    let values = vec![ScalarValue::Int64(Some(1)), ScalarValue::Utf8(Some("2023-01-01".to_owned()))];
    let rows = client.run_with("SELECT a FROM t WHERE a = $1 AND c > $2", values).await.unwrap();
    assert_eq!(crate::node::cells(&rows), ["1"]);
    assert_eq!(client.run_with("SELECT $1", vec![]).await.unwrap_err().sqlstate, "08P01");
}

#[tokio::test]
async fn rows_are_generated_as_tutorials_do() {
    let (node, client) = Node::market().await;
    client
        .tag(
            "CREATE TABLE bars (security_id TEXT, datetime TIMESTAMP(0), last_px DOUBLE PRECISION, volume INT) \
             PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)",
        )
        .await;
    let sql = "INSERT INTO bars SELECT lpad(cast(s.value AS text), 6, '0'), \
               TIMESTAMP '2023-01-08 09:30:00' + m.value * INTERVAL '1 minute', \
               round(10 + random() * 100, 2), cast(100 + floor(random() * 100) AS int) \
               FROM generate_series(0, 499) AS s(value) CROSS JOIN generate_series(0, 241) AS m(value)";
    assert_eq!(client.tag(sql).await, "INSERT 0 121000");
    let sums =
        "SELECT count(*), count(DISTINCT security_id), min(datetime), max(datetime), min(volume) >= 100 FROM bars";
    let expected = ["121000|500|2023-01-08T09:30:00|2023-01-08T13:31:00|true"];
    assert_eq!(client.rows(sums).await, expected);
    let exact = client.rows("SELECT sum(volume), sum(last_px)::decimal(18, 2) FROM bars").await;
    node.engine.flush().await.unwrap();
    assert_eq!(client.rows(sums).await, expected);
    assert_eq!(client.rows("SELECT sum(volume), sum(last_px)::decimal(18, 2) FROM bars").await, exact);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_lose_nothing() {
    let (node, client) = Node::market().await;
    client.tag("CREATE TABLE t (writer INT, n INT)").await;
    let node = std::sync::Arc::new(node);
    let writers = (0..8).map(|writer| {
        let node = node.clone();
        tokio::spawn(async move {
            let client = node.client(Some("market"));
            for n in 0..50 {
                client.tag(&format!("INSERT INTO t VALUES ({writer}, {n})")).await;
                if n == 25 {
                    node.engine.flush().await.unwrap();
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    assert_eq!(client.rows("SELECT count(*), sum(n) FROM t").await, ["400|9800"]);
    assert_eq!(client.rows("SELECT count(*) FROM (SELECT DISTINCT writer, n FROM t)").await, ["400"]);
}
