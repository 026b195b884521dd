//! What a table is on one side: columns, types, partitions.

use datafusion::arrow::{array::cast::AsArray, datatypes::SchemaRef};
use futures::TryStreamExt as _;
use tailrace_engine::{ColumnDefinition, TableDefinition, partition::Transform};

use super::{Source, literal, quoted};
use crate::{Result, SqlError};

/// A table on one side.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Its name as SQL writes it on both sides.
    pub(super) table: String,
    pub(super) schema: SchemaRef,
    /// As `system.tables` shows it: `day(datetime), security_id`.
    partition_by: Option<String>,
    order_by: Option<String>,
}

impl Shape {
    /// Asks a side.
    pub(super) async fn of(source: &dyn Source, database: &str, table: &str) -> Result<Self> {
        let name = format!("{}.{}", quoted(database), quoted(table));
        let rows = source.query(&format!("SELECT * FROM {name} LIMIT 0")).await?;
        let schema = rows.schema();
        let facts = format!(
            "SELECT partition_by, order_by FROM system.tables WHERE database = {} AND name = {}",
            literal(database),
            literal(table)
        );
        let facts: Vec<_> = source.query(&facts).await?.try_collect().await?;
        let fact = |column: usize| {
            let batch = facts.iter().find(|batch| batch.num_rows() == 1)?;
            let text = batch.columns().get(column)?.as_string_opt::<i32>()?.iter().next()?;
            text.map(str::to_owned)
        };
        Ok(Self { table: name, schema, partition_by: fact(0), order_by: fact(1) })
    }

    /// The columns' names as SQL writes them, in this side's order.
    pub(super) fn columns(&self) -> String {
        let names = self.schema.fields().iter().map(|field| quoted(field.name()));
        names.collect::<Vec<_>>().join(", ")
    }

    /// Refuses tables that differ in more than the order of their columns and of their rows, and says in what.
    pub(super) fn check_equal(&self, there: &Self, name: &str) -> Result<()> {
        let mut differences = Vec::new();
        for field in self.schema.fields() {
            match there.schema.field_with_name(field.name()) {
                Ok(other) if other.data_type() == field.data_type() => {}
                Ok(other) => differences.push(format!(
                    "column {:?} is {} here and {} there",
                    field.name(),
                    field.data_type(),
                    other.data_type()
                )),
                Err(_) => differences.push(format!("column {:?} is not there", field.name())),
            }
        }
        let known = |name: &str| self.schema.field_with_name(name).is_ok();
        let missing = there.schema.fields().iter().filter(|field| !known(field.name()));
        differences
            .extend(missing.map(|field| format!("column {:?} ({}) is not here", field.name(), field.data_type())));
        if self.partition_by != there.partition_by {
            let shown = |by: &Option<String>| {
                by.clone().map_or("is not partitioned".into(), |by| format!("is partitioned by {by}"))
            };
            differences.push(format!("it {} here and {} there", shown(&self.partition_by), shown(&there.partition_by)));
        }
        if differences.is_empty() {
            return Ok(());
        }
        let what = format!("table {} is not as on {name}: {}", self.table, differences.join("; "));
        Err(SqlError::new("42804", what)
            .hint("tables that are synchronized have the same columns, types and partitions"))
    }

    /// A table like this one.
    pub(super) fn definition(&self, name: &str) -> Result<TableDefinition> {
        let columns = self.schema.fields().iter().map(|field| ColumnDefinition {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            nullable: field.is_nullable(),
        });
        let unclear = |text: &str| {
            SqlError::unsupported(format!("making table {} by itself: {text:?} is not clear,", self.table))
                .hint("CREATE TABLE as it is there, then synchronize")
        };
        let is_column = |text: &str| self.schema.field_with_name(text).is_ok();
        let list = |text: &Option<String>| -> Vec<String> {
            text.iter().flat_map(|text| text.split(", ")).map(str::to_owned).collect()
        };
        let field = |text: String| {
            if is_column(&text) {
                return Ok((Transform::Identity, text));
            }
            let called = text.strip_suffix(')').and_then(|text| text.split_once('('));
            let transforms = [Transform::Year, Transform::Month, Transform::Day, Transform::Hour];
            let found = called.and_then(|(name, column)| {
                let transform = transforms.into_iter().find(|transform| transform.name() == name)?;
                is_column(column).then(|| (transform, column.to_owned()))
            });
            found.ok_or_else(|| unclear(&text))
        };
        let order = |text: String| if is_column(&text) { Ok(text) } else { Err(unclear(&text)) };
        Ok(TableDefinition {
            name: name.to_owned(),
            columns: columns.collect(),
            partition_by: list(&self.partition_by).into_iter().map(field).collect::<Result<_>>()?,
            order_by: list(&self.order_by).into_iter().map(order).collect::<Result<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};

    use super::*;

    fn shape(columns: &[(&str, DataType)], partition_by: Option<&str>) -> Shape {
        let fields: Vec<_> = columns.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect();
        Shape {
            table: "\"market\".\"bars\"".into(),
            schema: Arc::new(Schema::new(fields)),
            partition_by: partition_by.map(str::to_owned),
            order_by: Some("id".into()),
        }
    }

    #[test]
    fn what_differs_is_named() {
        let at = DataType::Timestamp(TimeUnit::Second, None);
        let here = shape(&[("id", DataType::Int64), ("at", at.clone()), ("x", DataType::Utf8)], Some("day(at)"));
        let other_order = shape(&[("x", DataType::Utf8), ("at", at.clone()), ("id", DataType::Int64)], Some("day(at)"));
        here.check_equal(&other_order, "siteb").unwrap();
        let there = shape(&[("id", DataType::Int32), ("at", at), ("y", DataType::Utf8)], Some("month(at)"));
        let error = here.check_equal(&there, "siteb").unwrap_err();
        for part in
            ["\"id\" is Int64 here and Int32 there", "\"x\" is not there", "\"y\" (Utf8) is not here", "month(at)"]
        {
            assert!(error.message.contains(part), "{}", error.message);
        }
    }

    #[test]
    fn a_table_can_be_made_of_what_is_shown_of_it() {
        let columns = [("id", DataType::Int64), ("at", DataType::Date32), ("day(at)", DataType::Utf8)];
        let made = shape(&columns, Some("month(at), id")).definition("bars").unwrap();
        assert_eq!(made.partition_by, [(Transform::Month, "at".to_owned()), (Transform::Identity, "id".to_owned())]);
        assert_eq!((made.order_by, made.columns.len()), (vec!["id".to_owned()], 3));
        shape(&columns, Some("week(at)")).definition("bars").unwrap_err();
    }
}
