//! `tailrace backup`, `restore` and `sync` against running nodes: what they print, and how they end.

use std::{
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::Value;

use crate::harness::{CREATE_TICKS, Node, SUMS, Site, insert, sums, tailrace};

async fn run(node: &Node, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = tailrace();
    command.args(arguments).args(["--address", &node.pgwire().to_string()]);
    let output: Output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn parquet(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(parquet(&path));
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            found.push(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_made_listed_checked_restored_and_pruned_from_a_shell() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    node.sql("CREATE DATABASE market").await;
    node.sql(CREATE_TICKS).await;
    node.sql(&insert(0..100)).await;
    let folder = site.path("import").join("backups");
    let url = folder.display().to_string();

    let (code, out, said) = run(&node, &["backup", &url, "--database", "market"]).await;
    assert!(code == Some(0) && out.starts_with("backup ") && out.contains("100 rows"), "{out}{said}");
    node.sql(&insert(100..101)).await;
    let (code, out, said) = run(&node, &["backup", &url, "--database", "market", "--json"]).await;
    assert_eq!(code, Some(0), "{out}{said}");
    let made = objects(&out);
    assert_eq!((&made[0]["kind"], &made[0]["state"]), (&"BACKUP".into(), &"FINISHED".into()), "{out}");
    let (code, out, _) = run(&node, &["backup", "list", &url, "--json"]).await;
    let listed = objects(&out);
    assert_eq!((code, listed.len()), (Some(0), 2), "{out}");
    assert!(listed.iter().any(|backup| backup["backup"] == made[0]["backup"]), "{out}");
    assert_eq!(run(&node, &["backup", "check", &url]).await.0, Some(0));

    // What a dry run says is not done.
    let restore = ["restore", &url, "--database", "market", "--into", "copy", "--create"];
    let (code, out, said) = run(&node, &[&restore[..], &["--dry-run"]].concat()).await;
    assert!(code == Some(0) && out.contains("dry run"), "{out}{said}");
    assert_eq!(node.sql("SELECT count(*) FROM system.databases WHERE name = 'copy'").await, [["0"]]);
    let (code, out, said) = run(&node, &restore).await;
    assert!(code == Some(0) && out.contains("101 rows"), "{out}{said}");
    assert_eq!(node.sql(&SUMS.replace("market.", "copy.")).await, [sums(0..101)]);
    let (code, out, said) = run(&node, &restore).await;
    assert_eq!(code, Some(0), "again, nothing is to be done: {out}{said}");

    // A flipped bit is found.
    let files = parquet(&folder);
    let mut bytes = std::fs::read(&files[0]).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&files[0], bytes).unwrap();
    let (code, out, said) = run(&node, &["backup", "check", &url, "--json"]).await;
    assert!(code == Some(3) && said.contains("damage was found"), "{out}{said}");
    let name = files[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(objects(&out).iter().any(|fault| fault["file"].as_str().is_some_and(|file| file.contains(&name))), "{out}");

    let (code, out, said) = run(&node, &["backup", "prune", &url, "--keep", "1"]).await;
    assert!(code == Some(0) && out.contains("1 backups stay"), "{out}{said}");
    let (_, out, _) = run(&node, &["backup", "list", &url]).await;
    assert_eq!(out.lines().count(), 2, "{out}");

    // What is refused, and what is wrong.
    let (code, _, said) = run(&node, &["backup", "/nowhere/allowed"]).await;
    assert!(code == Some(1) && said.contains("files"), "{said}");
    assert_eq!(run(&node, &["backup", &url, "--partitions", "x"]).await.0, Some(2));
    assert_eq!(run(&node, &["restore", &url, "--mode", "some"]).await.0, Some(2));
    let (code, out, _) = run(&node, &["backup", &url, "--query", "SELECT 1", "--show-statement"]).await;
    assert_eq!((code, out), (Some(0), format!("CALL backup('{url}', 'SELECT 1');\n")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_made_equal_to_that_of_another_cluster_from_a_shell() {
    const FLIGHT: &str = "listen.flight=127.0.0.1:0";
    let site = Site::new();
    let (mut a, mut b) = (site.node("siteA", None, &[FLIGHT]), site.node("siteB", Some("siteA"), &[FLIGHT]));
    for node in [&mut a, &mut b] {
        node.start().await;
        node.sql("CREATE DATABASE market").await;
    }
    b.sql(CREATE_TICKS).await;
    b.sql(&insert(0..100)).await;
    let port = b.flight.unwrap().port();
    a.sql(&format!("CALL create_remote_cluster('siteb', 'localhost:{port}')")).await;

    let sync = ["sync", "siteb", "market.ticks", "--create", "--json"];
    let actions =
        |out: &str| objects(out).iter().map(|row| row["action"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let (code, out, said) = run(&a, &sync).await;
    assert_eq!((code, actions(&out)), (Some(0), vec!["COPIED".to_owned(); 5]), "{out}{said}");
    assert_eq!(a.sql(SUMS).await, [sums(0..100)]);
    let (code, out, said) = run(&a, &sync).await;
    assert_eq!((code, actions(&out)), (Some(0), vec!["EQUAL".to_owned(); 5]), "{out}{said}");
    let (code, _, said) = run(&a, &["sync", "sitec", "market.ticks"]).await;
    assert!(code == Some(1) && said.contains("sitec"), "{said}");
    assert_eq!(run(&a, &["sync", "siteb"]).await.0, Some(2));
}
