//! Backup and restore by statements: what picks partitions, and what would be done.

use tailrace_sql::Outcome;
use tokio_util::sync::CancellationToken;

use crate::node::{Client, Node};

/// What a CALL says.
async fn notices(client: &Client, sql: &str) -> Vec<String> {
    let statement = client.0.parse(sql).unwrap().remove(0);
    match client.0.execute(&statement, Vec::new(), CancellationToken::new()).await {
        Ok(Outcome::Done { notices, .. }) => notices.into_iter().map(|notice| notice.text).collect(),
        Ok(Outcome::Rows(_)) => panic!("{sql} gave rows"),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

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
    client.tag("INSERT INTO bars SELECT * FROM bars").await;
    let replace = restore("at < ''2023-01-09''", "market.bars").replace("create => true", "mode => 'replace'");
    client.tag(&replace).await;
    assert_eq!(client.rows("SELECT count(*) FROM bars").await, ["900"]);
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

#[tokio::test]
async fn a_dry_run_of_a_backup_writes_nothing_and_foretells_what_a_backup_writes() {
    let (node, client) = Node::market().await;
    bars(&client).await;
    let folder = node.folder.path().canonicalize().unwrap().join("files/backups");
    let place = folder.display();
    let backup = format!("CALL backup('{place}', database => 'market')");
    let dry = backup.replace(")", ", dry_run => true)");
    let said = notices(&client, &dry).await;
    assert!(!folder.exists(), "not even the folder");
    assert!(said[0].contains("10 partitions with 500 rows") && said[0].contains("write 10 partitions"), "{said:?}");
    assert!(said[1].contains("nothing was written") && said[1].contains("market at seq 3"), "{said:?}");
    // `write 1 partitions, 1 files of 1234 bytes` in both, behind different words.
    let written = |said: &str| {
        let (_, rest) = said.split_once("write ").or_else(|| said.split_once("written ")).unwrap();
        rest.split(" bytes").next().unwrap().to_owned()
    };
    let done = notices(&client, &backup).await;
    assert_eq!(written(&done[0]), written(&said[0]));
    client.tag("INSERT INTO bars VALUES (7, '2023-01-10', 'SH')").await;
    let before = client.rows(&format!("SELECT count(*) FROM get_backup_list('{place}')")).await;
    let said = notices(&client, &dry).await;
    assert!(said[0].contains("write 1 partitions, 1 files"), "{said:?}");
    assert_eq!(client.rows(&format!("SELECT count(*) FROM get_backup_list('{place}')")).await, before);
    let done = notices(&client, &backup).await;
    assert_eq!(written(&done[0]), written(&said[0]));
    let said = notices(&client, &dry).await;
    assert!(said[0].contains("write 0 partitions, 0 files of 0 bytes"), "{said:?}");
    let forced = notices(&client, &dry.replace(", dry_run", ", force => true, dry_run")).await;
    assert!(forced[0].contains("write 10 partitions"), "{forced:?}");
    // It is refused where a backup is.
    assert_eq!(client.state(&dry.replace("'market'", "'none'")).await, "3F000");
    assert_eq!(client.state("CALL backup('/etc/backups', dry_run => true)").await, "42501");
    assert_eq!(client.state(&format!("CALL backup('{place}', 'SELECT * FROM bars', dry_run => true)")).await, "0A000");
}
