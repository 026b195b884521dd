//! What a backup is: its manifest, and the bytes of it.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tailrace_wal::{CommitTime, NodeId, Position, Seq};
use xxhash_rust::xxh3::xxh3_128;

use super::location::is_data_name;
use crate::{
    DatafileMeta, Digest, EngineError, EpochEntry, PartitionKey, PartitionScheme, Result, Table, TableId, check_name,
    partition::hexadecimal,
};

/// Version of the layout and of the manifest.
const FORMAT: u32 = 1;
/// Largest manifest that is read, bytes.
pub(super) const MANIFEST_BYTES_MAX: u64 = 1 << 30;
/// What stands before the hash at the end of a manifest.
const HASH_FIELD: &str = ",\"hash\":\"";
/// Length of what [`HASH_FIELD`] begins: 32 digits, a quote and a brace.
const HASH_LEN: usize = HASH_FIELD.len() + 32 + 2;

/// Names a backup within its location: when it was made, UTC, to the microsecond, and a random number. They sort by
/// time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

impl BackupId {
    pub(super) fn new(now: CommitTime, random: u64) -> Self {
        let time = chrono::DateTime::from_timestamp_micros(now.0).unwrap_or_default();
        Self(format!("{}-{:08x}", time.format("%Y%m%dT%H%M%S.%6fZ"), random as u32))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BackupId {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
        if !(8..=64).contains(&text.len()) || !text.bytes().all(allowed) || text.starts_with('.') {
            return Err(EngineError::Invalid(format!("{text:?} is no id of a backup; get_backup_list shows them")));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for BackupId {
    type Error = EngineError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BackupScope {
    /// All databases.
    Cluster,
    /// One database.
    Database(String),
    /// One table, all partitions or those that match.
    Table {
        /// Its database.
        database: String,
        /// Its name.
        table: String,
        /// See [`super::PartitionPattern`].
        partitions: Option<String>,
        /// See [`super::PartitionCondition`]; beside `partitions`, both hold.
        #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
        condition: Option<String>,
    },
    /// Rows and columns that a query selects.
    Query(String),
}

/// A backup.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupManifest {
    /// Version of this layout.
    pub format: u32,
    /// Its name.
    pub id: BackupId,
    /// When it was begun, by the clock of its node.
    pub started: CommitTime,
    /// When everything but this manifest was durable.
    pub finished: CommitTime,
    /// The node that made it: its archive goes on from the positions.
    pub node: NodeId,
    /// What was asked for.
    pub scope: BackupScope,
    /// Hash of the recipients that its files are encrypted for; `None`: they are plain.
    pub encryption: Option<String>,
    /// Bytes of files that this backup wrote. All others were there.
    pub written_bytes: u64,
    /// What it holds.
    pub databases: Vec<BackupDatabase>,
}

/// A database at one position.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupDatabase {
    /// Its name.
    pub name: String,
    /// Where it stood.
    pub position: Position,
    /// Where a reader of its log has to start to go on from there.
    pub restart_seq: Seq,
    /// Commit time at the position.
    pub commit_time: CommitTime,
    /// All epochs.
    pub epochs: Vec<EpochEntry>,
    /// The id that the next table takes.
    pub next_table: TableId,
    /// All tables with all partitions are here.
    pub is_whole: bool,
    /// Its tables.
    pub tables: Vec<BackupTable>,
}

/// A table, or what was selected of one.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupTable {
    /// What it is. Of a query: its columns and the partition fields that it selected.
    pub table: Table,
    /// All partitions that it had at the position are here.
    pub is_whole: bool,
    /// Set where a query selected the rows: files have these columns only, and no row identities.
    pub selected: Option<SelectedRows>,
    /// Partitions in key order.
    pub partitions: Vec<BackupPartition>,
}

/// How rows were selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectedRows {
    /// The query.
    pub query: String,
}

/// A partition.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupPartition {
    /// Its key.
    pub key: PartitionKey,
    /// Its values in words, `datetime_day=2023-01-08`; empty without partition fields.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Of its rows. That of a query's rows has no identities.
    pub digest: Digest,
    /// Its files.
    pub files: Vec<BackupFile>,
    /// Of an encrypted backup of datafiles: their descriptions, which hold the least and the greatest value of each
    /// column, encrypted like them. Hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

/// A file of rows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupFile {
    /// Its name within the location.
    pub name: String,
    /// Length as it lies there.
    pub bytes: u64,
    /// XXH3-128 of it as it lies there, hexadecimal.
    pub hash: String,
    /// Rows.
    pub rows: u64,
    /// Of a plain copy of a datafile: what the engine knows of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<DatafileMeta>,
}

impl BackupManifest {
    pub(super) const FORMAT: u32 = FORMAT;

    /// Partitions of all tables, with database and table.
    pub fn partitions(&self) -> impl Iterator<Item = (&BackupDatabase, &BackupTable, &BackupPartition)> {
        self.databases.iter().flat_map(|database| {
            let tables = database.tables.iter();
            tables.flat_map(move |table| table.partitions.iter().map(move |partition| (database, table, partition)))
        })
    }

    /// All files, with database, table and partition.
    pub fn files(&self) -> impl Iterator<Item = (&BackupDatabase, &BackupTable, &BackupPartition, &BackupFile)> {
        self.partitions().flat_map(|(database, table, partition)| {
            partition.files.iter().map(move |file| (database, table, partition, file))
        })
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files().map(|(.., file)| file.bytes).sum()
    }

