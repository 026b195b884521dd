//! A feed as DataFusion sees it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        compute::SortOptions,
        datatypes::{Schema, SchemaRef},
    },
    catalog::{Session, TableProvider},
    common::{DFSchema, DataFusionError, Result, tree_node::TreeNode},
    logical_expr::{Expr, TableProviderFilterPushDown, TableType, utils::conjunction},
    physical_expr::{LexOrdering, PhysicalSortExpr, expressions::Column},
    physical_plan::{ExecutionPlan, streaming::StreamingTableExec},
};
use parking_lot::Mutex;
use tailrace_engine::{
    COMMIT_TIME_COLUMN, ChangesRequest, ColumnId, DatabaseVersion, Engine, FEED_COLUMNS, ORDINAL_COLUMN,
    PartitionFilter, PartitionKey, PartitionScheme, SEQ_COLUMN, Table, TableVersion, feed_schema,
};
use tailrace_wal::{HistoryId, Seq};

use super::{Kind, bounds::Bounds, planner::Call, rows::Rows};
use crate::{
    SqlError,
    provider::{PinnedVersion, Pruner},
};

/// Partitions that are remembered as wanted or not.
const REMEMBERED: usize = 4096;

/// A call of `changes` or `tail`. It holds no version.
#[derive(Debug)]
pub(crate) struct Feed {
    engine: Arc<Engine>,
    history: HistoryId,
    database: String,
    table: Arc<Table>,
    scheme: Arc<PartitionScheme>,
    call: Call,
    schema: SchemaRef,
}

impl Feed {
    pub(super) fn new(engine: Arc<Engine>, database: &DatabaseVersion, table: &TableVersion, call: Call) -> Self {
        Self {
            engine,
            history: database.id,
            database: database.name.clone(),
            schema: feed_schema(&table.table.columns.iter().collect::<Vec<_>>()),
            table: table.table.clone(),
            scheme: table.scheme.clone(),
            call,
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.call.kind
    }

    /// Where the database is, as the statement sees it; an error when it is another by now.
    fn end(&self, state: &dyn Session) -> Result<(Seq, Seq)> {
        let version = PinnedVersion::of(state.config(), &self.engine);
        let database = version.database(&self.database).filter(|database| database.id == self.history);
        match database.and_then(|database| Some((database, database.table_by_id(self.table.id)?))) {
            Some((database, table)) if table.table == self.table => Ok((database.position.seq, database.restart_seq)),
            _ => {
                let name = format!("{}.{}", self.database, self.table.name);
                let error =
                    SqlError::new("0A000", format!("table {name:?} was changed after the statement was planned"));
                Err(DataFusionError::External(Box::new(error.hint("run the statement again"))))
            }
        }
    }

    /// Leaves partitions out that the filters exclude.
    fn partitions(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<PartitionFilter>> {
        let names: BTreeSet<&str> = self.table.columns.iter().map(|column| column.name.as_str()).collect();
        let own = |filter: &&Expr| filter.column_refs().iter().all(|column| names.contains(column.name.as_str()));
        let filters: Vec<Expr> = filters.iter().filter(own).cloned().collect();
        let fields = self.schema.fields().iter().skip(FEED_COLUMNS.len()).cloned().collect::<Vec<_>>();
        let pruner = Pruner::new(state, &Arc::new(Schema::new(fields)), &filters)?;
        if !pruner.concerns_partitions(&self.table) {
            return Ok(None);
        }
        let (table, scheme) = (self.table.clone(), self.scheme.clone());
        let remembered: Mutex<HashMap<PartitionKey, bool>> = Mutex::default();
        Ok(Some(Arc::new(move |key: &PartitionKey| {
            if let Some(wanted) = remembered.lock().get(key) {
                return Ok(*wanted);
            }
            // What cannot be told is read.
            let wanted = pruner.wants_partition(&table, &scheme, key).unwrap_or(true);
            let mut remembered = remembered.lock();
            if remembered.len() >= REMEMBERED {
                remembered.clear();
            }
            remembered.insert(key.clone(), wanted);
            Ok(wanted)
        })))
    }
}

#[async_trait]
impl TableProvider for Feed {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let is_plain = |filter: &Expr| {
            !filter
                .exists(|part| {
                    Ok(matches!(
                        part,
                        Expr::ScalarSubquery(_)
                            | Expr::Exists(_)
                            | Expr::InSubquery(_)
                            | Expr::OuterReferenceColumn(..)
                            | Expr::Placeholder(_)
                    ))
                })
                .unwrap_or(true)
        };
        let decide = |filter: &&Expr| match is_plain(filter) {
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(decide).collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (end, restart) = self.end(state)?;
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        // Columns of the table that are shown or decided by.
        let mut needed: BTreeSet<usize> = projection.iter().copied().collect();
        for column in filters.iter().flat_map(Expr::column_refs) {
            needed.insert(self.schema.index_of(&column.name)?);
        }
        let needed: Vec<usize> = needed.into_iter().filter_map(|index| index.checked_sub(FEED_COLUMNS.len())).collect();
        let columns: Vec<ColumnId> = needed.iter().map(|index| self.table.columns[*index].id).collect();
        let read: Vec<_> = needed.iter().map(|index| &self.table.columns[*index]).collect();
        let read = feed_schema(&read);
        let filter = match conjunction(filters.iter().cloned()) {
            Some(filter) => Some(state.create_physical_expr(filter, &DFSchema::try_from(read.as_ref().clone())?)?),
            None => None,
        };
        let shown = Arc::new(self.schema.project(&projection)?);
        let output = shown.fields().iter().map(|field| Ok(read.index_of(field.name())?)).collect::<Result<_>>()?;

        let bounds = Bounds::of(filters);
        let is_tail = self.call.kind == Kind::Tail;
        let before = |seq: Seq| Seq(seq.0.saturating_sub(1));
        // Without a position of its own, a tail begins now.
        let start = self.call.from.map(before).unwrap_or(if is_tail { end } else { Seq::ZERO });
        let after = start.max(bounds.from.map_or(Seq::ZERO, before));
        let upto = [self.call.upto, bounds.upto, (!is_tail).then_some(end)].into_iter().flatten().min();
        let request = ChangesRequest {
            history: self.history,
            table: self.table.clone(),
            columns,
            after,
            restart: (after == end).then_some(restart),
            upto,
            from_time: bounds.from_time,
            upto_time: bounds.upto_time,
            partitions: self.partitions(state, filters)?,
        };
        let rows = Rows {
            engine: self.engine.clone(),
            request,
            subscription: self.call.subscription.clone(),
            filter,
            output,
            schema: shown.clone(),
        };
        let ascending = SortOptions { descending: false, nulls_first: false };
        let orders = [&[SEQ_COLUMN, ORDINAL_COLUMN][..], &[COMMIT_TIME_COLUMN]];
        let orders = orders.into_iter().filter_map(|columns| {
            let present = columns.iter().map_while(|name| {
                let index = shown.index_of(name).ok()?;
                Some(PhysicalSortExpr::new(Arc::new(Column::new(name, index)), ascending))
            });
            LexOrdering::new(present.collect::<Vec<_>>())
        });
        let orders: Vec<_> = orders.collect();
        let is_endless = is_tail && upto.is_none() && limit.is_none();
        Ok(Arc::new(StreamingTableExec::try_new(shown, vec![Arc::new(rows)], None, orders, is_endless, limit)?))
    }
}
