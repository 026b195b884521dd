//! `tailrace tail TABLE`: a table's changes from a running node, on standard output.
//!
//! It is a client like any other: it speaks the PostgreSQL protocol and asks `changes(…)` or `tail(…)`. Exit codes: 0
//! at the end, when it is interrupted, and when nobody reads its output any more; 1 when the node refused or ended it;
//! 2 for a wrong command line.

mod acknowledge;
pub(crate) mod output;
mod statement;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::{Args, ValueEnum};
use futures::StreamExt;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use self::{acknowledge::Acknowledging, output::Output};
use crate::client::{interrupted, of_server};

/// Rows after which what is written is sent on, and acknowledged, while more keep coming.
const ROWS_PER_FLUSH: usize = 64 << 10;
/// How long nothing has to come before it is looked whether the last transaction is complete.
const IDLE: Duration = Duration::from_millis(200);

/// Which changes, and how they are printed.
#[derive(Debug, Clone, Args)]
pub(crate) struct TailArgs {
    /// The table: `database.table`; names with capitals or signs in double quotes.
    table: String,
    /// Where the node listens for PostgreSQL clients.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5442")]
    address: String,
    /// The first transaction [default: the beginning; with --follow: what is committed from now on].
    #[arg(long, value_name = "SEQ", conflicts_with = "subscription")]
    from_seq: Option<u64>,
    /// The last transaction [default: what is there now].
    #[arg(long, value_name = "SEQ", conflicts_with = "follow")]
    to_seq: Option<u64>,
    /// Goes on with what is committed, until Ctrl-C.
    #[arg(long)]
    follow: bool,
    /// Begins behind what this subscription has acknowledged (`CALL create_subscription` makes one).
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Acknowledges transactions to the subscription once they are written to standard output.
    ///
    /// At least once: what was written and not yet acknowledged when this ends comes again the next time. A `--where`
    /// leaves rows out, and acknowledges them.
    #[arg(long, requires = "subscription")]
    acknowledge: bool,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Columns, separated by commas, spelled exactly [default: _seq, _ordinal, _commit_time, _op and the table's].
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    columns: Vec<String>,
    /// Only rows for which this SQL expression holds, e.g. "price > 10 AND _commit_time >= '2023-01-08'".
    #[arg(long = "where", value_name = "EXPRESSION")]
    filter: Option<String>,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// One JSON object per line.
    #[default]
    Json,
    /// CSV with a header; NULL is empty, empty text is "".
    Csv,
    /// An Arrow IPC stream.
    Arrow,
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
enum TailError {
    #[error("{0}")]
    Wrong(String),
    #[error("cannot connect to {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error("{}", of_server(.0))]
    Server(#[from] tokio_postgres::Error),
    #[error("cannot print: {0}")]
    Output(#[from] std::io::Error),
    #[error("a value cannot be printed: {0}")]
    Value(#[from] arrow_schema::ArrowError),
}

/// Runs the command; it has told everything when it returns.
pub(crate) async fn run(args: TailArgs) -> ExitCode {
    match tail(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_output(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tailrace: {error}");
            ExitCode::from(if matches!(error, TailError::Wrong(_)) { 2 } else { 1 })
        }
    }
}

async fn tail(args: &TailArgs) -> Result<(), TailError> {
    if args.format == Format::Arrow && std::io::stdout().is_terminal() {
        return Err(TailError::Wrong("an Arrow stream is not for a terminal: write it to a file or a pipe".to_owned()));
    }
    let client = connect(&args.address).await?;
    let sql = statement::of(args);
    let columns = client.prepare(&sql).await?;
    let seq_at = columns.columns().iter().position(|column| column.name() == "_seq");
    let hidden = !args.columns.is_empty() && !args.columns.iter().any(|column| column == "_seq");
    let shown = columns.columns().len() - usize::from(hidden);
    let mut output = Output::new(args.format, &columns.columns()[..shown], std::io::stdout().lock())?;
    let mut acknowledging = match (&args.subscription, args.acknowledge) {
        (Some(name), true) => Some(Acknowledging::new(connect(&args.address).await?, name, statement::count(args))),
        _ => None,
    };
    let stream = client.simple_query_raw(&sql).await?;
    let mut stream = std::pin::pin!(stream);
    let mut interrupted = std::pin::pin!(interrupted());
    let (mut last_seq, mut unflushed) = (None, 0);
    let ended = loop {
        let message = match futures::poll!(stream.next()) {
            std::task::Poll::Ready(message) => message,
            std::task::Poll::Pending => {
                output.flush()?;
                unflushed = 0;
                if let Some(acknowledging) = &mut acknowledging {
                    acknowledging.send().await?;
                }
                let is_open = acknowledging.as_ref().is_some_and(Acknowledging::is_open);
                tokio::select! {
                    message = stream.next() => message,
                    () = tokio::time::sleep(IDLE), if is_open => {
                        if let Some(acknowledging) = &mut acknowledging {
                            acknowledging.look().await?;
                        }
                        continue;
                    }
                    () = &mut interrupted => break Ended::Interrupted,
                }
            }
        };
        match message {
            None => break Ended::Complete,
            Some(Err(error)) => break Ended::Failed(error),
            Some(Ok(SimpleQueryMessage::Row(row))) => {
                let seq = seq_at.and_then(|index| row.get(index)).and_then(|seq| seq.parse::<u64>().ok());
                output.row((0..shown).map(|index| value(&row, index)))?;
                if let (Some(seq), Some(acknowledging)) = (seq, &mut acknowledging) {
                    acknowledging.written(seq);
                }
                last_seq = seq.or(last_seq);
                unflushed += 1;
                if unflushed >= ROWS_PER_FLUSH {
                    output.flush()?;
                    unflushed = 0;
                    if let Some(acknowledging) = &mut acknowledging {
                        acknowledging.send().await?;
                    }
                }
            }
            Some(Ok(_)) => {}
        }
    };
    if matches!(ended, Ended::Complete) {
        output.finish()?;
    } else {
        output.flush()?;
    }
    if let Some(acknowledging) = &mut acknowledging {
        if matches!(ended, Ended::Complete) {
            acknowledging.complete();
        }
        acknowledging.send().await?;
    }
    match ended {
        Ended::Complete => Ok(()),
        Ended::Failed(error) => {
            tell_last(last_seq);
            Err(error.into())
        }
        Ended::Interrupted => {
            tell_last(last_seq);
            Ok(())
        }
    }
}

enum Ended {
    Complete,
    Interrupted,
    Failed(tokio_postgres::Error),
}

fn value(row: &SimpleQueryRow, index: usize) -> Option<&str> {
    row.try_get(index).ok().flatten()
}

fn tell_last(seq: Option<u64>) {
    match seq {
        Some(seq) => eprintln!("tailrace: last seq {seq}"),
        None => eprintln!("tailrace: no rows"),
    }
}

async fn connect(address: &str) -> Result<Client, TailError> {
    let wrong = || TailError::Wrong(format!("--address {address}: write it as HOST:PORT, e.g. 127.0.0.1:5442"));
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let mut config = Config::new();
    config.host(host.trim_start_matches('[').trim_end_matches(']')).port(port).user("tailrace").dbname("tailrace");
    config.application_name("tailrace tail");
    let (client, connection) = config
        .connect(NoTls)
        .await
        .map_err(|error| TailError::Connect { address: address.to_owned(), reason: of_server(&error) })?;
    tokio::spawn(async move {
        // The client's next call says what happened.
        connection.await.ok();
    });
    Ok(client)
}

fn is_closed_output(error: &TailError) -> bool {
    let is_broken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    match error {
        TailError::Output(error) | TailError::Value(arrow_schema::ArrowError::IoError(_, error)) => is_broken(error),
        _ => false,
    }
}
