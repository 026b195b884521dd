//! System tables, status functions and procedures, over the wire.

use tokio_postgres::error::SqlState;

use crate::wire::{Served, cells};

const TABLES: [&str; 22] = [
    "archive",
    "archive_gaps",
    "backups",
    "databases",
    "datafiles",
    "dead_letters",
    "disk",
    "followed",
    "job_runs",
    "jobs",
    "memory",
    "partitions",
    "pins",
    "remote_clusters",
    "replicas",
    "rights",
    "settings",
    "subscriptions",
    "synchronizations",
    "tables",
    "tasks",
    "wal",
];

fn texts(row: &[Option<String>]) -> Vec<&str> {
    row.iter().map(|cell| cell.as_deref().unwrap_or("NULL")).collect()
}

#[tokio::test]
async fn every_system_table_is_readable_in_both_formats() {
    let served = Served::market().await;
    let client = served.client("market").await;
    for table in TABLES {
        let sql = format!("SELECT * FROM system.{table}");
        let simple = cells(&client, &sql).await;
        assert_eq!(client.query(&sql, &[]).await.unwrap().len(), simple.len(), "{table}");
    }
    let listed = cells(
        &client,
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'system' ORDER BY table_name",
    )
    .await;
    assert_eq!(listed.iter().map(|row| texts(row)[0]).collect::<Vec<_>>(), TABLES);
}

#[tokio::test]
async fn system_tables_tell_what_is_there() {
    let served = Served::market().await;
    let client = served.client("market").await;
    let databases =
        cells(&client, "SELECT name, role, replicated, state, seq, tables, rows FROM system.databases").await;
    assert_eq!(texts(&databases[0]), ["market", "primary", "f", "DISABLED", "3", "1", "2"]);
    let tables = "SELECT database, name, columns, partition_by, order_by, rows, hot_rows, partitions, datafiles FROM system.tables";
    let before = cells(&client, tables).await;
    assert_eq!(
        texts(&before[0]),
        ["market", "bars", "8", "day(datetime)", "security_id, datetime", "2", "2", "2", "0"]
    );
    let partitions = cells(&client, "SELECT partition, rows, hot_rows FROM system.partitions ORDER BY partition").await;
    assert_eq!(texts(&partitions[0]), ["datetime_day=2023-01-08", "1", "1"]);

    client.batch_execute("CALL flush()").await.unwrap();
    let after = cells(&client, tables).await;
    assert_eq!(texts(&after[0])[5..], ["2", "0", "2", "2"]);
    let datafiles =
        cells(&client, "SELECT path, rows, first_seq, last_seq, bytes > identity_bytes FROM system.datafiles").await;
    assert_eq!(datafiles.len(), 2);
    assert!(texts(&datafiles[0])[0].starts_with("market/bars/datetime_day="), "{datafiles:?}");
    assert_eq!(texts(&datafiles[0])[1..], ["1", "3", "3", "t"]);

    let tasks =
        cells(&client, "SELECT task_id, operation_type, \"table\", rows FROM system.tasks ORDER BY task_id").await;
    let tasks: Vec<_> = tasks.iter().map(|row| texts(row)).collect();
    assert_eq!(
        tasks,
        [["1", "CREATE_DATABASE", "NULL", "0"], ["2", "CREATE_TABLE", "bars", "0"], ["3", "APPEND", "bars", "2"],]
    );
    let wal =
        cells(&client, "SELECT durable_lsn = appended_lsn, unsynced_bytes, persistence, poisoned FROM system.wal")
            .await;
    assert_eq!(texts(&wal[0]), ["t", "0", "sync", "f"]);
    let disk = cells(&client, "SELECT holder FROM system.disk WHERE bytes > 0 ORDER BY holder").await;
    let holders: Vec<_> = disk.iter().map(|row| texts(row)[0]).collect();
    assert_eq!(holders, ["database market", "log", "manifest", "preallocated", "store"]);
    assert_eq!(texts(&cells(&client, "SELECT * FROM system.settings").await[0]), ["node.name", "site-a"]);
}

#[tokio::test]
async fn replication_that_is_not_configured_says_what_to_set() {
    let served = Served::market().await;
    let client = served.client("market").await;
    for statement in [
        "SELECT * FROM get_database_cluster_replication_status()",
        "SELECT * FROM get_master_replication_status()",
        "SELECT * FROM get_master_replication_status(10)",
        "SELECT * FROM get_slave_replication_status()",
        "SELECT * FROM get_recent_slave_replication_info()",
        "SELECT * FROM get_cluster_replication_metrics(-1)",
        "CALL start_cluster_replication()",
        "CALL stop_cluster_replication()",
        "CALL set_database_for_cluster_replication('market', true)",
    ] {
        let error = client.simple_query(statement).await.unwrap_err();
        let error = error.as_db_error().unwrap();
        assert_eq!(
            error.message(),
            "Asynchronous replication is not properly configured for the cluster",
            "{statement}"
        );
        assert!(error.hint().unwrap().contains("[replication.primary]"), "{statement}");
    }
}

#[tokio::test]
async fn wrong_calls_are_refused() {
    let served = Served::market().await;
    let client = served.client("market").await;
    for (statement, state) in [
        ("CALL nothing()", SqlState::UNDEFINED_FUNCTION),
        ("CALL flush(1)", SqlState::UNDEFINED_FUNCTION),
        ("CALL set_database_for_cluster_replication('market', 'perhaps')", SqlState::INVALID_PARAMETER_VALUE),
        ("CALL set_database_for_cluster_replication('markt', false)", SqlState::INVALID_CATALOG_NAME),
        ("SELECT * FROM get_master_replication_status('x')", SqlState::INVALID_PARAMETER_VALUE),
        ("SELECT * FROM get_recent_slave_replication_info(1)", SqlState::UNDEFINED_FUNCTION),
    ] {
        let error = client.simple_query(statement).await.unwrap_err();
        assert_eq!(error.code(), Some(&state), "{statement}: {error:?}");
    }
    client
        .batch_execute("CALL set_database_for_cluster_replication(enabled => false, database => 'market')")
        .await
        .unwrap();
}
