//! One partition: its rows are read there and take the place of those here, in one transaction.

use datafusion::arrow::{
    array::{Array as _, RecordBatch, cast::AsArray as _},
    compute::cast,
    datatypes::Int64Type,
};
use futures::TryStreamExt as _;
use tailrace_engine::{CommitOptions, Digest, PartitionKey, RowHasher, SeenPartition, Transaction};

use super::{
    Source, literal,
    local::Local,
    plan::{Digests, Item},
    predicate::Predicate,
    progress::Entry,
    report::{Action, ReportedPartition},
    shape::Shape,
};
use crate::{Result, SqlError, statement::insert::Gather};

/// How often a partition is tried that changes meanwhile, here or there.
const ATTEMPTS_MAX: usize = 5;

/// Moves partitions of one table.
pub(super) struct Mover<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) local: &'a Local,
    pub(super) database: String,
    /// Of the table here.
    pub(super) shape: Shape,
    /// Its name, without the database's.
    pub(super) table: String,
    pub(super) predicate: Option<Predicate>,
}

/// What came of a partition.
#[derive(Debug, Clone, Copy, Default)]
struct Moved {
    digest: Digest,
    bytes: u64,
}

impl Mover<'_> {
    /// The digest of every partition on one side: of the rows that count.
    pub(super) async fn digests(&self, side: &dyn Source) -> Result<Digests> {
        self.digests_where(side, "").await
    }

    async fn digests_where(&self, side: &dyn Source, condition: &str) -> Result<Digests> {
        let table = literal(&self.shape.table);
        let predicate = match &self.predicate {
            Some(predicate) => format!(", where => {}", literal(predicate.as_sql())),
            None => String::new(),
        };
        let sql =
            format!("SELECT partition_key, rows, values_digest FROM partition_digests({table}{predicate}){condition}");
        let mut batches = side.query(&sql).await?;
        let mut digests = Digests::new();
        while let Some(batch) = batches.try_next().await? {
            for row in 0..batch.num_rows() {
                let (key, digest) = digest_of(&batch, row).ok_or_else(|| {
                    SqlError::internal(format!("partition_digests of {} gave what is no digest", side.name()))
                })?;
                digests.insert(key, digest);
            }
        }
        Ok(digests)
    }

    /// Makes one partition equal, in a transaction of its own. What changes here meanwhile is not lost: it is looked at again.
    pub(super) async fn move_one(&self, item: &Item, progress: &Entry) -> Result<ReportedPartition> {
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut transaction = self.local.engine.begin(&self.database)?;
            let filled = match self.fill(&mut transaction, item, progress).await {
                Ok(moved) => transaction.commit(CommitOptions::default()).await.map(|_| moved).map_err(Into::into),
                Err(error) => {
                    transaction.abort().await?;
                    Err(error)
                }
            };
            match filled {
                Ok(moved) => {
                    progress.done(1);
                    return Ok(reported(item, moved));
                }
                Err(error) if error.sqlstate == "40001" => last = Some(error),
                Err(error) => return Err(self.named(item, error)),
            }
        }
        Err(self.named(item, last.unwrap_or_else(|| SqlError::internal("no attempt was made"))))
    }

    /// Makes all of them equal in one transaction.
    pub(super) async fn move_all(&self, items: &[Item], progress: &Entry) -> Result<Vec<ReportedPartition>> {
        let mut last = None;
        for _ in 0..ATTEMPTS_MAX {
            let mut transaction = self.local.engine.begin(&self.database)?;
            let mut all = Vec::with_capacity(items.len());
            let mut failed = None;
            for item in items {
                match self.fill(&mut transaction, item, progress).await {
                    Ok(moved) => all.push(reported(item, moved)),
                    Err(error) => {
                        failed = Some(self.named(item, error));
                        break;
                    }
                }
            }
            let outcome = match failed {
                None => transaction.commit(CommitOptions::default()).await.map(|_| ()).map_err(SqlError::from),
                Some(error) => {
                    transaction.abort().await?;
                    Err(error)
                }
            };
            match outcome {
                Ok(()) => {
                    progress.done(items.len());
                    return Ok(all);
                }
                Err(error) if error.sqlstate == "40001" => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| SqlError::internal("no attempt was made")))
    }

    /// Puts the other side's rows into a transaction, in the place of those here that count.
    async fn fill(&self, transaction: &mut Transaction, item: &Item, progress: &Entry) -> Result<Moved> {
        // What is seen is seen before anything is read here: a change after that is a conflict.
        transaction.replace_partition(&self.table, self.seen(&item.key)?).await?;
        if let Some(predicate) = &self.predicate {
            let others = format!("({}) IS NOT TRUE", predicate.as_sql());
            self.append(transaction, self.local, &item.key, Some(&others), None).await?;
        }
        if item.there.rows == 0 {
            return Ok(Moved::default());
        }
        let predicate = self.predicate.as_ref().map(Predicate::as_sql);
        let moved = self.append(transaction, self.source, &item.key, predicate, Some(progress)).await?;
        if !moved.digest.same_values(&item.there) {
            // It changed there since it was compared, or not what is there has come.
            let condition = format!(" WHERE partition_key = {}", literal(&item.key.to_hex()));
            let now = self.digests_where(self.source, &condition).await?.remove(&item.key).unwrap_or_default();
            if !moved.digest.same_values(&now) {
                return Err(SqlError::new(
                    "40001",
                    format!("what came from {} is not what is there: rows changed meanwhile", self.source.name()),
                ));
            }
        }
        Ok(moved)
    }

    fn seen(&self, key: &PartitionKey) -> Result<SeenPartition> {
        let version = self.local.engine.version();
        let database = version.database(&self.database);
        let seen = database.and_then(|database| Some(database.seen_partition(database.table(&self.table)?, key)));
        let gone = || SqlError::new("42P01", format!("table {} was dropped meanwhile", self.shape.table));
        seen.ok_or_else(gone)
    }

    /// Appends a partition's rows as one side has them. A batch at a time is in memory, beside what the transaction holds.
    async fn append(
        &self,
        transaction: &mut Transaction,
        side: &dyn Source,
        key: &PartitionKey,
        condition: Option<&str>,
        progress: Option<&Entry>,
    ) -> Result<Moved> {
        let condition = condition.map_or_else(String::new, |condition| format!(" WHERE {condition}"));
        let sql = format!(
            "SELECT {} FROM partition_rows({}, {}){condition}",
            self.shape.columns(),
            literal(&self.shape.table),
            literal(&key.to_hex()),
        );
        let mut rows = side.query(&sql).await?;
        let hasher = RowHasher::new(&self.shape.schema)?;
        let (mut moved, mut gathered) = (Moved::default(), Gather::default());
        while let Some(batch) = rows.try_next().await? {
            let batch = self.typed(&batch)?;
            let bytes = batch.get_array_memory_size() as u64;
            moved.bytes += bytes;
            if let Some(progress) = progress {
                progress.moved(batch.num_rows() as u64, bytes);
            }
            if let Some(batch) = gathered.add(batch)? {
                moved.digest += self.append_batch(transaction, &hasher, batch).await?;
            }
        }
        if let Some(batch) = gathered.finish()? {
            moved.digest += self.append_batch(transaction, &hasher, batch).await?;
        }
        Ok(moved)
    }

    /// Hashed beside the thread that serves connections.
    async fn append_batch(
        &self,
        transaction: &mut Transaction,
        hasher: &RowHasher,
        batch: RecordBatch,
    ) -> Result<Digest> {
        let (hasher, hashed) = (hasher.clone(), batch.clone());
        let digest = tokio::task::spawn_blocking(move || hasher.values(&hashed));
        transaction.append(&self.table, batch).await?;
        Ok(digest.await.map_err(|error| SqlError::internal(error.to_string()))??)
    }

    /// The table's own columns: the other side's may be encoded in another way.
    fn typed(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let fields = self.shape.schema.fields();
        if batch.num_columns() != fields.len() {
            return Err(SqlError::internal(format!(
                "{} columns came, {} were asked for",
                batch.num_columns(),
                fields.len()
            )));
        }
        let columns = batch.columns().iter().zip(fields).map(|(column, field)| {
            let same = column.data_type() == field.data_type();
            if same { Ok(column.clone()) } else { Ok(cast(column, field.data_type())?) }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        if let Some((field, column)) =
            fields.iter().zip(&columns).find(|(field, column)| !field.is_nullable() && column.null_count() > 0)
        {
            return Err(SqlError::new(
                "23502",
                format!(
                    "column {:?} is NOT NULL here, and {} rows of a batch have NULL there",
                    field.name(),
                    column.null_count()
                ),
            ));
        }
        Ok(RecordBatch::try_new(self.shape.schema.clone(), columns)?)
    }

    /// An error with the partition's name.
    fn named(&self, item: &Item, error: SqlError) -> SqlError {
        let version = self.local.engine.version();
        let table = version.database(&self.database).and_then(|database| database.table(&self.table));
        let shown = table.and_then(|table| table.scheme.show(&item.key).ok()).unwrap_or_else(|| item.key.to_hex());
        SqlError { message: format!("partition {shown} of {}: {}", self.shape.table, error.message), ..error }
    }
}

fn reported(item: &Item, moved: Moved) -> ReportedPartition {
    let rows = if item.action == Action::Removed { item.here.rows } else { moved.digest.rows };
    ReportedPartition { key: item.key.clone(), action: item.action, rows, bytes: moved.bytes }
}

/// A row of `partition_digests`.
fn digest_of(batch: &RecordBatch, row: usize) -> Option<(PartitionKey, Digest)> {
    let text = |column: usize| {
        let column = cast(batch.columns().get(column)?, &datafusion::arrow::datatypes::DataType::Utf8).ok()?;
        let text = column.as_string::<i32>();
        text.is_valid(row).then(|| text.value(row).to_owned())
    };
    let rows = batch.columns().get(1)?.as_primitive_opt::<Int64Type>()?.value(row);
    let (rows, values) = (u64::try_from(rows).ok()?, Digest::parse_hex(&text(2)?)?);
    Some((PartitionKey::from_hex(&text(0)?)?, Digest { rows, values, identity: 0 }))
}
