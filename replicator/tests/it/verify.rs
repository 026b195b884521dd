//! A replica compares itself with its primary: what is equal, what differs, what was damaged on disk, and what ends it.

use std::{path::Path, sync::Arc, time::Duration};

use arrow_array::{Float64Array, RecordBatch};
use tailrace_replicator::{Follower, Publisher, ReplicationState, VerifiedDatabase};

use crate::support::{Authority, Site, bars, eventually, reaches};

const PATIENCE: Duration = Duration::from_secs(60);

async fn pair() -> (Authority, Site, Site, Arc<Publisher>, Arc<Follower>) {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    primary.market("market").await;
    primary.insert("market", "bars", 0..300).await;
    let publisher = primary.publish().await;
    let follower = replica.follow(publisher.local_addr()).await;
    replica.catches_up(&primary, "market").await;
    (authority, primary, replica, publisher, follower)
}

fn differences(verified: &VerifiedDatabase) -> Vec<String> {
    let shown = verified.partitions.iter().filter_map(|compared| {
        let partition = compared.partition_name.clone().unwrap_or_default();
        Some(format!("{} {partition}: {}", compared.table_name, compared.difference.as_ref()?))
    });
    shown.collect()
}

fn other_prices(batch: &RecordBatch) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    columns[2] = Arc::new(Float64Array::from(vec![-1.0; batch.num_rows()]));
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_differing_row_is_found_and_a_repair_moves_its_partition_alone() {
    let (_authority, primary, replica, _publisher, follower) = pair().await;
    let before = primary.position("market").unwrap().seq;
    let verified = follower.verify("market", false, PATIENCE).await.unwrap();
    assert_eq!((verified.position.seq, differences(&verified)), (before.next(), vec![]));
    let rows: Vec<_> = verified.partitions.iter().map(|compared| (compared.rows_here, compared.rows_there)).collect();
    assert_eq!(rows, [(100, 100), (100, 100), (100, 100)]);
    assert_eq!(reaches(&follower, "market", ReplicationState::Enabled).await.reason, None);

    let version = replica.engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap().clone();
    let (key, _) = table.partitions().nth(1).unwrap();
    replica.engine.tamper("market", "bars", key, other_prices).unwrap();
    // Rows go on coming in the meantime.
    primary.insert("market", "bars", 300..330).await;
    let verified = follower.verify("market", false, PATIENCE).await.unwrap();
    assert_eq!(differences(&verified), ["bars at_day=1970-01-02: 110 rows on both sides, with other values"]);
    let shown = reaches(&follower, "market", ReplicationState::Diverged).await;
    let reason = shown.reason.unwrap();
    assert!(reason.contains("table \"bars\", partition at_day=1970-01-02") && reason.contains("at seq"), "{reason}");
    assert_eq!(shown.remedy.as_deref(), Some("CALL repair_database('market')"));
    primary.insert("market", "bars", 330..360).await;
    replica.catches_up(&primary, "market").await;

    let before = follower.status().wire_bytes;
    follower.repair("market").await.unwrap();
    reaches(&follower, "market", ReplicationState::Enabled).await;
    println!("{} bytes came for the repair", follower.status().wire_bytes - before);
    let verified = follower.verify("market", true, PATIENCE).await.unwrap();
    assert_eq!(differences(&verified), Vec::<String>::new());
    primary.insert("market", "bars", 360..400).await;
    replica.catches_up(&primary, "market").await;
}

