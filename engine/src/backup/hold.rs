//! What a backup is made of: databases held at one position each, and what of them is wanted.

use std::sync::Arc;

use tailrace_wal::HistoryId;

use super::{BackupRequest, BackupScope, PartitionChoice, PartitionPattern, manifest::partition_name};
use crate::{
    Datafile, DatafileMeta, Digest, Engine, EngineError, PartitionKey, PartitionScheme, RepairManifest, RepairSource,
    Result, RowHasher, TableVersion,
};

/// A database that is held, and what of it is wanted.
pub(super) struct Held {
    pub(super) source: RepairSource,
    pub(super) is_whole: bool,
    pub(super) tables: Vec<HeldTable>,
}

pub(super) struct HeldTable {
    pub(super) table: usize,
    pub(super) is_whole: bool,
    pub(super) partitions: Vec<HeldPartition>,
}

pub(super) struct HeldPartition {
    pub(super) key: PartitionKey,
    pub(super) name: String,
    pub(super) metas: Vec<DatafileMeta>,
    pub(super) digest: Digest,
}

impl Engine {
    /// Flushes and holds what is asked for.
    pub(super) async fn hold(self: &Arc<Self>, request: &BackupRequest) -> Result<Vec<Held>> {
        let version = self.version();
        let named = |name: &str| -> Result<HistoryId> {
            let found = version.database(name).map(|database| database.id);
            found.ok_or_else(|| EngineError::NotFound { kind: "database", name: name.to_owned() })
        };
        let (histories, table) = match &request.scope {
            BackupScope::Cluster => (version.databases().map(|database| database.id).collect(), None),
            BackupScope::Database(database) => (vec![named(database)?], None),
            BackupScope::Table { database, table, .. } => {
                (vec![named(database)?], Some((table.as_str(), choices(request)?)))
            }
            BackupScope::Query(_) => {
                return Err(EngineError::Invalid("rows of a query are backed up as they come".to_owned()));
            }
        };
        let mut held = Vec::with_capacity(histories.len());
        for history in histories {
            let source = self.repair_source(history).await?;
            let wanted = table.as_ref().map(|(name, choices)| (*name, &choices[..]));
            let mut tables = select(&source.manifest, wanted)?;
            self.digest_held(&source, &mut tables).await?;
            held.push(Held { source, is_whole: table.is_none(), tables });
        }
        Ok(held)
    }

    /// Adds up the digests of the partitions' files. One from before digests were kept is read.
    async fn digest_held(self: &Arc<Self>, source: &RepairSource, tables: &mut [HeldTable]) -> Result<()> {
        for held in tables {
            let table = &source.manifest.tables[held.table].table;
            let hasher = RowHasher::of_table(table)?;
            for partition in &mut held.partitions {
                for meta in &mut partition.metas {
                    let digest = match meta.digest {
                        Some(digest) => digest,
                        None => {
                            let table = Arc::new(TableVersion::empty(table.clone())?);
                            let file = Datafile::new(meta.clone(), self.garbage.clone());
                            self.read_digest(&table, &hasher, &file).await?
                        }
                    };
                    meta.digest = Some(digest);
                    partition.digest += digest;
                }
            }
        }
        Ok(())
    }
}

/// What picks partitions.
fn choices(request: &BackupRequest) -> Result<Vec<PartitionChoice>> {
    let BackupScope::Table { partitions, condition, .. } = &request.scope else { return Ok(Vec::new()) };
    let mut choices: Vec<PartitionChoice> =
        partitions.iter().map(|pattern| PartitionChoice::Pattern(PartitionPattern::new(pattern))).collect();
    match (condition, &request.condition) {
        (None, None) => {}
        (Some(text), Some(condition)) if text == condition.text() => {
            choices.push(PartitionChoice::Condition(condition.clone()));
        }
        _ => {
            return Err(EngineError::Invalid(
                "a backup's condition comes with its text and who evaluates it".to_owned(),
            ));
        }
    }
    Ok(choices)
}

/// The tables and partitions that are wanted: of one table those that all choices pick.
fn select(manifest: &RepairManifest, wanted: Option<(&str, &[PartitionChoice])>) -> Result<Vec<HeldTable>> {
    let mut tables = Vec::new();
    for (index, held) in manifest.tables.iter().enumerate() {
        let choices = match wanted {
            None => &[],
            Some((name, choices)) if name == held.table.name => choices,
            Some(_) => continue,
        };
        let scheme = PartitionScheme::new(&held.table)?;
        let mut partitions: Vec<HeldPartition> = Vec::new();
        for (key, meta) in &held.datafiles {
            if let Some(last) = partitions.last_mut().filter(|last| last.key == *key) {
                last.metas.push(meta.clone());
                continue;
            }
            let name = partition_name(&scheme.describe(key)?);
            let (key, metas, digest) = (key.clone(), vec![meta.clone()], Digest::default());
            partitions.push(HeldPartition { key, name, metas, digest });
        }
        for choice in choices {
            let keys: Vec<PartitionKey> = partitions.iter().map(|partition| partition.key.clone()).collect();
            let mut chosen = choice.choose(&held.table, &keys)?.into_iter();
            partitions.retain(|_| chosen.next().unwrap_or_default());
        }
        tables.push(HeldTable { table: index, is_whole: choices.is_empty(), partitions });
    }
    match wanted {
        Some((name, _)) if tables.is_empty() => {
            Err(EngineError::NotFound { kind: "table", name: format!("{}.{name}", manifest.name) })
        }
        _ => Ok(tables),
    }
}
