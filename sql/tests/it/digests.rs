//! `partition_digests`: of whole tables, of selected rows and columns.

use crate::node::Node;

const ROWS: &str =
    "('2023-01-08', 1, 1.5, 'a'), ('2023-01-08', 2, NULL, 'b'), ('2023-01-09', 3, 2.5, NULL), (NULL, 4, 0, '')";

async fn table(client: &crate::node::Client, name: &str) {
    client
        .tag(&format!(
            "CREATE TABLE {name} (day DATE, id BIGINT NOT NULL, price DOUBLE, note TEXT) PARTITION BY VALUE (day) ORDER BY (id)"
        ))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_rows_have_equal_digests_wherever_they_are() {
    let (node, client) = Node::market().await;
    table(&client, "bars").await;
    table(&client, "copies").await;
    client.tag(&format!("INSERT INTO bars VALUES {ROWS}")).await;
    let of = |name: &str, more: &str| {
        format!("SELECT partition, rows, values_digest FROM partition_digests('market.{name}'{more}) ORDER BY 1")
    };
    let hot = client.rows(&of("bars", "")).await;
    assert_eq!(hot.len(), 3, "{hot:?}");
    assert!(hot[0].starts_with("day=2023-01-08|2|") && hot[2].starts_with("day=NULL|1|"), "{hot:?}");
    node.engine.flush().await.unwrap();
    assert_eq!(client.rows(&of("bars", "")).await, hot);
    // Row by row, in another order, in other transactions.
    client.tag("INSERT INTO copies SELECT * FROM bars WHERE id > 2").await;
    client.tag("INSERT INTO copies SELECT * FROM bars WHERE id = 2").await;
    node.engine.flush().await.unwrap();
    client.tag("INSERT INTO copies SELECT * FROM bars WHERE id = 1").await;
    assert_eq!(client.rows(&of("copies", "")).await, hot);
    let identities = |name: &str| format!("SELECT identity_digest FROM partition_digests('{name}') ORDER BY 1");
    assert_ne!(client.rows(&identities("bars")).await, client.rows(&identities("copies")).await);
    let seq = client.rows("SELECT DISTINCT seq FROM partition_digests('bars')").await;
    let known = client.rows("SELECT DISTINCT seq FROM partition_digests(table => 'copies')").await;
    assert_eq!(seq, known);

    // All rows, read through the query engine.
    assert_eq!(client.rows(&of("bars", ", where => 'true'")).await, hot);
    assert_eq!(client.rows(&of("bars", ", columns => 'note, price, id, day'")).await, hot);
    assert_eq!(client.rows(&of("bars", ", where => 'id <= 2'")).await, hot[..1]);
    assert_eq!(client.rows(&of("bars", ", where => 'price > 1 AND note = ''a'''")).await.len(), 1);
    // Columns whose values were taken away, and a table that lacks them.
    client.tag("CREATE TABLE narrow (id BIGINT, day DATE) PARTITION BY VALUE (day)").await;
    client.tag("INSERT INTO narrow SELECT id, day FROM bars").await;
    assert_eq!(client.rows(&of("narrow", "")).await, client.rows(&of("bars", ", columns => 'day, id'")).await);
    assert_ne!(client.rows(&of("narrow", "")).await, hot);
    assert_eq!(client.rows(&of("bars", ", columns => 'id'")).await.len(), 3);
    // One value more.
    client.tag("INSERT INTO copies VALUES ('2023-01-09', 9, NULL, NULL)").await;
    let now = client.rows(&of("copies", "")).await;
    assert!(now[0] == hot[0] && now[1] != hot[1] && now[2] == hot[2], "{now:?}");
    // Unpartitioned: one row, without a name.
    client.tag("CREATE TABLE plain (x TEXT)").await;
    assert_eq!(client.rows(&of("plain", "")).await, Vec::<String>::new());
    client.tag("INSERT INTO plain VALUES ('x')").await;
    let plain = client.rows(&of("plain", "")).await;
    assert!(plain.len() == 1 && plain[0].starts_with("|1|"), "{plain:?}");
    assert_eq!(client.rows(&of("plain", ", where => 'x IS NOT NULL'")).await, plain);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_calls_are_named() {
    let (_node, client) = Node::market().await;
    table(&client, "bars").await;
    for (arguments, state, text) in [
        ("", "42883", "needs the name of a table"),
        ("'nope'", "42P01", "nope"),
        ("'bars', wher => 'x'", "42883", "wher"),
        ("'bars', where => 'id >'", "42601", "not a predicate"),
        ("'bars', where => 'id > 1; DROP TABLE bars'", "42601", "not a predicate"),
        ("'bars', where => 'nope = 1'", "42703", "nope"),
        ("'bars', columns => 'id, nope'", "42703", "nope"),
        ("'bars', columns => 'id, id'", "42701", "twice"),
        ("'bars', columns => 'id + 1'", "42602", "list of columns"),
        ("bars", "42P10", "constants"),
        ("7", "22023", "7"),
    ] {
        let error = client.error(&format!("SELECT * FROM partition_digests({arguments})")).await;
        assert!(error.sqlstate == state && error.message.contains(text), "{arguments}: {} {error:?}", error.sqlstate);
    }
}