    /// Rows of all files.
    pub fn rows(&self) -> u64 {
        self.partitions().map(|(.., partition)| partition.rows).sum()
    }

    /// As it is stored: one JSON object whose last field is the hash of all bytes before that field.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|error| EngineError::Invalid(format!("the backup's manifest cannot be encoded: {error}")))?;
        bytes.pop();
        let hash = hash_of(&bytes);
        bytes.extend_from_slice(HASH_FIELD.as_bytes());
        bytes.extend_from_slice(hash.as_bytes());
        bytes.extend_from_slice(b"\"}");
        Ok(bytes)
    }

    /// Reads and checks what is stored under the name of a backup.
    ///
    /// # Errors
    /// In words: what is wrong with it.
    pub(super) fn decode(id: &BackupId, bytes: &[u8]) -> std::result::Result<Self, String> {
        let format = serde_json::from_slice::<Versioned>(bytes).map_err(|error| format!("it is no manifest: {error}"));
        let split = bytes.len().checked_sub(HASH_LEN).map(|at| bytes.split_at(at));
        let stated = split.and_then(|(body, end)| {
            let hash = end.strip_prefix(HASH_FIELD.as_bytes())?.strip_suffix(b"\"}")?;
            Some((body, hash))
        });
        let Some((body, hash)) = stated else {
            format?;
            return Err("it does not end with its hash: it is damaged or incomplete".to_owned());
        };
        let found = hash_of(body);
        if found.as_bytes() != hash {
            return Err(format!("its hash is {found} instead of {}: it is damaged", String::from_utf8_lossy(hash)));
        }
        let format = format?.format;
        if format != FORMAT {
            return Err(format!("it has format {format}; this version reads format {FORMAT}"));
        }
        let mut text = body.to_vec();
        text.push(b'}');
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| format!("it is no manifest: {error}"))?;
        if manifest.id != *id {
            return Err(format!("it is of backup {}", manifest.id));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// What can be checked without the files.
    fn check(&self) -> std::result::Result<(), String> {
        let text = |error: EngineError| error.to_string();
        let mut names = BTreeSet::new();
        for database in &self.databases {
            check_name("database", &database.name).map_err(text)?;
            if !names.insert(&database.name) {
                return Err(format!("it holds database {:?} twice", database.name));
            }
            let mut tables = BTreeSet::new();
            for table in &database.tables {
                table.table.check().map_err(text)?;
                if !tables.insert(&table.table.name) {
                    return Err(format!("it holds table {:?} twice", table.table.name));
                }
                let scheme = PartitionScheme::new(&table.table).map_err(text)?;
                let mut keys = BTreeSet::new();
                for partition in &table.partitions {
                    scheme.describe(&partition.key).map_err(text)?;
                    if !keys.insert(&partition.key) {
                        return Err(format!("it holds partition {} twice", partition.name));
                    }
                    let rows = partition.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.rows));
                    if rows != Some(partition.rows) || partition.digest.rows != partition.rows {
                        return Err(format!("the files of partition {} do not have its rows", partition.name));
                    }
                    partition.files.iter().try_for_each(check_file)?;
                }
            }
        }
        Ok(())
    }
}

fn check_file(file: &BackupFile) -> std::result::Result<(), String> {
    if !is_data_name(&file.name) {
        return Err(format!("{:?} is no name of a file of rows", file.name));
    }
    let fits = |meta: &DatafileMeta| meta.bytes == file.bytes && meta.hash == file.hash && meta.rows == file.rows;
    if !file.meta.as_ref().is_none_or(fits) {
        return Err(format!("{} is described in two ways", file.name));
    }
    Ok(())
}

/// What every version of a manifest has.
#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

fn hash_of(bytes: &[u8]) -> String {
    hexadecimal(&xxh3_128(bytes).to_be_bytes())
}

/// A partition's values in words.
pub(super) fn partition_name(values: &[(String, Option<String>)]) -> String {
    let values = values.iter().map(|(field, value)| format!("{field}={}", value.as_deref().unwrap_or("NULL")));
    values.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> BackupManifest {
        BackupManifest {
            format: FORMAT,
            id: BackupId::new(CommitTime(1_673_136_000_000_000), 7),
            started: CommitTime(1),
            finished: CommitTime(2),
            node: NodeId([1; 16]),
            scope: BackupScope::Cluster,
            encryption: None,
            written_bytes: 0,
            databases: Vec::new(),
        }
    }

    #[test]
    fn a_manifest_comes_back_and_every_flipped_bit_is_found() {
        let manifest = manifest();
        assert_eq!(manifest.id.as_str(), "20230108T000000.000000Z-00000007");
        let bytes = manifest.encode().unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap();
        assert_eq!(BackupManifest::decode(&manifest.id, &bytes).unwrap().node, manifest.node);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                BackupManifest::decode(&manifest.id, &flipped).unwrap_err();
            }
            BackupManifest::decode(&manifest.id, &bytes[..at]).unwrap_err();
        }
    }

    #[test]
    fn another_format_is_named() {
        let mut later = manifest();
        later.format = 2;
        let error = BackupManifest::decode(&later.id, &later.encode().unwrap()).unwrap_err();
        assert!(error.contains("format 2"), "{error}");
        for wrong in ["", "../../etc/passwd", "a", ".hidden-name"] {
            wrong.parse::<BackupId>().unwrap_err();
        }
    }
}
