//! A record's parts as rows of the table that a feed gives, whatever its columns were when they were written.

use std::{collections::HashMap, sync::Arc};

use arrow_array::new_null_array;
use arrow_schema::SchemaRef;
use parking_lot::Mutex;
use tailrace_wal::{HistoryHeader, PartEntry, Payload};

use super::{
    ChangesRequest, PartitionFilter,
    rows::{DROP_PARTITION, INSERT, Piece, feed_schema},
};
use crate::{
    Column, ColumnId, EngineError, Operation, Ordinal, PartitionKey, PartitionScheme, Result, SchemaVersion, Table,
    TableId, database::Database, operation::decode_body, part::decode_columns,
};

/// Decodes what belongs to one table.
pub(super) struct Decoder {
    database: Arc<Database>,
    table: Arc<Table>,
    wanted: Vec<Column>,
    partitions: Option<PartitionFilter>,
    /// Ways to the wanted columns from those of the schema versions met so far.
    layouts: Mutex<HashMap<SchemaVersion, Arc<Layout>>>,
}

/// How rows of one schema version become rows of the feed.
#[derive(Debug)]
struct Layout {
    schema: SchemaRef,
    /// Columns to decode, by index in `schema`.
    decoded: Vec<usize>,
    /// For each wanted column its place among `decoded`; `None`: it was added later.
    from: Vec<Option<usize>>,
}

impl Decoder {
    pub(super) fn new(database: Arc<Database>, request: &ChangesRequest) -> Result<Self> {
        let table = request.table.clone();
        let column = |id: &ColumnId| {
            let missing = || EngineError::NotFound { kind: "column", name: format!("#{id} of {:?}", table.name) };
            table.column(*id).cloned().ok_or_else(missing)
        };
        let wanted = request.columns.iter().map(column).collect::<Result<Vec<_>>>()?;
        let layout = Arc::new(Layout::new(&table, &wanted)?);
        let layouts = Mutex::new(HashMap::from([(table.schema_version, layout)]));
        Ok(Self { database, table, wanted, partitions: request.partitions.clone(), layouts })
    }

    pub(super) fn schema(&self) -> SchemaRef {
        feed_schema(&self.wanted.iter().collect::<Vec<_>>())
    }

    /// The rows of a record of the committed transaction `header`. `unwanted`: its rows are left out.
    pub(super) fn pieces(
        &self,
        header: &HistoryHeader,
        skipped: bool,
        unwanted: bool,
        payload: &Payload,
    ) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for (index, entry) in payload.directory.parts.iter().enumerate() {
            let table = TableId(entry.table);
            // Part 0 of a table concerns the whole database.
            if table != self.table.id && table.0 != 0 {
                continue;
            }
            // One that was retried since is in the table, and its record is as it was.
            if skipped && self.database.version().skipped.contains_key(&header.seq) {
                return Err(EngineError::ChangesSkipped { table: self.name(), seq: header.seq });
            }
            let operation = Operation::from_code(entry.operation).ok_or_else(|| {
                EngineError::Unsupported(format!(
                    "operation {} of transaction {} is not known to this version, upgrade this node first; until then it",
                    entry.operation, header.seq
                ))
            })?;
            let ended = |what: &str| {
                EngineError::FeedEnded(format!(
                    "{what} was dropped by transaction {}: its change feed ends",
                    header.seq
                ))
            };
            match operation {
                Operation::Append | Operation::DropPartition if unwanted => {}
                Operation::Append => pieces.extend(self.append(header, entry, payload, index)?),
                Operation::DropPartition => pieces.extend(self.drop_partition(header, entry)?),
                Operation::CreateTable => {
                    let table: Table = decode_body(operation, &payload.part_bytes(index))?;
                    table.check()?;
                    self.learn(&table)?;
                }
                Operation::DropTable => return Err(ended(&format!("table {:?}", self.name()))),
                Operation::DropDatabase => return Err(ended(&format!("database {:?}", self.database.name))),
                Operation::CreateDatabase | Operation::DigestPoint | Operation::System => {}
            }
        }
        Ok(pieces)
    }

    fn append(
        &self,
        header: &HistoryHeader,
        entry: &PartEntry,
        payload: &Payload,
        index: usize,
    ) -> Result<Option<Piece>> {
        if let Some(wanted) = &self.partitions
            && !wanted(&PartitionKey(entry.partition.clone()))?
        {
            return Ok(None);
        }
        let layout = self.layout(SchemaVersion(entry.schema_version))?;
        let bytes = payload.part_bytes(index);
        let batch = decode_columns(bytes, &layout.schema, entry.rows, Some(&layout.decoded))?;
        let rows = batch.num_rows();
        let columns = layout.from.iter().zip(&self.wanted).map(|(from, wanted)| match from {
            Some(place) => batch.column(*place).clone(),
            None => new_null_array(&wanted.data_type, rows),
        });
        let columns: Vec<_> = columns.collect();
        Ok(Some(Piece {
            seq: header.seq,
            commit_time: header.commit_time,
            first_ordinal: Ordinal(entry.first_ordinal),
            operation: INSERT,
            bytes: entry.length as usize,
            columns,
            rows,
        }))
    }

    /// One row, which stands for all that the partition had: see [`DROP_PARTITION`].
    fn drop_partition(&self, header: &HistoryHeader, entry: &PartEntry) -> Result<Option<Piece>> {
        let key = PartitionKey(entry.partition.clone());
        if let Some(wanted) = &self.partitions
            && !wanted(&key)?
        {
            return Ok(None);
        }
        // Columns that partition a table keep their types.
        let bounds = PartitionScheme::new(&self.table)?.bounds(&key)?;
        let value = |wanted: &Column| {
            let first = bounds.iter().find(|bounds| bounds.column == wanted.id).and_then(|bounds| bounds.min.clone());
            first.unwrap_or_else(|| new_null_array(&wanted.data_type, 1))
        };
        Ok(Some(Piece {
            seq: header.seq,
            commit_time: header.commit_time,
            first_ordinal: Ordinal(entry.first_ordinal),
            operation: DROP_PARTITION,
            bytes: entry.partition.len(),
            columns: self.wanted.iter().map(value).collect(),
            rows: 1,
        }))
    }

    fn layout(&self, version: SchemaVersion) -> Result<Arc<Layout>> {
        if let Some(layout) = self.layouts.lock().get(&version) {
            return Ok(layout.clone());
        }
        // Changed since the feed began.
        let newest = self.database.version();
        if let Some(table) = newest.table_by_id(self.table.id)
            && table.table.schema_version == version
        {
            return self.learn(&table.table);
        }
        Err(EngineError::Unsupported(format!(
            "reading rows of table {:?} that have schema version {version}, which this feed has not seen,",
            self.name()
        )))
    }

    fn learn(&self, table: &Table) -> Result<Arc<Layout>> {
        let layout = Arc::new(Layout::new(table, &self.wanted)?);
        self.layouts.lock().insert(table.schema_version, layout.clone());
        Ok(layout)
    }

    fn name(&self) -> String {
        format!("{}.{}", self.database.name, self.table.name)
    }
}

