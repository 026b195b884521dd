//! Backup and restore by statements: what picks partitions.

use crate::node::{Client, Node};

/// Days 8 to 12 of a January with 100 rows each, on two exchanges.
async fn bars(client: &Client) {
    client
        .tag(
            "CREATE TABLE bars (id BIGINT NOT NULL, at TIMESTAMP(0) NOT NULL, exchange TEXT NOT NULL)
             PARTITION BY VALUE (day(at), exchange)",
        )
        .await;
    client
        .tag(
            "INSERT INTO bars SELECT value, TIMESTAMP '2023-01-08' + value % 5 * INTERVAL '1 day',
             CASE WHEN value % 2 = 0 THEN 'SH' ELSE 'SZ' END FROM generate_series(0, 499) AS g(value)",
        )
        .await;
}

#[tokio::test]
async fn a_condition_picks_whole_partitions() {
    let (node, client) = Node::market().await;
    bars(&client).await;
    let place = node.folder.path().canonicalize().unwrap().join("files/backups").display().to_string();
    client.tag(&format!("CALL backup('{place}', table => 'bars', where => 'at >= ''2023-01-10''')")).await;
    client.tag(&format!("CALL backup('{place}', table => 'bars')")).await;
    let listed = client.rows(&format!("SELECT scope, partitions, rows FROM get_backup_list('{place}')")).await;
    assert_eq!(listed, ["table market.bars where at >= '2023-01-10'|6|300", "table market.bars|10|500"]);

    let restore = |condition: &str, into: &str| {
        format!("CALL restore('{place}', table => 'bars', where => '{condition}', into => '{into}', create => true)")
    };
    let some = restore("at >= ''2023-01-08'' AND at < ''2023-01-10'' AND exchange = ''SZ''", "market.some");
    client.tag(&some).await;
    let rows = |table: &str| format!("SELECT count(*), min(at), max(at), min(exchange), max(exchange) FROM {table}");
    assert_eq!(client.rows(&rows("some")).await, ["100|2023-01-08T00:00:00|2023-01-09T00:00:00|SZ|SZ"]);
    // Beside a pattern, both hold; and a rerun finds nothing to do.
    let both = some.replace("exchange =", "exchange <>").replace("where =>", "partitions => '2023-01-09/%', where =>");
    client.tag(&both).await;
    client.tag(&both).await;
    assert_eq!(client.rows("SELECT count(*) FROM some WHERE exchange = 'SH'").await, ["50"]);
    // What is here of other partitions stays, in every mode.
    client.tag("DELETE FROM bars WHERE id < 250").await;
    let replace = restore("at < ''2023-01-09''", "market.bars").replace("create => true", "mode => 'replace'");
    client.tag(&replace).await;
    assert_eq!(client.rows("SELECT count(*) FROM bars").await, ["300"]);
    assert_eq!(client.rows("SELECT count(*) FROM bars WHERE at < '2023-01-09'").await, ["100"]);

    for (condition, words) in [
        ("at >= ''2023-01-08 12:00:00''", "whole partitions"),
        ("id > 7", "is not partitioned by \"id\""),
        ("at >= ''2050-01-01''", "no partition of table bars in the backup meets"),
        ("at >=", "is no condition"),
    ] {
        let error = client.error(&restore(condition, "market.none")).await;
        assert!(error.sqlstate == "22023" && error.message.contains(words), "{condition}: {error:?}");
    }
    assert_eq!(client.state("SELECT * FROM none").await, "42P01", "nothing was made");
    for wrong in [
        format!("CALL restore('{place}', database => 'market', where => 'true')"),
        format!("CALL backup('{place}', where => 'true')"),
        format!("CALL backup('{place}', 'SELECT * FROM bars', where => 'true')"),
        format!("CALL backup('{place}', table => 'bars', where => 'id > 7')"),
    ] {
        assert_eq!(client.state(&wrong).await, "22023", "{wrong}");
    }
    let listed = client.rows(&format!("SELECT count(*) FROM get_backup_list('{place}')")).await;
    assert_eq!(listed, ["2"]);
}
