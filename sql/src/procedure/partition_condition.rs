//! `where` of a backup and of a restore: a condition over the columns that a table is partitioned by picks whole
//! partitions.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use datafusion::{
    arrow::{array::ArrayRef, datatypes::Schema},
    common::{DFSchema, ScalarValue},
    execution::SessionState,
    logical_expr::{
        Expr, Volatility,
        interval_arithmetic::{Interval, NullableInterval},
        simplify::SimplifyContext,
    },
    optimizer::simplify_expressions::ExprSimplifier,
};
use tailrace_engine::{EngineError, PartitionCondition, PartitionKey, PartitionScheme, Table, partition::ColumnBounds};

use crate::{
    Result, Session, SqlError,
    statement::condition::{Condition, refused},
};

/// A condition that picks partitions. It is read when the table is known: that of a backup may not be here.
#[derive(Debug)]
struct Where {
    text: String,
    state: SessionState,
}

/// What `where` says.
pub(super) fn condition(session: &Session, text: &str) -> Arc<dyn PartitionCondition> {
    Arc::new(Where { text: text.to_owned(), state: session.planning_state() })
}

impl PartitionCondition for Where {
    fn text(&self) -> &str {
        &self.text
    }

    fn choose(&self, table: &Table, keys: &[PartitionKey]) -> tailrace_engine::Result<Vec<bool>> {
        self.pick(table, keys).map_err(|error| {
            EngineError::Invalid(match error.hint {
                Some(hint) => format!("{}; {hint}", error.message),
                None => error.message,
            })
        })
    }
}

impl Where {
    fn pick(&self, table: &Table, keys: &[PartitionKey]) -> Result<Vec<bool>> {
        let (schema, scheme) = (table.schema(), PartitionScheme::new(table)?);
        let condition = Condition::parse(&self.state, &schema, &self.text)?;
        if let Some(function) = condition.beyond(Volatility::Stable)? {
            return Err(refused(&format!("{function}, which is another for every row,")));
        }
        check_columns(table, &schema, &condition.expr)?;
        let frame = DFSchema::try_from(schema.as_ref().clone())?;
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(frame.clone()))
            .with_config_options(self.state.config_options().clone())
            .with_query_execution_start_time(self.state.execution_props().query_execution_start_time)
            .build();
        let simplifier = ExprSimplifier::new(context.clone());
        let expr = simplifier.simplify(simplifier.coerce(condition.expr, &frame)?)?;
        // Partitions of which the condition sees the same have one answer.
        let mut known: HashMap<Vec<Option<(ScalarValue, ScalarValue)>>, Option<bool>> = HashMap::new();
        let mut picked = Vec::with_capacity(keys.len());
        for key in keys {
            let (mut values, mut guarantees) = (Vec::new(), Vec::new());
            for column in expr.column_refs() {
                let bounds = bounds(table, &scheme, key, column.name())?;
                guarantees.push((Expr::Column(column.clone()), interval(&schema, column.name(), bounds.as_ref())?));
                values.push((column.name().to_owned(), bounds));
            }
            // A set has no order of its own.
            values.sort_by(|(one, _), (other, _)| one.cmp(other));
            let values: Vec<_> = values.into_iter().map(|(_, bounds)| bounds).collect();
            let answer = match known.get(&values) {
                Some(answer) => *answer,
                None => {
                    let simplifier = ExprSimplifier::new(context.clone()).with_guarantees(guarantees);
                    let answer = match simplifier.simplify(expr.clone())? {
                        Expr::Literal(ScalarValue::Boolean(Some(holds)), _) => Some(holds),
                        // As in WHERE, what is unknown does not hold.
                        Expr::Literal(value, _) if value.is_null() => Some(false),
                        _ => None,
                    };
                    known.insert(values, answer);
                    answer
                }
            };
            picked.push(answer.ok_or_else(|| self.cut(&scheme, key))?);
        }
        Ok(picked)
    }

    /// The error of a condition that cuts through a partition.
    fn cut(&self, scheme: &PartitionScheme, key: &PartitionKey) -> SqlError {
        let shown = scheme.show(key).unwrap_or_else(|_| key.to_hex());
        let what = format!(
            "where picks whole partitions, and {:?} can hold for some rows of partition {shown} and not for others",
            self.text
        );
        SqlError::new("22023", what).hint("compare with the bounds of partitions, or name them: partitions => '…'")
    }
}

/// Refuses a condition over anything but the columns that the partitions are made of.
fn check_columns(table: &Table, schema: &Schema, expr: &Expr) -> Result<()> {
    let sources: BTreeSet<&str> =
        table.partition_by.iter().filter_map(|(_, id)| table.column(*id)).map(|column| column.name.as_str()).collect();
    let mut names: Vec<&str> = expr.column_refs().into_iter().map(|column| column.name()).collect();
    names.sort_unstable();
    let Some(other) = names.into_iter().find(|name| !sources.contains(name)) else { return Ok(()) };
    let what = match schema.index_of(other) {
        Ok(_) => format!("where picks whole partitions, and table {} is not partitioned by {other:?}", table.name),
        Err(_) => format!("table {} has no column {other:?}", table.name),
    };
    Err(SqlError::new("22023", what).hint(match sources.is_empty() {
        true => "it has no partitions; a backup of some rows is one by query".to_owned(),
        false => format!("it is partitioned by {}", sources.into_iter().collect::<Vec<_>>().join(", ")),
    }))
}

