//! A connection, and what an error says about the outcome of the statement.

use std::time::Duration;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::{PATIENCE, Run, plan::Side};

/// A connection to one process of a node.
pub(crate) struct Connection {
    client: Client,
    side: Side,
    /// Which process of the node it is connected to, counted from 1.
    pub(crate) incarnation: u64,
}

/// Why a statement was not acknowledged.
#[derive(Debug, Clone)]
pub(crate) enum Failure {
    /// The node said so: nothing was done.
    Refused { state: String, message: String },
    /// It may have been done: the connection ended, or the node says that it does not know.
    Unknown { reason: String },
}

impl Failure {
    /// For counters.
    pub(crate) fn outcome(&self) -> String {
        match self {
            Self::Refused { state, .. } => format!("refused {state}"),
            Self::Unknown { .. } => "unknown".to_owned(),
        }
    }

    /// Whether another connection has to be made: this one is gone, or its node goes.
    pub(crate) fn ends_connection(&self) -> bool {
        match self {
            Self::Refused { state, .. } => state.starts_with("57"),
            Self::Unknown { .. } => true,
        }
    }

    pub(crate) fn is_refused_with(&self, wanted: &str) -> bool {
        matches!(self, Self::Refused { state, .. } if state == wanted)
    }
}

impl Connection {
    /// Connects as soon as the node is up. `None`: the load is to end.
    pub(crate) async fn open(run: &Run, side: Side) -> Option<Self> {
        while !*run.load_ends.borrow() {
            if let Some(connection) = Self::try_open(run, side).await {
                return Some(connection);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    pub(crate) async fn try_open(run: &Run, side: Side) -> Option<Self> {
        let place = run.site.place(side);
        let (before, began) = (place.incarnation(), run.ledger.now());
        let address = place.address()?;
        let mut config = tokio_postgres::Config::new();
        config.host(address.ip().to_string()).port(address.port()).user("chaos").dbname("tailrace");
        let connected = tokio::time::timeout(PATIENCE, config.connect(NoTls)).await;
        let (client, connection) = match connected {
            Ok(connected) => connected.ok()?,
            Err(_) => {
                run.report.violation(format!("{}: a connection was not answered for {PATIENCE:?}", side.name()));
                return None;
            }
        };
        tokio::spawn(connection);
        run.report.span("a connection is made", run.ledger.now() - began);
        (place.incarnation() == before).then_some(Self { client, side, incarnation: before })
    }

    /// Rows of a statement as text, NULL as an empty one.
    pub(crate) async fn rows(&self, run: &Run, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let answer = tokio::time::timeout(PATIENCE, self.client.simple_query(sql)).await;
        let Ok(answer) = answer else {
            run.report.violation(format!("not answered for {PATIENCE:?}: {}", start_of(sql)));
            return Err(Failure::Unknown { reason: "hung".to_owned() });
        };
        let messages = answer.map_err(|error| {
            let failure = judge(&error);
            if let Failure::Refused { state, message } = &failure {
                run.report.refusal(state, message);
                if state.starts_with("XX") && !self.has_lost_disk(run) {
                    run.report.violation(format!("{state} {message}: {}", start_of(sql)));
                }
            }
            failure
        })?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// Whether the disk beneath its process failed: queries may fail, too, then.
    pub(crate) fn has_lost_disk(&self, run: &Run) -> bool {
        run.site.place(self.side).has_lost_disk(self.incarnation)
    }

    pub(crate) async fn execute(&self, run: &Run, sql: &str) -> Result<(), Failure> {
        self.rows(run, sql).await.map(drop)
    }
}

fn judge(error: &tokio_postgres::Error) -> Failure {
    match error.as_db_error() {
        None => Failure::Unknown { reason: error.to_string() },
        Some(error) if error.code().code() == "40003" => Failure::Unknown { reason: error.message().to_owned() },
        Some(error) => Failure::Refused { state: error.code().code().to_owned(), message: error.message().to_owned() },
    }
}

fn start_of(sql: &str) -> &str {
    sql.get(..160).unwrap_or(sql)
}
