//! One of the demo's two clusters, and a client that talks to it as any other would.

use std::{net::SocketAddr, path::Path};

use tailrace_wal::Clock;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use super::table::TextTable;
use crate::{
    Error, Result,
    compose::Node,
    config,
    init::{self, Request},
};

/// A node with a connection to it.
pub(super) struct Site {
    /// Its name.
    pub(super) name: &'static str,
    /// The node.
    pub(super) node: Node,
    client: tokio_postgres::Client,
}

impl Site {
    /// Makes a folder `name` in `root`, starts a node on free loopback ports and connects. `ca`: the site that signs.
    pub(super) async fn start(
        name: &'static str,
        root: &Path,
        ca: Option<&str>,
        flags: &[(&str, String)],
        clock: &dyn Clock,
    ) -> Result<Self> {
        let request = Request {
            dir: root.join(name),
            name: Some(name.to_owned()),
            ca: ca.map(|ca| root.join(ca).join("tls")),
            hosts: Vec::new(),
        };
        let made = init::init(&request, clock)?;
        let mut set = vec![("listen.pgwire".to_owned(), "127.0.0.1:0".to_owned())];
        set.extend(flags.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        let node = Node::start(&config::load(&made.config, &set)?).await?;
        let client = connect(node.pgwire()).await.map_err(|error| Error::Demo(format!("{name}: {}", words(&error))))?;
        Ok(Self { name, node, client })
    }

    /// Runs a statement and gives its rows as the client sees them.
    pub(super) async fn query(&self, sql: &str) -> Result<TextTable> {
        let messages = self.client.simple_query(sql).await;
        let messages = messages.map_err(|error| Error::Demo(format!("{}: {sql}: {}", self.name, words(&error))))?;
        let mut table = TextTable::default();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    table.columns = columns.iter().map(|column| column.name().to_owned()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    let value = |index| row.get(index).unwrap_or("").to_owned();
                    table.rows.push((0..row.len()).map(value).collect());
                }
                _ => {}
            }
        }
        Ok(table)
    }

    /// Prints a statement as it is run, and its rows, if it has any.
    pub(super) async fn show(&self, sql: &str) -> Result<TextTable> {
        println!("\n{}=> {}", self.name, sql.replace('\n', &format!("\n{}-> ", self.name)));
        let table = self.query(sql).await?;
        if !table.columns.is_empty() {
            print!("{table}");
        }
        Ok(table)
    }

    /// Rows of the demo's table; 0 while it does not exist here yet.
    pub(super) async fn rows(&self) -> u64 {
        match self.query("SELECT count(*) FROM market.bars").await {
            Ok(table) => table.rows.first().and_then(|row| row.first()?.parse().ok()).unwrap_or(0),
            Err(_) => 0,
        }
    }

    /// How to connect by hand.
    pub(super) fn psql(&self) -> String {
        let address = self.node.pgwire();
        format!("psql -h {} -p {} -U demo market", address.ip(), address.port())
    }
}

async fn connect(address: SocketAddr) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host(address.ip().to_string())
        .port(address.port())
        .user("demo")
        .dbname("tailrace")
        .application_name("tailrace demo")
        .connect(NoTls)
        .await?;
    // Ends with the client or the server; its error reaches the statement that waits.
    tokio::spawn(connection);
    Ok(client)
}

/// The server's message and hint, which the error's own text leaves out.
fn words(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => {
            let hint = error.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
            format!("{} ({}){hint}", error.message(), error.code().code())
        }
        None => error.to_string(),
    }
}
