//! Whether a manifest that was read says what can be: a start builds versions on it without looking again.

use std::collections::BTreeSet;

use super::{HistoryState, ManifestState, TableState};
use crate::{DatafileMeta, PartitionScheme, Table};

/// Longest time that a pin can have stood still: what is above is no time.
const STALLED_SECONDS_MAX: u64 = 1 << 40;

impl ManifestState {
    /// The reason is for people.
    pub(super) fn check(&self) -> Result<(), String> {
        for (id, history) in &self.histories {
            if history.id != *id || history.position.history != *id {
                return Err(format!("history {id} stands under another id"));
            }
            history.check().map_err(|reason| format!("history {id} ({:?}): {reason}", history.name))?;
        }
        if let Some(pin) = self.pins.iter().find(|pin| pin.stalled > STALLED_SECONDS_MAX) {
            return Err(format!("the pin of {:?} has stood still for {} seconds", pin.key.feed, pin.stalled));
        }
        Ok(())
    }
}

impl HistoryState {
    fn check(&self) -> Result<(), String> {
        if let Some(letter) = self.skipped.iter().find(|letter| letter.seq > self.position.seq) {
            return Err(format!("task {} was skipped, and the history stands at {}", letter.seq, self.position.seq));
        }
        if let Some(known) = self.differences.iter().find(|known| known.seq > self.position.seq) {
            return Err(format!("it differs from its primary at {}, and stands at {}", known.seq, self.position.seq));
        }
        for id in &self.left_out {
            if self.tables.get(id).is_none_or(|table| !table.partitions.is_empty()) {
                return Err(format!("table {id} is left out, and is not there or has datafiles"));
            }
        }
        let (mut names, mut rows) = (BTreeSet::new(), 0_u64);
        for (id, TableState { table, partitions }) in &self.tables {
            table.check().map_err(|error| error.to_string())?;
            if table.id != *id || *id >= self.next_table || !names.insert(&table.name) {
                return Err(format!("table {:?} has an id or a name that is not its own", table.name));
            }
            let scheme = PartitionScheme::new(table).map_err(|error| error.to_string())?;
            for (key, datafiles) in partitions {
                scheme.describe(key).map_err(|error| format!("table {:?}: {error}", table.name))?;
                for meta in datafiles {
                    check_datafile(table, meta)?;
                    rows = rows.checked_add(meta.rows).ok_or("its datafiles have more rows than can be counted")?;
                }
            }
        }
        Ok(())
    }
}

fn check_datafile(table: &Table, meta: &DatafileMeta) -> Result<(), String> {
    meta.path.object_path().map_err(|error| error.to_string())?;
    if meta.digest.is_some_and(|digest| digest.rows != meta.rows) {
        return Err(format!("{} has a digest of another number of rows", meta.path.0));
    }
    for (id, statistics) in &meta.statistics {
        let Some(column) = table.column(*id) else { continue };
        let mut ends = [&statistics.min, &statistics.max].into_iter().flatten();
        if ends.any(|end| *end.data_type() != column.data_type) || statistics.null_count > meta.rows {
            return Err(format!("{} has statistics that do not fit column {:?}", meta.path.0, column.name));
        }
    }
    Ok(())
}
