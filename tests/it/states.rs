//! A database that fails on a replica, as an operator sees it and puts it right: with SQL.

use crate::{
    harness::{Node, SUMS, Site, copy, create_ticks, insert, sums},
    volume::Volume,
};

const APPLY_AS: [&str; 4] = [
    "replication.replica.apply_user=replicator",
    "replication.replica.task_failures_max=3",
    "replication.replica.backoff_min=20ms",
    "replication.replica.backoff_max=100ms",
];
const STATE: &str = "SELECT state FROM get_database_cluster_replication_status() WHERE database = 'market'";

async fn shows(node: &Node, rows: std::ops::Range<u64>) {
    let wanted = sums(rows);
    node.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_without_permission_is_skipped_retried_discarded_and_repaired() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &APPLY_AS).await;
    create_ticks(&primary).await;
    replica.wait_for(STATE, &[&["STOPPED"]]).await;
    let status = "SELECT attempts, next_try, since > '2020-01-01', reason LIKE '%lacks the right \"ddl\"%', remedy \
                  FROM get_database_cluster_replication_status()";
    let grant = "CALL grant_right('replicator', 'market', 'ddl')";
    assert_eq!(replica.sql(status).await, [["3", "", "t", "t", grant]]);
    // The remedy, as it is written there.
    replica.sql(grant).await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
    primary.sql(&insert(0..100)).await;
    replica.wait_for(STATE, &[&["STOPPED"]]).await;
    replica.sql("CALL grant_right('replicator', 'market', 'write')").await;
    shows(&replica, 0..100).await;
    let rights = "SELECT * FROM system.rights ORDER BY \"right\"";
    assert_eq!(replica.sql(rights).await, [["replicator", "market", "ddl"], ["replicator", "market", "write"]]);
    let (state, message) = replica.connect().await.refusal("CALL grant_right('replicator', 'market', 'all')").await;
    assert!(state == "22023" && message.contains("write, ddl"), "{state} {message}");

    // Task 4 fails and is skipped; task 5 arrives.
    replica.sql("CALL revoke_right('replicator', 'market', 'write')").await;
    primary.sql(&insert(100..200)).await;
    replica.wait_for(STATE, &[&["STOPPED"]]).await;
    let client = replica.connect().await;
    let (state, message) = client.refusal("CALL skip_cluster_replication_task('market', 3)").await;
    assert!(state == "55000" && message.contains("CALL skip_cluster_replication_task('market', 4)"), "{message}");
    client.rows("CALL skip_cluster_replication_task(4)").await;
    client.rows("CALL grant_right('replicator', 'market', 'write')").await;
    primary.sql(&insert(200..300)).await;
    replica.wait_for("SELECT count(*) FROM market.ticks", &[&["200"]]).await;
    for end in ["kill", "stop", "flush"] {
        replica.wait_for(STATE, &[&["DIVERGED"]]).await;
        let diverged = "SELECT state, reason, remedy, since > '2020-01-01' FROM system.databases WHERE name = 'market'";
        let reason = "task 4 was skipped here; system.dead_letters has what was left out";
        let remedy = "CALL retry_dead_letter('market', 4), or CALL repair_database('market')";
        assert_eq!(replica.sql(diverged).await, [["DIVERGED", reason, remedy, "t"]], "{end}");
        let letters = "SELECT database, task_id, operation_type, \"table\", rows, bytes > 0, \
                       reason LIKE '%lacks the right \"write\"%', skipped_at > '2020-01-01' FROM system.dead_letters";
        assert_eq!(replica.sql(letters).await, [["market", "4", "APPEND", "ticks", "100", "t", "t", "t"]], "{end}");
        match end {
            "kill" => {
                let skipped = "SELECT task_id, state, details LIKE '%lacks the right%' FROM \
                               get_slave_replication_status() WHERE state <> 'FINISHED'";
                assert_eq!(replica.sql(skipped).await, [["4", "SKIPPED", "t"]]);
                replica.kill();
            }
            "stop" => replica.stop(),
            _ => {
                replica.sql("CALL flush()").await;
                replica.stop();
            }
        }
        replica.start().await;
    }
    replica.wait_for(STATE, &[&["DIVERGED"]]).await;
    let location = replica.sql("SELECT location FROM system.dead_letters").await[0][0].clone();
    assert!(std::path::Path::new(&location).exists());
    replica.sql("CALL retry_dead_letter('market', 4)").await;
    shows(&replica, 0..300).await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
    assert!(!std::path::Path::new(&location).exists());
    let (state, message) = replica.connect().await.refusal("CALL retry_dead_letter('market', 4)").await;
    assert!(state == "22023" && message.contains("no dead letter"), "{state} {message}");

    // Given up: only a repair helps.
    replica.sql("CALL revoke_right('replicator', 'market', 'write')").await;
    primary.sql(&insert(300..400)).await;
    replica.wait_for(STATE, &[&["STOPPED"]]).await;
    replica.sql("CALL skip_cluster_replication_task('market', 6)").await;
    replica.sql("CALL grant_right('replicator', 'market', 'write')").await;
    replica.sql("CALL discard_dead_letter('market', 6)").await;
    assert_eq!(replica.sql("SELECT count(*) FROM system.dead_letters").await, [["0"]]);
    replica.wait_for(STATE, &[&["DIVERGED"]]).await;
    let remedy = "SELECT remedy FROM system.databases WHERE name = 'market'";
    assert_eq!(replica.sql(remedy).await, [["CALL repair_database('market')"]]);
    replica.sql("CALL repair_database('market')").await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
    shows(&replica, 0..400).await;
    primary.sql(&insert(400..410)).await;
    shows(&replica, 0..410).await;
    replica.stop();
    replica.start().await;
    shows(&replica, 0..410).await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_is_shown_and_left_alone_while_its_neighbour_goes_on() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &[]).await;
    let own = replica.connect().await;
    own.rows("CREATE DATABASE market").await;
    own.rows("CREATE TABLE market.ticks (own BIGINT NOT NULL)").await;
    own.rows("INSERT INTO market.ticks VALUES (7)").await;
    let client = primary.connect().await;
    client.rows("CREATE DATABASE other").await;
    client.rows("CALL set_database_for_cluster_replication('other', true)").await;
    create_ticks(&primary).await;
    client.rows("CREATE TABLE other.t (x BIGINT NOT NULL)").await;
    client.rows("INSERT INTO other.t VALUES (1), (2)").await;
    let shown = "SELECT database, role, state, remedy LIKE 'DROP DATABASE market%' FROM \
                 get_database_cluster_replication_status() WHERE role = 'replica' ORDER BY database";
    replica.wait_for(shown, &[&["market", "replica", "NAME TAKEN", "t"], &["other", "replica", "ENABLED", ""]]).await;
    replica.wait_for("SELECT count(*) FROM other.t", &[&["2"]]).await;
    assert_eq!(own.rows("SELECT own FROM market.ticks").await, [["7"]]);
    let (state, message) = own.refusal("CALL repair_database('market')").await;
    assert!(state == "55000" && message.contains("this cluster's own"), "{state} {message}");
    own.rows("DROP DATABASE market").await;
    primary.sql(&insert(0..10)).await;
    shows(&replica, 0..10).await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_replication_is_not_configured_that_is_said_with_what_to_set() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut alone = site.node("siteX", None, &[]);
    alone.start().await;
    let (primary, alone) = (primary.connect().await, alone.connect().await);
    let calls = ["CALL skip_cluster_replication_task('market', 1)", "CALL repair_database('market')"];
    let both = ["CALL start_cluster_replication()", "SELECT * FROM get_database_cluster_replication_status()"];
    for call in calls.into_iter().chain(both) {
        let (state, message) = alone.refusal(call).await;
        assert_eq!(state, "55000", "{call}: {message}");
        assert!(message.contains("Asynchronous replication is not properly configured for the cluster"), "{message}");
        assert!(message.contains("[replication.replica] with primary_addresses"), "{message}");
    }
    for call in calls {
        let (state, message) = primary.refusal(call).await;
        assert!(state == "55000" && message.contains("run it on the replica"), "{call}: {state} {message}");
    }
    let (state, message) = primary.refusal("CALL skip_cluster_replication_task('market')").await;
    assert!(state == "42883" && message.contains("needs the id of a task"), "{state} {message}");
}

