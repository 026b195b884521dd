//! Jobs of real nodes: killed in the middle of a run, stopped, followed, and asked for from a shell.

use std::process::{Command, Output, Stdio};

use crate::harness::{CREATE_TICKS, Node, Site, create_ticks, tailrace};

/// Ends when it is cancelled.
const FOREVER: &str = "SELECT count(*) FROM generate_series(1, 100000000000) a WHERE a.value % 7 = 8";
const RUNS: &str = "SELECT run, attempt, outcome FROM system.job_runs WHERE job = 'long' ORDER BY run, attempt";

async fn node(site: &Site) -> Node {
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    node.sql("CREATE DATABASE market").await;
    node.sql(CREATE_TICKS).await;
    node
}

/// `tailrace job …` against a node.
async fn job(node: &Node, arguments: &[&str]) -> Output {
    let mut command = tailrace();
    command.args(["job", "--address", &node.pgwire().to_string()]).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn words(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_node_is_killed_is_interrupted_and_begins_again_only_where_that_is_allowed() {
    let site = Site::new();
    let mut node = node(&site).await;
    node.sql(&format!("CALL schedule_job('long', '* * * * *', '{FOREVER}', retries => 1, retry_delay => '1 s')")).await;
    node.sql("CALL schedule_job('short', '* * * * *', 'INSERT INTO market.ticks VALUES (1, ''2023-01-08'', 1)')").await;
    node.sql(&format!("CALL schedule_job('asked', '0 0 1 1 *', '{FOREVER}')")).await;
    assert_eq!(node.sql("CALL run_job('asked', wait => false)").await[0][2], "RUNNING");
    node.wait_for(RUNS, &[&["1", "1", "RUNNING"]]).await;
    let short = "SELECT count(*) > 0 FROM system.job_runs WHERE job = 'short' AND outcome = 'SUCCEEDED'";
    node.wait_for(short, &[&["t"]]).await;
    node.kill();
    node.start().await;
    node.wait_for(
        "SELECT run, attempt, outcome FROM system.job_runs WHERE job = 'long' AND run = 1 ORDER BY attempt",
        &[&["1", "1", "INTERRUPTED"], &["1", "2", "RUNNING"]],
    )
    .await;
    let asked = node.sql("SELECT outcome, message, seconds FROM system.job_runs WHERE job = 'asked'").await;
    assert_eq!((asked.len(), asked[0][0].as_str(), asked[0][2].as_str()), (1, "INTERRUPTED", ""), "not a second time");
    assert!(asked[0][1].contains("may have been done"), "{asked:?}");

    // What was recorded as done was done, once.
    node.sql("CALL pause_job('short')").await;
    let done = "SELECT count(*) FROM system.job_runs WHERE job = 'short' AND outcome = 'SUCCEEDED'";
    let (done, rows) = (node.sql(done).await, node.sql("SELECT count(*) FROM market.ticks").await);
    assert_eq!(done, rows);
    assert_ne!(done, [["0"]]);

    node.stop();
    node.start().await;
    let last =
        node.sql("SELECT outcome, message FROM system.job_runs WHERE job = 'long' AND run = 1 AND attempt = 2").await;
    assert_eq!(last[0][0], "INTERRUPTED");
    assert!(last[0][1].contains("the node was stopped"), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_writes_to_a_replicated_database_says_why_it_cannot() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    create_ticks(&primary).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    replica.wait_for("SELECT count(*) FROM market.ticks", &[&["0"]]).await;
    replica.sql("CALL schedule_job('n', '@daily', 'INSERT INTO market.ticks VALUES (1, ''2023-01-08'', 1)')").await;
    let ran = replica.sql("CALL run_job('n')").await;
    assert_eq!(ran[0][2], "FAILED");
    let shown = replica.sql("SELECT last_outcome, last_message FROM system.jobs").await;
    assert!(shown[0][0] == "FAILED" && shown[0][1].contains("25006") && shown[0][1].contains("siteA"), "{shown:?}");
    // Jobs are a cluster's own.
    assert!(primary.sql("SELECT * FROM system.jobs").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_from_a_shell() {
    let site = Site::new();
    let node = node(&site).await;
    let insert = "INSERT INTO ticks VALUES (1, '2023-01-08', 1)";
    let output =
        job(&node, &["schedule", "nightly", "30 22 * * *", insert, "--database", "market", "--user", "ann"]).await;
    let (code, out, said) = words(&output);
    assert!(code == Some(0) && out.is_empty() && said.contains("notice: job \"nightly\" runs next at"), "{out}{said}");
    let (code, out, said) = words(&job(&node, &["run", "nightly", "--json"]).await);
    assert_eq!((code, said.as_str()), (Some(0), ""), "{out}");
    let ran: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((&ran["job"], &ran["outcome"], &ran["rows"]), (&"nightly".into(), &"SUCCEEDED".into(), &1.into()));
    assert_eq!(node.sql("SELECT count(*) FROM market.ticks").await, [["1"]]);

    let (_, out, _) = words(&job(&node, &["list", "--json"]).await);
    let listed: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
    assert_eq!((&listed["state"], &listed["user"]), (&"SCHEDULED".into(), &"ann".into()));
    assert_eq!(words(&job(&node, &["pause", "nightly"]).await).0, Some(0));
    let (_, out, _) = words(&job(&node, &["list"]).await);
    assert!(out.lines().nth(1).unwrap().contains("PAUSED"), "{out}");
    assert_eq!(words(&job(&node, &["resume", "nightly"]).await).0, Some(0));
    let (_, out, _) = words(&job(&node, &["runs", "nightly"]).await);
    assert!(out.lines().count() == 2 && out.contains("SUCCEEDED"), "{out}");

    // What fails, what is wrong, what is not there.
    let schedule = |more: &[&'static str]| {
        let bad = ["schedule", "bad", "@daily", "SELECT * FROM nowhere.t"];
        bad.iter().chain(more).copied().collect::<Vec<&'static str>>()
    };
    assert_eq!(words(&job(&node, &schedule(&[])).await).0, Some(0));
    let (code, out, said) = words(&job(&node, &["run", "bad"]).await);
    assert!(code == Some(1) && out.contains("FAILED") && said.contains("ended as FAILED"), "{out}{said}");
    let (code, _, said) = words(&job(&node, &schedule(&["--from", "soon"])).await);
    assert!(code == Some(1) && said.contains("22007"), "{said}");
    assert_eq!(words(&job(&node, &schedule(&["--catch-up", "twice"])).await).0, Some(2));
    let (code, _, said) = words(&job(&node, &["run", "nihtly"]).await);
    assert!(code == Some(1) && said.contains("42704") && said.contains("nightly"), "{said}");
    let (code, out, _) = words(&job(&node, &["delete", "bad", "--show-statement"]).await);
    assert_eq!((code, out.as_str()), (Some(0), "CALL delete_job('bad');\n"));
    assert_eq!(words(&job(&node, &["delete", "bad"]).await).0, Some(0));
    assert_eq!(node.sql("SELECT name FROM system.jobs").await, [["nightly"]]);

    // Ctrl-C cancels the run.
    job(&node, &["schedule", "long", "@daily", FOREVER]).await;
    let mut command = tailrace();
    command.args(["job", "run", "long", "--address", &node.pgwire().to_string()]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    node.wait_for(RUNS, &[&["1", "1", "RUNNING"]]).await;
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let (code, out, said) = words(&child.wait_with_output().unwrap());
    assert!(code == Some(130) && said.contains("cancelled"), "{out}{said}");
    node.wait_for(RUNS, &[&["1", "1", "CANCELLED"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_in_psql() {
    if Command::new("psql").arg("--version").output().is_err() {
        println!("psql is not installed: skipped");
        return;
    }
    let site = Site::new();
    let node = node(&site).await;
    let port = node.pgwire().port().to_string();
    let mut psql = Command::new("psql");
    psql.args(["-X", "-A", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", &port, "-U", "ann", "-d", "market"]);
    for statement in [
        "CALL schedule_job('nightly', '30 22 * * *', $$INSERT INTO ticks VALUES (1, '2023-01-08', 1); CALL flush()$$,
             time_zone => 'Europe/Berlin', from => '2019-01-01', until => '2030-12-31', catch_up => 'once',
             timeout => '2 h', retries => 3, retry_delay => '1 min')",
        "CALL run_job('nightly')",
        "SELECT name, \"user\", database, state, last_outcome FROM system.jobs",
    ] {
        psql.args(["-c", statement]);
    }
    let (code, out, said) = words(&tokio::task::spawn_blocking(move || psql.output().unwrap()).await.unwrap());
    assert!(code == Some(0) && said.starts_with("NOTICE:  job \"nightly\" runs next at"), "{out}{said}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..2], ["CALL", "job|run|outcome|seconds|rows|message"], "{out}");
    assert!(lines[2].starts_with("nightly|1|SUCCEEDED|") && lines[2].ends_with("|1|INSERT 0 1; CALL"), "{out}");
    assert!(out.contains("nightly|ann|market|SCHEDULED|SUCCEEDED"), "{out}");
}
