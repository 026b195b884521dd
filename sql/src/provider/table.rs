//! A table as DataFusion sees it.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::{Field, Schema, SchemaRef},
    catalog::{Session, TableProvider, default_table_source::source_as_provider},
    common::{DataFusionError, Result, tree_node::TreeNodeRecursion},
    execution::SessionState,
    logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType},
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};
use tailrace_engine::{Chunk, DatabaseVersion, Datafile, Engine, LeftOut, PartitionKey, TableVersion, Version};

use super::{PinnedVersion, cold, hot, pruning::Pruner};
use crate::SqlError;

/// A table of a database. It holds the schema it was planned with; rows are those of the statement's version.
#[derive(Debug)]
pub(crate) struct Table {
    engine: Arc<Engine>,
    database: String,
    planned: Arc<TableVersion>,
    schema: SchemaRef,
    /// `None`: all partitions.
    only: Option<PartitionKey>,
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
        Self { engine, database: database.to_owned(), planned: planned.clone(), schema, only: None }
    }

    /// One partition of it.
    pub(super) fn of_partition(
        engine: Arc<Engine>,
        database: &str,
        planned: &Arc<TableVersion>,
        key: PartitionKey,
    ) -> Self {
        Self { only: Some(key), ..Self::new(engine, database, planned) }
    }

    /// An error that says why, where the table's rows are left out here: it is not empty.
    fn check_here(&self, version: &Version) -> crate::Result<()> {
        let name = &self.planned.table.name;
        let database = version.database(&self.database);
        let left_out = database.and_then(|database| database.why_left_out(database.table(name)?));
        match left_out {
            None => Ok(()),
            Some(LeftOut { reason, remedy }) => {
                let text = format!("table \"{}.{name}\" is left out on this replica: {reason}", self.database);
                Err(SqlError::new("55000", text).hint(remedy))
            }
        }
    }

    /// Name of its database.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// The table in the statement's version; an error when it was dropped or changed since planning.
    pub(crate) fn pinned(&self, state: &dyn Session) -> Result<Arc<TableVersion>> {
        let version = PinnedVersion::of(state.config(), &self.engine);
        let planned = &self.planned.table;
        let table = version.database(&self.database).and_then(|database| database.table(&planned.name));
        match table {
            Some(table) if table.table == *planned => {
                self.check_here(&version).map_err(|error| DataFusionError::External(Box::new(error)))?;
                Ok(match &self.only {
                    Some(key) => Arc::new(table.only(key)),
                    None => table.clone(),
                })
            }
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

/// The one table that a query reads, with its database.
pub(crate) fn only_table(
    plan: &LogicalPlan,
    version: &Version,
) -> crate::Result<(Arc<DatabaseVersion>, Arc<TableVersion>)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut others = 0;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            match (provider.as_ref() as &dyn std::any::Any).downcast_ref::<Table>() {
                Some(table) => {
                    let name = (table.database.clone(), table.planned.table.name.clone());
                    if !found.contains(&name) {
                        found.push(name);
                    }
                }
                None => others += 1,
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    let [(database, table)] = &found[..] else {
        return Err(SqlError::unsupported(format!("a backup of a query that reads {} tables", found.len() + others))
            .hint("it reads one table of a database"));
    };
    if others > 0 {
        return Err(SqlError::unsupported("a backup of a query that reads something else beside its table"));
    }
    let database = version.database(database);
    let found = database.and_then(|database| Some((database.clone(), database.table(table)?.clone())));
    found.ok_or_else(|| SqlError::new("42P01", format!("table {table:?} is gone")))
}

/// A query that reads a table whose rows are left out here is refused, also where nothing of it would be scanned.
pub(crate) fn check_readable(state: &SessionState, plan: &LogicalPlan) -> crate::Result<()> {
    let mut refused = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
            && let Some(table) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<Table>()
            && let Err(error) = table.check_here(&PinnedVersion::of(state.config(), &table.engine))
        {
            refused = Some(error);
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    refused.map_or(Ok(()), Err)
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
