//! Command line: `tailrace init`, `serve`, `demo`, `tail`, `job`, `backup`, `restore`, `sync`, `wal`.

use std::{future::Future, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{Error, Result, backup, config, demo, init, job, restore, serve, sync, tail, wal};

/// A columnar store for time series whose write-ahead log is its change stream.
#[derive(Debug, Parser)]
#[command(name = "tailrace", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes a node's folder: settings with comments, and certificates.
    Init(InitArgs),
    /// Runs a node until SIGTERM or SIGINT.
    Serve(ServeArgs),
    /// Plays the replication tutorial between two nodes in this process, and compares both sides.
    Demo(DemoArgs),
    /// Prints a table's changes, as they are or as they come, from a running node.
    ///
    /// Exit code 0: the end, an interrupt (the last seq is told on standard error), or nobody reads any more; 1: the node
    /// refused or ended it; 2: asked for wrongly.
    Tail(tail::TailArgs),
    /// Statements that a running node runs when they are due: lists, schedules, runs, pauses, deletes them.
    ///
    /// Exit code 0: done, and of `run`, the run succeeded; 1: the node refused, was not reached, or the run did not succeed; 2:
    /// asked for wrongly; 130: interrupted, and the run that was waited for cancelled.
    Job(job::JobArgs),
    /// Backs up databases, tables, partitions or the rows of a query of a running node; lists, checks and prunes backups.
    ///
    /// Exit code 0: done; 1: the node refused, was not reached, or it failed; 2: asked for wrongly; 3: `check` found damage; 130:
    /// interrupted.
    Backup(backup::BackupArgs),
    /// Brings what a backup has back to a running node.
    ///
    /// Exit code 0: done, or nothing was to be done; 1: the node refused, was not reached, or it failed; 2: asked for wrongly; 130:
    /// interrupted.
    Restore(restore::RestoreArgs),
    /// Makes a table of a running node equal to that of another cluster; only what differs is moved.
    ///
    /// Exit code 0: equal now; 1: the node refused, was not reached, or it failed; 2: asked for wrongly; 130: interrupted.
    Sync(sync::SyncArgs),
    /// Reads a node's log as it lies on disk; safe beside a running node.
    ///
    /// Exit code 0: sound; 1: damaged; 2: could not be read, or was asked for wrongly.
    #[command(subcommand)]
    Wal(wal::Command),
}

#[derive(Debug, Args)]
struct InitArgs {
    /// Folder to make; it must be empty or not exist yet.
    dir: PathBuf,
    /// The node's name, as replicas and primaries know it [default: the folder's name].
    #[arg(long)]
    name: Option<String>,
    /// Folder with `ca.crt` and `ca.key` that sign this node's certificate (another node's `tls` folder has them)
    /// [default: a fresh development CA].
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// A further host name or IP address under which other clusters reach this node; can be repeated.
    #[arg(long = "host", value_name = "HOST")]
    hosts: Vec<String>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The settings file, as `tailrace init` makes one.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Overrides one setting, e.g. `--set listen.pgwire=127.0.0.1:0`; can be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Rows to load; the tutorial's day of one-minute bars has 1,210,000.
    #[arg(long, default_value_t = demo::TUTORIAL_ROWS, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// Keeps both nodes up afterwards and prints how to connect, until Ctrl-C.
    #[arg(long)]
    serve: bool,
}

/// Parses the command line, runs the command, and says how it went: 0, or 1, 2, 3 as [`Error::exit_code`] has it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Wal(command) = &cli.command {
        return wal::run(command);
    }
    if let Command::Tail(args) = &cli.command {
        return client(tail::run(args.clone()));
    }
    match &cli.command {
        Command::Job(args) => return client(job::run(args.clone())),
        Command::Backup(args) => return client(backup::run(args.clone())),
        Command::Restore(args) => return client(restore::run(args.clone())),
        Command::Sync(args) => return client(sync::run(args.clone())),
        _ => {}
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tailrace: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Init(InitArgs { dir, name, ca, hosts }) => {
            let made = init::init(&init::Request { dir, name, ca, hosts }, &*tailrace_wal::SystemClock::shared())?;
            println!("{made}");
            Ok(())
        }
        Command::Serve(ServeArgs { config, set }) => {
            let settings = config::load(&config, &set)?;
            serve::trace("info,datafusion=warn,quinn=warn,rustls=warn");
            block_on(serve::serve(settings))
        }
        // Have exit codes of their own.
        Command::Wal(_)
        | Command::Tail(_)
        | Command::Job(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Sync(_) => Ok(()),
        Command::Demo(DemoArgs { rows, serve }) => {
            serve::trace("warn");
            block_on(demo::demo(rows, serve))
        }
    }
}

fn client(command: impl Future<Output = ExitCode>) -> ExitCode {
    match runtime() {
        Ok(runtime) => runtime.block_on(command),
        Err(error) => {
            eprintln!("tailrace: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Stack of a thread of the runtime: four times the default.
const STACK_BYTES: usize = 8 << 20;

fn runtime() -> Result<tokio::runtime::Runtime> {
    // Planning is deep where a plan asks for another one while it is made; memory is taken as far as it is used.
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_stack_size(STACK_BYTES).enable_all().build();
    runtime.map_err(|error| Error::Configuration(format!("cannot start threads: {error}")))
}

fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = runtime()?;
    let result = runtime.block_on(command);
    // What still runs now (a query that was cancelled, in the middle of a batch) holds nothing that must be kept.
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

fn key_value(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, e.g. wal.persistence=async".to_owned()),
    }
}
