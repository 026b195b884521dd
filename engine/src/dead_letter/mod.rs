//! Dead letters: tasks that were skipped here. Their positions count; what they do is kept beside the log, as a file of
//! its own, until it is applied after all or given up. While there is one, the database is not its primary's: DIVERGED.

mod asked;
mod file;
mod settle;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, HistoryHeader, HistoryId, Payload, Seq};

use crate::{DatabaseVersion, Engine, Operation, OperationCode, PartitionKey, TableId, operation::decode_body};

pub(crate) use file::Letters;

/// Most seqs that a reason names.
const NAMED_MAX: usize = 5;

/// A task that was skipped on this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeadLetter {
    /// The task.
    pub seq: Seq,
    /// Code of its first operation, which this version may not know: [`DeadLetter::operation_name`].
    pub operation: u16,
    /// When it committed on the primary.
    pub commit_time: CommitTime,
    /// Tables that it concerns, by id and by name as far as known here.
    pub tables: Vec<(TableId, String)>,
    /// Rows in it.
    pub rows: u64,
    /// Payload bytes, fragments included.
    pub bytes: u64,
    /// Why it failed before it was skipped.
    pub reason: String,
    /// When it was skipped.
    pub skipped_at: CommitTime,
    /// Its payload was given up: only a repair makes the database its primary's again.
    #[serde(default)]
    pub discarded: bool,
    /// Partitions of its tables that were dropped after it: rows of it that belong there are gone on the primary.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<(TableId, PartitionKey)>,
}

/// Why a copy is not its primary's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// Since when.
    pub since: CommitTime,
    /// What is missing.
    pub reason: String,
    /// The statements that put it right.
    pub remedy: String,
}

impl DeadLetter {
    /// Describes a transaction that is to be skipped: its fragments, then its commit.
    pub(crate) fn of(
        version: &DatabaseVersion,
        records: &[(HistoryHeader, Payload)],
        reason: &str,
        skipped_at: CommitTime,
    ) -> Self {
        let parts = || records.iter().flat_map(|(_, payload)| &payload.directory.parts);
        let mut tables: Vec<(TableId, String)> = Vec::new();
        for (_, payload) in records {
            for (index, part) in payload.directory.parts.iter().enumerate().filter(|(_, part)| part.table != 0) {
                let id = TableId(part.table);
                if !tables.iter().any(|(known, _)| *known == id) {
                    tables.push((id, name_of(version, id, part.operation, payload, index)));
                }
            }
        }
        let commit = records.last().map(|(header, _)| header);
        Self {
            seq: commit.map_or(Seq::ZERO, |header| header.seq),
            operation: parts().map(|part| part.operation).next().unwrap_or(Operation::Append.code()),
            commit_time: commit.map_or(CommitTime::default(), |header| header.commit_time),
            tables,
            rows: parts().map(|part| u64::from(part.rows)).sum(),
            bytes: records.iter().map(|(_, payload)| payload.encoded_len() as u64).sum(),
            reason: reason.to_owned(),
            skipped_at,
            discarded: false,
            dropped: Vec::new(),
        }
    }

    /// As task lists show it; `OPERATION <code>` for one that this version does not know.
    pub fn operation_name(&self) -> String {
        OperationCode(self.operation).name().into_owned()
    }
}

/// The name of a table that a part concerns: as it is here, or as the part that creates it says.
fn name_of(version: &DatabaseVersion, id: TableId, operation: u16, payload: &Payload, index: usize) -> String {
    if operation == Operation::CreateTable.code() {
        let body = decode_body::<crate::Table>(Operation::CreateTable, &payload.part_bytes(index));
        return body.map(|table| table.name).unwrap_or_default();
    }
    match version.table_by_id(id) {
        Some(table) => table.table.name.clone(),
        None => version.skipped_table(id).map(|(_, name)| name.to_owned()).unwrap_or_default(),
    }
}

/// What was skipped in a database and is not settled.
pub(crate) type Skipped = BTreeMap<Seq, DeadLetter>;

impl DatabaseVersion {
    /// Tasks that were skipped here and whose payload is kept, oldest first.
    pub fn dead_letters(&self) -> impl Iterator<Item = &DeadLetter> {
        self.skipped.values().filter(|letter| !letter.discarded)
    }

    /// Tasks that were skipped here and are not settled, oldest first, those included whose payload was given up.
    pub fn skipped_tasks(&self) -> impl Iterator<Item = &DeadLetter> {
        self.skipped.values()
    }

    /// Everything up to here has been applied: its position, unless a task before that was skipped and is not settled.
    pub fn whole_upto(&self) -> Seq {
        let first = self.skipped.keys().next();
        first.map_or(self.position.seq, |skipped| Seq(skipped.0.saturating_sub(1)).min(self.position.seq))
    }

    /// Why this copy is not its primary's at its position; `None`: it is.
    pub fn divergence(&self) -> Option<Divergence> {
        let skipped = self.skipped.values().map(|letter| letter.skipped_at);
        let since = skipped.chain(self.differences.iter().map(|difference| difference.found_at)).min()?;
        let name = &self.name;
        let kept: Vec<Seq> = self.dead_letters().map(|letter| letter.seq).collect();
        let gone: Vec<Seq> = self.skipped.values().filter(|letter| letter.discarded).map(|letter| letter.seq).collect();
        let mut reasons = Vec::new();
        if !kept.is_empty() {
            reasons.push(format!("{} skipped here; system.dead_letters has what was left out", were(&kept)));
        }
        if !gone.is_empty() {
            reasons.push(format!("{} skipped here and discarded", were(&gone)));
        }
        if let Some(first) = self.differences.first() {
            let more = match self.differences.len() {
                1 => String::new(),
                count => format!(" (and {} more partitions)", count - 1),
            };
            reasons.push(format!(
                "{}{more} differs from the primary's at seq {}: {}",
                first.place(),
                first.seq,
                first.reason
            ));
        }
        let repair = format!("CALL repair_database('{name}')");
        let remedy = match kept.first() {
            Some(first) if gone.is_empty() && self.differences.is_empty() => {
                format!("CALL retry_dead_letter('{name}', {first}), or {repair}")
            }
            _ => repair,
        };
        Some(Divergence { since, reason: reasons.join("; "), remedy })
    }

