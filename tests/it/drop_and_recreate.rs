//! A database, or a table with another schema, dropped and made anew under the same name while a replica is away.

use crate::harness::{SUMS, Site, create_ticks, insert, sums};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_away_ends_the_old_history_and_follows_the_new_one() {
    for flush in [false, true] {
        let site = Site::new();
        let primary = site.primary(&["wal.segment_bytes=64KiB"]).await;
        let mut replica = site.replica("siteB", &primary, &[]).await;
        create_ticks(&primary).await;
        primary.sql(&insert(0..1000)).await;
        replica.wait_for("SELECT count(*) FROM market.ticks", &[&["1000"]]).await;
        replica.stop();

        primary.sql("DROP DATABASE market").await;
        create_ticks(&primary).await;
        primary.sql(&insert(5000..5300)).await;
        if flush {
            primary.sql("CALL flush()").await;
        }
        replica.start().await;
        let wanted = sums(5000..5300);
        replica.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
        assert_eq!(primary.sql(SUMS).await, [wanted]);
    }
}

/// What both sides must agree on.
const POSITION: &str = "SELECT history_id, epoch, seq, chain FROM system.databases WHERE name = 'market'";
const COLUMNS: &str = "SELECT column_name, data_type, is_nullable FROM information_schema.columns \
     WHERE table_schema = 'market' AND table_name = 'ticks' ORDER BY ordinal_position";
const LAYOUT: &str =
    "SELECT name, partition_by, order_by, rows FROM system.tables WHERE database = 'market' ORDER BY name";
/// Tasks that did not go well at once.
const TROUBLE: &str =
    "SELECT * FROM get_slave_replication_status() WHERE state <> 'FINISHED' OR operation_type = 'REPAIR'";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_dropped_and_made_anew_with_another_schema_is_followed_without_a_stop() {
    for flush in [false, true] {
        let site = Site::new();
        let primary = site.primary(&[]).await;
        let mut replica = site.replica("siteB", &primary, &[]).await;
        create_ticks(&primary).await;
        primary.sql(&insert(0..1000)).await;
        replica.wait_for("SELECT count(*) FROM market.ticks", &[&["1000"]]).await;
        if flush {
            replica.sql("CALL flush()").await;
        }
        replica.stop();

        // Away: rows of the old one, then the same name with other columns, types, partitions and order, twice.
        let client = primary.connect().await;
        client.rows(&insert(1000..2000)).await;
        client.rows("DROP TABLE market.ticks").await;
        client.rows("CREATE TABLE market.ticks (id VARCHAR, price BIGINT NOT NULL)").await;
        client.rows("INSERT INTO market.ticks VALUES ('gone', 1)").await;
        client.rows("DROP TABLE market.ticks").await;
        let create = "CREATE TABLE market.ticks (price VARCHAR, at TIMESTAMP(3) NOT NULL, venue INTEGER, id SMALLINT) \
                      PARTITION BY VALUE (venue) ORDER BY (at)";
        client.rows(create).await;
        client
            .rows("INSERT INTO market.ticks VALUES ('ten', '2024-02-29 10:00:00', 3, 1), (NULL, '2024-03-01', NULL, 2)")
            .await;
        if flush {
            client.rows("CALL flush()").await;
        }
        client.rows("INSERT INTO market.ticks VALUES ('eleven', '2024-02-29 11:00:00', 3, 3)").await;

        replica.start().await;
        const ROWS: &str = "SELECT * FROM market.ticks ORDER BY id";
        let wanted = client.rows(ROWS).await;
        assert_eq!(wanted.len(), 3);
        replica.wait_for("SELECT count(*) FROM market.ticks WHERE id = 3", &[&["1"]]).await;
        for what in [ROWS, COLUMNS, LAYOUT, POSITION] {
            assert_eq!(replica.sql(what).await, client.rows(what).await, "{what}");
        }
        assert_eq!(replica.sql(TROUBLE).await, [[""; 0]; 0]);
        let state = "SELECT state, reason FROM get_database_cluster_replication_status()";
        assert_eq!(replica.sql(state).await, [["ENABLED", ""]]);

        // And after a start of the replica, from its own log and datafiles.
        replica.kill();
        replica.start().await;
        for what in [ROWS, COLUMNS, LAYOUT, POSITION] {
            assert_eq!(replica.sql(what).await, client.rows(what).await, "{what} after a start");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_dropped_and_made_anew_with_other_tables_is_followed_without_a_stop() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &[]).await;
    create_ticks(&primary).await;
    let client = primary.connect().await;
    client.rows("CREATE TABLE market.old (x BIGINT)").await;
    client.rows(&insert(0..100)).await;
    replica.wait_for("SELECT count(*) FROM market.ticks", &[&["100"]]).await;
    replica.stop();

    client.rows("DROP DATABASE market").await;
    client.rows("CREATE DATABASE market").await;
    client.rows("CALL set_database_for_cluster_replication('market', true)").await;
    client.rows("CREATE TABLE market.ticks (name VARCHAR, weight DOUBLE PRECISION)").await;
    client.rows("INSERT INTO market.ticks VALUES ('a', 1.5), ('b', 2.5)").await;

    replica.start().await;
    replica.wait_for("SELECT name, weight FROM market.ticks ORDER BY name", &[&["a", "1.5"], &["b", "2.5"]]).await;
    for what in [COLUMNS, LAYOUT, POSITION] {
        assert_eq!(replica.sql(what).await, client.rows(what).await, "{what}");
    }
    assert_eq!(replica.sql("SELECT name FROM system.tables WHERE database = 'market'").await, [["ticks"]]);
    assert_eq!(replica.sql(TROUBLE).await, [[""; 0]; 0]);
    assert_eq!(replica.sql("SELECT state FROM get_database_cluster_replication_status()").await, [["ENABLED"]]);
    // Nothing of the old history holds log.
    primary.wait_for("SELECT count(*) FROM system.pins", &[&["1"]]).await;
}