/// Least and greatest value of a column in a partition; `None`: it is NULL there.
fn bounds(
    table: &Table,
    scheme: &PartitionScheme,
    key: &PartitionKey,
    column: &str,
) -> Result<Option<(ScalarValue, ScalarValue)>> {
    let value = |array: &ArrayRef| Ok::<_, SqlError>(ScalarValue::try_from_array(array, 0)?);
    let mut found: Option<(ScalarValue, ScalarValue)> = None;
    for ColumnBounds { column: id, min, max } in scheme.bounds(key)? {
        if table.column(id).is_none_or(|of| of.name != column) {
            continue;
        }
        let (Some(min), Some(max)) = (min, max) else { return Ok(None) };
        let (min, max) = (value(&min)?, value(&max)?);
        found = Some(match found {
            // Several fields of one column: it lies within all of them.
            Some((least, greatest)) => {
                (if min > least { min } else { least }, if max < greatest { max } else { greatest })
            }
            None => (min, max),
        });
    }
    found.map(Some).ok_or_else(|| SqlError::internal(format!("{column} is no column of a partition")))
}

fn interval(schema: &Schema, column: &str, bounds: Option<&(ScalarValue, ScalarValue)>) -> Result<NullableInterval> {
    Ok(match bounds {
        None => NullableInterval::Null { datatype: schema.field_with_name(column)?.data_type().clone() },
        Some((min, max)) if min == max => NullableInterval::from(min.clone()),
        Some((min, max)) => NullableInterval::NotNull { values: Interval::try_new(min.clone(), max.clone())? },
    })
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::{
            array::{Int64Array, RecordBatch, StringArray, TimestampSecondArray},
            datatypes::{DataType, TimeUnit},
        },
        prelude::SessionContext,
    };
    use tailrace_engine::{Column, ColumnId, SchemaVersion, TableId, partition::Transform};

    use super::*;

    fn table() -> Table {
        let column =
            |id, name: &str, data_type| Column { id: ColumnId(id), name: name.into(), data_type, nullable: true };
        Table {
            id: TableId(1),
            name: "bars".into(),
            schema_version: SchemaVersion(1),
            columns: vec![
                column(1, "at", DataType::Timestamp(TimeUnit::Second, None)),
                column(2, "exchange", DataType::Utf8),
                column(3, "id", DataType::Int64),
            ],
            partition_by: vec![(Transform::Day, ColumnId(1)), (Transform::Identity, ColumnId(2))],
            order_by: Vec::new(),
        }
    }

    /// Days 1970-01-01 to 03 on exchanges A and B, and NULL for both.
    fn keys() -> Vec<PartitionKey> {
        let at = [Some(0), Some(0), Some(86_400), Some(86_400), Some(172_800), Some(172_800), None];
        let exchange = [Some("A"), Some("B"), Some("A"), Some("B"), Some("A"), Some("B"), None];
        let batch = RecordBatch::try_new(
            table().schema(),
            vec![
                Arc::new(TimestampSecondArray::from(at.to_vec())),
                Arc::new(StringArray::from(exchange.to_vec())),
                Arc::new(Int64Array::from(vec![1; 7])),
            ],
        );
        let split = PartitionScheme::new(&table()).unwrap().split(&batch.unwrap()).unwrap();
        split.into_iter().map(|(key, _)| key).collect()
    }

    fn pick(text: &str) -> std::result::Result<String, String> {
        let mut state = SessionContext::new().state();
        state.mark_start_execution();
        let condition = Where { text: text.into(), state };
        let picked = condition.choose(&table(), &keys()).map_err(|error| error.to_string())?;
        Ok(picked.into_iter().map(|picked| if picked { 'x' } else { '.' }).collect())
    }

    #[test]
    fn whole_partitions_are_picked() {
        for (text, picked) in [
            ("at >= '1970-01-02'", "..xxxx."),
            ("at >= '1970-01-02' AND at < TIMESTAMP '1970-01-03 00:00:00'", "..xx..."),
            ("at > '1970-01-01 23:59:59'", "..xxxx."),
            ("'1970-01-02' > at", "xx....."),
            ("at BETWEEN '1970-01-01' AND '1970-01-02 23:59:59'", "xxxx..."),
            ("NOT (at >= '1970-01-02')", "xx....."),
            ("exchange = 'B'", ".x.x.x."),
            ("exchange LIKE 'A%' AND at < '1970-01-03'", "x.x...."),
            ("exchange IN ('A', 'C') OR at >= '1970-01-03'", "x.x.xx."),
            ("upper(exchange) <> 'A'", ".x.x.x."),
            ("at IS NULL", "......x"),
            ("exchange IS NOT NULL", "xxxxxx."),
            ("at < now()", "xxxxxx."),
            ("true", "xxxxxxx"),
            ("NULL = 1", "......."),
        ] {
            assert_eq!(pick(text).as_deref(), Ok(picked), "{text}");
        }
    }

    #[test]
    fn what_cuts_through_a_partition_or_asks_for_more_is_refused() {
        for (text, words) in [
            ("at >= '1970-01-02 12:00:00'", "partition ('1970-01-02', 'A')"),
            ("at = '1970-01-02'", "partition ('1970-01-02', 'A')"),
            ("extract(hour from at) < 12", "whole partitions"),
            ("id > 7", "not partitioned by \"id\"; it is partitioned by at, exchange"),
            ("at >= '1970-01-02' AND other = 7", "other"),
            ("at >= '1970-01-02') OR (true", "is no condition"),
            ("exchange", "not boolean"),
            ("exchange IN (SELECT 'A')", "a query in where"),
            ("random() < 0.5", "random()"),
            ("", "is no condition"),
        ] {
            let error = pick(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
