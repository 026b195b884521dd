//! What is left when a node has ended in a process that goes on.

use std::sync::Arc;

use crate::node::Node;

/// Everything that a client can look into, and a scheduler that ran: none of it holds the engine on.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_holds_an_engine_whose_sessions_are_gone() {
    let (node, client) = Node::market().await;
    node.instance.jobs.start(node.factory.clone()).await;
    client.tag("CREATE TABLE bars (at TIMESTAMP, id BIGINT) PARTITION BY VALUE (day(at)) ORDER BY (id)").await;
    client.tag("INSERT INTO bars VALUES ('2023-01-08', 1), ('2023-01-09', 2)").await;
    for sql in [
        "SELECT count(*) FROM bars",
        "SELECT relname FROM pg_catalog.pg_class WHERE relname = 'bars'",
        "SELECT datname FROM pg_catalog.pg_database WHERE datname = 'market'",
        "SELECT table_name FROM information_schema.tables WHERE table_name = 'bars'",
        "SELECT name FROM system.tables WHERE name = 'bars'",
        "SELECT _seq FROM changes('bars', 1) LIMIT 1",
        "SELECT rows FROM partition_digests('bars') LIMIT 1",
    ] {
        assert_eq!(client.rows(sql).await.len(), 1, "{sql}");
    }
    let engine = Arc::downgrade(&node.engine);
    node.instance.jobs.shutdown().await;
    node.engine.shutdown().await.unwrap();
    drop((client, node));
    // A task of a query that is over lets go of what it had when the runtime gets to it.
    for _ in 0..500 {
        if engine.strong_count() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} hold the engine", engine.strong_count());
}
