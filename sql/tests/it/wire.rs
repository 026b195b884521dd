//! The wire protocol, with a real client and a real socket.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{TryStreamExt, future::join_all, pin_mut};
use tailrace_engine::{Engine, EngineConfig, EngineSeams};
use tailrace_sql::{Instance, Jobs, Remotes, Server, SqlConfig, SqlError};
use tailrace_wal::{SystemClock, SystemDisk};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, error::SqlState, types::Type};

/// A server on a free port, over an engine in a temporary folder.
pub(crate) struct Served {
    pub(crate) server: Server,
    engine: Arc<Engine>,
    _folder: tempfile::TempDir,
}

pub(crate) async fn start(address: SocketAddr) -> Result<Served, SqlError> {
    let folder = tempfile::tempdir().unwrap();
    let mut config = EngineConfig::new(folder.path().join("data"));
    config.flush_age = Duration::from_secs(3600);
    let seams = EngineSeams { disk: SystemDisk::shared(), clock: SystemClock::shared() };
    let (engine, _) = Engine::open(config, seams).await.unwrap();
    let config = SqlConfig {
        node_name: "site-a".to_owned(),
        pgwire: address,
        tls: None,
        files_allow: Vec::new(),
        memory_bytes: 256 << 20,
        threads: 2,
        statement_timeout: None,
        settings: vec![("node.name".to_owned(), "site-a".to_owned())],
    };
    let jobs = Jobs::new(engine.clone(), std::num::NonZeroUsize::MIN.saturating_add(3));
    let remotes = Arc::new(Remotes::new(engine.clone(), None, Vec::new()));
    let instance =
        Arc::new(Instance { engine: engine.clone(), publisher: None, follower: None, remotes, jobs, config });
    let server = Server::start(instance).await?;
    Ok(Served { server, engine, _folder: folder })
}

impl Served {
    pub(crate) async fn new() -> Self {
        start(([127, 0, 0, 1], 0).into()).await.unwrap()
    }

    /// A server with `market.bars`, partitioned and with a row of every kind of value.
    pub(crate) async fn market() -> Self {
        let served = Self::new().await;
        let client = served.client("tailrace").await;
        client
            .batch_execute(
                "CREATE DATABASE market; CREATE TABLE market.bars (
                   security_id TEXT NOT NULL, datetime TIMESTAMP(0), last_px DOUBLE PRECISION, volume INT,
                   amount DECIMAL(18, 2), open BOOLEAN, day DATE, raw BYTEA)
                 PARTITION BY VALUE (day(datetime)) ORDER BY (security_id, datetime)",
            )
            .await
            .unwrap();
        client
            .batch_execute(
                "INSERT INTO market.bars VALUES
                   ('000001', '2023-01-08 09:30:00', 10.37, 100, 1037.00, true, '2023-01-08', '\\x00ff'),
                   ('000002', '2023-01-09 13:00:00', NULL, NULL, NULL, NULL, NULL, NULL)",
            )
            .await
            .unwrap();
        served
    }

    fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.server.local_addr().port()).user("ann").dbname(database);
        config
    }

    pub(crate) async fn client(&self, database: &str) -> Client {
        self.try_client(database).await.unwrap()
    }

    async fn try_client(&self, database: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = self.config(database).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.server.local_addr()).await.unwrap()
    }
}

/// Cells of all rows of a simple query.
pub(crate) async fn cells(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| (0..row.len()).map(|index| row.get(index).map(ToOwned::to_owned)).collect()).collect()
}

pub(crate) fn code(error: &tokio_postgres::Error) -> &SqlState {
    error.code().unwrap_or_else(|| panic!("no SQLSTATE in {error:?}"))
}

const FOREVER: &str = "SELECT count(*) FROM generate_series(1, 100000000) a, generate_series(1, 100000000) b \
                       WHERE a.value + b.value < 0";

#[tokio::test]
async fn only_loopback_is_listened_on() {
    let error = start(([0, 0, 0, 0], 0).into()).await.map(|_| ()).unwrap_err();
    assert!(error.message.contains("loopback") && error.hint.is_some(), "{error:?}");
}

