//! Names of datafiles: every object name is built here.

use serde::{Deserialize, Serialize};

use crate::{PartitionKey, PartitionScheme, Result};

/// Path of a datafile below the storage root, `market/bars/datetime_day=2023-01-08/<file>.parquet`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatafilePath(pub String);

/// A new unique path. Names are escaped without collisions (also between databases or tables whose names differ only
/// in case or in characters that file systems dislike); long values are cut and carry a hash; NULL is its own folder.
/// `database` and `table` are the names at the time of writing; a dropped and re-created one shares the folder, the
/// file part is random.
pub fn datafile_path(
    _database: &str,
    _table: &str,
    _scheme: &PartitionScheme,
    _key: &PartitionKey,
) -> Result<DatafilePath> {
    todo!()
}
