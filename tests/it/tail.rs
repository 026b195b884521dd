//! `tailrace tail` against a running node: what it prints, and how it ends.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Output, Stdio},
};

use arrow_array::{Array, cast::AsArray, types::Int64Type};

use crate::harness::{CREATE_TICKS, Node, Site, insert, tailrace};

fn arguments(node: &Node, more: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = ["tail", "market.ticks", "--address"].map(str::to_owned).into();
    arguments.push(node.pgwire().to_string());
    arguments.extend(more.iter().map(|more| (*more).to_owned()));
    arguments
}

async fn tail(node: &Node, more: &[&str]) -> Output {
    let mut command = tailrace();
    command.args(arguments(node, more));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn follow(node: &Node, more: &[&str]) -> Child {
    let mut command = tailrace();
    command.args(arguments(node, more)).arg("--follow").stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn market(site: &Site) -> Node {
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    node.sql("CREATE DATABASE market").await;
    node.sql(CREATE_TICKS).await;
    for start in [0, 10, 20] {
        node.sql(&insert(start..start + 10)).await;
    }
    node
}

fn ids(lines: impl IntoIterator<Item = String>) -> Vec<u64> {
    let rows = lines.into_iter().map(|line| serde_json::from_str::<serde_json::Value>(&line).unwrap());
    let mut ids: Vec<u64> = rows.map(|row| row["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

/// Reads so many lines; the reader may be used on.
fn lines(from: &mut impl BufRead, count: usize) -> Vec<String> {
    let mut read = Vec::new();
    while read.len() < count {
        let mut line = String::new();
        assert!(from.read_line(&mut line).unwrap() > 0, "the output ended after {read:?}");
        read.push(line);
    }
    read
}

fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_printed_in_every_format() {
    let site = Site::new();
    let node = market(&site).await;
    let output = tail(&node, &[]).await;
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ids(text.lines().map(str::to_owned)), (0..30).collect::<Vec<_>>());
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&first["_seq"], &first["_op"]), (&3.into(), &"insert".into()));

    let output =
        tail(&node, &["--from-seq", "4", "--to-seq", "4", "--columns", "id", "--format", "csv", "--where", "id < 15"])
            .await;
    let text = String::from_utf8(output.stdout).unwrap();
    let mut rows: Vec<&str> = text.lines().collect();
    rows[1..].sort_unstable();
    assert_eq!(rows, ["id", "10", "11", "12", "13", "14"]);

    let output = tail(&node, &["--format", "arrow", "--columns", "_seq,id"]).await;
    let reader = arrow_ipc::reader::StreamReader::try_new(&output.stdout[..], None).unwrap();
    let batches: Vec<_> = reader.collect::<Result<_, _>>().unwrap();
    assert_eq!(batches[0].num_columns(), 2);
    let ids = batches.iter().flat_map(|batch| batch.column(1).as_primitive::<Int64Type>().values().to_vec());
    let mut ids: Vec<i64> = ids.collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..30).collect::<Vec<_>>());
    assert!(batches.iter().all(|batch| batch.column(0).null_count() == 0));

    for (more, code, word) in [
        (&["--columns", "nothing"][..], 1, "42703"),
        (&["--where", "id <"], 1, "42601"),
        (&["--subscription", "nobody"], 1, "nobody"),
        (&["--acknowledge"], 2, "--subscription"),
        (&["--address", "nowhere"], 2, "HOST:PORT"),
    ] {
        let output = tail(&node, more).await;
        assert_eq!(output.status.code(), Some(code), "{more:?}: {}", words(&output));
        assert!(words(&output).contains(word), "{more:?}: {}", words(&output));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_follows_until_it_is_interrupted_or_not_read() {
    let site = Site::new();
    let mut node = market(&site).await;
    let mut child = follow(&node, &["--from-seq", "1"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let before = tokio::task::block_in_place(|| lines(&mut out, 30));
    assert_eq!(ids(before), (0..30).collect::<Vec<_>>());
    node.sql(&insert(30..33)).await;
    let after = tokio::task::block_in_place(|| lines(&mut out, 3));
    assert_eq!(ids(after), [30, 31, 32]);
    interrupt(&child);
    let (status, mut said) = (child.wait().unwrap(), String::new());
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((status.code(), said.trim()), (Some(0), "tailrace: last seq 6"));

    // Nobody reads: it ends without a word when it has more to say.
    let mut child = follow(&node, &["--from-seq", "1"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    tokio::task::block_in_place(|| lines(&mut out, 1));
    drop(out);
    let mut next = 100;
    while child.try_wait().unwrap().is_none() {
        node.sql(&insert(next..next + 1)).await;
        next += 1;
    }
    let (status, mut said) = (child.wait().unwrap(), String::new());
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));

    // The node ends: its reason is told.
    let mut child = follow(&node, &["--from-seq", "1"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    tokio::task::block_in_place(|| lines(&mut out, 1));
    let drained = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    node.stop();
    let (status, mut said) = (child.wait().unwrap(), String::new());
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    drained.join().unwrap().unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("last seq") && said.contains("57P01"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_is_acknowledged_when_its_rows_are_written_and_outlives_everybody() {
    let site = Site::new();
    let mut node = market(&site).await;
    node.sql("CALL create_subscription('mine', 'market.ticks', from_seq => 4)").await;
    const STATE: &str = "SELECT acknowledged_seq, attached FROM system.subscriptions";
    let mut child = follow(&node, &["--subscription", "mine", "--acknowledge"]);
    let mut out = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(ids(tokio::task::block_in_place(|| lines(&mut out, 20))), (10..30).collect::<Vec<_>>());
    // Also the last transaction, though nothing follows it.
    node.wait_for(STATE, &[&["5", "t"]]).await;
    node.sql(&insert(30..31)).await;
    assert_eq!(ids(tokio::task::block_in_place(|| lines(&mut out, 1))), [30]);
    node.wait_for(STATE, &[&["6", "t"]]).await;
    child.kill().unwrap();
    child.wait().unwrap();
    node.wait_for(STATE, &[&["6", "f"]]).await;
    node.sql(&insert(31..33)).await;

    node.kill();
    node.start().await;
    let output = tail(&node, &["--subscription", "mine"]).await;
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(ids(text.lines().map(str::to_owned)), [31, 32], "{}", words(&output));
    // Not acknowledged: it comes again.
    let output = tail(&node, &["--subscription", "mine", "--acknowledge"]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    assert_eq!(node.sql(STATE).await, [["7", "f"]]);
    let output = tail(&node, &["--subscription", "mine"]).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
}
