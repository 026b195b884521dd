//! Which partitions and datafiles can hold wanted rows: by partition keys first, then by the files' statistics.

use std::{collections::HashSet, sync::Arc};

use datafusion::{
    arrow::{
        array::{ArrayRef, BooleanArray, UInt64Array},
        datatypes::SchemaRef,
    },
    catalog::Session,
    common::{Column, DFSchema, DataFusionError, Result, ScalarValue, pruning::PruningStatistics},
    logical_expr::{Expr, utils::conjunction},
    physical_optimizer::pruning::{PruningPredicate, PruningPredicateBuilder},
};
use tailrace_engine::{DatafileMeta, PartitionKey, PartitionScheme, PartitionVersion, Table, TableVersion};

use super::{statistics::scalar, table::Selection};

/// Decides by a query's filters.
pub(crate) struct Pruner {
    schema: SchemaRef,
    /// `None`: nothing can be left out.
    predicate: Option<PruningPredicate>,
    /// Columns that the filters speak of.
    columns: HashSet<String>,
}

/// What is known of the values of some rows.
#[derive(Debug, Default)]
struct Container {
    rows: u64,
    columns: Vec<Bounds>,
}

#[derive(Debug)]
struct Bounds {
    /// Index in the schema.
    column: usize,
    min: Option<ScalarValue>,
    max: Option<ScalarValue>,
    nulls: Option<u64>,
}

impl Pruner {
    pub(crate) fn new(state: &dyn Session, schema: &SchemaRef, filters: &[Expr]) -> Result<Self> {
        let none = Self { schema: schema.clone(), predicate: None, columns: HashSet::new() };
        let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(none) };
        let frame = DFSchema::try_from(schema.as_ref().clone())?;
        let Ok(filter) = state.create_physical_expr(filter, &frame) else { return Ok(none) };
        // A filter that cannot prune is no error.
        let predicate = PruningPredicateBuilder::new().with_file_schema(schema.clone()).try_build(filter).ok();
        let columns = filters.iter().flat_map(Expr::column_refs).map(|column| column.name.clone()).collect();
        Ok(Self { predicate: predicate.filter(|predicate| !predicate.always_true()), columns, ..none })
    }

    /// What has to be read of a table.
    pub(super) fn select(&self, table: &TableVersion) -> Result<Selection> {
        let mut selection = Selection::default();
        let mut files = Vec::new();
        for partition in self.partitions(table)? {
            selection.chunks.extend(partition.chunks.iter().filter(|chunk| chunk.batch.num_rows() > 0).cloned());
            files.extend(partition.datafiles.iter().cloned());
        }
        if let Some(predicate) = &self.predicate {
            let containers = files.iter().map(|file| self.of_file(table, &file.meta)).collect::<Result<Vec<_>>>()?;
            let mut keep = self.prune(predicate, containers)?.into_iter();
            files.retain(|_| keep.next().unwrap_or(true));
        }
        for file in files {
            // What was written lately is still in memory.
            match file.cached() {
                Some(chunks) => selection.chunks.extend(chunks.iter().cloned()),
                None => selection.datafiles.push(file),
            }
        }
        Ok(selection)
    }

    /// Whether a table's partitions can be told apart by the filters.
    pub(crate) fn concerns_partitions(&self, table: &Table) -> bool {
        let sources: Vec<_> = table.partition_by.iter().map(|(_, column)| *column).collect();
        let mut columns = table.columns.iter();
        self.predicate.is_some()
            && columns.any(|column| sources.contains(&column.id) && self.columns.contains(&column.name))
    }

    /// Whether a partition can hold wanted rows.
    pub(crate) fn wants_partition(&self, table: &Table, scheme: &PartitionScheme, key: &PartitionKey) -> Result<bool> {
        let Some(predicate) = &self.predicate else { return Ok(true) };
        let keep = self.prune(predicate, vec![of_partition(table, scheme, key, 1)?])?;
        Ok(keep.first().copied().unwrap_or(true))
    }

    fn partitions<'a>(&self, table: &'a TableVersion) -> Result<Vec<&'a Arc<PartitionVersion>>> {
        let all = || table.partitions().map(|(_, partition)| partition);
        let Some(predicate) = self.predicate.as_ref().filter(|_| self.concerns_partitions(&table.table)) else {
            return Ok(all().collect());
        };
        let containers =
            table.partitions().map(|(key, partition)| of_partition(&table.table, &table.scheme, key, partition.rows()));
        let keep = self.prune(predicate, containers.collect::<Result<Vec<_>>>()?)?;
        Ok(all().zip(keep).filter_map(|(partition, keep)| keep.then_some(partition)).collect())
    }

    fn of_file(&self, table: &TableVersion, meta: &DatafileMeta) -> Result<Container> {
        let mut container = Container { rows: meta.rows, columns: Vec::with_capacity(meta.statistics.len()) };
        for (id, statistics) in &meta.statistics {
            let Some(column) = table.table.columns.iter().position(|column| column.id == *id) else { continue };
            container.columns.push(Bounds {
                column,
                min: scalar(statistics.min.as_ref())?,
                max: scalar(statistics.max.as_ref())?,
                nulls: Some(statistics.null_count),
            });
        }
        Ok(container)
    }

    fn prune(&self, predicate: &PruningPredicate, containers: Vec<Container>) -> Result<Vec<bool>> {
        if containers.is_empty() {
            return Ok(Vec::new());
        }
        predicate.prune(&Containers { schema: &self.schema, containers })
    }
}

fn of_partition(table: &Table, scheme: &PartitionScheme, key: &PartitionKey, rows: u64) -> Result<Container> {
    let bounds = scheme.bounds(key).map_err(|error| DataFusionError::External(Box::new(error)))?;
    let mut container = Container { rows, columns: Vec::new() };
    for bound in bounds {
        let Some(column) = table.columns.iter().position(|column| column.id == bound.column) else {
            continue;
        };
        let (min, max) = (scalar(bound.min.as_ref())?, scalar(bound.max.as_ref())?);
        let nulls = if min.is_none() && max.is_none() { Some(rows) } else { None };
        container.columns.push(Bounds { column, min, max, nulls });
    }
    Ok(container)
}

struct Containers<'a> {
    schema: &'a SchemaRef,
    containers: Vec<Container>,
}

impl Containers<'_> {
    fn values(&self, column: &Column, value: impl Fn(&Bounds) -> &Option<ScalarValue>) -> Option<ArrayRef> {
        let index = self.schema.index_of(column.name()).ok()?;
        let null = ScalarValue::try_from(self.schema.field(index).data_type()).ok()?;
        let values = self.containers.iter().map(|container| {
            let bounds = container.columns.iter().find(|bounds| bounds.column == index);
            bounds.and_then(|bounds| value(bounds).clone()).unwrap_or_else(|| null.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }
}

impl PruningStatistics for Containers<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |bounds| &bounds.min)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.values(column, |bounds| &bounds.max)
    }

    fn num_containers(&self) -> usize {
        self.containers.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let index = self.schema.index_of(column.name()).ok()?;
        let counts = self.containers.iter().map(|container| {
            container.columns.iter().find(|bounds| bounds.column == index).and_then(|bounds| bounds.nulls)
        });
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(self.containers.iter().map(|container| Some(container.rows)).collect::<UInt64Array>()))
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}
