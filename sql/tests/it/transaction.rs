use crate::node::Node;

#[tokio::test]
async fn rows_appear_at_commit_in_all_tables() {
    let (node, client) = Node::market().await;
    client.tag("CREATE TABLE a (x INT); CREATE TABLE b (x INT)").await;
    let other = node.client(Some("market"));
    assert_eq!(client.tag("BEGIN").await, "BEGIN");
    assert_eq!(client.0.transaction_status(), 'T');
    client.tag("INSERT INTO a VALUES (1); INSERT INTO b SELECT 2").await;
    // Each statement reads what is committed, the session's own too.
    assert_eq!(client.rows("SELECT count(*) FROM a").await, ["0"]);
    assert_eq!(other.rows("SELECT count(*) FROM a").await, ["0"]);
    assert_eq!(client.tag("COMMIT").await, "COMMIT");
    assert_eq!(client.0.transaction_status(), 'I');
    assert_eq!(other.rows("SELECT * FROM a UNION ALL SELECT * FROM b").await.len(), 2);

    client.tag("BEGIN; INSERT INTO a VALUES (3)").await;
    assert_eq!(client.tag("ROLLBACK").await, "ROLLBACK");
    assert_eq!(client.rows("SELECT count(*) FROM a").await, ["1"]);
}

#[tokio::test]
async fn a_failed_transaction_ignores_statements_until_its_end() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE TABLE a (x INT)").await;
    client.tag("BEGIN; INSERT INTO a VALUES (1)").await;
    assert_eq!(client.state("INSERT INTO a VALUES ('x')").await, "22P02");
    assert_eq!(client.0.transaction_status(), 'E');
    assert_eq!(client.state("SELECT 1").await, "25P02");
    assert_eq!(client.tag("COMMIT").await, "ROLLBACK");
    assert_eq!(client.0.transaction_status(), 'I');
    assert_eq!(client.rows("SELECT count(*) FROM a").await, ["0"]);
    // An error among the rows fails it as well.
    client.tag("BEGIN").await;
    client.error("SELECT 1 / (x - x) FROM (VALUES (1)) t(x)").await;
    assert_eq!(client.0.transaction_status(), 'E');
    client.tag("ROLLBACK").await;
}

#[tokio::test]
async fn a_transaction_has_one_database_and_no_ddl() {
    let (_node, client) = Node::market().await;
    client.tag("CREATE DATABASE other; CREATE TABLE a (x INT); CREATE TABLE other.a (x INT)").await;
    client.tag("BEGIN; INSERT INTO a VALUES (1)").await;
    let error = client.error("INSERT INTO other.a VALUES (1)").await;
    assert!(error.message.contains("market") && error.detail.unwrap().contains("other"));
    client.tag("ROLLBACK").await;
    for sql in ["CREATE DATABASE x", "DROP DATABASE market", "CREATE TABLE t (a INT)", "DROP TABLE a", "CALL x()"] {
        client.tag("BEGIN").await;
        assert_eq!(client.state(sql).await, "25001", "{sql}");
        client.tag("ROLLBACK").await;
    }
}

#[tokio::test]
async fn settings_of_a_transaction_end_with_it() {
    let (_node, client) = Node::market().await;
    client.tag("BEGIN; SET LOCAL synchronous_commit = off").await;
    assert_eq!(client.rows("SHOW synchronous_commit").await, ["off"]);
    client.tag("COMMIT").await;
    assert_eq!(client.rows("SHOW synchronous_commit").await, ["on"]);
    client.tag("BEGIN; SET synchronous_commit = off").await;
    client.tag("ROLLBACK").await;
    assert_eq!(client.rows("SHOW synchronous_commit").await, ["on"]);
    client.tag("BEGIN; SET synchronous_commit = off; COMMIT").await;
    assert_eq!(client.rows("SHOW synchronous_commit").await, ["off"]);
}
