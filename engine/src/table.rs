//! What a table is: columns with ids, partitioning, order.

use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::{ColumnId, Result, SchemaVersion, TableId, partition::Transform};

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
    /// Checks a definition and gives ids.
    pub fn create(_id: TableId, _definition: TableDefinition) -> Result<Self> {
        todo!()
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
