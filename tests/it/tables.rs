//! A replica of some tables, as an operator sets it up and as clients see it.

use crate::harness::{Node, SUMS, Site, create_ticks, insert, sums};

const LIMITED: &str = "replication.replica.tables=[\"market.ticks\"]";
const QUOTES: &str = "SELECT count(*), min(bid), max(bid) FROM market.quotes";
const LEFT_OUT: &str = "SELECT name, coalesce(CAST(rows AS VARCHAR), 'unknown'), datafiles, left_out IS NULL FROM \
                        system.tables WHERE database = 'market' ORDER BY name";

async fn shows(node: &Node, rows: std::ops::Range<u64>) {
    let wanted = sums(rows);
    node.wait_for(SUMS, &[&wanted.iter().map(String::as_str).collect::<Vec<_>>()]).await;
}

async fn quotes(primary: &Node, bids: std::ops::Range<u64>) {
    let rows: Vec<_> = bids.map(|bid| format!("('2023-01-08', {bid})")).collect();
    primary.sql(&format!("INSERT INTO market.quotes VALUES {}", rows.join(", "))).await;
}

/// Every way to read the table is refused, with the setting that leaves it out; what tells of it still does.
async fn is_refused(node: &Node, hint: &str) {
    let client = node.connect().await;
    for sql in [
        QUOTES,
        "SELECT * FROM market.quotes WHERE false",
        "SELECT * FROM market.quotes LIMIT 0",
        "SELECT count(*) FROM market.quotes",
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM market.quotes)",
        "SELECT id, (SELECT max(bid) FROM market.quotes) FROM market.ticks",
        "WITH q AS (SELECT bid FROM market.quotes) SELECT t.id FROM market.ticks t LEFT JOIN q ON q.bid = t.id",
        "EXPLAIN SELECT * FROM market.quotes",
    ] {
        let (state, words) = client.refusal(sql).await;
        assert_eq!(state, "55000", "{sql}: {words}");
        assert!(
            words.contains("\"market.quotes\" is left out on this replica: [replication.replica] tables"),
            "{words}"
        );
        assert!(words.contains(hint), "{words}");
    }
    let prepared = client.client.prepare("SELECT bid FROM market.quotes WHERE bid > $1").await.unwrap_err();
    assert_eq!(prepared.code().unwrap().code(), "55000");
    let columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'quotes' ORDER BY 1";
    assert_eq!(client.rows(columns).await, [["at"], ["bid"]]);
    let class = "SELECT relname FROM pg_catalog.pg_class WHERE relname IN ('quotes', 'ticks') ORDER BY 1";
    assert_eq!(client.rows(class).await, [["quotes"], ["ticks"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_one_table_says_what_it_leaves_out_and_takes_it_back() {
    let site = Site::new();
    let primary = site.primary(&[]).await;
    let mut replica = site.replica("siteB", &primary, &[LIMITED, "replication.primary.max_replicas=2"]).await;
    create_ticks(&primary).await;
    let client = primary.connect().await;
    client.rows("CREATE TABLE market.quotes (at DATE NOT NULL, bid BIGINT NOT NULL) PARTITION BY VALUE (at)").await;
    quotes(&primary, 0..50).await;
    // Who waits for the replica is answered when what is chosen can be read there.
    let replicas = "SELECT count(*) FROM system.replicas WHERE database = 'market'";
    primary.wait_for(replicas, &[&["1"]]).await;
    client.rows("SET synchronous_commit TO remote_apply").await;
    client.rows(&insert(0..100)).await;
    assert_eq!(replica.sql(SUMS).await, [sums(0..100)]);
    is_refused(&replica, "add \"market.quotes\" to [replication.replica] tables and start this node again").await;
    assert_eq!(replica.connect().await.refusal("INSERT INTO market.quotes VALUES ('2023-01-08', 1)").await.0, "25006");
    let feed = "SELECT bid FROM changes('market.quotes') ORDER BY bid DESC LIMIT 1";
    assert_eq!(replica.sql(feed).await, [["49"]]);
    // What it passes on is whole.
    replica.sql("CALL set_database_for_cluster_replication('market', true)").await;
    let last = site.replica("siteC", &replica, &[]).await;
    shows(&last, 0..100).await;
    last.wait_for(QUOTES, &[&["50", "0", "49"]]).await;
    for end in ["kill", "flush", "stop"] {
        let files = if end == "stop" { "5" } else { "0" };
        assert_eq!(
            replica.sql(LEFT_OUT).await,
            [["quotes", "unknown", "0", "f"], ["ticks", "100", files, "t"]],
            "{end}"
        );
        let followed = "SELECT database, state, coalesce(reason, ''), tables FROM system.followed";
        replica.wait_for(followed, &[&["market", "ENABLED", "", "ticks"]]).await;
        match end {
            "kill" => {
                replica.kill();
                replica.start().await;
            }
            "flush" => drop(replica.sql("CALL flush()").await),
            _ => {
                replica.stop();
                replica.start().await;
            }
        }
        is_refused(&replica, "start this node again").await;
    }

    // Named again, it comes by itself; until then nobody sees it empty.
    replica.stop();
    quotes(&primary, 50..60).await;
    let limited = replica.flags.iter().position(|flag| flag == LIMITED).unwrap();
    replica.flags[limited] = "replication.replica.tables=[\"market.quotes\", \"market.ticks\"]".to_owned();
    let mut alone = replica.flags.clone();
    let address = alone.iter().position(|flag| flag.contains("primary_addresses")).unwrap();
    alone[address] = "replication.replica.primary_addresses=[\"127.0.0.1:1\"]".to_owned();
    let flags = std::mem::replace(&mut replica.flags, alone);
    replica.start().await;
    is_refused(&replica, "CALL repair_database('market')").await;
    let waits = "SELECT reason LIKE '%repair%tables quotes%', remedy FROM get_database_cluster_replication_status()";
    replica.wait_for(waits, &[&["t", "CALL repair_database('market')"]]).await;
    replica.stop();
    replica.flags = flags;
    replica.start().await;
    replica.wait_for(QUOTES, &[&["60", "0", "59"]]).await;
    shows(&replica, 0..100).await;
    primary.sql(&insert(100..110)).await;
    quotes(&primary, 60..70).await;
    replica.wait_for(QUOTES, &[&["70", "0", "69"]]).await;
    last.wait_for(QUOTES, &[&["70", "0", "69"]]).await;
    shows(&replica, 0..110).await;

    // Taken out again, it goes at once, with its files.
    replica.sql("CALL flush()").await;
    replica.stop();
    replica.flags[limited] = LIMITED.to_owned();
    replica.start().await;
    is_refused(&replica, "start this node again").await;
    shows(&replica, 0..110).await;
    replica.wait_for("SELECT count(*) FROM system.datafiles WHERE \"table\" = 'quotes'", &[&["0"]]).await;
}
