//! `tailrace wal dump`.

use std::{io::Write, ops::ControlFlow};

use serde::Serialize;
use tailrace_engine::Operation;
use tailrace_wal::{
    HistoryId, RecordKind,
    inspect::{Damage, InspectedFrame, SegmentReport, Visitor},
};

use super::{
    Format, LsnRange, Outcome, Where,
    folder::Folder,
    output::{ToolError, count, json_line, time},
};

/// A record as JSON has it.
#[derive(Debug, Serialize)]
struct RecordRow {
    lsn: u64,
    kind: &'static str,
    history: Option<String>,
    epoch: Option<String>,
    transaction: Option<u64>,
    fragment: Option<u32>,
    seq: Option<u64>,
    restart_seq: Option<u64>,
    chain: Option<String>,
    commit_time: Option<String>,
    durable_lsn: u64,
    skipped: bool,
    file: String,
    offset: u64,
    bytes: u32,
    payload_hash: Option<String>,
    fragments: Vec<String>,
    idempotency_key: Option<String>,
    parts: Vec<PartRow>,
}

#[derive(Debug, Serialize)]
struct PartRow {
    table: u32,
    schema_version: u32,
    operation: u16,
    operation_name: Option<&'static str>,
    first_ordinal: u64,
    rows: u32,
    bytes: u32,
    partition: String,
    hash: String,
}

/// Prints the records of a range.
pub(super) fn dump(
    place: &Where,
    lsns: LsnRange,
    history: Option<HistoryId>,
    mut out: impl Write,
) -> Result<Outcome, ToolError> {
    let folder = Folder::find(&place.dir)?;
    // The manifest's own log has other operations.
    let is_manifest = folder.manifest.is_none() && folder.log.file_name().is_some_and(|name| name == "manifest");
    let inspector = folder.inspector(None);
    let mut print =
        Print { format: place.format, lsns, history, is_manifest, out: &mut out, failed: None, damage: None };
    inspector.read(lsns.lsns(), &mut print)?;
    let Print { failed, damage, .. } = print;
    failed.map_or(Ok(()), Err)?;
    out.flush()?;
    Ok(match damage {
        None => Outcome::Sound,
        Some(damage) => {
            eprintln!("tailrace: {damage}");
            Outcome::Damaged
        }
    })
}

struct Print<'a, W: Write> {
    format: Format,
    lsns: LsnRange,
    history: Option<HistoryId>,
    is_manifest: bool,
    out: &'a mut W,
    failed: Option<std::io::Error>,
    damage: Option<Damage>,
}

impl<W: Write> Visitor for Print<'_, W> {
    fn frame(&mut self, frame: &InspectedFrame<'_>) -> ControlFlow<()> {
        let lsns = self.lsns.lsns();
        if frame.lsn > *lsns.end() {
            return ControlFlow::Break(());
        }
        let is_other = |wanted: HistoryId| frame.header.is_none_or(|header| header.history != wanted);
        if frame.lsn < *lsns.start() || self.history.is_some_and(is_other) {
            return ControlFlow::Continue(());
        }
        let row = RecordRow::new(frame, self.is_manifest);
        let printed = match self.format {
            Format::Json => json_line(self.out, &row),
            Format::Table => row.print(self.out),
        };
        match printed {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        self.damage = segment.damage().cloned();
        if self.damage.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl RecordRow {
    fn new(frame: &InspectedFrame<'_>, is_manifest: bool) -> Self {
        let header = frame.header;
        let directory = &frame.payload.directory;
        let name = |code| if is_manifest { None } else { Operation::from_code(code).map(Operation::name) };
        let parts = directory.parts.iter().map(|part| PartRow {
            table: part.table,
            schema_version: part.schema_version,
            operation: part.operation,
            operation_name: name(part.operation),
            first_ordinal: part.first_ordinal,
            rows: part.rows,
            bytes: part.length,
            partition: hex(&part.partition),
            hash: format!("{:016x}", part.hash.0),
        });
        Self {
            lsn: frame.lsn.0,
            kind: match header.map(|header| header.kind) {
                None => "mark",
                Some(RecordKind::Commit) => "commit",
                Some(RecordKind::Fragment) => "fragment",
                Some(RecordKind::Abort) => "abort",
            },
            history: header.map(|header| header.history.to_string()),
            epoch: header.map(|header| header.epoch.to_string()),
            transaction: header.map(|header| header.transaction.0),
            fragment: header.map(|header| header.fragment.0),
            seq: header.map(|header| header.seq.0),
            restart_seq: header.map(|header| header.restart_seq.0),
            chain: header.map(|header| format!("{:016x}", header.chain.0)),
            commit_time: header.map(|header| time(header.commit_time)),
            durable_lsn: frame.durable.0,
            skipped: frame.skipped,
            file: frame.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            offset: frame.offset.0,
            bytes: frame.bytes,
            payload_hash: header.map(|header| format!("{:016x}", header.payload_hash.0)),
            fragments: directory.fragments.iter().map(|hash| format!("{:016x}", hash.0)).collect(),
            idempotency_key: directory.idempotency_key.as_deref().map(hex),
            parts: parts.collect(),
        }
    }

    /// A line for the record, and one for each part.
    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Self { lsn, kind, durable_lsn, offset, file, bytes, .. } = self;
        let bytes = count(u64::from(*bytes));
        write!(out, "LSN {lsn:<10} {kind:<8}")?;
        if let (Some(history), Some(epoch), Some(seq), Some(restart), Some(chain), Some(time)) =
            (&self.history, &self.epoch, self.seq, self.restart_seq, &self.chain, &self.commit_time)
        {
            let (transaction, fragment) = (self.transaction.unwrap_or_default(), self.fragment.unwrap_or_default());
            write!(out, " {history} epoch {epoch} transaction {transaction}/{fragment}")?;
            write!(out, " seq {seq} restart {restart} chain {chain} {time}")?;
        }
        write!(out, " durable {durable_lsn} {bytes} bytes at {file}:{offset}")?;
        if self.skipped {
            write!(out, " skipped")?;
        }
        if let Some(key) = &self.idempotency_key {
            write!(out, " key {key}")?;
        }
        if !self.fragments.is_empty() {
            write!(out, " fragments {}", self.fragments.join(","))?;
        }
        writeln!(out)?;
        for part in &self.parts {
            let operation = part.operation_name.map_or_else(|| part.operation.to_string(), str::to_owned);
            let partition = if part.partition.is_empty() { "-" } else { &part.partition };
            let (rows, bytes) = (count(u64::from(part.rows)), count(u64::from(part.bytes)));
            writeln!(
                out,
                "    table {} schema {} {operation} partition {partition} ordinal {} rows {rows} bytes {bytes}",
                part.table, part.schema_version, part.first_ordinal
            )?;
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
