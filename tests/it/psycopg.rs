//! A Python driver as people use it: parameters, server-side preparation, binary results, streams, transactions, pipelines,
//! cancels.

use crate::harness::{CREATE_TICKS, Site, client, client_python};

#[tokio::test(flavor = "multi_thread")]
async fn psycopg_reads_and_writes() {
    let Some(python) = client_python() else { return };
    let site = Site::new();
    let mut node = site.node("siteA", None, &[]);
    node.start().await;
    node.sql("CREATE DATABASE market").await;
    node.sql(CREATE_TICKS).await;
    let out = client(python, "psycopg_client.py", [node.pgwire().port().to_string()]).await;
    let wanted = "\
inserted 2
row (1, datetime.datetime(2023, 1, 9, 9, 30), 1.5) ['id', 'at', 'price']
binary (1, datetime.datetime(2023, 1, 9, 9, 30), 1.5)
nothing [(), ()]
null (None,)
many 1000
streamed (1,)
error UndefinedColumn IDLE
transactions (1,)
pipeline [0, 2, 4, 6, 8]
called CALL
cancelled True
usable (1,)
setting ('on',)
committed (1,)
";
    assert_eq!(out, wanted);
    assert_eq!(node.sql("SELECT count(*) FROM market.ticks").await, [["1015"]]);
}
