//! The demo, as a user runs it.

use crate::harness::run;

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
