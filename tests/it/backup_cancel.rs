//! Backups and restores of a real node that are cancelled: by a cancel request, by the limit of a statement, by Ctrl-C, and by a
//! client that is gone.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio_postgres::NoTls;

use crate::harness::{CREATE_TICKS, Node, PATIENCE, SUMS, Site, copy, seed, sums, tailrace};

/// Rows of the table.
const ROWS: u64 = 200_000;
/// Cancels at random moments.
const CANCELS: u32 = 12;

const LAST: &str = "SELECT kind, state FROM get_backup_status() ORDER BY started DESC LIMIT 1";

async fn market(site: &Site) -> Node {
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    node.sql("CREATE DATABASE market").await;
    node.sql(CREATE_TICKS).await;
    node.sql(&copy(&site.ticks_file("bulk.csv", 0..ROWS))).await;
    node
}

/// A query over all rows that takes long, whatever the disk does.
fn slow_query() -> String {
    let hashed = (0..8).fold("CAST(id AS TEXT)".to_owned(), |of, _| format!("md5({of})"));
    format!("SELECT id, at, price FROM market.ticks WHERE {hashed} <> 'x'")
}

/// Nobody is marked as working there.
fn is_unmarked(site: &Site, name: &str) -> bool {
    let marks = std::fs::read_dir(site.path("import").join(name).join("running"));
    marks.map_or(true, |mut marks| marks.next().is_none())
}

/// `tailrace …` of a running node.
fn command(node: &Node, arguments: &[&str]) -> Child {
    let mut command = tailrace();
    command.args(arguments).args(["--address", &node.pgwire().to_string()]);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn until_running(node: &Node) {
    node.wait_for("SELECT count(*) FROM get_backup_status() WHERE state = 'RUNNING'", &[&["1"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_has_not_happened_or_is_whole() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let node = market(&site).await;
    let url = site.path("import/backups").display().to_string();
    let call = format!("CALL backup('{url}', force => true)");
    let begun = Instant::now();
    node.sql(&call).await;
    let backup_takes = begun.elapsed();
    let restore = format!("CALL restore('{url}', table => 'market.ticks', into => 'copy.ticks', create => true)");
    let begun = Instant::now();
    node.sql(&restore).await;
    let restore_takes = begun.elapsed();
    node.sql("DROP DATABASE copy").await;
    let (mut backups, mut cancelled, mut done) = (1, 0, 0);
    for round in 0..CANCELS {
        let is_backup = round % 2 == 0;
        let (statement, takes) = if is_backup { (&call, backup_takes) } else { (&restore, restore_takes) };
        let client = node.connect().await;
        let token = client.client.cancel_token();
        let pause = takes.mul_f64(random.random_range(0.0..1.0));
        let statement = statement.clone();
        let running =
            tokio::spawn(async move { client.try_rows(&statement).await.map_err(|error| error.code().cloned()) });
        tokio::time::sleep(pause).await;
        token.cancel_query(NoTls).await.unwrap();
        let outcome = running.await.unwrap();
        let kind = if is_backup { "BACKUP" } else { "RESTORE" };
        let state = match &outcome {
            Ok(_) => "FINISHED",
            Err(code) => {
                assert_eq!(code.as_ref().map(|code| code.code()), Some("57014"));
                "CANCELLED"
            }
        };
        // A cancel that came before the task was begun has no row of its own.
        let last = node.sql(LAST).await;
        let was_begun = last == [[kind, state]];
        assert!(was_begun || outcome.is_err(), "{last:?}");
        assert!(is_unmarked(&site, "backups"));
        if is_backup {
            backups += u32::from(outcome.is_ok());
            let listed = node.sql(&format!("SELECT count(*) FROM get_backup_list('{url}') WHERE fault IS NULL")).await;
            assert_eq!(listed, [[backups.to_string()]]);
        } else {
            let there = node.sql("SELECT count(*) FROM system.databases WHERE name = 'copy'").await;
            assert_eq!(there, [[if outcome.is_ok() { "1" } else { "0" }]]);
            node.sql(&restore).await;
            assert_eq!(node.sql(&SUMS.replace("market.", "copy.")).await, [sums(0..ROWS)]);
            node.sql("DROP DATABASE copy").await;
        }
        if outcome.is_ok() { done += 1 } else { cancelled += 1 }
    }
    println!("{cancelled} were cancelled, {done} were done before");
    // At their limit.
    for statement in [&call, &restore] {
        let client = node.connect().await;
        client.rows("SET statement_timeout = 1").await;
        let (state, words) = client.refusal(statement).await;
        assert_eq!(state, "57014", "{words}");
        assert_eq!(node.sql("SELECT count(*) FROM system.databases WHERE name = 'copy'").await, [["0"]]);
        assert!(is_unmarked(&site, "backups"));
    }
    assert!(node.sql(&format!("SELECT * FROM check_backup('{url}')")).await.is_empty());
    node.sql(&format!("CALL backup('{url}')")).await;
    node.sql(&format!("CALL prune_backups('{url}', keep => 1)")).await;
    node.sql(&restore).await;
    assert_eq!(node.sql(&SUMS.replace("market.", "copy.")).await, [sums(0..ROWS)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_command_and_one_that_is_killed_end_their_backup() {
    let site = Site::new();
    let node = market(&site).await;
    let url = site.path("import/backups").display().to_string();
    for (signal, code) in [("-INT", Some(130)), ("-TERM", Some(130)), ("-KILL", None)] {
        let child = command(&node, &["backup", &url, "--query", &slow_query()]);
        until_running(&node).await;
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(ended.status.code(), code, "{signal}: {}", String::from_utf8_lossy(&ended.stderr));
        if code.is_none() {
            node.wait_for(LAST, &[&["BACKUP", "CANCELLED"]]).await;
        }
        assert_eq!(node.sql(LAST).await, [["BACKUP", "CANCELLED"]], "{signal}");
        let deadline = Instant::now() + PATIENCE;
        while !is_unmarked(&site, "backups") {
            assert!(Instant::now() < deadline, "{signal}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(node.sql(&format!("SELECT * FROM get_backup_list('{url}')")).await.is_empty(), "{signal}");
    }
}
