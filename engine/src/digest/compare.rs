//! Two copies of a database, compared partition by partition.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, HistoryId, Position, Seq};

use super::{DamagedDatafile, Digest};
use crate::{DatabaseVersion, Engine, EngineError, PartitionKey, PartitionScheme, Result, TableId, TableVersion};

/// Digests of a database at one position. Travels as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseDigests {
    /// What they are of.
    pub position: Position,
    /// All tables, by id.
    pub tables: Vec<TableDigests>,
}

/// Digests of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableDigests {
    /// Which.
    pub table: TableId,
    /// Its name.
    pub name: String,
    /// Its rows are left out here: it has no partitions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left_out: bool,
    /// In key order.
    pub partitions: Vec<PartitionDigests>,
}

/// The digest of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartitionDigests {
    /// Which.
    pub partition: PartitionKey,
    /// Of its rows.
    pub digest: Digest,
    /// Where files were read: those that are not what was written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<DamagedDatafile>,
}

/// A partition, as it is here and at the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComparedPartition {
    /// Its table.
    pub table: TableId,
    /// The table's name.
    pub table_name: String,
    /// Which.
    pub partition: PartitionKey,
    /// In words, `day=2023-01-08`; `None` for the one partition of an unpartitioned table.
    pub partition_name: Option<String>,
    /// Rows here.
    pub rows_here: u64,
    /// Rows there.
    pub rows_there: u64,
    /// What is wrong, in words; `None`: both are equal and nothing is damaged.
    pub difference: Option<String>,
    /// What is wrong is wrong at the primary: a datafile there is damaged.
    pub damaged_there: bool,
}

/// A partition that was found to differ from the primary's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    /// Its table.
    pub table: TableId,
    /// The table's name at the time.
    pub table_name: String,
    /// Which.
    pub partition: PartitionKey,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition_name: Option<String>,
    /// The position's seq at which both were compared.
    pub seq: Seq,
    /// When.
    pub found_at: CommitTime,
    /// What is different.
    pub reason: String,
}

impl Engine {
    pub(super) async fn table_digests(&self, table: &Arc<TableVersion>, from_files: bool) -> Result<TableDigests> {
        let mut partitions = Vec::new();
        if from_files {
            for (key, partition) in table.partitions() {
                let scrubbed = self.scrub_partition(table, partition).await?;
                let (digest, damage) = (scrubbed.digest, scrubbed.damage);
                partitions.push(PartitionDigests { partition: key.clone(), digest, damage });
            }
        } else {
            let digests = self.partition_digests(table).await?.into_iter();
            partitions.extend(digests.map(|(partition, digest)| PartitionDigests {
                partition,
                digest,
                damage: Vec::new(),
            }));
        }
        let (id, name) = (table.table.id, table.table.name.clone());
        Ok(TableDigests { table: id, name, left_out: table.left_out, partitions })
    }

    /// Notes where a copy was found to differ from its primary's, beside what is known; `all`: in the place of what is
    /// known. Durable on return. The database is DIVERGED while there is any.
    pub async fn note_differences(
        self: &Arc<Self>,
        history: HistoryId,
        found: Vec<Difference>,
        all: bool,
    ) -> Result<()> {
        let missing = || EngineError::NotFound { kind: "history", name: history.to_string() };
        let database = self.database(history).ok_or_else(missing)?;
        let known = database.version().differences.clone();
        if found.is_empty() && (!all || known.is_empty()) {
            return Ok(());
        }
        let mut differences: Vec<Difference> = match all {
            true => Vec::new(),
            false => known.iter().filter(|known| !found.iter().any(|new| new.is_of(known))).cloned().collect(),
        };
        differences.extend(found);
        let differences = Arc::new(differences);
        database.alter(
            |version, changes| {
                version.differences = differences;
                changes.moved = true;
            },
            |version, ended| self.publish(version, ended),
        );
        self.databases_changed();
        // In the manifest with it.
        self.flush().await.map(drop)
    }
}

impl Difference {
    fn is_of(&self, other: &Self) -> bool {
        (self.table, &self.partition) == (other.table, &other.partition)
    }

    /// `table "bars", partition day=2023-01-08`.
    pub(crate) fn place(&self) -> String {
        match &self.partition_name {
            Some(partition) => format!("table {:?}, partition {partition}", self.table_name),
            None => format!("table {:?}", self.table_name),
        }
    }
}

