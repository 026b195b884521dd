//! Remote clusters as catalogs: two nodes over loopback TLS.

use datafusion::arrow::util::pretty::pretty_format_batches;
use futures::TryStreamExt;
use tailrace_sql::FlightServer;

use crate::{
    node::Client,
    site::{Served, Site},
};

/// A row with NULL in every column, extremes, and what is special: NaN, quotes, wildcards.
const EVERYTHING: &str = "CREATE TABLE everything (id INT NOT NULL, i8 TINYINT, i16 SMALLINT, i64 BIGINT, u8 TINYINT UNSIGNED, \
     u16 SMALLINT UNSIGNED, u32 INT UNSIGNED, u64 BIGINT UNSIGNED, f32 REAL, f64 DOUBLE PRECISION, d DECIMAL(18, 4), \
     b BOOLEAN, t TEXT, raw BYTEA, day DATE, s TIMESTAMP(0), ms TIMESTAMP(3), us TIMESTAMP, ns TIMESTAMP(9), \
     z TIMESTAMPTZ, \"Odd \"\" name\" TEXT) ORDER BY (id)";

const ROWS: &str = "INSERT INTO everything VALUES
    (1, -128, -32768, -9223372036854775807, 0, 0, 0, 0, -1.5, -1e300, -12345678901234.5678, false, '', '\\x', '1969-12-31',
     '1969-12-31 23:59:59', '1969-12-31 23:59:59.999', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999999999',
     '1969-12-31 23:59:59.999999Z', 'it''s'),
    (2, 127, 32767, 9223372036854775807, 255, 65535, 4294967295, 18446744073709551615, 1.5, 1e300, 12345678901234.5678, true,
     'a%b_c\\d''e\"f', '\\x00ff', '2023-01-08', '2023-01-08 09:30:00', '2023-01-08 09:30:00.123', '2023-01-08 09:30:00.123456',
     '2023-01-08 09:30:00.123456789', '2023-01-08 09:30:00.123456Z', 'x'),
    (3, 0, 0, 0, 1, 1, 1, 1, 'NaN', 'NaN', 0.0001, true, 'Ünïcode', '\\x61', '2024-02-29', '2024-02-29 00:00:00',
     '2024-02-29 00:00:00', '2024-02-29 00:00:00', '2024-02-29 00:00:00', '2024-02-29 00:00:00Z', 'axb'),
    (4, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (5, 1, 1, 1, 2, 2, 2, 2, 0.1, 0.1, 1.0000, false, 'A%B', '\\x62', '2023-01-09', '2023-01-09 00:00:01',
     '2023-01-09 00:00:01.5', '2023-01-09 00:00:01.000001', '2023-01-09 00:00:01.000000001', '2023-01-09 00:00:01+02:00',
     'a%b')";

/// Both sides have the same rows; the first knows the second as `siteb`.
async fn two() -> (Site, Served, Served) {
    let site = Site::new();
    let (a, b) = site.two().await;
    for served in [&a, &b] {
        let client = served.node.client(Some("market"));
        client.tag(EVERYTHING).await;
        client.tag(ROWS).await;
    }
    (site, a, b)
}

async fn explained(client: &Client, sql: &str) -> String {
    client.rows(&format!("EXPLAIN {sql}")).await.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_and_operator_answers_as_the_table_here_does() {
    let (_site, a, _b) = two().await;
    let client = a.node.client(None);
    let whole = "SELECT * FROM {} ORDER BY id";
    let at = |sql: &str, table: &str| sql.replace("{}", table);
    let both = async |sql: &str| {
        let here = client.run(&at(sql, "market.everything")).await;
        let there = client.run(&at(sql, "siteb.market.everything")).await;
        match (here, there) {
            (Ok(here), Ok(there)) => {
                assert_eq!(here, there, "{sql}");
                here
            }
            (here, there) => panic!("{sql}: here {here:?}, there {there:?}"),
        }
    };
    both(whole).await;
    let literals: [(&str, &[&str]); 20] = [
        ("i8", &["-128", "0", "127"]),
        ("i16", &["-32768", "1", "32767"]),
        ("id", &["1", "3", "2147483647"]),
        ("i64", &["-9223372036854775807", "0", "9223372036854775807"]),
        ("u8", &["0", "255"]),
        ("u16", &["1", "65535"]),
        ("u32", &["1", "4294967295"]),
        ("u64", &["1", "18446744073709551615"]),
        ("f32", &["-1.5", "0.1", "CAST('NaN' AS REAL)", "1e30"]),
        ("f64", &["-1e300", "0.1", "CAST('NaN' AS DOUBLE PRECISION)", "0"]),
        ("d", &["0.0001", "-12345678901234.5678", "1", "1.00005"]),
        ("b", &["true", "false"]),
        ("t", &["''", "'a%b_c\\d''e\"f'", "'Ünïcode'", "'A'"]),
        ("raw", &["'\\x00ff'::bytea", "'\\x61'::bytea"]),
        ("day", &["DATE '2023-01-08'", "'1969-12-31'", "DATE '2024-02-29'"]),
        ("s", &["TIMESTAMP '2023-01-08 09:30:00'", "'1969-12-31 23:59:59'"]),
        ("ms", &["TIMESTAMP '2023-01-08 09:30:00.123'", "'1969-12-31 23:59:59.999'"]),
        ("us", &["TIMESTAMP '2023-01-08 09:30:00.123456'", "'1969-12-31 23:59:59.999999'"]),
        ("ns", &["TIMESTAMP '2023-01-08 09:30:00.123456789'", "'1969-12-31 23:59:59.999999999'"]),
        ("z", &["'2023-01-08 09:30:00.123456Z'::timestamptz", "'2023-01-08 22:00:01Z'::timestamptz"]),
    ];
    for (column, values) in literals {
        let mut predicates = vec![format!("{column} IS NULL"), format!("{column} IS NOT NULL")];
        for value in values {
            for operator in ["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"] {
                predicates.push(format!("{column} {operator} {value}"));
                predicates.push(format!("NOT ({column} {operator} {value})"));
            }
            predicates.push(format!("{column} BETWEEN {value} AND {}", values[values.len() - 1]));
            predicates.push(format!("{column} = {value} OR {column} IS NULL"));
        }
        let list = values.join(", ");
        predicates.push(format!("{column} IN ({list})"));
        predicates.push(format!("{column} NOT IN ({list})"));
        for predicate in predicates {
            both(&format!("SELECT id FROM {{}} WHERE {predicate} ORDER BY id")).await;
        }
    }
    for predicate in [
        "t LIKE 'a\\%%'",
        "t LIKE 'a%'",
        "t NOT LIKE '%b%'",
        "t ILIKE 'a%'",
        "t LIKE '_\\%_'",
        "t LIKE '%''e%'",
        "\"Odd \"\" name\" LIKE 'a_b'",
        "\"Odd \"\" name\" = 'it''s'",
        "b",
        "NOT b",
        "b IS TRUE",
        "b IS NOT FALSE",
        "length(t) > 2",
        "i64 + 1 > 1",
        "CAST(id AS TEXT) = '2'",
        "(id = 1 OR id = 2) AND (u8 > 0 OR upper(t) = '')",
        "id IN (SELECT id FROM market.everything WHERE b)",
        "date_trunc('day', us) = TIMESTAMP '2023-01-08'",
        "us >= now() - INTERVAL '100 years'",
    ] {
        both(&format!("SELECT id FROM {{}} WHERE {predicate} ORDER BY id")).await;
    }
    for query in [
        "SELECT count(*) FROM {}",
        "SELECT count(*) FROM {} WHERE id > 2",
        "SELECT count(t), count(f64), count(*) c FROM {} WHERE id <> 1",
        "SELECT sum(i8), sum(u8), sum(d), min(t), max(us), min(day), avg(i16), max(z) FROM {}",
        "SELECT b, count(*), sum(u32) FROM {} GROUP BY b ORDER BY b",
        "SELECT b AS yes, t, max(id) m FROM {} e WHERE e.id > 1 GROUP BY b, t ORDER BY m",
        "SELECT count(DISTINCT b) FROM {}",
        "SELECT count(*) FILTER (WHERE b) FROM {}",
        "SELECT sum(id) FROM {} WHERE length(t) > 2",
        "SELECT count(*) FROM {} WHERE false",
        "SELECT sum(u8), count(*) FROM {} WHERE id > 100",
        "SELECT b, count(*) FROM {} WHERE id > 100 GROUP BY b",
        "SELECT b, count(*) FROM {} GROUP BY b HAVING count(*) > 1 ORDER BY b",
        "SELECT DISTINCT b FROM {} ORDER BY b",
        "SELECT max(i64) - min(id) FROM {}",
        "SELECT id, row_number() OVER (ORDER BY id DESC) FROM {} ORDER BY id",
        "SELECT id FROM {} ORDER BY id DESC LIMIT 2",
        "SELECT id FROM {} ORDER BY id LIMIT 2 OFFSET 1",
        "SELECT count(*) FROM (SELECT id FROM {} LIMIT 3)",
        "SELECT count(*) FROM (SELECT id FROM {} WHERE length(t) >= 0 LIMIT 3)",
        "SELECT 1 FROM {}",
        "WITH e AS (SELECT * FROM {} WHERE b) SELECT e.id, f.id FROM e JOIN {} f ON f.u8 > e.u8 ORDER BY e.id, f.id",
        "SELECT id FROM {} UNION ALL SELECT id + 10 FROM {} ORDER BY 1",
        "SELECT (SELECT max(id) FROM {}) m",
        "SELECT e.id FROM {} e LEFT JOIN market.everything m ON m.id = e.id + 1 WHERE m.id IS NULL",
    ] {
        both(query).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_done_there_is_done_there() {
    let (_site, a, _b) = two().await;
    let client = a.node.client(None);
    for (sql, sent) in [
        (
            "SELECT t FROM siteb.market.everything WHERE id > 2 AND us < '2023-01-09' LIMIT 2",
            "SELECT \"t\" FROM \"market\".\"everything\" WHERE (\"id\" > CAST('2' AS INT)) AND \
             (\"us\" < CAST('2023-01-09T00:00:00.000000' AS TIMESTAMP(6))) LIMIT 2",
        ),
        (
            "SELECT b, count(*), max(t) FROM siteb.market.everything WHERE t LIKE 'a%' GROUP BY b",
            "SELECT \"b\" AS c0, count(*) AS c1, max(\"t\") AS c2 FROM \"market\".\"everything\" WHERE (\"t\" LIKE 'a%') \
             GROUP BY \"b\"",
        ),
        (
            "SELECT count(*) FROM siteb.market.everything WHERE z = '2023-01-08 09:30:00.123456Z'::timestamptz",
            "SELECT count(*) AS c0 FROM \"market\".\"everything\" WHERE (\"z\" = \
             arrow_cast('2023-01-08T09:30:00.123456Z', 'Timestamp(Microsecond, Some(\"UTC\"))'))",
        ),
    ] {
        let plan = explained(&client, sql).await;
        assert!(plan.contains(&format!("RemoteScan: cluster=siteb, sql={sent}")), "{sql}\n{plan}");
        assert!(!plan.contains("FilterExec"), "{sql}\n{plan}");
    }
    // What stays here has the rest sent all the same.
    let plan = explained(&client, "SELECT id FROM siteb.market.everything WHERE id > 2 AND length(t) > 1").await;
    assert!(
        plan.contains("FilterExec: character_length") && plan.contains("WHERE (\"id\" > CAST('2' AS INT))"),
        "{plan}"
    );
    // Of a join with a table here, too.
    let plan = explained(
        &client,
        "SELECT l.id, r.t FROM market.everything l JOIN siteb.market.everything r ON l.id = r.id WHERE r.u8 = 1",
    )
    .await;
    assert!(
        plan.contains(
            "SELECT \"id\", \"t\" FROM \"market\".\"everything\" WHERE (\"u8\" = CAST('1' AS TINYINT UNSIGNED))"
        ),
        "{plan}"
    );
    let analyzed = client.rows("EXPLAIN ANALYZE SELECT id FROM siteb.market.everything").await.join("\n");
    assert!(analyzed.contains("output_rows=5"), "{analyzed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_over_with_insert_select() {
    let (_site, a, b) = two().await;
    let client = a.node.client(Some("market"));
    client.tag("CREATE TABLE copy (id INT NOT NULL, at TIMESTAMP(3), name TEXT) PARTITION BY VALUE (day(at)) ORDER BY (id)").await;
    let sql = "INSERT INTO market.copy SELECT id, ms, t FROM siteb.market.everything WHERE ms >= '2023-01-01'";
    assert_eq!(client.tag(sql).await, "INSERT 0 3");
    assert_eq!(client.rows("SELECT count(*), min(at) FROM copy").await, ["3|2023-01-08T09:30:00.123"]);
    let many = "INSERT INTO many SELECT value, TIMESTAMP '2023-01-01' + value * INTERVAL '1 second', 'n' || value \
                FROM generate_series(1, 300000)";
    let source = b.node.client(Some("market"));
    source.tag("CREATE TABLE many (id BIGINT NOT NULL, at TIMESTAMP(3), name TEXT) ORDER BY (id)").await;
    assert_eq!(source.tag(many).await, "INSERT 0 300000");
    client.tag("CREATE TABLE many (id BIGINT NOT NULL, at TIMESTAMP(3), name TEXT) ORDER BY (id)").await;
    assert_eq!(client.tag("INSERT INTO many SELECT * FROM siteb.market.many").await, "INSERT 0 300000");
    let sums = "SELECT count(*), sum(id), max(at), min(name) FROM many";
    assert_eq!(client.rows(sums).await, source.rows(sums).await);
    // There, nothing is written.
    let error = client.error("INSERT INTO siteb.market.many VALUES (1, NULL, NULL)").await;
    assert_eq!(error.sqlstate, "0A000", "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_are_declared_once_and_checked() {
    let site = Site::new();
    let (a, b) = site.two().await;
    let client = a.node.client(None);
    let address = b.address();
    assert_eq!(client.rows("SELECT * FROM system.remote_clusters").await, [format!("siteb|{address}||")]);
    assert_eq!(client.rows("SELECT name FROM siteb.system.databases").await, ["market"]);
    let refused = [
        (format!("CALL create_remote_cluster('siteb', '{address}')"), "42710"),
        (format!("CALL create_remote_cluster('tailrace', '{address}')"), "42939"),
        ("CALL create_remote_cluster('c', 'nowhere')".to_owned(), "22023"),
        (format!("CALL create_remote_cluster('c', '{address}', ca => '/etc/hostname')"), "42501"),
        (format!("CALL create_remote_cluster('c', '{address}', certificate => '/etc/hostname')"), "22023"),
        ("CALL drop_remote_cluster('c')".to_owned(), "42704"),
        ("SELECT * FROM sitec.market.bars".to_owned(), "42704"),
        ("SELECT * FROM siteb.information_schema.tables".to_owned(), "0A000"),
        ("SELECT * FROM siteb.market.bars".to_owned(), "42P01"),
    ];
    for (sql, state) in refused {
        assert_eq!(client.state(&sql).await, state, "{sql}");
    }
    let error = client.error("SELECT * FROM siteb.market.bars").await;
    assert!(error.message.contains(&format!("remote cluster \"siteb\" at {address}")), "{error:?}");
    let error = client.error("SELECT * FROM sitebb.market.bars").await;
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("siteb")), "{error:?}");

    // Certificates of its own, from an allowed folder: those of another authority are not accepted there.
    let elsewhere = Site::new();
    let stranger = elsewhere.issue("sitea");
    let files = a.node.folder.path().canonicalize().unwrap().join("files");
    for (from, to) in [(&stranger.certificate, "c.crt"), (&stranger.key, "c.key"), (&stranger.ca, "ca.crt")] {
        std::fs::copy(from, files.join(to)).unwrap();
    }
    let file = |name: &str| files.join(name).display().to_string();
    client
        .tag(&format!(
            "CALL create_remote_cluster('c', '{address}', certificate => '{}', key => '{}')",
            file("c.crt"),
            file("c.key")
        ))
        .await;
    let error = client.error("SELECT * FROM c.system.databases").await;
    assert!(error.sqlstate.starts_with("08") && error.message.contains("\"c\""), "{error:?}");
    client.tag(&format!("CALL create_remote_cluster('d', '{address}', ca => '{}')", file("ca.crt"))).await;
    let error = client.error("SELECT * FROM d.system.databases").await;
    assert_eq!(error.sqlstate, "08001", "{error:?}");
    let shown = client.tag("SELECT * FROM system.remote_clusters").await;
    assert!(shown.contains("c.crt") && !shown.contains("c.key") && !shown.contains("PRIVATE"), "{shown}");

    client.tag("CALL drop_remote_cluster('siteb')").await;
    assert_eq!(client.state("SELECT * FROM siteb.system.databases").await, "42704");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_tried_in_turn_and_a_cluster_that_goes_is_an_error() {
    let site = Site::new();
    let (a, b) = site.two().await;
    let client = a.node.client(None);
    // Nobody listens on the first.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    client.tag(&format!("CALL create_remote_cluster('both', '{closed}, {}')", b.address())).await;
    assert_eq!(client.rows("SELECT count(*) FROM both.system.databases").await, ["1"]);
    client.tag(&format!("CALL create_remote_cluster('gone', '{closed}')")).await;
    let error = client.error("SELECT * FROM gone.system.databases").await;
    assert_eq!(error.sqlstate, "08001");
    assert!(error.message.contains("\"gone\"") && error.message.contains(&closed.to_string()), "{error:?}");

    // It goes while rows come.
    let remote = a.remotes().get("both").unwrap();
    let endless = "SELECT value FROM generate_series(1, 1000000000000)";
    let mut rows = remote.query(endless).await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    let (address, sessions) = (b.address(), b.node.factory.clone());
    b.flight.shutdown().await;
    let error = loop {
        match rows.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a query that broke off looks complete"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains(&address.to_string()), "{error}");
    let error = client.error("SELECT * FROM both.system.databases").await;
    assert_eq!(error.sqlstate, "08001", "{error:?}");
    // And comes back.
    let again = FlightServer::start(sessions, address).await.unwrap();
    assert_eq!(client.rows("SELECT count(*) FROM both.system.databases").await, ["1"]);
    again.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_cancelled_or_too_slow_ends() {
    let (_site, a, _b) = two().await;
    let client = a.node.client(None);
    client.tag("SET statement_timeout = '300ms'").await;
    let slow = "SELECT count(*) FROM siteb.market.everything a, generate_series(1, 1000000000000) c \
                WHERE a.id + c.value < 0";
    assert_eq!(client.state(slow).await, "57014");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_code_asks_a_cluster_by_name() {
    let (_site, a, _b) = two().await;
    let remote = a.remotes().get("siteb").unwrap();
    let rows = remote.query("SELECT id, t FROM market.everything WHERE id < 3 ORDER BY id").await.unwrap();
    assert_eq!(rows.schema().field(0).name(), "id");
    let batches: Vec<_> = rows.try_collect().await.unwrap();
    assert_eq!(crate::node::cells(&pretty_format_batches(&batches).unwrap().to_string()).len(), 2);
    let error = remote.query("SELECT nothing FROM market.everything").await.err().unwrap();
    assert_eq!(error.sqlstate, "42703");
    assert_eq!(remote.query("INSERT INTO market.everything (id) VALUES (9)").await.err().unwrap().sqlstate, "42501");
}
