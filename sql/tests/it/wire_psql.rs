//! The real psql.

use std::process::{Command, Stdio};

use crate::wire::Served;

/// Runs commands; standard output, and standard error.
async fn psql(served: &Served, database: &str, commands: &[&str]) -> Option<(String, String)> {
    let mut psql = Command::new("psql");
    let port = served.server.local_addr().port().to_string();
    psql.args(["-X", "-A", "-h", "127.0.0.1", "-p", port.as_str(), "-U", "ann", "-d", database]);
    for command in commands {
        psql.args(["-c", command]);
    }
    psql.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    let output = match tokio::task::spawn_blocking(move || psql.output()).await.unwrap() {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: psql does not run here: {error}");
            return None;
        }
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Some((text(output.stdout), text(output.stderr)))
}

/// Runs commands that must succeed without a word on standard error.
async fn shown(served: &Served, database: &str, commands: &[&str]) -> Option<String> {
    let (out, error) = psql(served, database, commands).await?;
    assert_eq!(error, "", "{commands:?} gave {out}");
    Some(out)
}

#[tokio::test]
async fn backslash_d_describes_a_table() {
    let served = Served::market().await;
    for (database, command) in [("market", "\\d bars"), ("tailrace", "\\d market.bars"), ("market", "\\d+ bars")] {
        let Some(out) = shown(&served, database, &[command]).await else { return };
        for line in ["security_id|text", "datetime|timestamp without time zone", "volume|integer", "raw|bytea"] {
            assert!(out.contains(line), "{command}: {line:?} is not in {out}");
        }
        assert!(out.contains("not null"), "{out}");
    }
}

#[tokio::test]
async fn backslash_dt_lists_tables() {
    let served = Served::market().await;
    for (database, command) in
        [("market", "\\dt"), ("tailrace", "\\dt *.*"), ("tailrace", "\\dt market.*"), ("market", "\\d")]
    {
        let Some(out) = shown(&served, database, &[command]).await else { return };
        assert!(out.contains("market|bars|"), "{command}: {out}");
    }
}

#[tokio::test]
async fn backslash_l_and_dn_list_databases() {
    let served = Served::market().await;
    let Some(out) = shown(&served, "tailrace", &["\\l"]).await else { return };
    assert!(out.contains("tailrace|") && out.contains("market|"), "{out}");
    let Some(out) = shown(&served, "tailrace", &["\\dn"]).await else { return };
    assert!(out.contains("market|") && out.contains("system|"), "{out}");
    let Some(out) = shown(&served, "market", &["\\conninfo", "\\df", "\\du", "\\dv system.*", "\\dx"]).await else {
        return;
    };
    assert!(out.contains("system|databases|"), "{out}");
}

#[tokio::test]
async fn the_tutorials_statements_typed_by_hand() {
    let served = Served::new().await;
    let create = "CREATE TABLE market.bars (security_id TEXT, datetime TIMESTAMP(0), pre_close_px DOUBLE, \
                  open_px DOUBLE, high_px DOUBLE, low_px DOUBLE, last_px DOUBLE, volume INT, amount DOUBLE) \
                  PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime);";
    let insert = "INSERT INTO market.bars SELECT lpad(CAST(value AS TEXT), 6, '0'), TIMESTAMP '2023-01-08 09:30:00', \
                  1, 2, 3, 4, 5.25, 100, 525 FROM generate_series(0, 999);";
    let steps = [
        "CREATE DATABASE market;",
        create,
        insert,
        "SELECT count(*) FROM market.bars;",
        "CALL flush();",
        "SELECT count(*), sum(amount) FROM market.bars WHERE security_id = '000042';",
        "SELECT database, name, rows, datafiles FROM system.tables;",
        "EXPLAIN SELECT * FROM market.bars;",
    ];
    let Some(out) = shown(&served, "tailrace", &steps).await else { return };
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(&lines[..6], ["CREATE DATABASE", "CREATE TABLE", "INSERT 0 1000", "count", "1000", "(1 row)"], "{out}");
    assert!(out.contains("1|525") && out.contains("market|bars|1000|1") && out.contains("DataSourceExec"), "{out}");
}

