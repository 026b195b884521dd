//! A replica compared with its primary in SQL: equal, then with a flipped byte on its disk, then repaired.

use std::path::{Path, PathBuf};

use crate::harness::{Node, SUMS, Site, create_ticks, insert, sums};

const STATE: &str = "SELECT state FROM get_database_cluster_replication_status() WHERE database = 'market'";
const DIGESTS: &str = "SELECT partition, rows, values_digest, identity_digest FROM partition_digests('market.ticks')";

/// The first datafile in a folder.
fn datafile(dir: &Path) -> Option<PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(dir).ok()?.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries.into_iter().find_map(|path| match path.is_dir() {
        true => datafile(&path),
        false => Some(path).filter(|path| path.extension().is_some_and(|extension| extension == "parquet")),
    })
}

/// Partitions that differ, with what is said of them.
async fn differences(replica: &Node, call: &str) -> Vec<String> {
    let rows = replica.sql(call).await;
    assert!(!rows.is_empty());
    let shown = rows.iter().filter(|row| row[4] != "t").map(|row| format!("{} {}: {}", row[0], row[1], row[5]));
    shown.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_verified_damaged_found_and_repaired() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    primary.sql(&insert(0..300)).await;
    let wanted = sums(0..300);
    replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
    let rows = replica.sql("CALL verify_database('market')").await;
    let counted: u64 = rows.iter().map(|row| row[2].parse::<u64>().unwrap()).sum();
    assert_eq!(counted, 300);
    assert!(rows.iter().all(|row| row[0] == "ticks" && row[2] == row[3] && row[4] == "t" && row[5].is_empty()));
    assert_eq!(replica.sql(DIGESTS).await, primary.sql(DIGESTS).await);

    replica.sql("CALL flush()").await;
    replica.stop();
    let file = datafile(&site.path("siteB")).expect("a datafile of the replica");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    replica.start().await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
    let scrub = "CALL verify_database('market', from_files => true, timeout => 60000)";
    let found = differences(&replica, scrub).await;
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(found.len() == 1 && found[0].contains(name), "{found:?}");
    replica.wait_for(STATE, &[&["DIVERGED"]]).await;
    replica.stop();
    replica.start().await;
    replica.wait_for(STATE, &[&["DIVERGED"]]).await;
    replica.sql("CALL repair_database('market')").await;
    replica.wait_for(STATE, &[&["ENABLED"]]).await;
    assert_eq!(differences(&replica, scrub).await, Vec::<String>::new());

    let (state, message) = primary.connect().await.refusal("CALL verify_database('market')").await;
    assert!(state == "55000" && message.contains("not properly configured"), "{state} {message}");
    let (state, _) = replica.connect().await.refusal("CALL verify_database('nope')").await;
    assert_eq!(state, "55000");
}
