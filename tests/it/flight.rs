//! Flight SQL between processes: another cluster as a catalog, and clients of other makers.

use crate::harness::{CREATE_TICKS, Node, Site, client, client_python, insert};

const FLIGHT: &str = "listen.flight=127.0.0.1:0";

/// Two clusters of one authority, each with its own `market.ticks`; A knows B as `siteb`.
async fn two(site: &Site) -> (Node, Node) {
    let (mut a, mut b) = (site.node("siteA", None, &[FLIGHT]), site.node("siteB", Some("siteA"), &[FLIGHT]));
    for node in [&mut a, &mut b] {
        node.start().await;
        node.sql("CREATE DATABASE market").await;
        node.sql(CREATE_TICKS).await;
    }
    let address = b.flight.unwrap();
    a.sql(&format!("CALL create_remote_cluster('siteb', 'localhost:{}')", address.port())).await;
    (a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_a_catalog_of_another_and_stays_declared() {
    let site = Site::new();
    let (mut a, mut b) = two(&site).await;
    b.sql(&insert(0..5_000)).await;
    a.sql(&insert(5_000..5_010)).await;
    let count = "SELECT count(*), min(id), max(id) FROM siteb.market.ticks";
    assert_eq!(a.sql(count).await, [["5000", "0", "4999"]]);
    a.sql("INSERT INTO market.ticks SELECT * FROM siteb.market.ticks WHERE id < 100").await;
    assert_eq!(a.sql("SELECT count(*), count(DISTINCT id) FROM market.ticks").await, [["110", "110"]]);
    let joined = "SELECT count(*) FROM market.ticks l JOIN siteb.market.ticks r ON l.id = r.id";
    assert_eq!(a.sql(joined).await, [["100"]]);

    // The declaration outlives its node, however that ends, and a flush.
    a.sql("CALL flush()").await;
    a.kill();
    a.start().await;
    assert_eq!(a.sql(count).await, [["5000", "0", "4999"]]);

    // The other goes: an error that names it, at once. It comes back: so do the rows.
    b.kill();
    let (state, words) = a.connect().await.refusal(count).await;
    assert_eq!(state, "08001", "{words}");
    assert!(words.contains("siteb") && words.contains("localhost:"), "{words}");
    b.start().await;
    assert_eq!(a.sql(count).await, [["5000", "0", "4999"]]);

    a.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn adbc_and_pyarrow_read_and_write() {
    let Some(python) = client_python() else { return };
    let site = Site::new();
    let (_a, b) = two(&site).await;
    b.sql(&insert(0..10)).await;
    b.sql("CALL grant_right('siteA', 'market', 'write')").await;
    let tls = site.path("siteA").join("tls");
    let arguments = [b.flight.unwrap().port().to_string()].into_iter();
    let files = ["ca.crt", "node.crt", "node.key"].map(|file| tls.join(file).display().to_string());
    let out = client(python, "flight.py", arguments.chain(files)).await;
    for wanted in [
        "rows [(0, ",
        "parameter 5",
        "arrow 10 timestamp[ms]",
        "update 1",
        "inserted 3",
        "objects [('ticks', ['id', 'at', 'price'])]",
        "schema ['id', 'at', 'price']",
        "types ['TABLE', 'VIEW']",
        "vendor Tailrace",
        "error True ProgrammingError",
        "refused True",
        "without certificate: refused",
        "flight [0, 1, 2, 3]",
    ] {
        assert!(out.lines().any(|line| line.starts_with(wanted)), "{wanted:?} is not in:\n{out}");
    }
    assert_eq!(b.sql("SELECT count(*) FROM market.ticks").await, [["13"]]);
}
