//! `tailrace wal`, beside a running node and on what a killed one left behind.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use crate::harness::{CREATE_TICKS, Site, copy, insert, run, tailrace};

fn wal(command: &str, dir: &Path, more: &[&str]) -> Output {
    tailrace().args(["wal", command]).arg(dir).args(more).output().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The objects that a command printed, one per line.
fn json(output: &Output) -> Vec<serde_json::Value> {
    let lines = String::from_utf8(output.stdout.clone()).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "wal")).collect();
    paths.sort();
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_writes_seals_and_truncates_is_read_beside_it() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &["wal.segment_bytes=64KiB", "engine.flush_age=200ms"]);
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    let load = copy(&site.ticks_file("bulk.csv", 1_000_000..1_030_000));
    let writing = tokio::spawn(async move {
        client.rows(&load).await;
        for start in (0..4000).step_by(20) {
            client.rows(&insert(start..start + 20)).await;
        }
    });
    let dir = node.dir.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut rounds = 0;
        while !writing.is_finished() || rounds < 3 {
            for command in ["verify", "inspect"] {
                let output = wal(command, &dir, &["--format", "json"]);
                assert_eq!(output.status.code(), Some(0), "round {rounds}, {command}: {}", words(&output));
                assert!(!json(&output).is_empty());
            }
            let output = wal("dump", &dir, &["--lsn", "3..", "--format", "json"]);
            assert_eq!(output.status.code(), Some(0), "round {rounds}: {}", words(&output));
            rounds += 1;
        }
        rounds
    });
    println!("read {} times beside the running node", read.await.unwrap());
    node.stop();

    let output = wal("inspect", &node.dir, &["--format", "json"]);
    let rows = json(&output);
    let history = rows.iter().find(|row| row["row"] == "history" && row["name"] == "market");
    // After the last flush nothing of it may be retained.
    if let Some(history) = history {
        assert_eq!(history["breaks"], 0);
        assert_eq!(history["open_transactions"], serde_json::json!([]));
    }
    let totals = rows.last().unwrap();
    assert_eq!((&totals["row"], &totals["damaged"]), (&"totals".into(), &0.into()));
    assert_eq!(rows.iter().filter(|row| row["row"] == "segment").count() as u64, totals["segments"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_left_is_sound_and_damage_in_it_is_named() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    for start in (0..40).step_by(10) {
        client.rows(&insert(start..start + 10)).await;
    }
    node.kill();
    let log = node.dir.join("data/wal");

    // As a table: a line per segment and history.
    let table = wal("inspect", &node.dir, &[]);
    let text = words(&table);
    assert_eq!(table.status.code(), Some(0), "{text}");
    assert!(text.contains("00000000000000000001.wal") && text.contains("records"), "{text}");
    let verdicts = json(&wal("verify", &node.dir, &["--format", "json"]));
    assert_eq!(verdicts.len(), 2, "manifest and log: {verdicts:?}");
    assert!(verdicts.iter().all(|verdict| verdict["sound"] == true), "{verdicts:?}");

    // The records are those that were written: four inserts of ten rows.
    let records = json(&wal("dump", &log, &["--format", "json"]));
    let appended: u64 = records
        .iter()
        .flat_map(|record| record["parts"].as_array().unwrap())
        .filter(|part| part["operation_name"] == "APPEND")
        .map(|part| part["rows"].as_u64().unwrap())
        .sum();
    assert_eq!(appended, 40);
    let commits: Vec<_> = records.iter().filter(|record| record["kind"] == "commit").collect();
    let (first, last) = (commits[0], commits[commits.len() - 1]);
    let range = format!("{}..{}", first["lsn"], first["lsn"]);
    let one = json(&wal("dump", &log, &["--lsn", &range, "--format", "json"]));
    assert_eq!(one.iter().filter(|record| record["kind"] != "mark").collect::<Vec<_>>(), [first]);
    let of_last = json(&wal("dump", &log, &["--history", last["history"].as_str().unwrap(), "--format", "json"]));
    assert!(of_last.iter().all(|record| record["history"] == last["history"]) && !of_last.is_empty());
    let text = words(&wal("dump", &log, &[]));
    assert!(text.contains("APPEND") && text.contains("chain"), "{text}");

    // One bit of a record that a later one states durable.
    let path = segments(&log).remove(0);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let at = first["offset"].as_u64().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at + 100).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at + 100).unwrap();
    let damaged = wal("verify", &node.dir, &[]);
    let text = words(&damaged);
    assert_eq!(damaged.status.code(), Some(1), "{text}");
    assert!(text.contains(path.to_str().unwrap()) && text.contains(&format!("at byte {at}")), "{text}");
    assert!(text.contains("backup") && text.contains("replica"), "what to do: {text}");
    assert_eq!(wal("inspect", &node.dir, &[]).status.code(), Some(1));
    let dumped = wal("dump", &log, &[]);
    assert_eq!(dumped.status.code(), Some(1), "{}", words(&dumped));

    // The other way, nothing that cannot be read is called damaged.
    file.write_all_at(&byte, at + 100).unwrap();
    assert_eq!(wal("verify", &node.dir, &[]).status.code(), Some(0));
}

#[test]
fn wrong_use_says_so_with_2() {
    let site = Site::new();
    std::fs::create_dir(site.path("empty")).unwrap();
    for (args, wanted) in [
        (vec!["verify", "no/such/folder"], "is not a folder"),
        (vec!["inspect", site.path("empty").to_str().unwrap()], "holds no segments"),
        (vec!["dump", ".", "--lsn", "9..3"], "A..B"),
        (vec!["dump", ".", "--history", "xyz"], "32 hexadecimal digits"),
    ] {
        let output = run(&[vec!["wal"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{}", words(&output));
        assert!(words(&output).contains(wanted), "{}", words(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_a_dump_quietly() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &["engine.flush_age=1h"]);
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    // More than a pipe holds.
    for start in (0..6000).step_by(10) {
        client.rows(&insert(start..start + 10)).await;
    }
    node.stop();
    let mut dump = tailrace()
        .args(["wal", "dump"])
        .arg(&node.dir)
        .args(["--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(dump.stdout.take());
    let output = dump.wait_with_output().unwrap();
    assert_eq!((output.status.code(), words(&output).as_str()), (Some(0), ""));
}
