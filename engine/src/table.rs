//! What a table is: columns with ids, partitioning, order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::{
    ColumnId, EngineError, ORDINAL_COLUMN, Result, SEQ_COLUMN, SchemaVersion, TableId, partition::Transform,
    types::check_type,
};

/// Most columns of a table.
pub const COLUMNS_MAX: usize = 4096;
/// Most partition fields of a table: their folders must fit into a path.
pub(crate) const PARTITION_FIELDS_MAX: usize = 8;
/// Longest name of a database, table or column, bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Names that change feeds and datafiles add beside a table's own columns.
pub(crate) const RESERVED_COLUMNS: [&str; 4] = [SEQ_COLUMN, ORDINAL_COLUMN, "_commit_time", "_op"];

/// Field metadata key under which Arrow and Parquet know a column's id.
pub const FIELD_ID_KEY: &str = "PARQUET:field_id";

/// A column as a statement asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnDefinition {
    /// Name, unique in the table without regard to case.
    pub name: String,
    /// One of the supported types ([`crate::types`]).
    pub data_type: DataType,
    /// Whether NULL is allowed.
    pub nullable: bool,
}

/// A table as a statement asks for it; names are resolved and checked by [`Table::create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableDefinition {
    /// Name.
    pub name: String,
    /// Columns in order.
    pub columns: Vec<ColumnDefinition>,
    /// `PARTITION BY VALUE (…)`: transform and column; empty for one partition.
    pub partition_by: Vec<(Transform, String)>,
    /// `ORDER BY (…)`: how datafiles are sorted.
    pub order_by: Vec<String>,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Identity, also the Parquet field id.
    pub id: ColumnId,
    /// Name now.
    pub name: String,
    /// Type.
    pub data_type: DataType,
    /// Whether NULL is allowed.
    pub nullable: bool,
}

/// A table as the catalog holds it and as its CREATE record carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// Identity within the history.
    pub id: TableId,
    /// Name now.
    pub name: String,
    /// Version of what follows.
    pub schema_version: SchemaVersion,
    /// Columns in order.
    pub columns: Vec<Column>,
    /// Partition fields in order.
    pub partition_by: Vec<(Transform, ColumnId)>,
    /// Sort columns in order, ascending, NULLs last.
    pub order_by: Vec<ColumnId>,
}

impl Table {
    /// Checks a definition and gives ids. Names in PARTITION BY and ORDER BY are found without regard to case.
    pub fn create(id: TableId, definition: TableDefinition) -> Result<Self> {
        let TableDefinition { name, columns, partition_by, order_by } = definition;
        let mut ids = BTreeMap::new();
        let mut named = Vec::with_capacity(columns.len().min(COLUMNS_MAX));
        for (column, number) in columns.into_iter().zip(1u32..) {
            let id = ColumnId(number);
            if ids.insert(column.name.to_lowercase(), id).is_some() {
                return Err(EngineError::AlreadyExists { kind: "column", name: column.name });
            }
            let ColumnDefinition { name, data_type, nullable } = column;
            named.push(Column { id, name, data_type, nullable });
        }
        let resolve = |name: String| match ids.get(&name.to_lowercase()) {
            Some(id) => Ok(*id),
            None => Err(EngineError::NotFound { kind: "column", name }),
        };
        let partition_by = partition_by.into_iter().map(|(transform, name)| Ok((transform, resolve(name)?)));
        let partition_by = partition_by.collect::<Result<_>>()?;
        let order_by = order_by.into_iter().map(resolve).collect::<Result<_>>()?;
        let table = Self { id, name, schema_version: SchemaVersion(1), columns: named, partition_by, order_by };
        table.check()?;
        Ok(table)
    }

