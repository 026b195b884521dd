//! Printing, so that a closed pipe ends a command quietly.

use std::io::{self, ErrorKind, Write};

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;
use tailrace_engine::EngineError;
use tailrace_wal::{CommitTime, LogError};

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    #[error("{0}")]
    Wrong(String),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

impl ToolError {
    /// Whether nobody reads the output any more.
    pub(super) fn is_closed_output(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == ErrorKind::BrokenPipe)
    }
}

/// One JSON object and the end of its line.
pub(super) fn json_line(out: &mut impl Write, row: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, row).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// A table without lines. Columns named in `right` hold numbers.
pub(super) fn table(columns: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(columns.to_vec());
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Prints a table; nothing when it has no rows.
pub(super) fn print(out: &mut impl Write, table: &Table) -> io::Result<()> {
    match table.is_empty() {
        true => Ok(()),
        false => writeln!(out, "{}", table.trim_fmt()),
    }
}

/// `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// RFC 3339 with microseconds; the number itself where no calendar reaches.
pub(super) fn time(time: CommitTime) -> String {
    match chrono::DateTime::from_timestamp_micros(time.0) {
        Some(time) => time.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        None => time.0.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_times() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(count), ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!(time(CommitTime(1_673_170_200_000_001)), "2023-01-08T09:30:00.000001Z");
        assert_eq!(time(CommitTime(i64::MAX)), i64::MAX.to_string());
    }
}