    /// A table that is not here because its CREATE TABLE was skipped: which task, and its name.
    pub(crate) fn skipped_table(&self, id: TableId) -> Option<(Seq, &str)> {
        let creates = self.skipped.values().filter(|letter| letter.operation == Operation::CreateTable.code());
        creates
            .flat_map(|letter| letter.tables.iter().map(|(table, name)| (letter.seq, *table, name.as_str())))
            .find(|(_, table, _)| *table == id)
            .map(|(seq, _, name)| (seq, name))
    }

    /// A table that rows are for and that is not here as they need it, in words.
    pub(crate) fn unusable_table(&self, id: TableId) -> String {
        match self.table_by_id(id) {
            Some(table) => format!("table {:?} has another schema at that point", table.table.name),
            None => self.missing_table(id),
        }
    }

    /// A table that a record needs and that is not here, in words.
    pub(crate) fn missing_table(&self, id: TableId) -> String {
        match self.skipped_table(id) {
            Some((seq, table)) => format!(
                "table {table:?} (id {id}) of database {:?} is not here because task {seq}, which creates it, was \
                 skipped; CALL repair_database('{}') brings it",
                self.name, self.name
            ),
            None => format!("table {id} of database {:?} does not exist at that point", self.name),
        }
    }
}

impl Engine {
    /// Where the payload of a dead letter lies.
    pub fn dead_letter_path(&self, history: HistoryId, seq: Seq) -> PathBuf {
        self.letters.path(history, seq)
    }

    /// Removes the letters of a history that was repaired or has ended.
    pub(crate) async fn forget_letters(&self, history: HistoryId) {
        self.keep_letters(move |of, _| of != history).await;
    }

    /// Removes letters that nothing names: of skips that did not come to be, and of those that are settled.
    pub(crate) async fn clean_letters(&self) {
        let mut named: BTreeSet<(HistoryId, Seq)> = BTreeSet::new();
        // What a database that stopped has not replayed may be named by its log.
        let mut stopped: BTreeSet<HistoryId> = BTreeSet::new();
        for database in self.databases.read().values() {
            let version = database.version();
            named.extend(version.dead_letters().map(|letter| (version.id, letter.seq)));
            if version.stopped.is_some() {
                stopped.insert(version.id);
            }
        }
        self.keep_letters(move |history, seq| named.contains(&(history, seq)) || stopped.contains(&history)).await;
    }

    async fn keep_letters(&self, keep: impl Fn(HistoryId, Seq) -> bool + Send + 'static) {
        let letters = self.letters.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || letters.clean(keep)).await {
            tracing::error!(%error, "dead letters were not cleaned up");
        }
    }
}

/// `task 7 was`, `tasks 7, 8 and 30 more were`.
fn were(seqs: &[Seq]) -> String {
    let named: Vec<String> = seqs.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    match seqs.len() {
        1 => format!("task {} was", named.join("")),
        count if count > NAMED_MAX => format!("tasks {} and {} more were", named.join(", "), count - NAMED_MAX),
        _ => format!("tasks {} were", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Role, ddl::empty_version};

    pub(super) fn letter(seq: u64) -> DeadLetter {
        DeadLetter {
            seq: Seq(seq),
            operation: 1,
            commit_time: CommitTime(1),
            tables: vec![(TableId(1), "bars".into())],
            rows: 3,
            bytes: 128,
            reason: "no".into(),
            skipped_at: CommitTime(100 + seq as i64),
            discarded: false,
            dropped: Vec::new(),
        }
    }

    #[test]
    fn a_database_says_what_it_lacks_and_what_to_do() {
        let mut version = empty_version(HistoryId([1; 16]), "market".into(), Role::Primary);
        assert_eq!(version.divergence(), None);
        version.position.seq = Seq(20);
        assert_eq!(version.whole_upto(), Seq(20));
        version.skipped = std::sync::Arc::new((1..=7).map(|seq| (Seq(seq), letter(seq))).collect());
        let shown = version.divergence().unwrap();
        assert_eq!(shown.since, CommitTime(101));
        assert!(shown.reason.starts_with("tasks 1, 2, 3, 4, 5 and 2 more were skipped"), "{}", shown.reason);
        assert_eq!(shown.remedy, "CALL retry_dead_letter('market', 1), or CALL repair_database('market')");
        assert_eq!((version.whole_upto(), version.skipped_tasks().count()), (Seq(0), 7));
        let discarded = DeadLetter { discarded: true, operation: 18, ..letter(9) };
        version.skipped = std::sync::Arc::new([(Seq(9), discarded)].into());
        let shown = version.divergence().unwrap();
        assert_eq!(shown.reason, "task 9 was skipped here and discarded");
        assert_eq!(shown.remedy, "CALL repair_database('market')");
        assert_eq!((version.dead_letters().count(), version.skipped_tasks().count()), (0, 1));
        assert_eq!(version.whole_upto(), Seq(8), "what was given up is not applied either");
        assert!(version.missing_table(TableId(1)).contains("\"bars\" (id 1)"));
        assert!(version.missing_table(TableId(2)).contains("table 2 "));
    }
}
