//! `tailrace wal verify`.

use std::{io::Write, ops::ControlFlow, path::Path};

use serde::Serialize;
use tailrace_wal::{
    SystemDisk,
    inspect::{Condition, Damage, Inspector, SegmentReport, Visitor},
};

use super::{
    Format, LsnRange, Outcome, Where,
    folder::Folder,
    output::{ToolError, count, json_line},
};

/// What was found in one log, as JSON has it.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    log: String,
    sound: bool,
    segments: u64,
    records: u64,
    bytes: u64,
    last_lsn: u64,
    file: Option<String>,
    offset: Option<u64>,
    reason: Option<String>,
    remedy: Option<String>,
    tail_file: Option<String>,
    tail_offset: Option<u64>,
    tail_bytes: Option<u64>,
}

/// Checks the manifest, where there is one, and the log.
pub(super) fn verify(place: &Where, mut out: impl Write) -> Result<Outcome, ToolError> {
    let folder = Folder::find(&place.dir)?;
    if let Some(manifest) = &folder.manifest {
        let verdict = check(manifest, Inspector::new(SystemDisk::shared(), manifest))?;
        print(&mut out, place.format, &verdict)?;
        if !verdict.sound {
            out.flush()?;
            return Ok(Outcome::Damaged);
        }
    }
    let facts = folder.facts()?;
    let verdict = check(&folder.log, folder.inspector(facts.as_ref()))?;
    print(&mut out, place.format, &verdict)?;
    out.flush()?;
    Ok(if verdict.sound { Outcome::Sound } else { Outcome::Damaged })
}

fn check(dir: &Path, inspector: Inspector) -> Result<Verdict, ToolError> {
    let mut first = First { verdict: Verdict { log: dir.display().to_string(), sound: true, ..Verdict::default() } };
    inspector.read(LsnRange::all().lsns(), &mut first)?;
    Ok(first.verdict)
}

/// Stops at the first damage.
struct First {
    verdict: Verdict,
}

impl Visitor for First {
    fn segment(&mut self, segment: &SegmentReport) -> ControlFlow<()> {
        let verdict = &mut self.verdict;
        verdict.segments += 1;
        verdict.records += segment.records;
        verdict.bytes += segment.bytes;
        verdict.last_lsn = segment.last.0;
        match &segment.condition {
            Condition::Damaged(Damage { path, offset, reason, remedy }) => {
                verdict.sound = false;
                verdict.file = Some(path.display().to_string());
                verdict.offset = Some(offset.0);
                verdict.reason = Some(reason.clone());
                verdict.remedy = Some((*remedy).to_owned());
                return ControlFlow::Break(());
            }
            Condition::Tail { offset, bytes, .. } => {
                verdict.tail_file = Some(segment.path.display().to_string());
                verdict.tail_offset = Some(offset.0);
                verdict.tail_bytes = Some(*bytes);
            }
            Condition::Sealed | Condition::Active | Condition::Superseded { .. } => {}
        }
        ControlFlow::Continue(())
    }
}

fn print(out: &mut impl Write, format: Format, verdict: &Verdict) -> std::io::Result<()> {
    if format == Format::Json {
        return json_line(out, verdict);
    }
    let Verdict { log, segments, records, bytes, last_lsn, .. } = verdict;
    let read = format!(
        "{} segments, {} records up to LSN {}, {} bytes",
        count(*segments),
        count(*records),
        count(*last_lsn),
        count(*bytes)
    );
    if let (Some(file), Some(offset), Some(reason), Some(remedy)) =
        (&verdict.file, verdict.offset, &verdict.reason, &verdict.remedy)
    {
        writeln!(out, "{log}: damaged; read {read}")?;
        return writeln!(out, "{file} is damaged at byte {offset}: {reason}; {remedy}");
    }
    writeln!(out, "{log}: sound; {read}")?;
    if let (Some(file), Some(offset), Some(bytes)) = (&verdict.tail_file, verdict.tail_offset, verdict.tail_bytes) {
        writeln!(out, "{file}: tail of {bytes} bytes from byte {offset} on, which the next start cuts off")?;
    }
    Ok(())
}