impl Layout {
    fn new(table: &Table, wanted: &[Column]) -> Result<Self> {
        let mut decoded = Vec::new();
        let mut from = Vec::with_capacity(wanted.len());
        for column in wanted {
            let Some(index) = table.columns.iter().position(|written| written.id == column.id) else {
                from.push(None);
                continue;
            };
            let written = &table.columns[index].data_type;
            if *written != column.data_type {
                return Err(EngineError::FeedEnded(format!(
                    "column {:?} of table {:?} was {written} and is {}: start the change feed again",
                    column.name, table.name, column.data_type
                )));
            }
            from.push(Some(decoded.len()));
            decoded.push(index);
        }
        Ok(Self { schema: table.schema(), decoded, from })
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::DataType;

    use super::*;
    use crate::{ColumnDefinition, TableDefinition};

    fn table(columns: &[(u32, &str, DataType)]) -> Table {
        let definition = TableDefinition {
            name: "t".into(),
            columns: columns
                .iter()
                .map(|(_, name, data_type)| ColumnDefinition {
                    name: (*name).to_owned(),
                    data_type: data_type.clone(),
                    nullable: true,
                })
                .collect(),
            partition_by: Vec::new(),
            order_by: Vec::new(),
        };
        let mut table = Table::create(TableId(1), definition).unwrap();
        for (column, (id, ..)) in table.columns.iter_mut().zip(columns) {
            column.id = ColumnId(*id);
        }
        table
    }

    #[test]
    fn columns_are_found_by_id_whatever_they_were_called_then() {
        let now = table(&[(3, "c", DataType::Int64), (4, "added", DataType::Utf8), (1, "renamed", DataType::Utf8)]);
        let then = table(&[(1, "a", DataType::Utf8), (2, "dropped", DataType::Utf8), (3, "c", DataType::Int64)]);
        let layout = Layout::new(&then, &now.columns).unwrap();
        assert_eq!((layout.decoded, layout.from), (vec![2, 0], vec![Some(0), None, Some(1)]));
        let other = table(&[(3, "c", DataType::Int32)]);
        let error = Layout::new(&other, &now.columns).unwrap_err().to_string();
        assert!(error.contains("Int32") && error.contains("start the change feed again"), "{error}");
    }
}
