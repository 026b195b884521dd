//! The demo, as a user runs it.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use tokio_postgres::NoTls;

use crate::harness::{run, tailrace};

#[test]
fn the_demo_ends_with_equal_sides() {
    let output = run(&["demo", "--rows", "20000"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    for wanted in [
        "siteA=> CREATE DATABASE market",
        "siteB=> SELECT * FROM get_slave_replication_status()",
        "FINISHED",
        "siteB=> SELECT * FROM get_cluster_replication_metrics(-1)",
        "digit by digit",
        "20000 rows, the same on both sides",
        "at rest",
    ] {
        assert!(out.contains(wanted), "{wanted:?} is not in:\n{out}\n{err}");
    }
    assert_eq!(out.matches("\n    20000\n").count() + out.matches("\n 20000\n").count(), 2, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_serve_both_sides_stay_up_until_they_are_interrupted() {
    let mut demo = tailrace().args(["demo", "--rows", "1000", "--serve"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(demo.stdout.take().unwrap());
    let mut connections = Vec::new();
    let mut line = String::new();
    while connections.len() < 2 {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the demo ended early");
        if let Some(arguments) = line.trim().strip_prefix("psql ") {
            let words: Vec<_> = arguments.split_whitespace().collect();
            let after = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1];
            connections.push(format!("host={} port={} user={} dbname=market", after("-h"), after("-p"), after("-U")));
        }
    }
    for connection in connections {
        let (client, driver) = tokio_postgres::connect(&connection, NoTls).await.unwrap();
        tokio::spawn(driver);
        let row = client.query_one("SELECT count(*) FROM bars", &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), 1000);
    }
    assert!(Command::new("kill").arg("-INT").arg(demo.id().to_string()).status().unwrap().success());
    assert_eq!(demo.wait().unwrap().code(), Some(0));
}