    /// Whether this is a table that [`Table::create`] could have made: for tables that come from a peer or a file.
    pub fn check(&self) -> Result<()> {
        check_name("table", &self.name)?;
        // After the last id none would be left for the next table.
        if matches!(self.id.0, 0 | u32::MAX) || self.schema_version.0 == 0 {
            return Err(EngineError::Invalid(format!("table {:?} has no id or no schema version", self.name)));
        }
        if self.columns.is_empty() || self.columns.len() > COLUMNS_MAX {
            return Err(EngineError::Invalid(format!(
                "table {:?} has {} columns; it can have 1 to {COLUMNS_MAX}",
                self.name,
                self.columns.len()
            )));
        }
        let mut names = BTreeSet::new();
        let mut ids = BTreeMap::new();
        for column in &self.columns {
            check_name("column", &column.name)?;
            check_type(&column.data_type)?;
            let lower = column.name.to_lowercase();
            if RESERVED_COLUMNS.contains(&lower.as_str()) {
                return Err(EngineError::Invalid(format!(
                    "column name {:?} is reserved for row identities and change feeds; choose another",
                    column.name
                )));
            }
            let id_is_taken = ids.insert(column.id, column).is_some();
            // Field ids are signed 32-bit numbers, and the largest belong to the identity columns.
            if id_is_taken || column.id.0 == 0 || column.id.0 > 1 << 30 {
                return Err(EngineError::Invalid(format!("column {:?} has no id of its own", column.name)));
            }
            if !names.insert(lower) {
                return Err(EngineError::AlreadyExists { kind: "column", name: column.name.clone() });
            }
        }
        self.check_partitioning(&ids)?;
        self.check_order(&ids)
    }

    fn check_partitioning(&self, columns: &BTreeMap<ColumnId, &Column>) -> Result<()> {
        if self.partition_by.len() > PARTITION_FIELDS_MAX {
            return Err(EngineError::Invalid(format!(
                "PARTITION BY has {} fields; it can have {PARTITION_FIELDS_MAX} at most",
                self.partition_by.len()
            )));
        }
        let mut seen = BTreeSet::new();
        for (transform, id) in &self.partition_by {
            let column = found(columns, *id)?;
            transform.check(&column.name, &column.data_type)?;
            if !seen.insert((transform.name(), id)) {
                return Err(EngineError::Invalid(format!("PARTITION BY names {:?} twice", column.name)));
            }
        }
        Ok(())
    }

    fn check_order(&self, columns: &BTreeMap<ColumnId, &Column>) -> Result<()> {
        let mut seen = BTreeSet::new();
        for id in &self.order_by {
            let column = found(columns, *id)?;
            if !seen.insert(id) {
                return Err(EngineError::Invalid(format!("ORDER BY names {:?} twice", column.name)));
            }
        }
        Ok(())
    }

    /// The column with an id.
    pub fn column(&self, id: ColumnId) -> Option<&Column> {
        self.columns.iter().find(|column| column.id == id)
    }

    /// The Arrow schema, with field ids.
    pub fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|column| {
            Field::new(&column.name, column.data_type.clone(), column.nullable)
                .with_metadata([(FIELD_ID_KEY.to_owned(), column.id.to_string())].into())
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }
}

fn found<'a>(columns: &BTreeMap<ColumnId, &'a Column>, id: ColumnId) -> Result<&'a Column> {
    let column = columns.get(&id).copied();
    column.ok_or_else(|| EngineError::NotFound { kind: "column", name: format!("#{id}") })
}