#[tokio::test]
async fn errors_read_well() {
    let served = Served::market().await;
    for (command, words) in [
        ("SELECT * FROM barz", "table \"market.barz\" does not exist"),
        ("SELECT lastpx FROM bars", "LINE 1: SELECT lastpx FROM bars"),
        ("CALL set_database_for_cluster_replication('market', true)", "not properly configured for the cluster"),
        ("SELECT * FROM get_master_replication_status()", "[replication.primary]"),
        ("CALL flus()", "did you mean \"flush\""),
        ("CALL set_database_for_cluster_replication('market')", "its signature is"),
        ("CALL skip_cluster_replication_task(938)", "not properly configured for the cluster"),
        ("CALL skip_cluster_replication_task('market')", "its signature is skip_cluster_replication_task("),
        ("CALL backup('x')", "the place of a backup is a folder"),
        ("DELETE FROM bars", "not supported"),
    ] {
        let Some((out, error)) = psql(&served, "market", &[command]).await else { return };
        assert!(error.starts_with("ERROR:") && error.contains(words), "{command}: {out}{error}");
    }
    let Some((_, error)) = psql(&served, "nowhere", &["SELECT 1"]).await else { return };
    assert!(error.contains("database \"nowhere\" does not exist"), "{error}");
}

#[tokio::test]
async fn what_drivers_and_browsers_ask_when_they_connect() {
    let served = Served::market().await;
    let mut failed = Vec::new();
    for statement in [
        "SELECT pg_catalog.version()",
        "SHOW standard_conforming_strings",
        "SHOW TRANSACTION ISOLATION LEVEL",
        "SET application_name = 'x'",
        "SET extra_float_digits = 3",
        "SET client_encoding TO 'UTF8'",
        "SELECT current_database(), current_schema(), current_user",
        "SELECT current_setting('server_version_num')::int / 100 AS version",
        "SELECT pg_is_in_recovery()",
        "SELECT * FROM unnest(current_schemas(true))",
        "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname",
        "SELECT t.oid, typarray FROM pg_type t JOIN pg_namespace ns ON typnamespace = ns.oid WHERE typname = 'hstore'",
        "SELECT n.nspname, c.relname, c.relkind FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_namespace n \
         ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'v') AND n.nspname = ANY(ARRAY['market']) ORDER BY 1, 2",
        "SELECT a.attname, a.attnum, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull \
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = 'market.bars'::regclass AND a.attnum > 0 ORDER BY a.attnum",
        "SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns \
         WHERE table_schema = 'market' ORDER BY ordinal_position",
        "SELECT quote_ident(table_name) AS \"table\" FROM information_schema.tables WHERE quote_ident(table_schema) \
         NOT IN ('information_schema', 'pg_catalog') ORDER BY 1",
        "SELECT rolname FROM pg_catalog.pg_roles",
        "SELECT nspname FROM pg_catalog.pg_namespace WHERE has_schema_privilege(oid, 'USAGE') ORDER BY nspname",
        "BEGIN; ROLLBACK",
        "DISCARD ALL",
    ] {
        let Some((out, error)) = psql(&served, "market", &[statement]).await else { return };
        if !error.is_empty() {
            failed.push(format!("{statement} gave {out}{error}"));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
    let Some(out) = shown(&served, "market", &["SELECT current_database(), current_schemas(false)"]).await else {
        return;
    };
    assert!(out.contains("market|{market}"), "{out}");
    let Some(out) = shown(&served, "market", &["SELECT current_user, count(*), max(volume), 1 + 1, *, min(day) FROM bars \
                                                GROUP BY security_id, datetime, last_px, volume, amount, open, day, raw LIMIT 1"]).await else {
        return;
    };
    let heads = "current_user|count|max|?column?|security_id|datetime|last_px|volume|amount|open|day|raw|min\n";
    assert!(out.starts_with(heads), "{out}");
}