#[tokio::test]
async fn simple_queries_give_text_row_counts_and_the_first_error() {
    let served = Served::market().await;
    let client = served.client("market").await;
    let rows = cells(&client, "SELECT * FROM bars ORDER BY security_id").await;
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        rows[0],
        [
            text("000001"),
            text("2023-01-08 09:30:00"),
            text("10.37"),
            text("100"),
            text("1037.00"),
            text("t"),
            text("2023-01-08"),
            text("\\x00ff"),
        ]
    );
    assert_eq!(rows[1][2..], [None, None, None, None, None, None]);

    let messages = client.simple_query("SELECT 1; SELECT 2 UNION ALL SELECT 3").await.unwrap();
    let counts: Vec<u64> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::CommandComplete(count) => Some(*count),
            _ => None,
        })
        .collect();
    assert_eq!(counts, [1, 2]);

    // What came before the error is done, what comes after is not.
    let error = client
        .batch_execute("CREATE DATABASE before; SELECT * FROM market.nothing; CREATE DATABASE after")
        .await
        .unwrap_err();
    assert_eq!(code(&error), &SqlState::UNDEFINED_TABLE);
    let names = cells(&client, "SELECT name FROM system.databases ORDER BY name").await;
    assert_eq!(names, [[text("before")], [text("market")]]);
    assert!(client.simple_query("").await.unwrap().len() <= 1);
}

#[tokio::test]
async fn extended_queries_take_and_give_binary_values() {
    let served = Served::market().await;
    let client = served.client("market").await;
    let insert = client
        .prepare("INSERT INTO bars (security_id, datetime, last_px, volume, open) VALUES ($1, $2, $3, $4, $5)")
        .await
        .unwrap();
    assert_eq!(insert.params(), [Type::TEXT, Type::TIMESTAMP, Type::FLOAT8, Type::INT4, Type::BOOL]);
    let at = std::time::UNIX_EPOCH + Duration::from_secs(1_673_170_260);
    for volume in [7i32, 8] {
        assert_eq!(client.execute(&insert, &[&"000003", &at, &1.5f64, &volume, &true]).await.unwrap(), 1);
    }
    let none: Option<f64> = None;
    client.execute(&insert, &[&"000004", &at, &none, &9i32, &false]).await.unwrap();

    let select = "SELECT security_id, datetime, last_px, volume, open FROM bars WHERE volume = $1";
    let row = client.query_one(select, &[&7i32]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "000003");
    assert_eq!(row.get::<_, std::time::SystemTime>(1), at);
    assert_eq!((row.get::<_, f64>(2), row.get::<_, i32>(3), row.get::<_, bool>(4)), (1.5, 7, true));
    let row = client.query_one(select, &[&9i32]).await.unwrap();
    assert_eq!(row.get::<_, Option<f64>>(2), None);
    let counted: i64 = client.query_one("SELECT count(*) FROM bars", &[]).await.unwrap().get(0);
    assert_eq!(counted, 5);
}

