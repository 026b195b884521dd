//! psql typing the tutorial's statements. Runs where psql is installed.

use std::process::{Command, Output};

use crate::harness::{Node, Site};

#[tokio::test(flavor = "multi_thread")]
async fn the_tutorials_statements_typed_by_hand_work() {
    if Command::new("psql").arg("--version").output().is_err() {
        println!("psql is not installed: skipped");
        return;
    }
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    let typed = psql(
        &primary,
        "CREATE DATABASE market;
         CALL set_database_for_cluster_replication('market', true);
         SELECT * FROM get_database_cluster_replication_status();
         CREATE TABLE market.bars (security_id VARCHAR, datetime TIMESTAMP(3), last_px DOUBLE PRECISION, volume INT)
             PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime);
         INSERT INTO market.bars VALUES ('000001', '2023-01-08 09:30:00', 10.25, 100), ('000002', '2023-01-08 09:31:00', 11.5, 200);
         SELECT security_id, last_px FROM market.bars ORDER BY security_id;",
    );
    let out = String::from_utf8_lossy(&typed.stdout);
    assert!(typed.status.success(), "{out}\n{}", String::from_utf8_lossy(&typed.stderr));
    for wanted in ["CREATE DATABASE", "CREATE TABLE", "INSERT 0 2", "000001|10.25", "000002|11.5"] {
        assert!(out.lines().any(|line| line == wanted), "{wanted:?} is not in:\n{out}");
    }
    replica.wait_for("SELECT count(*) FROM market.bars", &[&["2"]]).await;
    for (command, wanted) in [("\\dt market.*", "bars"), ("\\d market.bars", "last_px"), ("\\l", "market")] {
        let shown = psql(&replica, command);
        let (out, err) = (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
        assert!(shown.status.success() && out.contains(wanted), "{command}: {out}\n{err}");
    }
    let refused = psql(&replica, "DROP TABLE market.bars;");
    let err = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success());
    assert!(err.contains("ERROR") && err.contains("siteA"), "{err}");
}

fn psql(node: &Node, script: &str) -> Output {
    let address = node.pgwire();
    Command::new("psql")
        .args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "test", "-d", "tailrace", "-h"])
        .arg(address.ip().to_string())
        .arg("-p")
        .arg(address.port().to_string())
        .args(script.split_inclusive(";\n").flat_map(|statement| ["-c", statement.trim()]))
        .output()
        .unwrap()
}
