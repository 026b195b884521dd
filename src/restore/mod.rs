//! `tailrace restore`: what a backup has, brought back to a running node.
//!
//! Exit codes: 0 done, or nothing was to be done; 1 the node refused, was not reached, or it failed; 2 a wrong command line; 130
//! interrupted, and the statement cancelled on the node.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::{
    backup::{polled, tell_notices, tell_task},
    client::{Call, ClientArgs, ClientError, Node, finish, with_progress},
};

/// What to bring back, and how.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Where the backups are: file:///…, s3://….
    url: String,
    /// Which backup [default: the newest].
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// This database of it [default: all that is in it].
    #[arg(long, value_name = "NAME", conflicts_with = "table")]
    database: Option<String>,
    /// This table of it: `database.table`.
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Its partitions of that name: % stands for any text, ? for one character.
    #[arg(long, value_name = "PATTERN", requires = "table")]
    partitions: Option<String>,
    /// Its partitions for which this SQL expression over partition columns holds, e.g. "datetime >= '2023-01-08'".
    #[arg(long = "where", value_name = "EXPRESSION", requires = "table")]
    filter: Option<String>,
    /// Under another name: of the database, or `database.table` of the table.
    #[arg(long, value_name = "NAME")]
    into: Option<String>,
    /// Makes what is not here.
    #[arg(long)]
    create: bool,
    /// What happens with partitions that are here and differ [default: fail].
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// Only says what it would do.
    #[arg(long)]
    dry_run: bool,
    /// Goes on to this transaction, with the archived log.
    #[arg(long, value_name = "SEQ", conflicts_with = "to_time")]
    to_seq: Option<u64>,
    /// Goes on to this moment, with the archived log: "2026-01-08 22:30:00".
    #[arg(long, value_name = "TIME")]
    to_time: Option<String>,
    /// Where the archived log is [default: the node's own archive].
    #[arg(long, value_name = "URL")]
    archive: Option<String>,
    /// Files at a time.
    #[arg(long, value_name = "COUNT")]
    parallel: Option<u64>,
    /// File with the key, on the node, of an encrypted backup.
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// Conflicts are named, and nothing changes.
    Fail,
    /// The backup's rows take the place of those that are here.
    Replace,
    /// Rows of the backup that are not here are added.
    Merge,
}

/// Runs the command; it has told everything when it returns.
pub(crate) async fn run(args: RestoreArgs) -> ExitCode {
    finish(restore(&args).await)
}

async fn restore(args: &RestoreArgs) -> Result<(), ClientError> {
    let client = &args.client;
    let sql = statement(args);
    if client.show_statement {
        println!("{sql};");
        return Ok(());
    }
    let node = Node::connect(client, "restore", None).await?;
    let answer = with_progress(client, "restore", polled(), node.ask(&sql)).await?;
    match args.dry_run {
        true => tell_notices(&answer, client),
        false => tell_task(&node, &answer, client).await,
    }
}

fn statement(args: &RestoreArgs) -> String {
    let mode = args.mode.and_then(|mode| mode.to_possible_value());
    Call::new("restore")
        .text(&args.url)
        .named("backup", args.backup.as_deref())
        .named("database", args.database.as_deref())
        .named("table", args.table.as_deref())
        .named("partitions", args.partitions.as_deref())
        .named("where", args.filter.as_deref())
        .named("into", args.into.as_deref())
        .switch("create", args.create)
        .named("mode", mode.as_ref().map(|mode| mode.get_name()))
        .switch("dry_run", args.dry_run)
        .number("to_seq", args.to_seq)
        .named("to_time", args.to_time.as_deref())
        .named("archive", args.archive.as_deref())
        .number("parallel", args.parallel)
        .named("key", args.key.as_deref())
        .sql()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: RestoreArgs,
    }

    #[test]
    fn statements() {
        let sql = |line: &str| {
            statement(&Line::try_parse_from(std::iter::once("restore").chain(line.split('|'))).unwrap().args)
        };
        assert_eq!(sql("file:///b"), "CALL restore('file:///b')");
        assert_eq!(
            sql("file:///b|--table|market.bars|--into|copy.bars|--create|--mode|replace|--dry-run|--to-seq|9"),
            "CALL restore('file:///b', table => 'market.bars', into => 'copy.bars', create => true, mode => 'replace', \
             dry_run => true, to_seq => 9)"
        );
        assert_eq!(
            sql("file:///b|--table|a.b|--where|at >= '2023-01-08'"),
            "CALL restore('file:///b', table => 'a.b', where => 'at >= ''2023-01-08''')"
        );
        for wrong in ["file:///b|--to-seq|1|--to-time|x", "file:///b|--partitions|x", "file:///b|--mode|some"] {
            assert!(Line::try_parse_from(std::iter::once("restore").chain(wrong.split('|'))).is_err(), "{wrong}");
        }
    }
}
