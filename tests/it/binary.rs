//! The command line: init, settings, signals, exit codes.

use std::time::Duration;

use crate::harness::{CREATE_TICKS, Site, copy, insert, run, tailrace};

#[test]
fn version_is_the_packages() {
    let output = run(&["--version"]);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), concat!("tailrace ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn init_twice_is_refused_and_changes_nothing() {
    let site = Site::new();
    let dir = site.path("siteA");
    let first = run(&["init", dir.to_str().unwrap(), "--name", "north"]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    assert!(String::from_utf8_lossy(&first.stdout).contains("serve --config"));
    let settings = std::fs::read_to_string(dir.join("tailrace.toml")).unwrap();
    assert!(settings.contains("name = \"north\""));

    let second = run(&["init", dir.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("initialised already"));
    assert_eq!(std::fs::read_to_string(dir.join("tailrace.toml")).unwrap(), settings);
}

#[test]
fn settings_that_are_wrong_are_named_with_their_source() {
    let site = Site::new();
    let node = site.node("siteA", None, &[]);
    let config = node.dir.join("tailrace.toml");
    let config = config.to_str().unwrap();
    let refused = |output: std::process::Output, wanted: &[&str]| {
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(output.stdout.is_empty());
        for wanted in wanted {
            assert!(words.contains(wanted), "{wanted:?} is not in: {words}");
        }
    };
    refused(
        run(&["serve", "--config", config, "--set", "wal.persistance=async"]),
        &["--set wal.persistance", "did you mean `persistence`"],
    );
    refused(
        tailrace().args(["serve", "--config", config]).env("TAILRACE_WAL__SEGMENT_BYTE", "1").output().unwrap(),
        &["TAILRACE_WAL__SEGMENT_BYTE", "did you mean `segment_bytes`"],
    );
    refused(
        tailrace().args(["serve", "--config", config]).env("TAILRACE_WAL__PERSISTENCE", "never").output().unwrap(),
        &["TAILRACE_WAL__PERSISTENCE", "\"sync\", \"async\""],
    );
    refused(run(&["serve", "--config", "no/such/file.toml"]), &["no/such/file.toml", "tailrace init"]);
    let text = std::fs::read_to_string(config).unwrap();
    std::fs::write(config, text + "\n[listen.more]\nx = 1\n").unwrap();
    refused(run(&["serve", "--config", config]), &["tailrace.toml:", "`listen.more`"]);
}

#[test]
fn an_address_that_others_reach_is_refused_while_there_are_no_passwords() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.flags.retain(|flag| !flag.starts_with("listen."));
    node.flags.push("listen.pgwire=:0".to_owned());
    let status = node.command().status().unwrap();
    assert_ne!(status.code(), Some(0));
    assert!(node.log().contains("loopback"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_node_with_0_and_what_was_written_is_there_again() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &["wal.persistence=async", "listen.http=127.0.0.1:0"]);
    for (round, signal) in ["TERM", "INT"].into_iter().enumerate() {
        node.start().await;
        let client = node.connect().await;
        if round == 0 {
            client.rows("CREATE DATABASE market").await;
            client.rows("CREATE TABLE market.t (a BIGINT NOT NULL) PARTITION BY VALUE (a) ORDER BY (a)").await;
        }
        client.rows(&format!("INSERT INTO market.t VALUES ({round})")).await;
        assert_eq!(node.signal(signal).code(), Some(0), "{}", node.log());
        assert!(client.try_rows("SELECT 1").await.is_err(), "the connection outlived the server");
    }
    assert!(node.log().contains("not served yet"), "{}", node.log());
    node.start().await;
    assert_eq!(node.sql("SELECT a FROM market.t ORDER BY a").await, [["0"], ["1"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_folder_is_refused() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    let output = node.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(node.log().contains("in use"), "{}", node.log());
    assert_eq!(node.sql("SELECT 1").await, [["1"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_in_the_middle_of_a_load_ends_the_node_and_leaves_all_of_it_or_nothing() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    let load = copy(&site.ticks_file("bulk.csv", 0..400_000));
    let loading = tokio::spawn(async move { client.try_rows(&load).await.is_ok() });
    tokio::time::sleep(Duration::from_millis(150)).await;
    node.stop();
    let acknowledged = loading.await.unwrap();
    node.start().await;
    let rows = node.sql("SELECT count(*) FROM market.ticks").await;
    assert!(rows == [["400000"]] || (rows == [["0"]] && !acknowledged), "{rows:?}, acknowledged: {acknowledged}");
}

/// A limit on the size of files makes the log's next large write fail half-way.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_the_node_with_3_and_a_restart_has_what_was_acknowledged() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &["wal.segment_bytes=64KiB"]);
    node.start().await;
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
    client.rows(&insert(0..10)).await;
    node.stop();

    node.limit_files(512 << 10);
    node.start().await;
    let client = node.connect().await;
    let (_, message) = client.refusal(&copy(&site.ticks_file("bulk.csv", 10..100_000))).await;
    let status = node.wait();
    assert_eq!(status.code(), Some(3), "{message}\n{}", node.log());
    assert!(node.log().contains("restart"), "{}", node.log());

    node.unlimit_files();
    node.start().await;
    let rows: u64 = node.sql("SELECT count(*) FROM market.ticks").await[0][0].parse().unwrap();
    assert!(rows == 10 || rows == 100_000, "{rows}");
}
