//! Transactions: what a client writes.

use std::{collections::BTreeMap, sync::Arc};

use arrow_array::RecordBatch;
use bytes::Bytes;
use tailrace_wal::{
    CommitTime, FragmentNumber, Lsn, Part, PartEntry, Payload, Persistence, Position, Record, RecordKind,
};

use crate::{
    Engine, EngineError, Operation, Ordinal, PartitionKey, Result, SeenPartition, TableId, TableVersion,
    admission::SeenTable,
    commit::{Fragments, Sealed},
    database::Database,
    effect::{DropPartition, Effect},
    ingest::{Encoded, Ingest},
    open_transactions::OpenTransaction,
    system::body_entry,
};

/// When a commit is acknowledged (`synchronous_commit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// `off`: handed to the operating system and readable here.
    Written,
    /// `local`, `on`: on this node's disk and readable here.
    Durable,
}

/// How to commit.
#[derive(Debug, Clone, Default)]
pub struct CommitOptions {
    /// `None`: the server's `wal.persistence`.
    pub durability: Option<Durability>,
    /// A second transaction of this database with the same key is not applied again.
    pub idempotency_key: Option<Bytes>,
}

/// What a commit got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Position in the database's history.
    pub position: Position,
    /// Number in this node's log.
    pub lsn: Lsn,
    /// When.
    pub commit_time: CommitTime,
    /// Rows appended.
    pub rows: u64,
}

/// An open transaction of one database. Dropping it aborts it: nothing is seen by readers, and if fragments
/// were written an abort record follows.
#[derive(Debug)]
pub struct Transaction {
    engine: Arc<Engine>,
    database: Arc<Database>,
    /// Tables as this transaction saw them first.
    tables: BTreeMap<String, Arc<TableVersion>>,
    /// Partitions that must be as they were.
    seen: BTreeMap<TableId, Vec<SeenPartition>>,
    ingest: Ingest,
    effects: Vec<Effect>,
    /// Parts that are in no fragment yet.
    parts: Vec<Part>,
    parts_bytes: u64,
    bytes: u64,
    rows: u64,
    fragments: Option<Fragments>,
    open: Option<Arc<OpenTransaction>>,
    /// A call failed halfway: the transaction can only be aborted.
    failed: bool,
}

impl Transaction {
    pub(crate) fn begin(engine: &Arc<Engine>, database: &str) -> Result<Self> {
        engine.check_open()?;
        let database = engine.database_named(database)?;
        Database::check_writable(&database.version())?;
        Ok(Self {
            engine: engine.clone(),
            database,
            tables: BTreeMap::new(),
            seen: BTreeMap::new(),
            ingest: Ingest::default(),
            effects: Vec::new(),
            parts: Vec::new(),
            parts_bytes: 0,
            bytes: 0,
            rows: 0,
            fragments: None,
            open: None,
            failed: false,
        })
    }

    /// Adds rows to a table. The batch's columns must be those of the table, by position and type (`sql` casts); NULLs
    /// where the column forbids them are an error. Beyond `fragment_bytes`, fragments are written as rows come in.
    ///
    /// A batch that was refused as a whole leaves the transaction as it was; after any other error it can only be
    /// aborted.
    pub async fn append(&mut self, table: &str, batch: RecordBatch) -> Result<()> {
        self.enter()?;
        let table = self.table(table)?;
        let batch = check_batch(&table, batch)?;
        // Until all is done, a dropped future leaves rows missing.
        self.failed = true;
        let ready = self.ingest.push(&table, batch).await?;
        self.take(ready).await?;
        self.failed = false;
        self.leave();
        Ok(())
    }

    /// Takes all rows of a partition away that were committed before this transaction or came into it before this call. A
    /// partition that is not there stays so. What was there when the transaction commits goes, seen or not:
    /// [`Transaction::replace_partition`] is careful.
    pub async fn drop_partition(&mut self, table: &str, key: PartitionKey) -> Result<()> {
        self.enter()?;
        let table = self.table(table)?;
        table.scheme.describe(&key)?;
        self.failed = true;
        // Rows that are being encoded come before it.
        let ready = self.ingest.finish().await?;
        self.take(ready).await?;
        self.push_drop(&table, key).await?;
        self.failed = false;
        self.leave();
        Ok(())
    }