#[tokio::test]
async fn a_query_without_columns_gives_rows_all_the_same() {
    let served = Served::new().await;
    let rows = served.client("tailrace").await.query("SELECT FROM (VALUES (1), (2))", &[]).await.unwrap();
    assert_eq!((rows.len(), rows[0].len()), (2, 0));
    // Drivers wait for the description before the first row.
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    let message = |kind: u8, body: &[u8]| [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat();
    let parse = message(b'P', b"\0SELECT FROM (VALUES (1), (2))\0\0\0");
    let bind = message(b'B', b"\0\0\0\0\0\0\0\0");
    let rest = [message(b'D', b"P\0"), message(b'E', b"\0\0\0\0\0"), message(b'S', b""), message(b'X', b"")].concat();
    socket.write_all(&[parse, bind, rest].concat()).await.unwrap();
    // The goodbye is behind them, and takes no answer away.
    let answer = until_closed(socket).await;
    let row = "D\0\0\0\u{6}\0\0";
    assert!(answer.contains(&format!("T\0\0\0\u{6}\0\0{row}{row}C\0\0\0\rSELECT 2\0")), "{answer:?}");
}

#[tokio::test]
async fn an_error_in_an_extended_query_leaves_the_connection_usable() {
    let served = Served::market().await;
    let client = served.client("market").await;
    let error = client.query("SELECT nothing FROM bars", &[]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::UNDEFINED_COLUMN);
    let error = client.query("SELECT 1; SELECT 2", &[]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::SYNTAX_ERROR);
    let error = client.query("SELECT 1 / (volume - volume) FROM bars WHERE volume IS NOT NULL", &[]).await.unwrap_err();
    assert!(error.as_db_error().is_some());
    assert_eq!(client.query("SELECT 1", &[]).await.unwrap().len(), 1);
}

#[tokio::test]
async fn portals_give_rows_in_pieces() {
    let served = Served::market().await;
    let mut client = served.client("market").await;
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT value FROM generate_series(1, 25) ORDER BY value", &[]).await.unwrap();
    let mut seen = Vec::new();
    for expected in [10, 10, 5, 0] {
        let rows = transaction.query_portal(&portal, 10).await.unwrap();
        assert_eq!(rows.len(), expected);
        seen.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
    }
    assert_eq!(seen, (1..=25).collect::<Vec<_>>());
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn large_results_stream() {
    let served = Served::new().await;
    let client = served.client("tailrace").await;
    let rows = client
        .query_raw("SELECT value, value * 2.5 FROM generate_series(1, 300000)", std::iter::empty::<i32>())
        .await
        .unwrap();
    pin_mut!(rows);
    let (mut count, mut sum) = (0, 0);
    while let Some(row) = rows.try_next().await.unwrap() {
        count += 1;
        sum += row.get::<_, i64>(0);
    }
    assert_eq!((count, sum), (300_000, 300_000 * 300_001 / 2));
}

#[tokio::test]
async fn answers_come_while_later_statements_run() {
    let served = Served::new().await;
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    socket.write_all(&query(&format!("SELECT 'first answer'; {FOREVER}"))).await.unwrap();
    let (mut answer, mut buffer) = (Vec::new(), vec![0; 4096]);
    while !String::from_utf8_lossy(&answer).contains("first answer") {
        let read = tokio::time::timeout(Duration::from_secs(20), socket.read(&mut buffer)).await;
        answer.extend_from_slice(&buffer[..read.expect("the first answer waits for the second").unwrap()]);
    }
    drop(socket);
    shut_down_soon(served).await;
}

#[tokio::test]
async fn an_insert_whose_client_left_is_whole_or_not_there() {
    let served = Served::market().await;
    for _ in 0..10 {
        let mut socket = served.socket().await;
        socket.write_all(&startup()).await.unwrap();
        let insert = "INSERT INTO market.bars (security_id, volume) SELECT 'gone', value FROM generate_series(1, 1000)";
        socket.write_all(&query(insert)).await.unwrap();
    }
    // A connection's statement is done or cancelled before the server is.
    let Served { server, engine, _folder } = served;
    server.shutdown().await;
    let version = engine.version();
    let rows = version.database("market").unwrap().table("bars").unwrap().rows();
    assert_eq!(rows % 1000, 2, "{rows} rows");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_source_back() {
    let served = Served::new().await;
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    socket.write_all(&query("SELECT value FROM generate_series(1, 1000000000)")).await.unwrap();
    // Gigabytes would have to be held somewhere if this were not streamed; a part is read, then the client leaves.
    let mut taken = 0;
    let mut buffer = vec![0; 1 << 16];
    while taken < 1 << 20 {
        taken += socket.read(&mut buffer).await.unwrap();
    }
    drop(socket);
    shut_down_soon(served).await;
}

#[tokio::test]
async fn cancel_requests_stop_what_runs_and_nothing_else() {
    let served = Served::new().await;
    let client = served.client("tailrace").await;
    let token = client.cancel_token();
    let running = tokio::spawn(async move {
        let error = client.simple_query(FOREVER).await.map(|_| ()).unwrap_err();
        (client, error)
    });
    // Asked again until it is heard: the first may come before the statement.
    while !running.is_finished() {
        token.cancel_query(NoTls).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (client, error) = running.await.unwrap();
    assert_eq!(code(&error), &SqlState::QUERY_CANCELED);
    assert_eq!(cells(&client, "SELECT 1").await.len(), 1);
}

#[tokio::test]
async fn a_disconnect_cancels_the_query() {
    let served = Served::new().await;
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    socket.write_all(&query(FOREVER)).await.unwrap();
    drop(socket);
    shut_down_soon(served).await;
}

/// Shutting down waits for what runs: it must have ended.
pub(crate) async fn shut_down_soon(served: Served) {
    tokio::time::timeout(Duration::from_secs(20), served.server.shutdown()).await.expect("something still runs");
}

#[tokio::test]
async fn fifty_connections_at_once() {
    let served = Served::market().await;
    let clients = join_all((0..50).map(|_| served.client("market"))).await;
    let work = clients.iter().enumerate().map(|(number, client)| async move {
        let name = format!("c{number}");
        for round in 0..4i32 {
            client.execute("INSERT INTO bars (security_id, volume) VALUES ($1, $2)", &[&name, &round]).await.unwrap();
        }
        let count = client.query_one("SELECT count(*) FROM bars WHERE security_id = $1", &[&name]).await.unwrap();
        assert_eq!(count.get::<_, i64>(0), 4);
    });
    join_all(work).await;
    assert_eq!(cells(&clients[0], "SELECT count(*) FROM bars").await[0][0].as_deref(), Some("202"));
}

#[tokio::test]
async fn databases_are_checked_at_the_start() {
    let served = Served::market().await;
    for (database, current) in [("tailrace", None), ("postgres", None), ("market", Some("market"))] {
        let client = served.client(database).await;
        let row = client.query_one("SELECT current_schema(), current_user", &[]).await.unwrap();
        assert_eq!((row.get::<_, Option<&str>>(0), row.get::<_, &str>(1)), (current, "ann"), "{database}");
    }
    let error = served.try_client("markt").await.map(|_| ()).unwrap_err();
    assert_eq!(code(&error), &SqlState::INVALID_CATALOG_NAME);
}

#[tokio::test]
async fn settings_come_with_the_start() {
    let served = Served::new().await;
    let connect = async |options: &str| {
        let (client, connection) = served.config("tailrace").options(options).connect(NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let client = connect("-c synchronous_commit=off -c statement_timeout=50").await.unwrap();
    assert_eq!(cells(&client, "SHOW synchronous_commit").await[0][0].as_deref(), Some("off"));
    let error = client.simple_query(FOREVER).await.map(|_| ()).unwrap_err();
    assert_eq!(code(&error), &SqlState::QUERY_CANCELED);
    let error = connect("-c no_such_setting=1").await.map(|_| ()).unwrap_err();
    assert_eq!(code(&error), &SqlState::UNDEFINED_OBJECT);
}

#[tokio::test]
async fn a_prepared_statement_over_a_changed_table_is_refused() {
    let served = Served::market().await;
    let client = served.client("market").await;
    let select = client.prepare("SELECT * FROM bars").await.unwrap();
    assert_eq!(client.query(&select, &[]).await.unwrap().len(), 2);
    client.batch_execute("DROP TABLE bars; CREATE TABLE bars (volume TEXT)").await.unwrap();
    let error = client.query(&select, &[]).await.unwrap_err();
    assert_eq!(code(&error), &SqlState::FEATURE_NOT_SUPPORTED);
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let served = Served::new().await;
    let client = served.client("tailrace").await;
    let row = client.query_one("SELECT version(), pg_backend_pid()", &[]).await.unwrap();
    assert!(row.get::<_, &str>(0).contains("Tailrace"), "{row:?}");
    assert!(row.get::<_, i32>(1) > 0);
}

#[tokio::test]
async fn messages_over_the_limit_are_refused() {
    let served = Served::new().await;
    let mut socket = served.socket().await;
    socket.write_all(&startup()).await.unwrap();
    socket.write_all(b"Q\x7f\xff\xff\xff").await.unwrap();
    let answer = until_closed(socket).await;
    assert!(answer.contains("54000"), "{answer}");
}

#[tokio::test]
async fn garbage_is_answered_and_the_server_goes_on() {
    let served = Served::new().await;
    let garbage: [&[u8]; 4] =
        [b"GET / HTTP/1.1\r\n\r\n", &[0xff; 64], b"\0\0\0\x08\0\x01\0\0", b"\0\0\0\x09\0\x03\0\0x"];
    for bytes in garbage {
        let mut socket = served.socket().await;
        socket.write_all(bytes).await.unwrap();
        let answer = until_closed(socket).await;
        assert!(answer.contains("FATAL"), "{bytes:?}: {answer}");
    }
    // After start-up: a Bind whose counts lie, and an unknown message.
    for bytes in [&b"B\0\0\0\x0a\0\0\xff\xff\xff\xff"[..], b"\x01\0\0\0\x04"] {
        let mut socket = served.socket().await;
        socket.write_all(&startup()).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let answer = until_closed(socket).await;
        assert!(answer.contains("08P01"), "{bytes:?}: {answer}");
    }
    assert_eq!(cells(&served.client("tailrace").await, "SELECT 1").await.len(), 1);
}

#[tokio::test]
async fn shutdown_tells_idle_and_busy_connections() {
    let served = Served::new().await;
    let mut idle = served.socket().await;
    idle.write_all(&startup()).await.unwrap();
    let mut ready = vec![0; 1];
    idle.read_exact(&mut ready).await.unwrap();
    let mut busy = served.socket().await;
    busy.write_all(&startup()).await.unwrap();
    busy.write_all(&query(FOREVER)).await.unwrap();
    busy.read_exact(&mut ready).await.unwrap();
    let start = Instant::now();
    let ((), idle, busy) = tokio::join!(served.server.shutdown(), until_closed(idle), until_closed(busy));
    assert!(idle.contains("57P01") && busy.contains("57P01"), "{idle} / {busy}");
    assert!(start.elapsed() < Duration::from_secs(20));
}

pub(crate) fn startup() -> Vec<u8> {
    let body = b"\0\x03\0\0user\0ann\0database\0tailrace\0\0";
    let mut message = (u32::try_from(body.len()).unwrap() + 4).to_be_bytes().to_vec();
    message.extend(body);
    message
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut message = vec![b'Q'];
    message.extend((u32::try_from(sql.len()).unwrap() + 5).to_be_bytes());
    message.extend(sql.as_bytes());
    message.push(0);
    message
}

async fn until_closed(mut socket: TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(30), socket.read_to_end(&mut answer)).await;
    // A connection that is closed with bytes unread resets; what was answered came first.
    read.expect("the connection stays open").ok();
    String::from_utf8_lossy(&answer).into_owned()
}
