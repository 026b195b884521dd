//! The engine's statistics as DataFusion's.

use datafusion::{
    arrow::{array::ArrayRef, datatypes::SchemaRef},
    common::{ColumnStatistics, Result, ScalarValue, Statistics, stats::Precision},
};
use tailrace_engine::{Datafile, Table};

/// Statistics of a datafile in the table's schema. Bounds that are no values of the column are inexact.
pub(super) fn of_datafile(table: &Table, schema: &SchemaRef, datafile: &Datafile) -> Result<Statistics> {
    let meta = &datafile.meta;
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = Precision::Exact(size(meta.rows));
    for (id, column) in &meta.statistics {
        let Some(index) = table.columns.iter().position(|column| column.id == *id) else { continue };
        let bound = |value: &Option<ArrayRef>| match scalar(value.as_ref())? {
            Some(value) if column.exact => Ok(Precision::Exact(value)),
            Some(value) => Ok(Precision::Inexact(value)),
            None => Ok::<_, datafusion::error::DataFusionError>(Precision::Absent),
        };
        statistics.column_statistics[index] = ColumnStatistics {
            null_count: Precision::Exact(size(column.null_count)),
            min_value: bound(&column.min)?,
            max_value: bound(&column.max)?,
            ..ColumnStatistics::new_unknown()
        };
    }
    Ok(statistics)
}

/// The one value of an array.
pub(super) fn scalar(value: Option<&ArrayRef>) -> Result<Option<ScalarValue>> {
    match value {
        Some(array) if array.len() == 1 => {
            Ok(Some(ScalarValue::try_from_array(array, 0)?).filter(|value| !value.is_null()))
        }
        _ => Ok(None),
    }
}

/// A count in memory's own measure.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
