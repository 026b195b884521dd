//! Digests of partitions: from memory, from files, after a start; files that changed on disk.

use std::sync::Arc;

use object_store::ObjectStoreExt as _;
use tailrace_engine::{Digest, Engine, PartitionKey};

use crate::support::*;

async fn digests(engine: &Arc<Engine>) -> Vec<(PartitionKey, Digest)> {
    let version = engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    let digests = engine.partition_digests(table).await.unwrap();
    for (key, digest) in &digests {
        let partition = table.partition(key).unwrap();
        assert_eq!(digest.rows, partition.rows());
        assert_eq!(engine.partition_digest(table, partition).await.unwrap(), *digest);
    }
    digests
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_files_and_a_restart_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..1_000, 3)).await;
    insert(&engine, "bars", rows(1_000..1_200, 5)).await;
    let hot = digests(&engine).await;
    assert_eq!(hot.len(), 5);
    engine.flush().await.unwrap();
    assert_eq!(digests(&engine).await, hot);
    insert(&engine, "bars", rows(1_200..1_201, 1)).await;
    let mixed = digests(&engine).await;
    assert!(mixed[0] != hot[0] && mixed[1..] == hot[1..]);
    engine.flush().await.unwrap();
    engine.shutdown().await.unwrap();
    drop(engine);
    let engine = open(dir.path()).await;
    assert_eq!(digests(&engine).await, mixed);
    // What is kept is what the files hold.
    let version = engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    for (key, partition) in table.partitions() {
        assert!(partition.datafiles.iter().all(|file| file.meta.digest.is_some()));
        let scrubbed = engine.scrub_partition(table, partition).await.unwrap();
        assert_eq!(scrubbed.damage, []);
        assert_eq!(mixed.iter().find(|(of, _)| of == key).unwrap().1, scrubbed.digest);
    }
    // The same rows loaded otherwise elsewhere: other identities, the same values.
    let other_dir = tempfile::tempdir().unwrap();
    let other = open(other_dir.path()).await;
    other.create_database("market").await.unwrap();
    other.create_table("market", bars("first")).await.unwrap();
    other.create_table("market", bars("bars")).await.unwrap();
    insert(&other, "bars", rows(1_200..1_201, 1)).await;
    insert(&other, "bars", rows(1_000..1_200, 5)).await;
    for from in (0..10).rev().map(|part| part * 100) {
        insert(&other, "bars", rows(from..from + 100, 3)).await;
    }
    for ((key, here), (other_key, there)) in mixed.iter().zip(digests(&other).await) {
        assert!(*key == other_key && here.same_values(&there) && here.identity != there.identity);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_on_disk_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path()).await;
    market(&engine).await;
    insert(&engine, "bars", rows(0..500, 4)).await;
    engine.flush().await.unwrap();
    let version = engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap();
    let (_, partition) = table.partitions().nth(2).unwrap();
    let path = partition.datafiles[0].path().clone();
    let object = path.object_path().unwrap();
    let good = engine.store().get(&object).await.unwrap().bytes().await.unwrap();
    let file = dir.path().join("store").join(&path.0);
    for (at, cut) in [(good.len() / 3, 0), (10, 0), (0, 1), (good.len() - 3, 0)] {
        let mut bytes = good.to_vec();
        bytes[at] ^= 0x10;
        bytes.truncate(good.len() - cut);
        std::fs::write(&file, &bytes).unwrap();
        let mut named = Vec::new();
        for (_, partition) in table.partitions() {
            let scrubbed = engine.scrub_partition(table, partition).await.unwrap();
            named.extend(scrubbed.damage.into_iter().map(|damage| damage.path));
        }
        assert_eq!(named, std::slice::from_ref(&path.0));
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(engine.scrub_partition(table, partition).await.unwrap().damage[0].path, path.0);
    std::fs::write(&file, &good).unwrap();
    assert_eq!(engine.scrub_partition(table, partition).await.unwrap().damage, []);
}
