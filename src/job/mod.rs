//! `tailrace job`: what a node runs when, by name.
//!
//! Exit codes: 0 done (`run`: the run succeeded); 1 the node refused, was not reached, or the run did not succeed; 2 a wrong
//! command line; 130 interrupted: the run that was waited for is cancelled.

use std::{io::Read, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};

use crate::client::{Answer, Call, ClientArgs, ClientError, Node, finish, literal, print};

/// Most bytes of a statement from standard input.
const STATEMENT_BYTES_MAX: u64 = 1 << 20;

/// Which action.
#[derive(Debug, Clone, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, Subcommand)]
enum Action {
    /// Lists jobs: their state, when they run next, how they went the last time.
    List,
    /// Lists runs, the newest first.
    Runs {
        /// Of this job only.
        name: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u64,
    },
    /// Schedules a job, under the name of --user.
    Schedule(Box<Schedule>),
    /// Runs a job now and waits for its end.
    Run {
        /// The job.
        name: String,
        /// Does not wait.
        #[arg(long)]
        no_wait: bool,
    },
    /// Pauses a job; a run that is under way goes on.
    Pause {
        /// The job.
        name: String,
    },
    /// Lets a paused job go on; what was due meanwhile is not made up for.
    Resume {
        /// The job.
        name: String,
    },
    /// Deletes a job and its runs, and cancels the one that is under way.
    Delete {
        /// The job.
        name: String,
    },
}

#[derive(Debug, Clone, Args)]
struct Schedule {
    /// Its name.
    name: String,
    /// When: minute hour day-of-month month day-of-week, e.g. "30 22 * * *".
    cron: String,
    /// What: statements, separated by semicolons; - reads them from standard input.
    statement: String,
    /// The database in which its names are looked up.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The time zone of the cron expression, by its IANA name [default: UTC].
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// The first day, or moment.
    #[arg(long, value_name = "DATE")]
    from: Option<String>,
    /// The last day, or moment.
    #[arg(long, value_name = "DATE")]
    until: Option<String>,
    /// What becomes of runs that were due when the node was down [default: skip].
    #[arg(long, value_enum)]
    catch_up: Option<CatchUp>,
    /// Longest run, e.g. "2 h" [default: no limit].
    #[arg(long, value_name = "SPAN")]
    timeout: Option<String>,
    /// How often a run that failed is tried again [default: 0].
    #[arg(long, value_name = "COUNT")]
    retries: Option<u64>,
    /// Pause before the first retry; it doubles with each [default: 1 min].
    #[arg(long, value_name = "SPAN")]
    retry_delay: Option<String>,
    /// Runs that are remembered [default: 100].
    #[arg(long, value_name = "COUNT")]
    max_runs_kept: Option<u64>,
    /// Changes the job where there is one of this name.
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CatchUp {
    /// They are recorded as skipped.
    Skip,
    /// One run stands for all of them.
    Once,
    /// Each is made up for.
    All,
}

/// Runs the command; it has told everything when it returns.
pub(crate) async fn run(args: JobArgs) -> ExitCode {
    finish(job(args).await)
}

async fn job(args: JobArgs) -> Result<(), ClientError> {
    let JobArgs { client, action } = args;
    let sql = statement(&action)?;
    if client.show_statement {
        println!("{sql};");
        return Ok(());
    }
    let database = match &action {
        Action::Schedule(schedule) => schedule.database.as_deref(),
        _ => None,
    };
    let node = Node::connect(&client, "job", database).await?;
    let answer = node.ask(&sql).await?;
    answer.notices.iter().for_each(|notice| eprintln!("notice: {notice}"));
    print(&answer, client.json)?;
    match action {
        Action::Run { no_wait: false, .. } => succeeded(&answer),
        _ => Ok(()),
    }
}

fn statement(action: &Action) -> Result<String, ClientError> {
    Ok(match action {
        Action::List => {
            "SELECT name, state, next_run, last_run, last_outcome, cron, time_zone, \"user\", reason, last_message \
                         FROM system.jobs ORDER BY name"
                .to_owned()
        }
        Action::Runs { name, limit } => {
            let of = name.as_ref().map_or_else(String::new, |name| format!(" WHERE job = {}", literal(name)));
            format!(
                "SELECT job, run, attempt, trigger, due, begun, seconds, outcome, rows, message FROM system.job_runs{of} \
                 ORDER BY begun DESC, run DESC, attempt DESC LIMIT {limit}"
            )
        }
        Action::Schedule(schedule) => {
            let text = match schedule.statement.as_str() {
                "-" => standard_input()?,
                text => text.to_owned(),
            };
            let catch_up = schedule.catch_up.and_then(|policy| policy.to_possible_value());
            Call::new("schedule_job")
                .text(&schedule.name)
                .text(&schedule.cron)
                .text(&text)
                .named("time_zone", schedule.time_zone.as_deref())
                .named("from", schedule.from.as_deref())
                .named("until", schedule.until.as_deref())
                .named("catch_up", catch_up.as_ref().map(|policy| policy.get_name()))
                .named("timeout", schedule.timeout.as_deref())
                .number("retries", schedule.retries)
                .named("retry_delay", schedule.retry_delay.as_deref())
                .number("max_runs_kept", schedule.max_runs_kept)
                .switch("replace", schedule.replace)
                .sql()
        }
        Action::Run { name, no_wait } => {
            let wait = if *no_wait { ", wait => false" } else { "" };
            format!("CALL run_job({}{wait})", literal(name))
        }
        Action::Pause { name } => Call::new("pause_job").text(name).sql(),
        Action::Resume { name } => Call::new("resume_job").text(name).sql(),
        Action::Delete { name } => Call::new("delete_job").text(name).sql(),
    })
}

fn standard_input() -> Result<String, ClientError> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(STATEMENT_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| ClientError::Wrong(format!("the statement on standard input: {error}")))?;
    Ok(text)
}

fn succeeded(answer: &Answer) -> Result<(), ClientError> {
    match answer.value(0, "outcome") {
        Some("SUCCEEDED") => Ok(()),
        outcome => Err(ClientError::Failed(format!("the run ended as {}", outcome.unwrap_or("unknown")))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: JobArgs,
    }

    fn sql(line: &str) -> String {
        let args = Line::try_parse_from(std::iter::once("job").chain(line.split('|'))).unwrap().args;
        statement(&args.action).unwrap()
    }

    #[test]
    fn statements() {
        assert_eq!(
            sql(
                "schedule|nightly|30 22 * * *|CALL backup('file:///b')|--until|2030-12-31|--catch-up|once|--retries|3|--replace"
            ),
            "CALL schedule_job('nightly', '30 22 * * *', 'CALL backup(''file:///b'')', until => '2030-12-31', \
             catch_up => 'once', retries => 3, replace => true)"
        );
        assert_eq!(sql("run|nightly|--json"), "CALL run_job('nightly')");
        assert_eq!(sql("run|nightly|--no-wait"), "CALL run_job('nightly', wait => false)");
        assert_eq!(sql("delete|it's"), "CALL delete_job('it''s')");
        assert!(sql("runs|nightly|--limit|3").contains("WHERE job = 'nightly' ORDER BY begun DESC"));
        assert!(Line::try_parse_from(["job", "schedule", "a", "b", "c", "--catch-up", "twice"]).is_err());
    }
}
