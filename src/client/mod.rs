//! What the commands that ask a running node have in common: a connection, one statement, its answer, an exit code.
//!
//! They speak the PostgreSQL protocol and know no more than any other client. Ctrl-C, or a supervisor's word, cancels the
//! statement on the node, and the command ends when the node has ended it.

mod print;
mod progress;

pub(crate) use print::{Answer, print};
pub(crate) use progress::{Polled, with_progress};

use std::{
    future::poll_fn,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use clap::Args;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, SimpleQueryMessage, Socket, tls::NoTlsStream};

/// How long a node has to end a statement that was cancelled.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where the node is, and how it is printed what it says.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// Where the node listens for PostgreSQL clients.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5442", global = true)]
    pub(crate) address: String,
    /// As whom.
    #[arg(long, value_name = "NAME", default_value = "tailrace", global = true)]
    pub(crate) user: String,
    /// One JSON object per row on standard output, instead of a table.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Prints the statement that would be sent, and sends nothing.
    #[arg(long, global = true)]
    pub(crate) show_statement: bool,
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The command line.
    #[error("{0}")]
    Wrong(String),
    /// The node was not reached.
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    /// The node refused.
    #[error("{}", of_server(.0))]
    Server(#[from] tokio_postgres::Error),
    /// What was asked for was done, and did not go well.
    #[error("{0}")]
    Failed(String),
    /// What was asked about is not as it should be.
    #[error("{0}")]
    Found(String),
    /// Ctrl-C, or a supervisor.
    #[error("cancelled")]
    Interrupted,
    /// Standard output.
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
}

impl ClientError {
    /// 1: failed; 2: asked for wrongly; 3: done, and what was looked at is bad; 130: interrupted. As shells have it.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Wrong(_) => 2,
            Self::Found(_) => 3,
            Self::Interrupted => 130,
            Self::Connect { .. } | Self::Server(_) | Self::Failed(_) | Self::Output(_) => 1,
        }
    }
}

/// Says how a command ended.
pub(crate) fn finish(result: Result<(), ClientError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads any more.
        Err(ClientError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tailrace: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// A connection to a node.
pub(crate) struct Node {
    client: Client,
    /// What it noted since the last statement.
    notices: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// Connects; `command` is what the node sees as the application, `database` where names are looked up.
    pub(crate) async fn connect(args: &ClientArgs, command: &str, database: Option<&str>) -> Result<Self, ClientError> {
        let address = &args.address;
        let wrong = || ClientError::Wrong(format!("--address {address}: write it as HOST:PORT, e.g. 127.0.0.1:5442"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let mut config = Config::new();
        config.host(host.trim_start_matches('[').trim_end_matches(']')).port(port).user(&args.user);
        config.dbname(database.unwrap_or("tailrace")).application_name(format!("tailrace {command}"));
        let (client, connection) = config
            .connect(NoTls)
            .await
            .map_err(|error| ClientError::Connect { address: address.clone(), reason: of_server(&error) })?;
        let notices = Arc::default();
        tokio::spawn(drive(connection, Arc::clone(&notices)));
        Ok(Self { client, notices })
    }

    /// Runs one statement and gathers its answer. An interrupt cancels it on the node.
    pub(crate) async fn ask(&self, sql: &str) -> Result<Answer, ClientError> {
        let mut interrupted = std::pin::pin!(interrupted());
        let mut asked = std::pin::pin!(self.ask_to_the_end(sql));
        tokio::select! {
            answer = &mut asked => return answer,
            () = &mut interrupted => {}
        }
        self.client.cancel_token().cancel_query(NoTls).await.ok();
        match tokio::time::timeout(LAST_WORDS, asked).await {
            // It was done before the word reached it.
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(ClientError::Interrupted),
        }
    }

    async fn ask_to_the_end(&self, sql: &str) -> Result<Answer, ClientError> {
        // Types come with a prepared statement, values as text without one.
        let described = self.client.prepare(sql).await?;
        unpoisoned(&self.notices).clear();
        let mut answer = Answer::new(described.columns());
        for message in self.client.simple_query(sql).await? {
            if let SimpleQueryMessage::Row(row) = message {
                answer.push(&row);
            }
        }
        // They come before the end of the statement that they are about.
        answer.notices = std::mem::take(&mut *unpoisoned(&self.notices));
        Ok(answer)
    }
}

/// Keeps a connection going, and keeps what the node notes.
async fn drive(mut connection: Connection<Socket, NoTlsStream>, notices: Arc<Mutex<Vec<String>>>) {
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notice(notice) = message {
            unpoisoned(&notices).push(notice.message().to_owned());
        }
    }
}

/// Nobody panics in its middle.
fn unpoisoned<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Text as a SQL literal.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// A CALL, from what stands by position and what has a name.
#[derive(Debug)]
pub(crate) struct Call {
    procedure: &'static str,
    arguments: Vec<String>,
}

impl Call {
    /// Of a procedure.
    pub(crate) fn new(procedure: &'static str) -> Self {
        Self { procedure, arguments: Vec::new() }
    }

    /// Text, by position.
    pub(crate) fn text(mut self, text: &str) -> Self {
        self.arguments.push(literal(text));
        self
    }

    /// Text by name, where it is given.
    pub(crate) fn named(mut self, name: &str, text: Option<&str>) -> Self {
        self.arguments.extend(text.map(|text| format!("{name} => {}", literal(text))));
        self
    }

    /// A number by name, where it is given.
    pub(crate) fn number(mut self, name: &str, number: Option<u64>) -> Self {
        self.arguments.extend(number.map(|number| format!("{name} => {number}")));
        self
    }

    /// A switch by name, where it is on.
    pub(crate) fn switch(mut self, name: &str, on: bool) -> Self {
        self.arguments.extend(on.then(|| format!("{name} => true")));
        self
    }

    /// A switch by name that is off.
    pub(crate) fn off(mut self, name: &str) -> Self {
        self.arguments.push(format!("{name} => false"));
        self
    }

    /// The statement.
    pub(crate) fn sql(&self) -> String {
        format!("CALL {}({})", self.procedure, self.arguments.join(", "))
    }
}

/// Ctrl-C, or the word of a supervisor.
pub(crate) async fn interrupted() {
    #[cfg(unix)]
    if let Ok(mut terminated) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        return;
    }
    tokio::signal::ctrl_c().await.ok();
}

/// What a node said, with the remedy.
pub(crate) fn of_server(error: &tokio_postgres::Error) -> String {
    let Some(said) = error.as_db_error() else {
        let source = std::error::Error::source(error);
        return source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    };
    let mut text = format!("{} ({})", said.message(), said.code().code());
    for more in [said.detail(), said.hint()].into_iter().flatten() {
        text.push_str(&format!("; {more}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_quoted_and_leaves_out_what_is_not_given() {
        let call = Call::new("backup").text("file:///it's here").named("database", Some("market"));
        let call = call.named("table", None).number("parallel", Some(4)).switch("force", true).switch("create", false);
        assert_eq!(call.sql(), "CALL backup('file:///it''s here', database => 'market', parallel => 4, force => true)");
    }
}
