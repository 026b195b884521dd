//! A table as DataFusion sees it.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::{Field, Schema, SchemaRef},
    catalog::{Session, TableProvider},
    common::{DataFusionError, Result},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};
use tailrace_engine::{Chunk, Datafile, Engine, TableVersion};

use super::{PinnedVersion, cold, hot, pruning::Pruner};
use crate::SqlError;

/// A table of a database. It holds the schema it was planned with; rows are those of the statement's version.
#[derive(Debug)]
pub(crate) struct Table {
    engine: Arc<Engine>,
    database: String,
    planned: Arc<TableVersion>,
    schema: SchemaRef,
}

/// What of a table a scan reads.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    /// Rows in memory.
    pub(crate) chunks: Vec<Arc<Chunk>>,
    /// Rows in files.
    pub(crate) datafiles: Vec<Arc<Datafile>>,
}

impl Table {
    pub(crate) fn new(engine: Arc<Engine>, database: &str, planned: &Arc<TableVersion>) -> Self {
        let schema = public_schema(planned);
        Self { engine, database: database.to_owned(), planned: planned.clone(), schema }
    }

    /// The table in the statement's version; an error when it was dropped or changed since planning.
    fn pinned(&self, state: &dyn Session) -> Result<Arc<TableVersion>> {
        let version = PinnedVersion::of(state.config(), &self.engine);
        let planned = &self.planned.table;
        let table = version.database(&self.database).and_then(|database| database.table(&planned.name));
        match table {
            Some(table) if table.table == *planned => Ok(table.clone()),
            _ => {
                let error = SqlError::new(
                    "0A000",
                    format!("table \"{}.{}\" was changed after the statement was planned", self.database, planned.name),
                );
                Err(DataFusionError::External(Box::new(error.hint("run the statement again"))))
            }
        }
    }
}

#[async_trait]
impl TableProvider for Table {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // Filters prune here; the Parquet reader or a filter node above decides about rows.
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let table = self.pinned(state)?;
        let pruner = Pruner::new(state, &self.schema, filters)?;
        let selection = pruner.select(&table)?;
        let mut inputs = Vec::with_capacity(2);
        if !selection.chunks.is_empty() {
            inputs.push(hot::scan(state, &self.schema, &selection.chunks, projection, limit)?);
        }
        if !selection.datafiles.is_empty() {
            inputs.push(cold::scan(state, &self.schema, &table, &selection.datafiles, projection, limit)?);
        }
        match inputs.len() {
            0 => {
                let schema = match projection {
                    Some(projection) => Arc::new(self.schema.project(projection)?),
                    None => self.schema.clone(),
                };
                Ok(Arc::new(EmptyExec::new(schema)))
            }
            1 => Ok(inputs.remove(0)),
            _ => UnionExec::try_new(inputs),
        }
    }
}

/// The schema that queries see: no field ids, no hidden columns.
fn public_schema(table: &TableVersion) -> SchemaRef {
    let fields = table.schema.fields().iter();
    let fields = fields.map(|field| Field::new(field.name(), field.data_type().clone(), field.is_nullable()));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