/// The first datafile in a folder.
fn datafile(dir: &Path) -> Option<std::path::PathBuf> {
    let mut entries: Vec<_> = std::fs::read_dir(dir).ok()?.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries.into_iter().find_map(|path| match path.is_dir() {
        true => datafile(&path),
        false => Some(path).filter(|path| path.extension().is_some_and(|extension| extension == "parquet")),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_a_datafile_is_named_by_a_scrub() {
    let (_authority, _primary, replica, _publisher, follower) = pair().await;
    replica.engine.flush().await.unwrap();
    let file = datafile(&replica.dir.path().join("store")).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let verified = follower.verify("market", false, PATIENCE).await.unwrap();
    assert_eq!(differences(&verified), Vec::<String>::new());
    let verified = follower.verify("market", true, PATIENCE).await.unwrap();
    let found = differences(&verified);
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(found.len() == 1 && found[0].contains(name) && found[0].contains("damaged here"), "{found:?}");
    reaches(&follower, "market", ReplicationState::Diverged).await;
    follower.repair("market").await.unwrap();
    reaches(&follower, "market", ReplicationState::Enabled).await;
    // What is no longer named is removed a moment later.
    let other = || std::fs::read(&file).map_or(true, |now| now != bytes).then_some(());
    eventually("the damaged datafile to be gone or another", other).await;
    let verified = follower.verify("market", true, PATIENCE).await.unwrap();
    assert_eq!(differences(&verified), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_and_go_and_what_is_left_out_is_not_compared() {
    let authority = Authority::new();
    let (primary, replica) = (Site::new(&authority, "a").await, Site::new(&authority, "b").await);
    primary.market("market").await;
    primary.engine.create_table("market", bars("risk")).await.unwrap();
    primary.insert("market", "bars", 0..30).await;
    primary.insert("market", "risk", 0..30).await;
    let publisher = primary.publish().await;
    let follower = replica.follow_tables(publisher.local_addr(), &["bars"]).await;
    replica.catches_up(&primary, "market").await;
    let verified = follower.verify("market", true, PATIENCE).await.unwrap();
    assert!(verified.partitions.iter().all(|compared| compared.table_name == "bars" && compared.difference.is_none()));
    assert_eq!((verified.partitions.len(), verified.left_out), (3, vec!["risk".to_owned()]));
    primary.engine.drop_table("market", "bars").await.unwrap();
    let verified = follower.verify("market", false, PATIENCE).await.unwrap();
    assert_eq!(verified.partitions, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_verified_says_why() {
    let (_authority, primary, replica, publisher, follower) = pair().await;
    let refused = follower.verify("nope", false, PATIENCE).await.unwrap_err();
    assert!(refused.reason.contains("no database \"nope\""), "{refused}");
    let refused = follower.verify("market", false, Duration::ZERO).await.unwrap_err();
    assert!(refused.reason.contains("not verified within"), "{refused}");
    // Nothing is left of it: others are verified.
    follower.verify("market", false, PATIENCE).await.unwrap();

    primary.engine.set_database_replication("market", false).await.unwrap();
    reaches(&follower, "market", ReplicationState::Disabled).await;
    let refused = follower.verify("market", false, PATIENCE).await.unwrap_err();
    assert!(refused.reason.contains("DISABLED"), "{refused}");
    primary.engine.set_database_replication("market", true).await.unwrap();
    reaches(&follower, "market", ReplicationState::Enabled).await;

    // Many at a time: each is answered, if only with a refusal.
    let many = (0..8).map(|_| follower.verify("market", true, PATIENCE));
    let answers = futures::future::join_all(many).await;
    assert!(answers.iter().any(Result::is_ok));
    for refused in answers.into_iter().filter_map(Result::err) {
        let known = refused.reason.contains("under way") || refused.reason.contains("not remembered");
        assert!(known, "{refused}");
    }

    publisher.shutdown().await;
    eventually("the primary to be away", || follower.status().connected.is_none().then_some(())).await;
    let refused = follower.verify("market", false, PATIENCE).await.unwrap_err();
    assert!(refused.reason.contains("no connection to the primary"), "{refused}");
    assert_eq!(replica.rows("market", "bars"), Some(300));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_replica_compares_with_the_one_that_it_follows() {
    let (authority, primary, middle, _publisher, above) = pair().await;
    middle.engine.set_database_replication("market", true).await.unwrap();
    let relay = middle.publish().await;
    let last = Site::new(&authority, "c").await;
    let follower = last.follow(relay.local_addr()).await;
    last.catches_up(&primary, "market").await;
    let here = primary.position("market").unwrap();
    let verified = follower.verify("market", false, PATIENCE).await.unwrap();
    assert_eq!((verified.position, differences(&verified)), (here, vec![]), "nothing was written for it");
    assert_eq!(verified.partitions.iter().map(|compared| compared.rows_there).sum::<u64>(), 300);

    // While rows come, in both forms.
    let writing = async {
        for batch in 10..60 {
            primary.insert("market", "bars", batch * 100..batch * 100 + 100).await;
        }
    };
    let verifying = async {
        for from_files in [false, true, false, true] {
            let verified = follower.verify("market", from_files, PATIENCE).await.unwrap();
            assert_eq!(differences(&verified), Vec::<String>::new());
        }
    };
    tokio::join!(writing, verifying);
    last.catches_up(&primary, "market").await;

    let version = last.engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap().clone();
    let hot = table.partitions().find(|(_, partition)| !partition.chunks.is_empty()).map(|(key, _)| key.clone());
    last.engine.tamper("market", "bars", &hot.unwrap(), other_prices).unwrap();
    let found = differences(&follower.verify("market", false, PATIENCE).await.unwrap());
    assert!(found.len() == 1 && found[0].contains("with other values"), "{found:?}");
    reaches(&follower, "market", ReplicationState::Diverged).await;
    follower.repair("market").await.unwrap();
    reaches(&follower, "market", ReplicationState::Enabled).await;
    let verified = follower.verify("market", true, PATIENCE).await.unwrap();
    assert_eq!(differences(&verified), Vec::<String>::new());

    // What is wrong in the middle is found there, and is nothing to compare others with.
    primary.insert("market", "bars", 9_000..9_030).await;
    last.catches_up(&primary, "market").await;
    let version = middle.engine.version();
    let table = version.database("market").unwrap().table("bars").unwrap().clone();
    let hot = table.partitions().find(|(_, partition)| !partition.chunks.is_empty()).map(|(key, _)| key.clone());
    middle.engine.tamper("market", "bars", &hot.unwrap(), other_prices).unwrap();
    assert_eq!(differences(&above.verify("market", false, PATIENCE).await.unwrap()).len(), 1);
    let refused = follower.verify("market", false, PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("DIVERGED") && refused.contains("CALL repair_database('market') here first"), "{refused}");
    above.repair("market").await.unwrap();
    reaches(&above, "market", ReplicationState::Enabled).await;
    last.catches_up(&primary, "market").await;
    reaches(&follower, "market", ReplicationState::Enabled).await;
    let verified = follower.verify("market", false, PATIENCE).await.unwrap();
    assert_eq!(differences(&verified), Vec::<String>::new());
    follower.shutdown().await;
    above.shutdown().await;
}