/// Checks the name of a database, table or column: 1 to [`NAME_BYTES_MAX`] bytes without control characters.
pub fn check_name(kind: &'static str, name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let shown: String = name.chars().take(40).collect();
        return Err(EngineError::Invalid(format!(
            "{kind} name {shown:?} cannot be used: a name has 1 to {NAME_BYTES_MAX} bytes and no control characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow_schema::TimeUnit;

    use super::*;

    fn definition() -> TableDefinition {
        let column = |name: &str, data_type| ColumnDefinition { name: name.into(), data_type, nullable: true };
        TableDefinition {
            name: "bars".into(),
            columns: vec![
                column("security_id", DataType::Utf8),
                column("DateTime", DataType::Timestamp(TimeUnit::Second, None)),
                column("price", DataType::Float64),
                column("date", DataType::Date32),
            ],
            partition_by: vec![(Transform::Day, "datetime".into())],
            order_by: vec!["SECURITY_ID".into(), "datetime".into()],
        }
    }

    fn refused(change: impl FnOnce(&mut TableDefinition)) -> String {
        let mut definition = definition();
        change(&mut definition);
        Table::create(TableId(1), definition).unwrap_err().to_string()
    }

    #[test]
    fn names_are_resolved_without_regard_to_case() {
        let table = Table::create(TableId(7), definition()).unwrap();
        assert_eq!(table.partition_by, [(Transform::Day, ColumnId(2))]);
        assert_eq!(table.order_by, [ColumnId(1), ColumnId(2)]);
        assert_eq!(table.schema().field(1).name(), "DateTime");
        assert_eq!(table.schema().field(1).metadata()[FIELD_ID_KEY], "2");
    }

    #[test]
    fn a_table_survives_its_record() {
        let table = Table::create(TableId(7), definition()).unwrap();
        let text = serde_json::to_string(&table).unwrap();
        assert_eq!(serde_json::from_str::<Table>(&text).unwrap(), table);
    }

    #[test]
    fn wrong_definitions_are_refused_by_name() {
        assert!(refused(|d| d.columns[3].name = "datetime".into()).contains("\"datetime\" already exists"));
        assert!(refused(|d| d.columns[3].name = "_SEQ".into()).contains("reserved"));
        assert!(refused(|d| d.columns[3].name = "_op".into()).contains("reserved"));
        assert!(refused(|d| d.columns[3].name = String::new()).contains("1 to 255 bytes"));
        assert!(refused(|d| d.name = "x".repeat(256)).contains("1 to 255 bytes"));
        assert!(refused(|d| d.name = "a\0b".into()).contains("control"));
        assert!(refused(|d| d.columns.clear()).contains("\"datetime\" does not exist"));
        assert!(refused(|d| d.order_by = vec!["nope".into()]).contains("\"nope\" does not exist"));
        assert!(refused(|d| d.order_by = vec!["price".into(); 2]).contains("twice"));
        assert!(refused(|d| d.partition_by.push((Transform::Day, "datetime".into()))).contains("twice"));
        assert!(refused(|d| d.partition_by = vec![(Transform::Day, "price".into())]).contains("price"));
        assert!(refused(|d| d.partition_by = vec![(Transform::Hour, "date".into())]).contains("date"));
        assert!(refused(|d| d.partition_by = vec![(Transform::Identity, "price".into())]).contains("price"));
        assert!(refused(|d| d.columns[0].data_type = DataType::LargeUtf8).contains("Utf8"));
        let many = |d: &mut TableDefinition| {
            let column = |n| ColumnDefinition { name: format!("c{n}"), data_type: DataType::Int8, nullable: true };
            d.columns.extend((0..COLUMNS_MAX).map(column));
        };
        assert!(refused(many).contains("4100 columns"));
    }

    #[test]
    fn a_table_from_outside_is_checked() {
        let good = Table::create(TableId(7), definition()).unwrap();
        good.check().unwrap();
        for damage in [
            |t: &mut Table| t.columns[0].id = ColumnId(2),
            |t: &mut Table| t.columns[0].id = ColumnId(u32::MAX),
            |t: &mut Table| t.order_by = vec![ColumnId(9)],
            |t: &mut Table| t.partition_by = vec![(Transform::Hour, ColumnId(9))],
            |t: &mut Table| t.id = TableId(0),
            |t: &mut Table| t.id = TableId(u32::MAX),
        ] {
            let mut table = good.clone();
            damage(&mut table);
            table.check().unwrap_err();
        }
    }
}
