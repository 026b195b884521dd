//! What a node of a later version would write.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tailrace_wal::{Part, PartEntry, PartHash};

use crate::{CommitOptions, Engine, EngineError, OperationCode, Receipt, Result, commit::Sealed};

impl Engine {
    /// Commits a transaction that does something to a table that this version does not know. Here it changes nothing; a
    /// node of its version would.
    pub async fn commit_as_newer(
        self: &Arc<Self>,
        database: &str,
        table: &str,
        operation: OperationCode,
    ) -> Result<Receipt> {
        let database = self.database_named(database)?;
        let missing = || EngineError::NotFound { kind: "table", name: table.to_owned() };
        let table = database.version().table(table).map(|table| table.table.clone()).ok_or_else(missing)?;
        let entry = PartEntry {
            table: table.id.0,
            schema_version: table.schema_version.0,
            operation: operation.0,
            first_ordinal: 0,
            rows: 0,
            length: 0,
            hash: PartHash(0),
            partition: Bytes::new(),
        };
        let sealed = Sealed {
            database,
            tables: BTreeMap::new(),
            effects: Vec::new(),
            parts: vec![Part::new(entry, vec![Bytes::from_static(b"of a later version")])?],
            rows: 0,
            fragments: None,
        };
        self.clone().commit(sealed, CommitOptions::default()).await
    }
}
