//! `tailrace wal inspect`.

use std::{io::Write, ops::ControlFlow};

use serde::Serialize;
use tailrace_wal::inspect::{Condition, HistoryReport, SegmentReport, Visitor};

use super::{
    Format, LsnRange, Outcome, Where,
    folder::{Folder, names},
    output::{ToolError, count, json_line, print, table, time},
};

/// A segment as JSON has it.
#[derive(Debug, Serialize)]
struct SegmentRow {
    row: &'static str,
    file: String,
    version: Option<u32>,
    node: Option<String>,
    salt: Option<String>,
    first_lsn: u64,
    last_lsn: u64,
    records: u64,
    bytes: u64,
    state: &'static str,
    durable_lsn: u64,
    follows: Option<bool>,
    detail: Option<String>,
}

/// A history as JSON has it.
#[derive(Debug, Serialize)]
struct HistoryRow {
    row: &'static str,
    history: String,
    name: Option<String>,
    epochs: u64,
    epoch: String,
    first_seq: Option<u64>,
    last_seq: Option<u64>,
    chain: String,
    commit_time: String,
    restart_seq: u64,
    records: u64,
    bytes: u64,
    breaks: u64,
    open_transactions: Vec<OpenRow>,
}

#[derive(Debug, Serialize)]
struct OpenRow {
    epoch: String,
    transaction: u64,
    first_lsn: u64,
    fragments: u32,
}

#[derive(Debug, Default, Serialize)]
struct TotalsRow {
    row: &'static str,
    segments: u64,
    histories: u64,
    records: u64,
    bytes: u64,
    damaged: u64,
}

/// Lists segments and histories.
pub(super) fn inspect(place: &Where, mut out: impl Write) -> Result<Outcome, ToolError> {
    let folder = Folder::find(&place.dir)?;
    // A manifest that cannot be read leaves the log without names; `verify` says what is wrong with it.
    let facts = folder.facts().unwrap_or_else(|error| {
        eprintln!("tailrace: {error}");
        None
    });
    let names = names(facts.as_ref());
    let mut list = List { format: place.format, out: &mut out, failed: None, segments: Vec::new(), totals: totals() };
    let histories = folder.inspector(facts.as_ref()).read(LsnRange::all().lsns(), &mut list)?;
    let List { failed, segments, mut totals, .. } = list;
    failed.map_or(Ok(()), Err)?;
    totals.histories = histories.len() as u64;
    let rows: Vec<_> = histories.iter().map(|history| HistoryRow::new(history, names.get(&history.id))).collect();
    match place.format {
        Format::Json => {
            rows.iter().try_for_each(|row| json_line(&mut out, row))?;
            json_line(&mut out, &totals)?;
        }
        Format::Table => {
            writeln!(out, "{}", folder.log.display())?;
            print_segments(&mut out, &segments)?;
            print_histories(&mut out, &rows)?;
            let TotalsRow { segments, histories, records, bytes, damaged, .. } = totals;
            let [segments, histories, records, bytes] = [segments, histories, records, bytes].map(count);
            writeln!(out, "\n{segments} segments, {histories} histories, {records} records, {bytes} bytes")?;
            if damaged > 0 {
                writeln!(out, "{} damaged; `tailrace wal verify` stops at the first", count(damaged))?;
            }
        }
    }
    out.flush()?;
    Ok(if totals.damaged > 0 { Outcome::Damaged } else { Outcome::Sound })
}

fn totals() -> TotalsRow {
    TotalsRow { row: "totals", ..TotalsRow::default() }
}

/// Prints segments as they are read, or keeps their rows for the table.
struct List<'a, W: Write> {
    format: Format,
    out: &'a mut W,
    failed: Option<std::io::Error>,
    segments: Vec<SegmentRow>,
    totals: TotalsRow,
}

impl<W: Write> Visitor for List<'_, W> {
    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.totals.segments += 1;
        self.totals.records += segment.records;
        self.totals.bytes += segment.bytes;
        self.totals.damaged += u64::from(segment.damage().is_some());
        let row = SegmentRow::new(segment);
        match self.format {
            Format::Table => self.segments.push(row),
            Format::Json => {
                if let Err(error) = json_line(self.out, &row) {
                    self.failed = Some(error);
                    return ControlFlow::Break(());
                }
            }
        }
        ControlFlow::Continue(())
    }
}

