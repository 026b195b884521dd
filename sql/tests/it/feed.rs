//! Change feeds over the wire: rows come while the query runs, and nothing that a subscriber does is in a writer's way.

use std::{pin::pin, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow, error::SqlState};

use crate::wire::{Served, cells, code, query, shut_down_soon, startup};

/// Long enough for anything that is on its way on a busy machine; never waited for otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

async fn market() -> (Served, Client) {
    let served = Served::new().await;
    let client = served.client("tailrace").await;
    client
        .batch_execute(
            "CREATE DATABASE market;
             CREATE TABLE market.ticks (id BIGINT NOT NULL, at TIMESTAMP(6), note TEXT)
               PARTITION BY VALUE (day(at)) ORDER BY (id);
             CREATE TABLE market.other (id BIGINT)",
        )
        .await
        .unwrap();
    (served, client)
}

async fn insert(client: &Client, ids: std::ops::Range<i64>) {
    let rows: Vec<String> =
        ids.map(|id| format!("({id}, '2023-01-{:02} 00:00:00', 'note {id}')", id % 5 + 1)).collect();
    client.batch_execute(&format!("INSERT INTO market.ticks VALUES {}", rows.join(", "))).await.unwrap();
}

/// The next row; the first message, the description, is passed over.
async fn next_row(
    rows: &mut (impl Stream<Item = Result<SimpleQueryMessage, tokio_postgres::Error>> + Unpin),
) -> SimpleQueryRow {
    loop {
        match tokio::time::timeout(PATIENCE, rows.next()).await.expect("no row came").unwrap().unwrap() {
            SimpleQueryMessage::Row(row) => return row,
            SimpleQueryMessage::RowDescription(_) => {}
            _ => panic!("the query ended"),
        }
    }
}

fn ids(rows: Vec<Vec<Option<String>>>) -> Vec<i64> {
    rows.into_iter().map(|row| row[0].as_deref().unwrap().parse().unwrap()).collect()
}

async fn state_of(client: &Client, sql: &str) -> (String, String) {
    let error = client.simple_query(sql).await.unwrap_err();
    let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    (said.code().code().to_owned(), format!("{} {}", said.message(), said.hint().unwrap_or_default()))
}

