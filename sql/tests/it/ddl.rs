use crate::node::Node;

const BARS: &str = "CREATE TABLE market.bars (security_id TEXT NOT NULL, datetime TIMESTAMP(0), open_px DOUBLE PRECISION, \
                    volume INT) PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)";

#[tokio::test]
async fn databases_and_tables_come_and_go() {
    let node = Node::new().await;
    let client = node.client(None);
    assert_eq!(client.tag("CREATE DATABASE market").await, "CREATE DATABASE");
    assert_eq!(client.state("CREATE DATABASE market").await, "42P04");
    assert_eq!(client.tag("CREATE DATABASE IF NOT EXISTS market").await, "CREATE DATABASE");
    assert_eq!(client.tag(BARS).await, "CREATE TABLE");
    assert_eq!(client.state(BARS).await, "42P07");
    let version = node.engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    assert_eq!(table.table.partition_by.len(), 1);
    assert_eq!(table.table.order_by.len(), 2);
    assert!(!table.schema.field(0).is_nullable());
    assert_eq!(client.state("DROP DATABASE market RESTRICT").await, "2BP01");
    assert_eq!(client.tag("DROP TABLE market.bars").await, "DROP TABLE");
    assert_eq!(client.state("DROP TABLE market.bars").await, "42P01");
    assert_eq!(client.tag("DROP TABLE IF EXISTS market.bars, market.other").await, "DROP TABLE");
    assert_eq!(client.tag("DROP DATABASE market").await, "DROP DATABASE");
    assert_eq!(client.state("DROP DATABASE market").await, "3F000");
    assert_eq!(client.tag("DROP DATABASE IF EXISTS market").await, "DROP DATABASE");
}

#[tokio::test]
async fn every_type_has_a_name() {
    let (node, client) = Node::market().await;
    client
        .tag(
            "CREATE TABLE types (a TINYINT, b SMALLINT, c INT, d INTEGER, e BIGINT, f REAL, g FLOAT, h DOUBLE PRECISION, \
             i FLOAT8, j DECIMAL(10, 2), k NUMERIC(5), l BOOLEAN, m TEXT, n VARCHAR(10), o CHAR(3), p BYTEA, q DATE, \
             r TIMESTAMP, s TIMESTAMP(0), t TIMESTAMP(3), u TIMESTAMP(9), v TIMESTAMPTZ, w TIMESTAMP WITH TIME ZONE, \
             x INT4, y INT8, z INT2)",
        )
        .await;
    let version = node.engine.version();
    let schema = version.database("market").unwrap().table("types").unwrap().schema.clone();
    let types: Vec<String> = schema.fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(
        types.join(", "),
        "Int8, Int16, Int32, Int32, Int64, Float32, Float64, Float64, Float64, Decimal128(10, 2), Decimal128(5, 0), \
         Boolean, Utf8, Utf8, Utf8, Binary, Date32, Timestamp(µs), Timestamp(s), Timestamp(ms), Timestamp(ns), \
         Timestamp(µs, \"UTC\"), Timestamp(µs, \"UTC\"), Int32, Int64, Int16"
    );
}

#[tokio::test]
async fn what_tables_cannot_have_is_refused_by_name() {
    let (_node, client) = Node::market().await;
    for (definition, name) in [
        ("(a INT PRIMARY KEY)", "PRIMARY KEY"),
        ("(a INT, PRIMARY KEY (a))", "PRIMARY KEY"),
        ("(a INT UNIQUE)", "UNIQUE"),
        ("(a INT DEFAULT 1)", "DEFAULT"),
        ("(a INT CHECK (a > 0))", "CHECK"),
        ("(a INT REFERENCES b (c))", "REFERENCES"),
        ("(a JSONB)", "JSONB"),
        ("(a TIMESTAMP(4))", "TIMESTAMP(4)"),
        ("(a INT) PARTITION BY VALUE (bucket(4, a))", "bucket"),
        ("(a INT) PARTITION BY RANGE (a)", "RANGE"),
        ("AS SELECT 1", "AS"),
    ] {
        let error = client.error(&format!("CREATE TABLE t {definition}")).await;
        assert_eq!(error.sqlstate, "0A000", "{definition}: {error:?}");
        assert!(error.message.contains(name), "{definition}: {error:?}");
    }
    assert_eq!(client.state("CREATE TABLE t (a INT) ORDER BY (b)").await, "42703");
    assert_eq!(client.state("CREATE TABLE t (a INT) PARTITION BY VALUE (day(b))").await, "42703");
    assert_eq!(client.state("CREATE DATABASE system").await, "42939");
    assert_eq!(client.state("CREATE DATABASE pg_temp").await, "42939");
}

#[tokio::test]
async fn names_are_looked_up_in_the_current_database() {
    let node = Node::new().await;
    let client = node.client(Some("nowhere"));
    client.tag("CREATE DATABASE market").await;
    let error = client.error("CREATE TABLE t (a INT)").await;
    assert_eq!(error.sqlstate, "3F000");
    assert!(error.hint.unwrap().contains("search_path"));
    client.tag("SET search_path TO market").await;
    client.tag("CREATE TABLE t (a INT); INSERT INTO t VALUES (1)").await;
    assert_eq!(client.rows("SELECT * FROM t").await, ["1"]);
    assert_eq!(client.rows("SELECT * FROM market.t").await, ["1"]);
    assert_eq!(client.rows("SELECT * FROM tailrace.market.t").await, ["1"]);
    assert_eq!(node.client(Some("market")).rows("SELECT * FROM T").await, ["1"]);
    let error = client.error("SET search_path TO markte").await;
    assert_eq!((error.sqlstate.as_ref(), error.hint.unwrap().contains("market")), ("3F000", true));
    client.tag("RESET search_path").await;
    assert_eq!(client.state("SELECT * FROM t").await, "42P01");
}
