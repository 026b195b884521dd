//! ALTER TABLE … DROP PARTITION: all rows of partitions at once, without reading them. Part of a transaction as INSERT is.

use std::{collections::HashMap, fmt};

use datafusion::sql::sqlparser::ast::{self, AlterTableOperation, Expr, UnaryOperator, Value, ValueWithSpan};
use tailrace_engine::{PartitionKey, TableVersion};

use super::{Kind, guard::Guard, insert::write, name::TableName, refuse::refuse};
use crate::{Outcome, Result, Session, SqlError};

const USAGE: &str = "ALTER TABLE bars DROP PARTITION ('2023-01-08'), or (('2023-01-08', 'A'), ('2023-01-09', NULL)) where \
                     a table is partitioned by several columns; the values are those of system.partitions";

/// A checked ALTER TABLE … DROP PARTITION.
#[derive(Debug)]
pub(crate) struct DropPartition {
    pub(crate) table: TableName,
    /// No error when the table is not there.
    table_if_exists: bool,
    drops: Vec<Drop>,
}

/// One DROP PARTITION (…).
#[derive(Debug)]
struct Drop {
    items: Vec<Item>,
    /// No error when a partition is not there.
    if_exists: bool,
}

#[derive(Debug)]
enum Item {
    /// A value: a partition where one column partitions the table, otherwise a part of the only one that is named.
    Value(Written),
    /// A partition.
    Tuple(Vec<Written>),
}

/// A partition column's value as `system.partitions` shows it; `None` is NULL.
type Written = Option<String>;

impl DropPartition {
    /// Checks ALTER TABLE as far as that goes without a catalog. Everything else that it can say is refused.
    pub(super) fn check(alter: ast::AlterTable) -> Result<Kind> {
        let drops = alter.operations.iter().map(|operation| match operation {
            AlterTableOperation::DropPartitions { partitions, if_exists } => Some((partitions, *if_exists)),
            _ => None,
        });
        let plain = alter.location.is_none() && alter.on_cluster.is_none() && alter.table_type.is_none();
        let Some(drops) = drops.collect::<Option<Vec<_>>>().filter(|drops| plain && !drops.is_empty()) else {
            return Err(refuse(&ast::Statement::AlterTable(alter)).hint("ALTER TABLE name DROP PARTITION (…)"));
        };
        let drop = |(partitions, if_exists): (&Vec<Expr>, bool)| {
            let items = partitions.iter().map(item).collect::<Result<_>>()?;
            Ok(Drop { items, if_exists })
        };
        let drops = drops.into_iter().map(drop).collect::<Result<_>>()?;
        let table = TableName::parse(&alter.name)?;
        Ok(Kind::DropPartition(Self { table, table_if_exists: alter.if_exists, drops }))
    }
}

/// Runs it.
pub(crate) async fn drop_partition(session: &Session, drop: &DropPartition, guard: &mut Guard) -> Result<Outcome> {
    const TAG: &str = "ALTER TABLE";
    let (database, table) = match session.resolve_table(&drop.table) {
        Err(error) if drop.table_if_exists && matches!(&*error.sqlstate, "42P01" | "3F000") => {
            return Ok(Outcome::noted(TAG, format!("table \"{}\" does not exist, skipping", drop.table)));
        }
        resolved => resolved?,
    };
    let (keys, mut notices) = find(drop, &table)?;
    let name = &table.table.name;
    let (_, warning) = write(session, &database, guard, async |write| {
        for key in keys {
            write.drop_partition(name, key).await?;
        }
        Ok(())
    })
    .await?;
    notices.extend(warning);
    Ok(Outcome::Done { tag: TAG.to_owned(), notices })
}

/// The keys of the partitions that are named, and what is to be said of those that are not there.
fn find(drop: &DropPartition, table: &TableVersion) -> Result<(Vec<PartitionKey>, Vec<crate::Notice>)> {
    let fields = table.table.partition_by.len();
    if fields == 0 {
        return Err(SqlError::new("42P16", format!("table \"{}\" is not partitioned", drop.table)));
    }
    let mut known: HashMap<Vec<Written>, &PartitionKey> = HashMap::new();
    for (key, _) in table.partitions() {
        let values = table.scheme.describe(key)?.into_iter().map(|(_, value)| value);
        known.insert(values.collect(), key);
    }
    let (mut keys, mut notices) = (Vec::new(), Vec::new());
    for Drop { items, if_exists } in &drop.drops {
        for partition in partitions(items, fields)? {
            match known.get(&partition) {
                Some(key) => keys.push((*key).clone()),
                None if *if_exists => notices.push(
                    format!("partition {} of \"{}\" does not exist, skipping", Shown(&partition), drop.table).into(),
                ),
                None => {
                    return Err(SqlError::new(
                        "42704",
                        format!("table \"{}\" has no partition {}", drop.table, Shown(&partition)),
                    )
                    .hint("system.partitions shows those there are; DROP IF EXISTS PARTITION passes over others"));
                }
            }
        }
    }
    keys.sort_unstable();
    keys.dedup();
    Ok((keys, notices))
}

/// What is in the parentheses, by partition.
fn partitions(items: &[Item], fields: usize) -> Result<Vec<Vec<Written>>> {
    let wrong = |count: usize| {
        SqlError::syntax(format!("{fields} columns partition the table, DROP PARTITION gives {count} values"))
            .hint(USAGE)
    };
    let values: Vec<Written> = items
        .iter()
        .filter_map(|item| match item {
            Item::Value(value) => Some(value.clone()),
            Item::Tuple(_) => None,
        })
        .collect();
    if fields > 1 && !values.is_empty() {
        return if values.len() == fields && values.len() == items.len() {
            Ok(vec![values])
        } else {
            Err(wrong(values.len()))
        };
    }
    let tuple = |item: &Item| match item {
        Item::Value(value) => Ok(vec![value.clone()]),
        Item::Tuple(values) if values.len() == fields => Ok(values.clone()),
        Item::Tuple(values) => Err(wrong(values.len())),
    };
    items.iter().map(tuple).collect()
}

fn item(expr: &Expr) -> Result<Item> {
    Ok(match expr {
        Expr::Tuple(values) => Item::Tuple(values.iter().map(value).collect::<Result<_>>()?),
        Expr::Nested(nested) => item(nested)?,
        other => Item::Value(value(other)?),
    })
}

fn value(expr: &Expr) -> Result<Written> {
    let other = || SqlError::syntax(format!("{expr} is no value of a partition")).hint(USAGE);
    Ok(match expr {
        Expr::Value(ValueWithSpan { value, .. }) => match value {
            Value::Null => None,
            Value::Boolean(value) => Some(value.to_string()),
            Value::Number(digits, _) => Some(digits.clone()),
            Value::Placeholder(_) => return Err(SqlError::unsupported("a parameter in DROP PARTITION")),
            text => Some(text.clone().into_string().ok_or_else(other)?),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match value(inner)? {
            Some(digits) if matches!(**inner, Expr::Value(ValueWithSpan { value: Value::Number(..), .. })) => {
                Some(format!("-{digits}"))
            }
            _ => return Err(other()),
        },
        Expr::TypedString(typed) => Some(typed.value.value.clone().into_string().ok_or_else(other)?),
        Expr::Nested(nested) => value(nested)?,
        _ => return Err(other()),
    })
}

/// As statements write it.
struct Shown<'a>(&'a [Written]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.0.iter().map(|value| match value {
            Some(value) => format!("'{}'", value.replace('\'', "''")),
            None => "NULL".to_owned(),
        });
        write!(f, "({})", values.collect::<Vec<_>>().join(", "))
    }
}