#[tokio::test]
async fn changes_are_bounded_and_know_seq_time_and_operation() {
    let (_served, client) = market().await;
    insert(&client, 0..3).await;
    insert(&client, 3..5).await;
    client.batch_execute("INSERT INTO market.other VALUES (1)").await.unwrap();
    insert(&client, 5..6).await;
    let text = |text: &str| Some(text.to_owned());
    let rows = cells(&client, "SELECT * FROM changes('market.ticks')").await;
    assert_eq!(rows.len(), 6);
    let first = rows.iter().find(|row| row[4] == text("0")).unwrap();
    assert_eq!((&first[0], &first[3], &first[6]), (&text("4"), &text("insert"), &text("note 0")));
    assert!(first[2].as_ref().unwrap().ends_with("+00"), "{first:?}");
    // They are in order, and are the table's rows.
    let order: Vec<(i64, i64)> = rows
        .iter()
        .map(|row| (row[0].as_ref().unwrap().parse().unwrap(), row[1].as_ref().unwrap().parse().unwrap()))
        .collect();
    assert!(order.is_sorted() && order.len() == 6, "{order:?}");
    let left = "SELECT id FROM changes('market.ticks') EXCEPT SELECT id FROM market.ticks";
    assert!(cells(&client, left).await.is_empty());

    for (sql, expected) in [
        ("SELECT id FROM changes('market.ticks', 5) ORDER BY id", vec![3, 4, 5]),
        ("SELECT id FROM changes('market.ticks', from_seq => 5, to_seq => 6) ORDER BY id", vec![3, 4]),
        ("SELECT id FROM changes(table => 'market.ticks', to_seq => 4) ORDER BY id", vec![0, 1, 2]),
        ("SELECT c.id FROM changes('market.ticks') AS c WHERE c._seq > 4 AND c._seq <= 5 ORDER BY 1", vec![3, 4]),
        ("SELECT id FROM changes('market.ticks') WHERE at >= '2023-01-04' AND id < 5 ORDER BY id", vec![3, 4]),
        ("SELECT id FROM changes('market.ticks') WHERE note = 'note 2'", vec![2]),
        ("SELECT id FROM changes('market.ticks') WHERE id = (SELECT max(id) FROM market.ticks)", vec![5]),
        ("SELECT id FROM changes('market.ticks', 99)", vec![]),
        ("SELECT id FROM changes('market.ticks') WHERE _commit_time > now()", vec![]),
        ("SELECT count(*) FROM changes('market.ticks')", vec![6]),
        ("SELECT id FROM changes('market.ticks') ORDER BY _seq DESC, _ordinal DESC LIMIT 1", vec![5]),
        ("SELECT id FROM changes('Market.\"ticks\"') WHERE _op <> 'insert'", vec![]),
    ] {
        assert_eq!(ids(cells(&client, sql).await), expected, "{sql}");
    }
    // Parameters go into the condition.
    let row = client.query_one("SELECT id FROM changes('market.ticks') WHERE _seq >= $1", &[&7i64]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 5);

    for (sql, state, word) in [
        ("SELECT * FROM changes()", "42883", "signature"),
        ("SELECT * FROM changes('market.tick')", "42P01", "ticks"),
        ("SELECT * FROM changes('markt.ticks')", "3F000", "market"),
        ("SELECT * FROM changes('ticks')", "3F000", "search_path"),
        ("SELECT * FROM changes(market)", "42P10", "quotes"),
        ("SELECT * FROM changes('market.ticks', from_seq => -1)", "22023", "count from 1"),
        ("SELECT * FROM changes('market.ticks', subscription => 'nobody')", "42704", "nobody"),
        ("SELECT * FROM changes('market.ticks', before => 1)", "42883", "before"),
    ] {
        let (found, message) = state_of(&client, sql).await;
        assert_eq!(found, state, "{sql}: {message}");
        assert!(message.contains(word), "{sql}: {message}");
    }
    // What would gather rows without an end is refused.
    for endless in ["SELECT count(*) FROM tail('market.ticks')", "SELECT * FROM tail('market.ticks') ORDER BY id"] {
        let (state, message) = state_of(&client, endless).await;
        assert_eq!(state, "0A000", "{endless}: {message}");
        assert!(message.contains("LIMIT"), "{endless}: {message}");
    }
    for (sql, expected) in [
        ("SELECT count(*) FROM (SELECT * FROM tail('market.ticks', 1) LIMIT 4)", vec![4]),
        ("SELECT id FROM tail('market.ticks', 1, 5) ORDER BY id DESC LIMIT 2", vec![4, 3]),
    ] {
        assert_eq!(ids(cells(&client, sql).await), expected, "{sql}");
    }
}

#[tokio::test]
async fn rows_come_while_the_query_runs() {
    let (served, writer) = market().await;
    insert(&writer, 0..2).await;
    let reader = served.client("market").await;
    // From now on: the description says that it has begun.
    let mut rows = pin!(reader.simple_query_raw("SELECT id, _seq FROM tail('ticks')").await.unwrap());
    let begun = tokio::time::timeout(PATIENCE, rows.next()).await.expect("nothing came").unwrap().unwrap();
    assert!(matches!(begun, SimpleQueryMessage::RowDescription(_)));
    for id in 2..20 {
        insert(&writer, id..id + 1).await;
        let row = next_row(&mut rows).await;
        assert_eq!((row.get(0).unwrap(), row.get(1).unwrap()), (&*id.to_string(), &*(id + 3).to_string()));
    }
    // A condition does not gather rows either.
    let filtered = served.client("market").await;
    let sql = "SELECT upper(note) FROM tail('ticks', from_seq => 1) WHERE id % 7 = 0 AND at < '2023-01-06'";
    let mut some = pin!(filtered.simple_query_raw(sql).await.unwrap());
    for expected in ["NOTE 0", "NOTE 7", "NOTE 14"] {
        assert_eq!(next_row(&mut some).await.get(0), Some(expected));
    }
    insert(&writer, 20..22).await;
    assert_eq!(next_row(&mut some).await.get(0), Some("NOTE 21"));
    // Nor do the extended protocol and binary rows.
    let prepared = served.client("market").await;
    let sql = "SELECT id FROM tail('ticks', 1) WHERE id >= $1";
    let mut binary = pin!(prepared.query_raw(sql, [21i64]).await.unwrap());
    let row = tokio::time::timeout(PATIENCE, binary.next()).await.expect("no row came").unwrap().unwrap();
    assert_eq!(row.get::<_, i64>(0), 21);
    insert(&writer, 30..31).await;
    let row = tokio::time::timeout(PATIENCE, binary.next()).await.expect("no row came").unwrap().unwrap();
    assert_eq!(row.get::<_, i64>(0), 30);
}

