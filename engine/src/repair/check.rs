//! Checks a manifest that came from a peer.

use std::collections::BTreeSet;

use tailrace_wal::Seq;

use super::{RepairManifest, RepairTable};
use crate::{DatafileMeta, EngineError, PartitionScheme, Result, Table, check_name};

/// Everything about a manifest that can be checked before a datafile is there. Paths are not looked at: files get names
/// of this node's own.
pub(crate) fn check(manifest: &RepairManifest) -> Result<()> {
    check_name("database", &manifest.name)?;
    let position = &manifest.position;
    if position.seq == Seq::ZERO || manifest.restart_seq > position.seq {
        return Err(wrong(format!("it stands at {} and goes on at {}", position.seq, manifest.restart_seq)));
    }
    let epochs = &manifest.epochs;
    let increasing = epochs.is_sorted_by(|a, b| a.first_seq < b.first_seq && a.epoch.counter < b.epoch.counter);
    let spans = epochs.first().is_some_and(|first| first.first_seq == Seq(1))
        && epochs.last().is_some_and(|last| last.epoch == position.epoch && last.first_seq <= position.seq);
    if !increasing || !spans {
        return Err(wrong("its epochs do not lead to its position".to_owned()));
    }
    let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
    for RepairTable { table, datafiles } in &manifest.tables {
        table.check()?;
        if table.id >= manifest.next_table || !ids.insert(table.id) || !names.insert(&table.name) {
            return Err(wrong(format!("table {:?} has an id or a name that is not its own", table.name)));
        }
        let scheme = PartitionScheme::new(table)?;
        for (key, meta) in datafiles {
            scheme.describe(key)?;
            check_datafile(table, meta, position.seq)?;
        }
    }
    Ok(())
}

fn check_datafile(table: &Table, meta: &DatafileMeta, last: Seq) -> Result<()> {
    let wrong = |reason: &str| Err(wrong(format!("a datafile of table {:?} {reason}", table.name)));
    if meta.schema_version != table.schema_version {
        return wrong("has another schema version");
    }
    let (from, to) = meta.seqs;
    if meta.bytes == 0 || meta.rows == 0 || from == Seq::ZERO || from > to || to > last {
        return wrong("is empty or has rows from after the position");
    }
    if meta.hash.len() != 32 || !meta.hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return wrong("has no hash");
    }
    if meta.digest.is_some_and(|digest| digest.rows != meta.rows) {
        return wrong("has a digest of another number of rows");
    }
    let columns = meta.statistics.iter().map(|(id, _)| *id);
    if !columns.eq(table.columns.iter().map(|column| column.id)) {
        return wrong("has statistics of other columns");
    }
    for ((_, statistics), column) in meta.statistics.iter().zip(&table.columns) {
        let ends = [&statistics.min, &statistics.max];
        let typed = ends.into_iter().flatten().all(|end| *end.data_type() == column.data_type);
        if !typed || statistics.null_count > meta.rows || (!column.nullable && statistics.null_count > 0) {
            return wrong("has statistics that do not fit their column");
        }
    }
    Ok(())
}

pub(super) fn wrong(reason: String) -> EngineError {
    EngineError::Invalid(format!("the primary's repair manifest cannot be used: {reason}"))
}
