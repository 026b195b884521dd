//! Backup and restore by SQL, of a real `tailrace serve`.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tailrace_wal::ArchiveEntry;

use crate::{
    archive::Server,
    harness::{CREATE_TICKS, Node, PATIENCE, SUMS, Site, copy, create_ticks, insert, seed, sums},
};

/// How often a node is killed in each test.
const KILLS: u32 = 20;

async fn market(node: &Node) {
    let client = node.connect().await;
    client.rows("CREATE DATABASE market").await;
    client.rows(CREATE_TICKS).await;
}

/// [`SUMS`] of another database.
fn sums_of(database: &str) -> String {
    SUMS.replace("market.", &format!("{database}."))
}

async fn bad(node: &Node, url: &str) -> Vec<Vec<String>> {
    node.sql(&format!("SELECT what, file, found FROM check_backup('{url}')")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_backed_up_is_listed_checked_and_restored() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    market(&node).await;
    node.sql(&insert(0..500)).await;
    let url = site.path("import/backups").display().to_string();
    node.sql(&format!("CALL backup('{url}')")).await;
    node.sql(&insert(500..600)).await;
    node.sql(&format!("CALL backup('{url}', database => 'market', parallel => 2)")).await;
    node.sql(&format!("CALL backup('{url}', table => 'market.ticks', partitions => '2023-01-0?')")).await;
    let list = format!(
        "SELECT scope, positions, partitions, rows, written_bytes < bytes, fault FROM get_backup_list('{url}')"
    );
    let listed = node.sql(&list).await;
    assert_eq!(
        listed,
        [
            ["cluster", "market at seq 3", "5", "500", "f", ""],
            ["database market", "market at seq 4", "5", "600", "t", ""],
            ["partitions 2023-01-0? of table market.ticks", "market at seq 4", "2", "240", "t", ""],
        ]
    );
    let newest = format!("SELECT table, partition, rows FROM get_backup_meta('{url}') ORDER BY partition");
    assert_eq!(node.sql(&newest).await, [["ticks", "at_day=2023-01-08", "120"], ["ticks", "at_day=2023-01-09", "120"]]);
    assert!(bad(&node, &url).await.is_empty());
    let status = "SELECT kind, state, percent FROM get_backup_status() WHERE kind = 'BACKUP'";
    assert_eq!(node.sql(status).await, vec![["BACKUP", "FINISHED", "100"]; 3]);
    assert_eq!(node.sql("SELECT count(*) FROM system.backups WHERE reason IS NULL").await[0][0], "4");

    let first = node.sql(&format!("SELECT min(backup) FROM get_backup_list('{url}')")).await[0][0].clone();
    let then =
        format!("CALL restore('{url}', backup => '{first}', database => 'market', into => 'then', create => true)");
    node.sql(&then).await;
    assert_eq!(node.sql(&sums_of("then")).await, [sums(0..500)]);
    node.sql(&then).await;
    let part = format!(
        "CALL restore('{url}', table => 'market.ticks', partitions => '%-09', into => 'then.ticks', mode => 'replace')"
    );
    node.sql(&part).await;
    assert_eq!(node.sql("SELECT count(*) FROM then.ticks").await, [["520"]]);
    let (state, words) = node.connect().await.refusal(&part.replace("'replace'", "'fail'").replace("-09", "")).await;
    assert_eq!(state, "22023", "{words}");
    node.sql(&format!("CALL prune_backups('{url}', keep => 2)")).await;
    assert_eq!(node.sql(&list).await.len(), 2);
    assert!(bad(&node, &url).await.is_empty());
    node.kill();
    node.start().await;
    assert_eq!(node.sql("SELECT count(*) FROM then.ticks").await, [["520"]]);
    for (statement, wanted) in [
        ("CALL backup('/etc/backups')".to_owned(), "42501"),
        (format!("CALL backup('{url}/../../x')"), "22023"),
        ("CALL backup('s3://key:secret@bucket/x')".to_owned(), "22023"),
        (format!("CALL restore('{url}', backup => '20230108T000000.000000Z-00000007')"), "58P01"),
        (format!("SELECT * FROM check_backup('{url}/none')"), "58030"),
    ] {
        let (state, words) = node.connect().await.refusal(&statement).await;
        assert_eq!(state, wanted, "{statement}: {words}");
        assert!(!words.contains("secret"), "{words}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_columns_as_selected() {
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    market(&node).await;
    node.sql(&insert(0..500)).await;
    let url = site.path("import/backups").display().to_string();
    let query = "SELECT id, at FROM market.ticks WHERE at >= TIMESTAMP ''2023-01-10'' AND id < 400";
    node.sql(&format!("CALL backup('{url}', '{query}')")).await;
    let wanted = node.sql("SELECT count(*), sum(id) FROM market.ticks WHERE at >= '2023-01-10' AND id < 400").await;
    assert!(bad(&node, &url).await.is_empty());
    node.sql(&format!("CALL restore('{url}', table => 'market.ticks', into => 'market.part', create => true)")).await;
    assert_eq!(node.sql("SELECT count(*), sum(id) FROM market.part").await, wanted);
    let folder = site.path("import/backups/data/market/ticks");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3, "a folder per day");
    // A column that is not selected is NULL in a table that has it.
    node.sql("CREATE DATABASE other").await;
    node.sql(&CREATE_TICKS.replace("market.", "other.")).await;
    node.sql(&format!("CALL restore('{url}', table => 'market.ticks', into => 'other.ticks')")).await;
    assert_eq!(node.sql("SELECT count(*), sum(id) FROM other.ticks WHERE price IS NULL").await, wanted);
    let two = "SELECT a.id FROM market.ticks a JOIN market.part b ON a.id = b.id";
    assert_eq!(node.connect().await.refusal(&format!("CALL backup('{url}', '{two}')")).await.0, "0A000");
    other_tools_read(&site.path("import/backups"), &wanted[0][0]);
}

/// pyarrow and duckdb, where they are installed.
fn other_tools_read(folder: &Path, rows: &str) {
    let glob = folder.join("data").display().to_string();
    for (tool, program) in [
        ("pyarrow", "import sys, pyarrow.dataset as d; print(d.dataset(sys.argv[1]).count_rows())"),
        (
            "duckdb",
            "import sys, duckdb; print(duckdb.sql(f\"select count(*) from '{sys.argv[1]}/**/*.parquet'\").fetchone()[0])",
        ),
    ] {
        let has = Command::new("python3").args(["-c", &format!("import {tool}")]).output();
        if !has.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: python3 has no {tool} here");
            continue;
        }
        let output = Command::new("python3").args(["-c", program, &glob]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout).trim(),
            rows,
            "{tool}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Runs a statement and kills the node at a random moment of it. Returns whether the statement was acknowledged.
async fn killed_in(node: &mut Node, statement: &str, longest: Duration, random: &mut StdRng) -> bool {
    let client = node.connect().await;
    let pause = longest.mul_f64(random.random_range(0.0..1.1));
    let text = statement.to_owned();
    let running = tokio::spawn(async move { client.try_rows(&text).await.is_ok() });
    tokio::time::sleep(pause).await;
    node.kill();
    let acknowledged = running.await.unwrap();
    node.start().await;
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_backup_there_is_a_whole_one_or_none() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    market(&node).await;
    node.sql(&copy(&site.ticks_file("bulk.csv", 0..200_000))).await;
    let url = site.path("import/backups").display().to_string();
    let begun = Instant::now();
    node.sql(&format!("CALL backup('{url}/measured')")).await;
    let longest = begun.elapsed();
    let count = format!("SELECT count(*) FROM get_backup_list('{url}') WHERE fault IS NULL");
    let (mut whole, mut none) = (0, 0);
    node.sql(&format!("CALL backup('{url}')")).await;
    let mut there = 1;
    for kill in 0..KILLS {
        let call = format!("CALL backup('{url}', force => {})", kill % 2 == 0);
        let acknowledged = killed_in(&mut node, &call, longest, &mut random).await;
        let now: u32 = node.sql(&count).await[0][0].parse().unwrap();
        assert!(now == there || now == there + 1, "{now} backups behind {there}");
        assert!(now > there || !acknowledged, "an acknowledged backup is there");
        if now > there {
            whole += 1
        } else {
            none += 1
        }
        there = now;
        assert!(bad(&node, &url).await.is_empty());
        node.sql(&format!("CALL backup('{url}')")).await;
        there += 1;
    }
    println!("{whole} backups were whole, {none} were none");
    assert!(bad(&node, &url).await.is_empty());
    node.sql(&format!("CALL prune_backups('{url}', keep => 1)")).await;
    node.sql(&format!("CALL restore('{url}', database => 'market', into => 'copy', create => true)")).await;
    assert_eq!(node.sql(&sums_of("copy")).await, [sums(0..200_000)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_restore_it_is_old_or_new_and_the_rerun_completes() {
    let mut random = StdRng::seed_from_u64(seed());
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    market(&node).await;
    node.sql(&copy(&site.ticks_file("bulk.csv", 0..200_000))).await;
    let url = site.path("import/backups").display().to_string();
    node.sql(&format!("CALL backup('{url}')")).await;
    let whole = format!("CALL restore('{url}', database => 'market', into => 'copy', create => true)");
    let begun = Instant::now();
    node.sql(&whole).await;
    let longest = begun.elapsed();
    node.sql("DROP DATABASE copy").await;
    let is_here = "SELECT count(*) FROM system.databases WHERE name = 'copy'";
    let (mut old, mut new) = (0, 0);
    for _ in 0..KILLS / 2 {
        let acknowledged = killed_in(&mut node, &whole, longest, &mut random).await;
        match node.sql(is_here).await[0][0].as_str() {
            "0" => {
                assert!(!acknowledged);
                old += 1;
            }
            _ => {
                assert_eq!(node.sql(&sums_of("copy")).await, [sums(0..200_000)]);
                new += 1;
            }
        }
        node.sql(&whole).await;
        assert_eq!(node.sql(&sums_of("copy")).await, [sums(0..200_000)]);
        node.sql("DROP DATABASE copy").await;
    }
    // Through a transaction: the table has other rows, all or none of which are replaced.
    node.sql("CREATE DATABASE copy").await;
    node.sql(&CREATE_TICKS.replace("market.", "copy.")).await;
    let replace = format!("CALL restore('{url}', table => 'market.ticks', into => 'copy.ticks', mode => 'replace')");
    node.sql(&insert(0..50).replace("market.", "copy.")).await;
    let begun = Instant::now();
    node.sql(&replace).await;
    let longest = begun.elapsed();
    for _ in 0..KILLS / 2 {
        node.sql("DROP TABLE copy.ticks").await;
        node.sql(&CREATE_TICKS.replace("market.", "copy.")).await;
        node.sql(&insert(0..50).replace("market.", "copy.")).await;
        let acknowledged = killed_in(&mut node, &replace, longest, &mut random).await;
        let found = node.sql(&sums_of("copy")).await;
        if found == [sums(0..50)] {
            assert!(!acknowledged);
            old += 1;
        } else {
            assert_eq!(found, [sums(0..200_000)]);
            new += 1;
        }
        node.sql(&replace).await;
        assert_eq!(node.sql(&sums_of("copy")).await, [sums(0..200_000)]);
    }
    println!("{old} restores had not happened, {new} had");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_replicated() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..200)).await;
    let url = site.path("import/backups").display().to_string();
    primary.sql(&format!("CALL backup('{url}')")).await;
    primary.sql("DROP DATABASE market").await;
    replica.wait_for("SELECT count(*) FROM system.databases WHERE name = 'market'", &[&["0"]]).await;
    primary.sql(&format!("CALL restore('{url}', create => true)")).await;
    primary.sql("CALL set_database_for_cluster_replication('market', true)").await;
    primary.sql(&insert(200..300)).await;
    let wanted = sums(0..300);
    replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_in_time_comes_from_the_archive_of_a_node_that_is_gone() {
    let site = Site::new();
    let archive = site.path("import/archive");
    let archived = url::Url::from_directory_path(&archive).unwrap();
    let flags = [format!("wal.archive={archived}"), "wal.archive_interval=50ms".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let mut node = site.node("siteA", None, &flags);
    node.start().await;
    market(&node).await;
    node.sql(&insert(0..100)).await;
    let url = site.path("import/backups").display().to_string();
    node.sql(&format!("CALL backup('{url}')")).await;
    for round in 1..5 {
        node.sql(&insert(round * 100..round * 100 + 100)).await;
        node.wait_for("SELECT lag_records FROM system.archive", &[&["0"]]).await;
    }
    node.stop();
    let mut other = site.node("siteB", Some("siteA"), &[]);
    other.start().await;
    let restore = |seq: u32, name: &str| {
        format!(
            "CALL restore('{url}', database => 'market', into => '{name}', to_seq => {seq}, archive => '{}')",
            archive.display()
        )
    };
    // CREATE DATABASE, CREATE TABLE and an INSERT are in the backup.
    for (seq, rows) in [(3, 100), (5, 300), (7, 500)] {
        let name = format!("then{seq}");
        other.sql(&restore(seq, &name)).await;
        assert_eq!(other.sql(&sums_of(&name)).await, [sums(0..rows)]);
    }
    let stored = || files(&other.dir).into_iter().filter(|path| path.ends_with(".parquet")).collect::<Vec<_>>();
    let before = stored();
    let (_, words) = other.connect().await.refusal(&restore(8, "beyond")).await;
    assert!(words.contains("ends at seq 7"), "{words}");
    // One segment from the middle of the archive is lost: what it held is named.
    let node_id = std::fs::read_dir(&archive).unwrap().next().unwrap().unwrap().file_name();
    let opened = tailrace_engine::open_archive(&archived, node_id.to_str().unwrap().parse().unwrap()).unwrap();
    opened.refresh().await.unwrap();
    let history = other.sql(&format!("SELECT DISTINCT history FROM get_backup_meta('{url}')")).await[0][0].clone();
    let lost = opened.entries().into_iter().find_map(|entry| match &*entry {
        ArchiveEntry::Segment(segment) => {
            let held = segment.histories.iter().find(|held| held.history.to_string() == history)?;
            (held.after.0 >= 4 && held.upto.0 <= 6 && held.after < held.upto).then_some((
                segment.first.0,
                held.after.0,
                held.upto.0,
            ))
        }
        ArchiveEntry::Gap(gap) => panic!("{gap:?}"),
    });
    let (first, after, upto) = lost.expect("a segment of its own holds a transaction in the middle");
    let is_lost = |path: &String| path.contains(&format!("segments/{first:020}-"));
    let segments: Vec<String> = files(&archive).into_iter().filter(is_lost).collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    std::fs::remove_file(&segments[0]).unwrap();
    let (_, words) = other.connect().await.refusal(&restore(7, "gap")).await;
    let which =
        if upto == after + 1 { format!("transaction {upto}") } else { format!("transactions {} to {upto}", after + 1) };
    for wanted in [which, history, format!("restore to seq {after} at most")] {
        assert!(words.contains(&wanted), "{words}: {wanted}");
    }
    assert_eq!(other.sql("SELECT count(*) FROM system.databases WHERE name = 'gap'").await, [["0"]]);
    // Files that were fetched are removed in the background.
    let deadline = Instant::now() + PATIENCE;
    while stored() != before {
        assert!(Instant::now() < deadline, "{:?} remain", stored());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    other.sql(&restore(after as u32, "whole")).await;
    assert_eq!(other.sql(&sums_of("whole")).await, [sums(0..(after - 2) * 100)]);
}

fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path.display().to_string()) }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_lie_in_a_real_s3_server() {
    let Some(server) = Server::start() else {
        eprintln!("SKIPPED: no S3-compatible server here; `.ci/run` installs one, see S3_TEST_SERVER");
        return;
    };
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.flags.pop();
    node.flags.push(format!("files.allow=[{:?}, \"s3://archive/backups\"]", site.path("import").display().to_string()));
    node.environment = server.environment();
    node.start().await;
    market(&node).await;
    node.sql(&copy(&site.ticks_file("bulk.csv", 0..200_000))).await;
    let url = "s3://archive/backups/market";
    node.sql(&format!("CALL backup('{url}')")).await;
    node.sql(&insert(200_000..200_010)).await;
    node.sql(&format!("CALL backup('{url}')")).await;
    let listed = node.sql(&format!("SELECT rows, fault FROM get_backup_list('{url}')")).await;
    assert_eq!(listed, [["200000", ""], ["200010", ""]]);
    assert!(bad(&node, url).await.is_empty());
    node.sql(&format!("CALL restore('{url}', database => 'market', into => 'copy', create => true)")).await;
    assert_eq!(node.sql(&sums_of("copy")).await, [sums(0..200_010)]);
    node.sql(&format!("CALL prune_backups('{url}', keep => 1)")).await;
    assert!(bad(&node, url).await.is_empty());
    let (state, words) = node.connect().await.refusal("CALL backup('s3://archive/elsewhere')").await;
    assert_eq!(state, "42501", "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_is_carried_to_a_cluster_without_a_connection() {
    for tool in ["psql", "rsync"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("SKIPPED: {tool} is not installed; `.ci/run` installs it");
            return;
        }
    }
    let site = Site::new();
    let (mut a, mut b) = (site.node("siteA", None, &[]), site.node("siteB", Some("siteA"), &[]));
    a.start().await;
    b.start().await;
    market(&a).await;
    a.sql(&insert(0..500)).await;
    b.sql("CREATE DATABASE market").await;
    let place = |name: &str| site.path("import").join(name).display().to_string();
    let (outgoing, incoming) = (place("outgoing"), place("incoming"));
    let carry = |a: &Node, b: &Node| {
        let psql = |node: &Node| format!("psql -h 127.0.0.1 -p {} -U test -d tailrace", node.pgwire().port());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/offline_synchronization.sh");
        let mut command = Command::new(script);
        command.args(["market.ticks", "at", "2023-01-09", &outgoing, &incoming, &incoming]);
        let output = command.env("PSQL_A", psql(a)).env("PSQL_B", psql(b)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let day = "SELECT count(*), sum(id), sum(price) FROM market.ticks WHERE at >= '2023-01-09' AND at < '2023-01-10'";
    carry(&a, &b);
    let wanted = a.sql(day).await;
    assert_eq!(wanted[0][0], "100");
    assert_eq!(b.sql(day).await, wanted);
    assert_eq!(b.sql("SELECT count(*) FROM market.ticks").await, [["100"]]);
    let position = "SELECT seq FROM system.databases WHERE name = 'market'";
    let before = b.sql(position).await;
    carry(&a, &b);
    assert_eq!(b.sql(position).await, before, "a rerun changes nothing");
    a.sql(&insert(500..550)).await;
    b.sql("INSERT INTO market.ticks VALUES (9999, '2023-01-09 00:00:00', 1)").await;
    carry(&a, &b);
    let wanted = a.sql(day).await;
    assert_eq!((wanted[0][0].as_str(), b.sql(day).await), ("110", wanted.clone()));
}