#[tokio::test]
async fn limits_bounds_cancels_disconnects_and_shutdown_end_a_tail() {
    let (served, writer) = market().await;
    let reader = served.client("market").await;
    let waiting = tokio::spawn(async move {
        let rows = reader.simple_query("SELECT id FROM tail('ticks', from_seq => 1) LIMIT 3").await.unwrap();
        let upto = reader.simple_query("SELECT id FROM tail('ticks', from_seq => 1, to_seq => 5)").await.unwrap();
        let where_ = "SELECT id FROM tail('ticks', from_seq => 1) WHERE _seq < 6";
        (rows.len(), upto.len(), reader.simple_query(where_).await.unwrap().len())
    });
    for id in 0..4 {
        insert(&writer, id..id + 1).await;
    }
    // Rows, their description and the end.
    let counts = tokio::time::timeout(PATIENCE, waiting).await.expect("a bounded tail did not end").unwrap();
    assert_eq!(counts, (5, 4, 4));

    // A subscription shows whether its reader's resources are free.
    writer.batch_execute("CALL create_subscription('mine', 'market.ticks')").await.unwrap();
    let attached = async |expected: &str| {
        let state = async || cells(&writer, "SELECT attached FROM system.subscriptions").await[0][0].clone();
        tokio::time::timeout(PATIENCE, async {
            while state().await.as_deref() != Some(expected) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("attached is not {expected}"));
    };
    const TAIL: &str = "SELECT id FROM tail('market.ticks', subscription => 'mine')";
    let reader = served.client("market").await;
    let cancel = reader.cancel_token();
    let running = tokio::spawn(async move { reader.simple_query(TAIL).await.map(|_| ()) });
    attached("t").await;
    let (state, _) = state_of(&writer, TAIL).await;
    assert_eq!(state, "55006");
    let (state, _) = state_of(&writer, "CALL drop_subscription('mine')").await;
    assert_eq!(state, "55006");
    cancel.cancel_query(NoTls).await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(code(&error), &SqlState::QUERY_CANCELED);
    attached("f").await;

    // The client leaves without a word.
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    socket.write_all(&query(TAIL)).await.unwrap();
    attached("t").await;
    drop(socket);
    attached("f").await;

    let reader = served.client("market").await;
    let running = tokio::spawn(async move { reader.simple_query(TAIL).await.map(|_| ()) });
    attached("t").await;
    drop(writer);
    shut_down_soon(served).await;
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(code(&error), &SqlState::ADMIN_SHUTDOWN);
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_nobody() {
    let (served, writer) = market().await;
    // It asks for everything and takes nothing.
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    socket.write_all(&query("SELECT * FROM tail('market.ticks', from_seq => 1)")).await.unwrap();
    let big = "x".repeat(100_000);
    for id in 0..200 {
        writer.batch_execute(&format!("INSERT INTO market.ticks VALUES ({id}, '2023-01-01', '{big}')")).await.unwrap();
    }
    let count = cells(&writer, "SELECT count(*) FROM market.ticks").await;
    assert_eq!(count, [[Some("200".to_owned())]]);
    // Then it takes all of it: 20 MB that nothing but the log kept.
    let (mut seen, mut buffer) = (0, vec![0; 1 << 20]);
    while seen < 200 * big.len() {
        let read = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.expect("no rows come").unwrap();
        assert!(read > 0, "the server hung up");
        seen += read;
    }
    drop(socket);
    drop(writer);
    shut_down_soon(served).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_tails_see_the_same_in_the_same_order() {
    const COMMITS: i64 = 60;
    let (served, writer) = market().await;
    let mut readers = Vec::new();
    for _ in 0..8 {
        let client = served.client("market").await;
        readers.push(tokio::spawn(async move {
            let sql = format!("SELECT _seq, _ordinal, id FROM tail('ticks', from_seq => 1) LIMIT {}", COMMITS * 3);
            let rows: Vec<_> = client.simple_query_raw(&sql).await.unwrap().try_collect().await.unwrap();
            let rows = rows.into_iter().filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some([0, 1, 2].map(|index| row.get(index).unwrap().parse::<i64>().unwrap()))
                }
                _ => None,
            });
            rows.collect::<Vec<_>>()
        }));
    }
    for commit in 0..COMMITS {
        insert(&writer, commit * 3..commit * 3 + 3).await;
    }
    let mut all = Vec::new();
    for reader in readers {
        all.push(tokio::time::timeout(PATIENCE, reader).await.expect("a tail did not end").unwrap());
    }
    assert!(all.iter().all(|rows| *rows == all[0]));
    assert!(all[0].is_sorted());
    let mut ids: Vec<i64> = all[0].iter().map(|row| row[2]).collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..COMMITS * 3));
}

