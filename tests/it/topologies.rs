//! More than one primary and one replica: passed on from site to site, and both ways between two.

use crate::harness::{SUMS, Site, copy, create_ticks, insert, sums};

/// Where a site stands in the history of `market`; equal on all sites that hold the same.
const POSITION: &str = "SELECT history_id, epoch, seq, chain FROM system.databases WHERE name = 'market'";

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_passes_on_what_it_gets_in_the_terms_of_its_source() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut middle = site.replica("siteB", &primary, &["replication.primary.max_replicas=2"]).await;
    let mut last = site.replica("siteC", &middle, &[]).await;
    create_ticks(&primary).await;
    middle.wait_for("SELECT count(*) FROM market.ticks", &[&["0"]]).await;
    middle.sql("CALL set_database_for_cluster_replication('market', true)").await;
    primary.sql(&insert(0..50)).await;
    last.wait_for(SUMS, &[&refs(&sums(0..50))]).await;
    assert_eq!(last.sql(POSITION).await, primary.sql(POSITION).await);
    let (state, words) = last.connect().await.refusal(&insert(50..51)).await;
    assert!(state == "25006" && words.contains("siteB"), "{state} {words}");

    // Either is away for a while; what was open in the middle's log is not lost.
    last.stop();
    primary.sql(&copy(&site.ticks_file("a.csv", 50..40_050))).await;
    middle.wait_for(SUMS, &[&refs(&sums(0..40_050))]).await;
    middle.sql("CALL flush()").await;
    middle.kill();
    primary.sql(&insert(40_050..40_060)).await;
    last.start().await;
    middle.start().await;
    last.wait_for(SUMS, &[&refs(&sums(0..40_060))]).await;
    assert_eq!(last.sql(POSITION).await, primary.sql(POSITION).await);

    // Off in the middle: the last one waits, and goes on where it was.
    middle.sql("CALL set_database_for_cluster_replication('market', false)").await;
    primary.sql(&insert(40_060..40_070)).await;
    middle.wait_for(SUMS, &[&refs(&sums(0..40_070))]).await;
    last.wait_for("SELECT state FROM system.databases WHERE name = 'market'", &[&["DISABLED"]]).await;
    middle.sql("CALL set_database_for_cluster_replication('market', true)").await;
    last.wait_for(SUMS, &[&refs(&sums(0..40_070))]).await;

    primary.sql("DROP DATABASE market").await;
    last.wait_for("SELECT count(*) FROM system.databases WHERE name = 'market'", &[&["0"]]).await;
    middle.wait_for("SELECT count(*) FROM system.pins", &[&["0"]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sites_follow_each_other() {
    let site = Site::new();
    let mut one = site.primary(&[]).await;
    let two = site.replica("siteB", &one, &["replication.primary.max_replicas=2"]).await;
    one.stop();
    one.flags.push(format!("replication.replica.primary_addresses=[\"{}\"]", two.replication.unwrap()));
    one.start().await;
    create_ticks(&one).await;
    let there = two.connect().await;
    there.rows("CREATE DATABASE weather").await;
    there.rows("CALL set_database_for_cluster_replication('weather', true)").await;
    there
        .rows("CREATE TABLE weather.rain (at TIMESTAMP(3) NOT NULL, mm DOUBLE PRECISION) PARTITION BY VALUE (day(at))")
        .await;
    there.rows("INSERT INTO weather.rain VALUES ('2023-01-08 09:30:00', 1.5)").await;
    one.sql(&insert(0..20)).await;
    one.wait_for("SELECT mm FROM weather.rain", &[&["1.5"]]).await;
    two.wait_for(SUMS, &[&refs(&sums(0..20))]).await;

    // Passed on, a history comes back to where it is written: that is no name that is taken.
    there.rows("CALL set_database_for_cluster_replication('market', true)").await;
    there.rows("INSERT INTO weather.rain VALUES ('2023-01-08 09:31:00', 2.5)").await;
    one.wait_for("SELECT count(*) FROM weather.rain", &[&["2"]]).await;
    let states = "SELECT name, role, state FROM system.databases ORDER BY name";
    one.wait_for(states, &[&["market", "primary", "ENABLED"], &["weather", "replica", "ENABLED"]]).await;
    assert_eq!(one.connect().await.refusal("INSERT INTO weather.rain VALUES ('2023-01-08', 1)").await.0, "25006");
    one.sql(&insert(20..30)).await;
    two.wait_for(SUMS, &[&refs(&sums(0..30))]).await;
}

fn refs(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}
