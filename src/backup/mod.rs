//! `tailrace backup`: backups of a running node.
//!
//! The node writes and reads the location, not this command: a path is one of the node's, below `[files] allow` there.
//! Exit codes: 0 done; 1 the node refused, was not reached, or it failed; 2 a wrong command line; 3 `check` found damage;
//! 130 interrupted, and the statement cancelled on the node.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::client::{Answer, Call, ClientArgs, ClientError, Node, Polled, finish, literal, print, with_progress};

/// What to back up, or what to do with backups.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    make: Make,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Lists the backups of a location.
    List {
        /// Where: file:///…, s3://….
        url: String,
    },
    /// Reads backups again and recomputes what they say of themselves; lists what is bad.
    Check {
        /// Where.
        url: String,
        /// Which [default: all].
        #[arg(long, value_name = "ID")]
        backup: Option<String>,
    },
    /// Removes old backups, and files that no backup needs any more.
    Prune {
        /// Where.
        url: String,
        /// So many of the newest stay.
        #[arg(long, value_name = "COUNT")]
        keep: u64,
        /// Of the others only those go that are older, e.g. "30 days".
        #[arg(long, value_name = "SPAN")]
        older_than: Option<String>,
        /// Only says what it would remove.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Clone, Args)]
struct Make {
    /// Where: file:///…, s3://….
    #[arg(required = true)]
    url: Option<String>,
    /// This database [default: all].
    #[arg(long, value_name = "NAME", conflicts_with_all = ["table", "query"])]
    database: Option<String>,
    /// This table: `database.table`.
    #[arg(long, value_name = "TABLE", conflicts_with = "query")]
    table: Option<String>,
    /// Its partitions of that name: % stands for any text, ? for one character.
    #[arg(long, value_name = "PATTERN", requires = "table")]
    partitions: Option<String>,
    /// Its partitions for which this SQL expression over partition columns holds, e.g. "datetime >= '2023-01-08'".
    #[arg(long = "where", value_name = "EXPRESSION", requires = "table")]
    filter: Option<String>,
    /// The rows and columns of this query.
    #[arg(long, value_name = "SELECT")]
    query: Option<String>,
    /// Only says what it would write.
    #[arg(long, conflicts_with = "query")]
    dry_run: bool,
    /// Files at a time.
    #[arg(long, value_name = "COUNT")]
    parallel: Option<u64>,
    /// Writes also what an earlier backup has.
    #[arg(long)]
    force: bool,
    /// File with the key, on the node: the backup is encrypted.
    #[arg(long, value_name = "FILE")]
    key: Option<String>,
}

/// Runs the command; it has told everything when it returns.
pub(crate) async fn run(args: BackupArgs) -> ExitCode {
    finish(backup(&args).await)
}

async fn backup(args: &BackupArgs) -> Result<(), ClientError> {
    let client = &args.client;
    let sql = statement(args);
    if client.show_statement {
        println!("{sql};");
        return Ok(());
    }
    let node = Node::connect(client, "backup", None).await?;
    match &args.action {
        None => {
            let answer = with_progress(client, "backup", polled(), node.ask(&sql)).await?;
            match args.make.dry_run {
                true => tell_notices(&answer, client),
                false => tell_task(&node, &answer, client).await,
            }
        }
        Some(Action::List { .. }) => Ok(print(&node.ask(&sql).await?, client.json)?),
        Some(Action::Check { .. }) => {
            let answer = with_progress(client, "check", polled(), node.ask(&sql)).await?;
            match answer.len() {
                0 => Ok(()),
                bad => {
                    print(&answer, client.json)?;
                    Err(ClientError::Found(format!("damage was found: {bad}")))
                }
            }
        }
        Some(Action::Prune { .. }) => {
            let answer = node.ask(&sql).await?;
            tell_notices(&answer, client)
        }
    }
}

/// What was said, or would be done.
pub(crate) fn tell_notices(answer: &Answer, client: &ClientArgs) -> Result<(), ClientError> {
    match client.json {
        true => println!("{}", serde_json::json!({ "notices": answer.notices })),
        false => answer.notices.iter().for_each(|notice| println!("{notice}")),
    }
    Ok(())
}

/// What a backup or restore came to: its notices, or with --json its row of `get_backup_status()`.
pub(crate) async fn tell_task(node: &Node, answer: &Answer, client: &ClientArgs) -> Result<(), ClientError> {
    if !client.json {
        return tell_notices(answer, client);
    }
    answer.notices.iter().for_each(|notice| eprintln!("notice: {notice}"));
    let backup =
        answer.notices.iter().rev().find_map(|notice| Some(notice.strip_prefix("backup ")?.split_once(':')?.0));
    let sql = format!(
        "SELECT * FROM get_backup_status() WHERE backup = {} ORDER BY started DESC LIMIT 1",
        literal(backup.unwrap_or_default())
    );
    Ok(print(&node.ask(&sql).await?, true)?)
}

/// Figures of the task that is under way.
pub(crate) fn polled() -> Polled {
    Polled { sql: "SELECT * FROM get_backup_status() WHERE state = 'RUNNING'".to_owned(), read: read_status }
}

fn read_status(answer: &Answer) -> Option<(f64, String)> {
    let row = answer.len().checked_sub(1)?;
    let number = |column| answer.value(row, column).and_then(|value| value.parse::<f64>().ok());
    let left = number("remaining_seconds").map(|seconds| format!("{seconds:.0} s left"));
    Some((number("percent")?, left.unwrap_or_default()))
}

fn statement(args: &BackupArgs) -> String {
    match &args.action {
        Some(Action::List { url }) => format!("SELECT * FROM get_backup_list({})", literal(url)),
        Some(Action::Check { url, backup }) => {
            let backup = backup.as_ref().map_or_else(String::new, |backup| format!(", {}", literal(backup)));
            format!("SELECT * FROM check_backup({}{backup})", literal(url))
        }
        Some(Action::Prune { url, keep, older_than, dry_run }) => Call::new("prune_backups")
            .text(url)
            .number("keep", Some(*keep))
            .named("older_than", older_than.as_deref())
            .switch("dry_run", *dry_run)
            .sql(),
        None => {
            let make = &args.make;
            let call = Call::new("backup").text(make.url.as_deref().unwrap_or_default());
            let call = match &make.query {
                Some(query) => call.text(query),
                None => call,
            };
            call.named("database", make.database.as_deref())
                .named("table", make.table.as_deref())
                .named("partitions", make.partitions.as_deref())
                .number("parallel", make.parallel)
                .switch("force", make.force)
                .named("key", make.key.as_deref())
                .named("where", make.filter.as_deref())
                .switch("dry_run", make.dry_run)
                .sql()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BackupArgs,
    }

    fn sql(line: &str) -> String {
        statement(&Line::try_parse_from(std::iter::once("backup").chain(line.split('|'))).unwrap().args)
    }

    #[test]
    fn statements() {
        assert_eq!(sql("file:///b"), "CALL backup('file:///b')");
        assert_eq!(
            sql("file:///b|--table|market.bars|--partitions|%=2023-01-%|--parallel|2|--force|--key|/k|--where|a = 'b'"),
            "CALL backup('file:///b', table => 'market.bars', partitions => '%=2023-01-%', parallel => 2, force => true, \
             key => '/k', where => 'a = ''b''')"
        );
        assert_eq!(sql("file:///b|--query|SELECT a FROM t|--json"), "CALL backup('file:///b', 'SELECT a FROM t')");
        assert_eq!(sql("file:///b|--dry-run"), "CALL backup('file:///b', dry_run => true)");
        assert_eq!(sql("list|file:///b"), "SELECT * FROM get_backup_list('file:///b')");
        assert_eq!(sql("check|file:///b|--backup|x"), "SELECT * FROM check_backup('file:///b', 'x')");
        assert_eq!(
            sql("prune|file:///b|--keep|7|--older-than|30 days|--dry-run"),
            "CALL prune_backups('file:///b', keep => 7, older_than => '30 days', dry_run => true)"
        );
        for wrong in [
            "",
            "file:///b|--database|a|--table|a.b",
            "file:///b|--partitions|x",
            "file:///b|--where|x",
            "file:///b|--dry-run|--query|x",
            "check",
        ] {
            let line = std::iter::once("backup").chain(wrong.split('|').filter(|word| !word.is_empty()));
            assert!(Line::try_parse_from(line).is_err(), "{wrong}");
        }
    }
}