#[tokio::test]
async fn subscriptions_begin_go_on_and_end_by_procedure() {
    let (_served, client) = market().await;
    insert(&client, 0..2).await;
    client.batch_execute("CALL create_subscription('all', 'market.ticks', from_seq => 1)").await.unwrap();
    client.batch_execute("CALL create_subscription('new', 'market.ticks')").await.unwrap();
    insert(&client, 2..4).await;
    let text = |text: &str| Some(text.to_owned());
    let state = "SELECT name, database, \"table\", acknowledged_seq, last_seq, attached FROM system.subscriptions \
                 ORDER BY name";
    let shown = cells(&client, state).await;
    assert_eq!(shown[0], [text("all"), text("market"), text("ticks"), text("0"), text("5"), text("f")]);
    assert_eq!(shown[1][3], text("4"));
    let feeds = cells(&client, "SELECT feed FROM system.pins ORDER BY feed").await;
    assert_eq!(feeds, [[text("subscription/all")], [text("subscription/new")]]);
    let read = |name: &str| format!("SELECT id FROM changes('market.ticks', subscription => '{name}') ORDER BY id");
    assert_eq!(ids(cells(&client, &read("all")).await), [0, 1, 2, 3]);
    assert_eq!(ids(cells(&client, &read("new")).await), [2, 3]);
    client.batch_execute("CALL advance_subscription('all', 4); CALL advance_subscription('all', 2)").await.unwrap();
    assert_eq!(ids(cells(&client, &read("all")).await), [2, 3]);
    for (sql, wanted) in [
        ("CALL create_subscription('all', 'market.ticks')", "42710"),
        ("CALL create_subscription('x', 'market.nothing')", "42P01"),
        ("CALL create_subscription('x', 'market.ticks', 99)", "22023"),
        ("CALL create_subscription('', 'market.ticks')", "22023"),
        ("CALL advance_subscription('nobody', 1)", "42704"),
        ("CALL advance_subscription('all', 99)", "22023"),
        ("CALL advance_subscription('all', 'x')", "22023"),
        ("CALL drop_subscription('nobody')", "42704"),
        ("SELECT * FROM changes('market.other', subscription => 'all')", "22023"),
        ("SELECT * FROM changes('market.ticks', from_seq => 1, subscription => 'all')", "42601"),
    ] {
        let (state, message) = state_of(&client, sql).await;
        assert_eq!(state, wanted, "{sql}: {message}");
    }
    client.batch_execute("DROP TABLE market.ticks").await.unwrap();
    assert_eq!(cells(&client, state).await[0][2], None);
    client.batch_execute("CALL drop_subscription('all'); CALL forget_pin('subscription/new')").await.unwrap();
    assert!(cells(&client, "SELECT * FROM system.subscriptions").await.is_empty());
}

#[tokio::test]
async fn a_tail_ends_with_its_table() {
    let (served, client) = market().await;
    let reader = served.client("market").await;
    let mut rows = pin!(reader.simple_query_raw("SELECT id FROM tail('ticks')").await.unwrap());
    rows.next().await.unwrap().unwrap();
    client.batch_execute("DROP TABLE market.ticks").await.unwrap();
    let error = tokio::time::timeout(PATIENCE, rows.next()).await.expect("it goes on").unwrap().unwrap_err();
    let said = error.as_db_error().unwrap();
    assert_eq!(said.code().code(), "55000");
    assert!(said.message().contains("market.ticks") && said.message().contains("dropped"), "{said:?}");
}