    /// The same for a partition that the caller has seen: rows that are appended afterwards take its place, at once for
    /// all readers here and on replicas. Where somebody else changes it before the commit, the commit is refused
    /// with [`EngineError::Conflict`].
    pub async fn replace_partition(&mut self, table: &str, seen: SeenPartition) -> Result<()> {
        self.enter()?;
        let known = self.table(table)?;
        if (seen.history, seen.table) != (self.database.id, known.table.id) {
            return Err(EngineError::Conflict(format!("table {table:?} was dropped meanwhile")));
        }
        let key = seen.key.clone();
        self.drop_partition(table, key).await?;
        self.seen.entry(known.table.id).or_default().push(seen);
        Ok(())
    }

    /// Commits: one record, applied atomically across partitions and tables. Runs to its end even when the caller's
    /// future is dropped. A transaction that does nothing commits nothing and returns the database's position.
    pub async fn commit(mut self, options: CommitOptions) -> Result<Receipt> {
        self.enter()?;
        self.failed = true;
        let ready = self.ingest.finish().await?;
        self.take(ready).await?;
        if self.effects.is_empty() {
            let version = self.database.version();
            return Ok(Receipt {
                position: version.position,
                lsn: self.engine.log.status().appended,
                commit_time: version.commit_time,
                rows: 0,
            });
        }
        let tables: BTreeMap<TableId, SeenTable> = self
            .tables
            .values()
            .map(|seen| {
                let table = &seen.table;
                let partitions = self.seen.remove(&table.id).unwrap_or_default();
                let schema_version = table.schema_version;
                (table.id, SeenTable { name: table.name.clone(), schema_version, partitions })
            })
            .collect();
        let sealed = Sealed {
            database: self.database.clone(),
            tables,
            effects: std::mem::take(&mut self.effects),
            parts: std::mem::take(&mut self.parts),
            rows: self.rows,
            fragments: self.fragments.take(),
        };
        self.engine.clone().commit(sealed, options).await
    }

    /// Ends it without effect.
    pub async fn abort(mut self) -> Result<()> {
        let (engine, database) = (self.engine.clone(), self.database.clone());
        let fragments = self.fragments.take().filter(|_| !self.doomed());
        self.engine
            .to_the_end(async move {
                engine.abort_fragments(&database, fragments).await;
                Ok(())
            })
            .await
    }