/// A replica whose log and datafiles lie on a disk of their own; `None`, with a word, where mounting is not permitted.
async fn on_a_disk_of_its_own(site: &Site, primary: &Node) -> Option<(Volume, Node)> {
    let volume = Volume::make(&site.path("import"), "disk");
    if !volume.is_mounted {
        return None;
    }
    let data = format!("node.data_dir={}", volume.path().join("data").display());
    let flags = [data.as_str(), "wal.segment_bytes=256KiB", "replication.replica.backoff_max=200ms"];
    let replica = site.replica("siteB", primary, &flags).await;
    create_ticks(primary).await;
    primary.sql(&insert(0..100)).await;
    shows(&replica, 0..100).await;
    Some((volume, replica))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_a_replica_is_shown_and_it_goes_on_by_itself_when_there_is_space() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let Some((volume, replica)) = on_a_disk_of_its_own(&site, &primary).await else { return };
    let full = "SELECT reason LIKE '%space%', attempts > 0, next_try IS NOT NULL, state <> 'STOPPED' FROM \
                get_database_cluster_replication_status()";
    volume.fill(0).unwrap();
    let mut rows = 100;
    // What is preallocated takes some of it.
    let client = primary.connect().await;
    let shown = replica.connect().await;
    while shown.rows(full).await != [["t", "t", "t", "t"]] {
        assert!(
            rows < 200_000,
            "the disk was never full: {:?}",
            replica.sql(&full.replace("LIKE '%space%'", "")).await
        );
        client.rows(&copy(&site.ticks_file("more.csv", rows..rows + 2000))).await;
        rows += 2000;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let count = "SELECT count(*) > 0 FROM market.ticks";
    assert_eq!(shown.rows(count).await, [["t"]], "reads go on");
    volume.unfill();
    shows(&replica, 0..rows).await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_turns_read_only_ends_the_replica_and_a_restart_goes_on() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let Some((mut volume, mut replica)) = on_a_disk_of_its_own(&site, &primary).await else { return };
    if let Err(reason) = volume.turn_read_only() {
        println!("skipped: the disk cannot be turned read-only: {reason}");
        return;
    }
    primary.sql(&insert(100..200)).await;
    let status = replica.wait();
    assert_eq!(status.code(), Some(3), "{}", replica.log());
    assert!(replica.log().contains("ead-only"), "{}", replica.log());
    volume.remount().unwrap();
    replica.start().await;
    shows(&replica, 0..200).await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
    primary.sql(&insert(200..300)).await;
    shows(&replica, 0..300).await;
}

/// Dead letters cannot be kept: nothing is skipped then.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_whose_payload_cannot_be_kept_is_not_skipped() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let replica = site.replica("siteB", &primary, &APPLY_AS).await;
    for right in ["write", "ddl"] {
        replica.sql(&format!("CALL grant_right('replicator', 'market', '{right}')")).await;
    }
    create_ticks(&primary).await;
    primary.sql(&insert(0..10)).await;
    shows(&replica, 0..10).await;
    replica.sql("CALL revoke_right('replicator', 'market', 'write')").await;
    primary.sql(&insert(10..20)).await;
    replica.wait_for(STATE, &[&["STOPPED"]]).await;
    // A file where the folder is to be: also root cannot write into that.
    let folder = replica.dir.join("data/dead_letters");
    std::fs::write(&folder, "in the way").unwrap();
    let client = replica.connect().await;
    let (state, message) = client.refusal("CALL skip_cluster_replication_task('market', 4)").await;
    assert!(state == "55000" && message.contains("fails again") && message.contains("dead letter"), "{message}");
    assert_eq!(client.rows("SELECT max(task_id) FROM system.tasks").await, [["3"]]);
    std::fs::remove_file(&folder).unwrap();
    // The request stands.
    client.rows("CALL start_cluster_replication()").await;
    replica.wait_for("SELECT task_id FROM system.dead_letters", &[&["4"]]).await;
    replica.wait_for(STATE, &[&["DIVERGED"]]).await;
}
