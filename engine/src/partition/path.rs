//! Names of datafiles: every object name is built here.

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::hexadecimal;
use crate::{EngineError, PartitionKey, PartitionScheme, Result};

/// Longest name of a partition field within a folder name, bytes.
const FIELD_BYTES_MAX: usize = 100;
/// Longest value within a folder name, and longest folder name of a database or table, bytes. With the field's name
/// and `=`, a folder stays within the 255 bytes that file systems allow.
const VALUE_BYTES_MAX: usize = 140;
/// What other tools take for NULL in a path.
const NULL_FOLDER: &str = "__HIVE_DEFAULT_PARTITION__";
/// What every datafile's name ends with.
const EXTENSION: &str = ".parquet";

/// Path of a datafile below the storage root, `market/bars/datetime_day=2023-01-08/<file>.parquet`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatafilePath(pub String);

impl DatafilePath {
    /// The object's path. `Path::from` would escape the escapes once more: always come here. A path that does not name
    /// a Parquet file below the root is an error.
    pub fn object_path(&self) -> Result<Path> {
        let path = Path::parse(&self.0).ok().filter(|path| path.as_ref() == self.0 && self.0.ends_with(EXTENSION));
        path.ok_or_else(|| EngineError::Invalid(format!("{:?} is no path of a datafile", self.0)))
    }
}

/// A new unique path. Names are escaped without collisions (also between databases or tables whose names differ only
/// in case or in characters that file systems dislike); long values are cut and carry a hash; NULL is its own folder.
/// `database` and `table` are the names at the time of writing; a dropped and re-created one shares the folder, the
/// file part is `file`, which no other file has.
///
/// Escapes are those of URLs and Hive, `%` and two hexadecimal digits, so other tools read partition values back.
pub fn datafile_path(
    database: &str,
    table: &str,
    scheme: &PartitionScheme,
    key: &PartitionKey,
    file: [u8; 16],
) -> Result<DatafilePath> {
    let mut path = format!("{}/{}/", folder(database), folder(table));
    for (name, value) in scheme.describe(key)? {
        path.push_str(&cut(escape(&name, false), &name, FIELD_BYTES_MAX));
        path.push('=');
        match value {
            None => path.push_str(NULL_FOLDER),
            Some(value) => {
                let mut escaped = escape(&value, true);
                if value == NULL_FOLDER {
                    escaped.replace_range(..1, "%5F");
                }
                path.push_str(&cut(escaped, &value, VALUE_BYTES_MAX));
            }
        }
        path.push('/');
    }
    path.push_str(&hexadecimal(&file));
    path.push_str(EXTENSION);
    Ok(DatafilePath(path))
}

fn folder(name: &str) -> String {
    cut(escape(name, false), name, VALUE_BYTES_MAX)
}

/// Keeps digits, lower-case letters, `_`, `-` and, within, `.`; upper-case letters of values only, because the names of
/// databases, tables and columns must differ on file systems that ignore case.
fn escape(text: &str, upper: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'_' | b'-' => escaped.push(byte.into()),
            b'A'..=b'Z' if upper => escaped.push(byte.into()),
            b'.' if index > 0 => escaped.push('.'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// Cuts what is too long and adds `+` and a hash of the whole; `+` itself is always escaped.
fn cut(mut escaped: String, whole: &str, most: usize) -> String {
    if escaped.len() <= most {
        return escaped;
    }
    let hash = hexadecimal(&xxh3_128(whole.as_bytes()).to_be_bytes());
    let mut end = most - hash.len() - 1;
    // Not within an escape.
    while escaped[..end].bytes().rev().take(2).any(|byte| byte == b'%') {
        end -= 1;
    }
    escaped.truncate(end);
    escaped + "+" + &hash
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use arrow_array::{RecordBatch, StringArray};
    use arrow_schema::DataType;

    use super::*;
    use crate::{ColumnDefinition, Table, TableDefinition, TableId, partition::Transform};

    fn folders(values: Vec<Option<String>>) -> Vec<String> {
        let column = |name: &str| ColumnDefinition { name: name.into(), data_type: DataType::Utf8, nullable: true };
        let table = TableDefinition {
            name: "t".into(),
            columns: vec![column("v")],
            partition_by: vec![(Transform::Identity, "v".into())],
            order_by: vec![],
        };
        let table = Table::create(TableId(1), table).unwrap();
        let scheme = PartitionScheme::new(&table).unwrap();
        let folder = |value| {
            let array = StringArray::from(vec![value]);
            let batch = RecordBatch::try_new(table.schema(), vec![Arc::new(array)]).unwrap();
            let (key, _) = scheme.split(&batch).unwrap().remove(0);
            let path = datafile_path("Market", "bars", &scheme, &key, rand::random()).unwrap();
            assert_eq!(path.object_path().unwrap().as_ref(), path.0);
            let (folder, file) = path.0.rsplit_once('/').unwrap();
            assert_eq!(file.len(), 32 + ".parquet".len());
            folder.to_owned()
        };
        values.into_iter().map(folder).collect()
    }

    #[test]
    fn names_are_readable_and_never_collide() {
        let mut values: Vec<Option<String>> = vec![None];
        let texts = ["", "SH600000", "a/b", "a%2Fb", "a b", ".", "..", "~", "a+b", "A", "a", "é", "\0", NULL_FOLDER];
        values.extend(texts.map(|text| Some(text.into())));
        for tail in ["x", "y", "/", "+", "é"] {
            values.push(Some("x".repeat(200) + tail));
            values.push(Some("é".repeat(200) + tail));
        }
        let folders = folders(values.clone());
        assert_eq!(folders[0], "%4Darket/bars/v=__HIVE_DEFAULT_PARTITION__");
        assert_eq!(folders[2], "%4Darket/bars/v=SH600000");
        assert_eq!(folders[3], "%4Darket/bars/v=a%2Fb");
        assert!(folders.iter().all(|folder| folder.split('/').all(|part| (1..=255).contains(&part.len()))));
        assert_eq!(folders.iter().collect::<BTreeSet<_>>().len(), values.len());
    }

    #[test]
    fn names_differ_without_regard_to_case() {
        let names = ["Bars", "bars", "BARS", "b.ars", ".bars", "ba/rs", "ba%2Frs", "bärs", "x..y", "con", ""];
        let folders: BTreeSet<_> = names.iter().map(|name| folder(name).to_lowercase()).collect();
        assert_eq!(folders.len(), names.len());
    }

    #[test]
    fn paths_from_outside_are_checked() {
        for path in ["/a.parquet", "a/../b.parquet", "a", "", "a//b.parquet", "a/./b.parquet", "a\0.parquet"] {
            DatafilePath(path.into()).object_path().unwrap_err();
        }
        DatafilePath("market/bars/datetime_day=2023-01-08/0.parquet".into()).object_path().unwrap();
    }
}