impl SegmentRow {
    fn new(segment: &SegmentReport) -> Self {
        let (state, detail) = match &segment.condition {
            Condition::Sealed => ("sealed", None),
            Condition::Active => ("active", None),
            Condition::Tail { offset, bytes, reason } => {
                ("tail", Some(format!("{bytes} bytes from byte {offset} on: {reason}")))
            }
            Condition::Superseded { offset } => {
                ("superseded", Some(format!("from byte {offset} on, by the next segment")))
            }
            Condition::Damaged(damage) => ("damaged", Some(format!("at byte {}: {}", damage.offset, damage.reason))),
        };
        let name = segment.path.file_name().unwrap_or(segment.path.as_os_str());
        Self {
            row: "segment",
            file: name.to_string_lossy().into_owned(),
            version: segment.version,
            node: segment.node.map(|node| node.to_string()),
            salt: segment.salt.map(|salt| format!("{:016x}", salt.0)),
            first_lsn: segment.first.0,
            last_lsn: segment.last.0,
            records: segment.records,
            bytes: segment.bytes,
            state,
            durable_lsn: segment.durable.0,
            follows: segment.follows,
            detail,
        }
    }
}

impl HistoryRow {
    fn new(history: &HistoryReport, name: Option<&String>) -> Self {
        let open = history.open.iter().map(|open| OpenRow {
            epoch: open.epoch.to_string(),
            transaction: open.number.0,
            first_lsn: open.first_fragment.0,
            fragments: open.fragments,
        });
        Self {
            row: "history",
            history: history.id.to_string(),
            name: name.cloned(),
            epochs: history.epochs,
            epoch: history.epoch.to_string(),
            first_seq: history.first_seq.map(|seq| seq.0),
            last_seq: history.last_seq.map(|seq| seq.0),
            chain: format!("{:016x}", history.chain.0),
            commit_time: time(history.commit_time),
            restart_seq: history.restart_seq.0,
            records: history.records,
            bytes: history.bytes,
            breaks: history.breaks,
            open_transactions: open.collect(),
        }
    }
}

fn print_segments(out: &mut impl Write, rows: &[SegmentRow]) -> std::io::Result<()> {
    let columns = [
        "segment",
        "version",
        "node",
        "salt",
        "first LSN",
        "last LSN",
        "records",
        "bytes",
        "state",
        "durable LSN",
        "follows",
    ];
    let mut segments = table(&columns, &[1, 4, 5, 6, 7, 9]);
    for row in rows {
        let dash = || "-".to_owned();
        segments.add_row(vec![
            row.file.clone(),
            row.version.map_or_else(dash, |version| version.to_string()),
            row.node.as_ref().map_or_else(dash, |node| node[..8].to_owned()),
            row.salt.clone().unwrap_or_else(dash),
            count(row.first_lsn),
            count(row.last_lsn),
            count(row.records),
            count(row.bytes),
            row.state.to_owned(),
            count(row.durable_lsn),
            row.follows.map_or_else(dash, |follows| if follows { "ok" } else { "unknown" }.to_owned()),
        ]);
    }
    print(out, &segments)?;
    for row in rows {
        if let Some(detail) = &row.detail {
            writeln!(out, "  {}: {}: {detail}", row.file, row.state)?;
        }
    }
    Ok(())
}

fn print_histories(out: &mut impl Write, rows: &[HistoryRow]) -> std::io::Result<()> {
    let columns =
        ["history", "name", "epochs", "epoch", "seqs", "chain", "commit time", "restart", "records", "bytes", "open"];
    let mut histories = table(&columns, &[2, 4, 7, 8, 9, 10]);
    for row in rows {
        let seqs = match (row.first_seq, row.last_seq) {
            (Some(first), Some(last)) => format!("{}..{}", count(first), count(last)),
            _ => "-".to_owned(),
        };
        histories.add_row(vec![
            row.history.clone(),
            row.name.clone().unwrap_or_else(|| "-".to_owned()),
            count(row.epochs),
            row.epoch.clone(),
            seqs,
            row.chain.clone(),
            row.commit_time.clone(),
            count(row.restart_seq),
            count(row.records),
            count(row.bytes),
            count(row.open_transactions.len() as u64),
        ]);
    }
    writeln!(out)?;
    print(out, &histories)?;
    for row in rows {
        for OpenRow { epoch, transaction, first_lsn, fragments } in &row.open_transactions {
            let id = &row.history;
            writeln!(
                out,
                "  {id}: transaction {transaction} of epoch {epoch} is open: {fragments} fragments from LSN {first_lsn} on"
            )?;
        }
        if row.breaks > 0 {
            writeln!(out, "  {}: begun anew {} times by a repair", row.history, row.breaks)?;
        }
    }
    Ok(())
}
