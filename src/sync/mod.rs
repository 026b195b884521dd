//! `tailrace sync`: a table of a running node made equal to that of another cluster.
//!
//! Exit codes: 0 equal now, whether anything was to be done or not; 1 the node refused, was not reached, or it failed; 2 a wrong
//! command line; 130 interrupted, and the statement cancelled on the node: partitions that were finished stay.

use std::process::ExitCode;

use clap::Args;

use crate::client::{Answer, Call, ClientArgs, ClientError, Node, Polled, finish, literal, print, with_progress};

/// What to make equal to what.
#[derive(Debug, Clone, Args)]
pub(crate) struct SyncArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// The other cluster, by the name that this node knows it by (`CALL create_remote_cluster` declares one).
    cluster: String,
    /// The table, here and there: `database.table`.
    table: String,
    /// Only rows for which this SQL expression holds, e.g. "datetime >= '2023-01-08'".
    #[arg(long = "where", value_name = "EXPRESSION")]
    filter: Option<String>,
    /// All partitions in one transaction, instead of one each.
    #[arg(long)]
    at_once: bool,
    /// Partitions at a time.
    #[arg(long, value_name = "COUNT")]
    parallel: Option<u64>,
    /// Leaves partitions that are only here as they are.
    #[arg(long)]
    keep_extra: bool,
    /// Makes the table where it is not here.
    #[arg(long)]
    create: bool,
    /// Only says what it would do: COPY, REPLACE, REMOVE.
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command; it has told everything when it returns.
pub(crate) async fn run(args: SyncArgs) -> ExitCode {
    finish(sync(&args).await)
}

async fn sync(args: &SyncArgs) -> Result<(), ClientError> {
    let client = &args.client;
    let sql = statement(args);
    if client.show_statement {
        println!("{sql};");
        return Ok(());
    }
    let node = Node::connect(client, "sync", None).await?;
    let polled = Polled {
        sql: format!(
            "SELECT percent, estimate FROM system.synchronizations WHERE finished IS NULL AND \"table\" = {} ORDER BY id",
            literal(&args.table)
        ),
        read: read_status,
    };
    let answer = with_progress(client, "sync", polled, node.ask(&sql)).await?;
    Ok(print(&answer, client.json)?)
}

fn read_status(answer: &Answer) -> Option<(f64, String)> {
    let row = answer.len().checked_sub(1)?;
    let number = |column| answer.value(row, column).and_then(|value| value.parse::<f64>().ok());
    let left = number("estimate").map(|seconds| format!("{seconds:.0} s left"));
    Some((number("percent")?, left.unwrap_or_default()))
}

fn statement(args: &SyncArgs) -> String {
    let mut sql = Call::new("synchronize").text(&args.cluster).text(&args.table).named("where", args.filter.as_deref());
    if args.at_once {
        sql = sql.off("by_partition");
    }
    sql = sql.number("parallel", args.parallel);
    if args.keep_extra {
        sql = sql.off("delete_extra");
    }
    sql.switch("create", args.create).switch("dry_run", args.dry_run).sql()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SyncArgs,
    }

    #[test]
    fn statements() {
        let sql =
            |line: &str| statement(&Line::try_parse_from(std::iter::once("sync").chain(line.split('|'))).unwrap().args);
        assert_eq!(sql("siteb|market.bars"), "CALL synchronize('siteb', 'market.bars')");
        assert_eq!(
            sql("siteb|market.bars|--where|day = '2023-01-08'|--at-once|--parallel|2|--keep-extra|--create|--dry-run"),
            "CALL synchronize('siteb', 'market.bars', where => 'day = ''2023-01-08''', by_partition => false, parallel => 2, \
             delete_extra => false, create => true, dry_run => true)"
        );
    }
}
