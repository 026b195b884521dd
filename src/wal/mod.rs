//! `tailrace wal inspect | verify | dump`: reads a node's log, or its manifest, as it lies on disk.
//!
//! Read-only and safe beside a running node. Exit codes: 0 sound, 1 damaged, 2 could not be read or asked for wrongly.

mod dump;
mod folder;
mod inspect;
mod output;
mod range;
mod verify;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand, ValueEnum};
use tailrace_wal::HistoryId;

pub(crate) use range::LsnRange;

/// What `tailrace wal` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists segments and histories.
    ///
    /// Reads every frame; a damaged segment is listed as such, and the others are read all the same.
    Inspect(Where),
    /// Checks everything and names file and byte offset of the first damage.
    ///
    /// Headers, the chain of segments, checksums of frames, payloads and parts, padding, footers against frames, chains
    /// and seqs of histories, lists of fragments, restart seqs. Where DIR is a node's folder, its manifest and log are
    /// both checked, the log against what the manifest states durable.
    ///
    /// Bytes behind the last frame that nothing states durable (a write under way, or one that a crash cut short) are
    /// reported as a tail: the next start cuts them off.
    Verify(Where),
    /// Prints records.
    Dump(DumpArgs),
}

/// Which log, and how to print.
#[derive(Debug, Args)]
pub(crate) struct Where {
    /// A node's folder, its data folder, or a folder of segments (`wal` or `manifest` within the data folder).
    pub(crate) dir: PathBuf,
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    #[command(flatten)]
    place: Where,
    /// Which records: `A..B` (both included), `A..`, `..B` or `A`.
    #[arg(long, value_name = "A..B", default_value = "..")]
    lsn: LsnRange,
    /// Only records of this history.
    #[arg(long, value_name = "ID")]
    history: Option<HistoryId>,
}

/// How output is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON object per line, with stable names.
    Json,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Sound,
    Damaged,
}

/// Runs a command; it has told everything when it returns.
pub(crate) fn run(command: &Command) -> ExitCode {
    let stdout = std::io::BufWriter::new(std::io::stdout().lock());
    let done = match command {
        Command::Inspect(place) => inspect::inspect(place, stdout),
        Command::Verify(place) => verify::verify(place, stdout),
        Command::Dump(DumpArgs { place, lsn, history }) => dump::dump(place, *lsn, *history, stdout),
    };
    match done {
        Ok(Outcome::Sound) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(1),
        Err(error) if error.is_closed_output() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tailrace: {error}");
            ExitCode::from(2)
        }
    }
}