    /// Rows added so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn table(&mut self, name: &str) -> Result<Arc<TableVersion>> {
        if let Some(seen) = self.tables.get(name) {
            return Ok(seen.clone());
        }
        let version = self.database.version();
        let table = version
            .table(name)
            .ok_or_else(|| EngineError::NotFound { kind: "table", name: format!("{}.{name}", version.name) })?;
        self.tables.insert(name.to_owned(), table.clone());
        Ok(table.clone())
    }

    async fn push_drop(&mut self, table: &TableVersion, key: PartitionKey) -> Result<()> {
        let (id, schema_version) = (table.table.id, table.table.schema_version);
        let entry = PartEntry {
            schema_version: schema_version.0,
            first_ordinal: self.rows,
            partition: key.0.clone(),
            ..body_entry(Operation::DropPartition, id)
        };
        self.parts_bytes += key.0.len() as u64 + PART_OVERHEAD;
        self.parts.push(Part::new(entry, Vec::new())?);
        self.effects.push(Effect::DropPartition(DropPartition { table: id, schema_version, key }));
        if self.parts_bytes >= self.engine.config.fragment_bytes {
            self.write_fragment().await?;
        }
        Ok(())
    }

    /// Gives parts their ordinals, in order, and writes fragments where they are due.
    async fn take(&mut self, ready: Vec<Encoded>) -> Result<()> {
        for Encoded { mut part, mut append } in ready {
            let length = u64::from(part.entry.length);
            // A frame takes the parts of one fragment beside directory and padding.
            if !self.parts.is_empty() && self.parts_bytes + length > FRAGMENT_BYTES_MAX {
                self.write_fragment().await?;
            }
            part.entry.first_ordinal = self.rows;
            append.first_ordinal = Ordinal(self.rows);
            self.rows += append.batch.num_rows() as u64;
            self.bytes += length;
            self.parts_bytes += length + part.entry.partition.len() as u64 + PART_OVERHEAD;
            self.parts.push(part);
            self.effects.push(Effect::Append(append));
            if self.bytes > self.engine.config.transaction_max_bytes {
                return Err(EngineError::TransactionAborted(format!(
                    "the transaction exceeds engine.transaction_max_bytes ({} bytes); load in smaller transactions, \
                     or raise the limit",
                    self.engine.config.transaction_max_bytes
                )));
            }
            if self.parts_bytes >= self.engine.config.fragment_bytes {
                self.write_fragment().await?;
            }
        }
        Ok(())
    }

    /// Writes the parts that have come in as a fragment, without waiting for the disk.
    async fn write_fragment(&mut self) -> Result<()> {
        let payload = Payload::new(std::mem::take(&mut self.parts), Vec::new(), None)?;
        self.parts_bytes = 0;
        let fragments = match &mut self.fragments {
            Some(fragments) => fragments,
            None => {
                let engine = &self.engine;
                let registration = engine.open.register(engine.log.status().appended.next());
                let number = engine.log.begin_transaction(self.database.id)?;
                self.open = Some(registration.watch(self.database.id, number, engine.clock.monotonic()));
                self.fragments.insert(Fragments {
                    number,
                    hashes: Vec::new(),
                    directories: Vec::new(),
                    bytes: 0,
                    appending: Vec::new(),
                    registration,
                    none_written: false,
                })
            }
        };
        let number = u32::try_from(fragments.hashes.len())
            .map_err(|_| EngineError::TransactionAborted("the transaction has too many fragments".to_owned()))?;
        fragments.hashes.push(payload.hash);
        fragments.directories.push(payload.directory.clone());
        fragments.bytes += payload.encoded_len() as u64;
        let record = Record {
            history: self.database.id,
            kind: RecordKind::Fragment,
            transaction: Some(fragments.number),
            fragment: FragmentNumber(number),
            payload,
        };
        match self.engine.log.append(record, Persistence::Async).await {
            Ok(mut appending) => {
                if self.engine.config.is_by_hand() {
                    appending.written().await?;
                }
                fragments.appending.push(appending);
                Ok(())
            }
            Err(error) => {
                fragments.none_written = number == 0;
                Err(error.into())
            }
        }
    }

    fn enter(&self) -> Result<()> {
        if self.doomed() {
            return Err(EngineError::TransactionAborted(
                "the transaction was aborted because it was idle for longer than engine.transaction_max_age; run it \
                 again"
                    .to_owned(),
            ));
        }
        if self.failed {
            return Err(EngineError::TransactionAborted(
                "an earlier call of this transaction failed; abort it and run it again".to_owned(),
            ));
        }
        Ok(())
    }

    /// Whether it was aborted for being idle. If not, it counts as busy from now on.
    fn doomed(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.enter())
    }

    fn leave(&self) {
        if let Some(open) = &self.open {
            open.leave(self.engine.clock.monotonic());
        }
    }
}

/// Bytes of one fragment's parts at which the next one begins, whatever the settings say.
const FRAGMENT_BYTES_MAX: u64 = 7 << 20;
/// What a part may add to a frame beside its bytes: entry and padding, without its key.
const PART_OVERHEAD: u64 = 128;

impl Drop for Transaction {
    fn drop(&mut self) {
        if let Some(fragments) = self.fragments.take()
            && !self.doomed()
        {
            let (engine, database) = (self.engine.clone(), self.database.clone());
            self.engine.runtime.spawn(async move { engine.abort_fragments(&database, Some(fragments)).await });
        }
    }
}

/// A batch under the table's own schema.
fn check_batch(table: &TableVersion, batch: RecordBatch) -> Result<RecordBatch> {
    let columns = &table.table.columns;
    if batch.num_columns() != columns.len() {
        return Err(EngineError::Invalid(format!(
            "table {:?} has {} columns, the rows have {}",
            table.table.name,
            columns.len(),
            batch.num_columns()
        )));
    }
    for (column, values) in columns.iter().zip(batch.columns()) {
        if *values.data_type() != column.data_type {
            return Err(EngineError::Invalid(format!(
                "column {:?} of table {:?} is {}, the rows have {}",
                column.name,
                table.table.name,
                column.data_type,
                values.data_type()
            )));
        }
        if !column.nullable && values.logical_null_count() > 0 {
            return Err(EngineError::Invalid(format!(
                "column {:?} of table {:?} is NOT NULL, the rows have {} NULLs in it",
                column.name,
                table.table.name,
                values.logical_null_count()
            )));
        }
    }
    RecordBatch::try_new(table.schema.clone(), batch.columns().to_vec())
        .map_err(|error| EngineError::Invalid(error.to_string()))
}
