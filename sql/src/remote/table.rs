//! A table of a remote cluster, and queries over it that are run there as a whole.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    arrow::datatypes::{Schema, SchemaRef},
    catalog::{Session, TableProvider},
    common::Result,
    error::DataFusionError,
    logical_expr::{Expr, TableProviderFilterPushDown, TableType},
    physical_plan::ExecutionPlan,
};

use super::{
    Remote,
    filter::{quoted, rendered},
    scan::remote_scan,
};
use crate::SqlError;

/// Longest filter that is sent, bytes: the other side takes statements of some MiB.
const FILTER_BYTES_MAX: usize = 1 << 20;

/// A table, with the columns it had when the statement was planned.
#[derive(Debug, Clone)]
pub(super) struct RemoteTable {
    pub(super) remote: Arc<Remote>,
    /// Its name there, quoted.
    from: String,
    pub(super) schema: SchemaRef,
}

impl RemoteTable {
    pub(super) fn new(remote: Arc<Remote>, from: String, schema: SchemaRef) -> Self {
        Self { remote, from, schema }
    }

    /// `FROM … WHERE …`, of filters that were all taken.
    pub(super) fn rows_of(&self, filters: &[Expr]) -> Result<String> {
        let mut sql = format!("FROM {}", self.from);
        for (index, filter) in filters.iter().enumerate() {
            let Some(filter) = rendered(filter, &self.schema) else {
                let error = SqlError::internal(format!("a filter cannot be sent: {filter}"));
                return Err(DataFusionError::External(Box::new(error)));
            };
            sql.push_str(if index == 0 { " WHERE " } else { " AND " });
            sql.push_str(&filter);
        }
        Ok(sql)
    }
}

#[async_trait]
impl TableProvider for RemoteTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// A filter is done there, wholly, or here, wholly.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let decide = |filter: &&Expr| match rendered(filter, &self.schema) {
            Some(sql) if sql.len() <= FILTER_BYTES_MAX / filters.len() => TableProviderFilterPushDown::Exact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(decide).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = match projection {
            Some(projection) => Arc::new(self.schema.project(projection)?),
            None => self.schema.clone(),
        };
        let columns = match schema.fields().is_empty() {
            // Rows are counted, nothing of them is wanted.
            true => "true AS counted".to_owned(),
            false => schema.fields().iter().map(|field| quoted(field.name())).collect::<Vec<_>>().join(", "),
        };
        let mut sql = format!("SELECT {columns} {}", self.rows_of(filters)?);
        if let Some(limit) = limit {
            sql.push_str(&format!(" LIMIT {limit}"));
        }
        Ok(remote_scan(&self.remote, sql, schema))
    }
}

/// A query that a remote cluster runs as a whole, with the columns that its plan here has.
#[derive(Debug)]
pub(super) struct RemoteQuery {
    pub(super) remote: Arc<Remote>,
    pub(super) sql: String,
    pub(super) schema: SchemaRef,
}

#[async_trait]
impl TableProvider for RemoteQuery {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let schema: Schema = self.schema.project(projection.unwrap_or(&all))?;
        let columns: Vec<_> = schema.fields().iter().map(|field| quoted(field.name())).collect();
        let mut sql = match projection {
            Some(projection) if *projection != all => {
                let columns = if columns.is_empty() { "true AS counted".to_owned() } else { columns.join(", ") };
                format!("SELECT {columns} FROM ({}) AS whole", self.sql)
            }
            _ => self.sql.clone(),
        };
        if let Some(limit) = limit {
            sql.push_str(&format!(" LIMIT {limit}"));
        }
        Ok(remote_scan(&self.remote, sql, Arc::new(schema)))
    }
}
