//! ALTER TABLE … DROP PARTITION.

use crate::node::Node;

#[tokio::test]
async fn partitions_are_named_by_their_values() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE bars (id INT, at TIMESTAMP(0)) PARTITION BY VALUE (day(at))").await;
    let days = "(1, '2023-01-08 10:00:00'), (2, '2023-01-09 10:00:00'), (3, '2023-01-10 10:00:00'), (4, NULL), \
                (5, '2023-01-12 10:00:00')";
    client.tag(&format!("INSERT INTO bars VALUES {days}")).await;
    let ids = "SELECT id FROM bars ORDER BY id";
    assert_eq!(client.tag("ALTER TABLE market.bars DROP PARTITION ('2023-01-08')").await, "ALTER TABLE");
    assert_eq!(client.rows(ids).await, ["2", "3", "4", "5"]);
    let gone = client.error("ALTER TABLE bars DROP PARTITION ('2023-01-08')").await;
    assert_eq!(gone.sqlstate, "42704");
    assert!(gone.message.contains("('2023-01-08')"), "{}", gone.message);
    // One that is not there refuses the whole statement.
    assert_eq!(client.state("ALTER TABLE bars DROP PARTITION (NULL, '2023-01-11')").await, "42704");
    assert_eq!(client.rows(ids).await, ["2", "3", "4", "5"]);
    client.tag("ALTER TABLE bars DROP IF EXISTS PARTITION (NULL, '2023-01-11', DATE '2023-01-09')").await;
    assert_eq!(client.rows(ids).await, ["3", "5"]);
    client.tag("ALTER TABLE bars DROP PARTITION ('2023-01-10'), DROP PARTITION (('2023-01-12'))").await;
    assert_eq!(client.rows("SELECT count(*) FROM bars").await, ["0"]);
    assert!(client.rows("SELECT partition FROM system.partitions").await.is_empty());
}

#[tokio::test]
async fn tuples_quotes_and_numbers() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (name TEXT, number INT, flag BOOLEAN) PARTITION BY VALUE (name, number)").await;
    client
        .tag(
            "INSERT INTO t VALUES ('it''s', -1, true), ('NULL', 2, true), (NULL, 2, false), ('%_/\\', 3, true), \
             ('', 4, true), ('it''s', 5, true)",
        )
        .await;
    let left = "SELECT number FROM t ORDER BY number, name NULLS LAST";
    client.tag("ALTER TABLE t DROP PARTITION ('it''s', -1)").await;
    assert_eq!(client.rows(left).await, ["2", "2", "3", "4", "5"]);
    client.tag("ALTER TABLE t DROP PARTITION (NULL, 2)").await;
    assert_eq!(client.rows("SELECT name FROM t WHERE number = 2").await, ["NULL"]);
    client.tag("ALTER TABLE t DROP PARTITION (('%_/\\', 3), ('', '4'), ('it''s', 5))").await;
    assert_eq!(client.rows(left).await, ["2"]);
    for (sql, wanted) in [
        ("ALTER TABLE t DROP PARTITION ('NULL')", "42601"),
        ("ALTER TABLE t DROP PARTITION ('NULL', 2, 3)", "42601"),
        ("ALTER TABLE t DROP PARTITION (('NULL', 2), 3)", "42601"),
        ("ALTER TABLE t DROP PARTITION (('NULL', 2, 3))", "42601"),
        ("ALTER TABLE t DROP PARTITION (('NULL', 1 + 1))", "42601"),
        ("ALTER TABLE t DROP PARTITION (('NULL', 7))", "42704"),
        ("ALTER TABLE nothing DROP PARTITION ('a')", "42P01"),
        ("ALTER TABLE t ADD COLUMN b INT", "0A000"),
        ("ALTER TABLE t DROP PARTITION (('NULL', 2)), ADD COLUMN b INT", "0A000"),
        ("ALTER TABLE system.tables DROP PARTITION ('a')", "42501"),
    ] {
        let error = client.error(sql).await;
        assert_eq!(error.sqlstate, wanted, "{sql}: {}", error.message);
    }
    assert_eq!(client.tag("ALTER TABLE IF EXISTS nothing DROP PARTITION ('a')").await, "ALTER TABLE");
    client.tag("CREATE TABLE plain (a INT)").await;
    assert_eq!(client.state("ALTER TABLE plain DROP PARTITION ('a')").await, "42P16");
    assert_eq!(client.rows(left).await, ["2"]);
}

#[tokio::test]
async fn with_rows_it_is_one_transaction() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE t (id INT, day DATE) PARTITION BY VALUE (day)").await;
    client.tag("INSERT INTO t VALUES (1, '2023-01-08'), (2, '2023-01-09')").await;
    client.tag("BEGIN; ALTER TABLE t DROP PARTITION ('2023-01-08'); INSERT INTO t VALUES (3, '2023-01-08')").await;
    assert_eq!(client.rows("SELECT id FROM t ORDER BY id").await, ["1", "2"]);
    client.tag("COMMIT").await;
    assert_eq!(client.rows("SELECT id FROM t ORDER BY id").await, ["2", "3"]);
    client.tag("BEGIN; ALTER TABLE t DROP PARTITION ('2023-01-08'); ROLLBACK").await;
    assert_eq!(client.rows("SELECT id FROM t ORDER BY id").await, ["2", "3"]);
    // The feed has a row for it, with the partition's value.
    let changes = "SELECT _seq, _op, id, day FROM changes('market.t', from_seq => 4) ORDER BY _seq, _ordinal, _op";
    assert_eq!(client.rows(changes).await, ["4|drop_partition||2023-01-08", "4|insert|3|2023-01-08"]);
}