impl ComparedPartition {
    /// As it is noted, where this copy is not what it should be.
    pub fn to_difference(&self, seq: Seq, found_at: CommitTime) -> Option<Difference> {
        if self.damaged_there {
            return None;
        }
        Some(Difference {
            table: self.table,
            table_name: self.table_name.clone(),
            partition: self.partition.clone(),
            partition_name: self.partition_name.clone(),
            seq,
            found_at,
            reason: self.difference.clone()?,
        })
    }
}

/// Compares what is here, of `version`, with what came from the primary: every partition that is on either side, by table
/// name and key. Tables that are left out on either side are not compared.
pub fn compare_digests(
    version: &DatabaseVersion,
    here: &DatabaseDigests,
    there: &DatabaseDigests,
) -> Result<Vec<ComparedPartition>> {
    if here.position != there.position {
        return Err(EngineError::Invalid(format!(
            "digests at {} cannot be compared with those of the primary at {}",
            here.position, there.position
        )));
    }
    let no_partitions = Vec::new();
    let ours: BTreeMap<TableId, &TableDigests> = here.tables.iter().map(|table| (table.table, table)).collect();
    let theirs: BTreeMap<TableId, &TableDigests> = there.tables.iter().map(|table| (table.table, table)).collect();
    let mut ids: Vec<TableId> = ours.keys().chain(theirs.keys()).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut compared = Vec::new();
    for id in ids {
        let (our, their) = (ours.get(&id), theirs.get(&id));
        if [our, their].into_iter().flatten().any(|digests| digests.left_out) {
            continue;
        }
        let name = our.or(their).map(|table| table.name.clone()).unwrap_or_default();
        let scheme = version.table_by_id(id).map(|table| table.scheme.clone());
        let table = match (our, their) {
            (Some(_), None) => Some("the table is not at the primary"),
            (None, Some(_)) => Some("the table is not here"),
            _ => None,
        };
        let mut partitions: BTreeMap<&PartitionKey, [Option<&PartitionDigests>; 2]> = BTreeMap::new();
        for (side, digests) in [our, their].into_iter().enumerate() {
            for digest in digests.map_or(&no_partitions, |table| &table.partitions) {
                partitions.entry(&digest.partition).or_default()[side] = Some(digest);
            }
        }
        for (key, [our, their]) in partitions {
            let partition_name = scheme.as_ref().map(|scheme| in_words(scheme, key)).transpose()?.flatten();
            let rows = |side: Option<&PartitionDigests>| side.map_or(0, |side| side.digest.rows);
            compared.push(ComparedPartition {
                table: id,
                table_name: name.clone(),
                partition: key.clone(),
                partition_name,
                rows_here: rows(our),
                rows_there: rows(their),
                difference: difference(our, their).map(|found| table.map_or(found, str::to_owned)),
                damaged_there: their.is_some_and(|their| !their.damage.is_empty())
                    && our.is_none_or(|our| our.damage.is_empty()),
            });
        }
    }
    Ok(compared)
}

fn difference(here: Option<&PartitionDigests>, there: Option<&PartitionDigests>) -> Option<String> {
    let damage = |side: Option<&PartitionDigests>| {
        side.and_then(|side| side.damage.first().cloned().map(|first| (first, side.damage.len())))
    };
    if let Some((first, count)) = damage(here) {
        let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
        return Some(format!("datafile {} is damaged here: {}{more}", first.path, first.reason));
    }
    if let Some((first, _)) = damage(there) {
        return Some(format!("datafile {} is damaged at the primary: {}", first.path, first.reason));
    }
    let digest = |side: Option<&PartitionDigests>| side.map(|side| side.digest).unwrap_or_default();
    let (ours, theirs) = (digest(here), digest(there));
    if ours == theirs {
        return None;
    }
    Some(match (ours.rows == theirs.rows, ours.values == theirs.values) {
        (false, _) => format!("{} rows here, {} at the primary", ours.rows, theirs.rows),
        (true, false) => format!("{} rows on both sides, with other values", ours.rows),
        (true, true) => format!("{} rows on both sides with the same values, under other identities", ours.rows),
    })
}

/// A partition's values in words, `day=2023-01-08`.
fn in_words(scheme: &PartitionScheme, key: &PartitionKey) -> Result<Option<String>> {
    let values = scheme.describe(key)?;
    let values = values.iter().map(|(field, value)| format!("{field}={}", value.as_deref().unwrap_or("NULL")));
    Ok(Some(values.collect::<Vec<_>>().join(", ")).filter(|name| !name.is_empty()))
}
