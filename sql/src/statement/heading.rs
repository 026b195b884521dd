//! What the columns of a query are called where the client gave no name: as PostgreSQL calls them.
//!
//! A function's column has the function's name, a cast keeps its column's name, other expressions are `?column?`. The names
//! are put on what the client is told, not into the plan: within a statement, names stay distinct.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{RecordBatch, RecordBatchOptions},
        datatypes::{Schema, SchemaRef},
    },
    execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter,
    sql::sqlparser::ast::{
        AccessExpr, DataType as SqlType, Expr, Ident, Query, SelectItem, SetExpr, Statement, TrimWhereField, Value,
    },
};
use futures::StreamExt;

use super::name::identifier;

/// The name of an expression that has none.
const NONE: &str = "?column?";

/// The schema that the client is told of a query's result: PostgreSQL's names for unnamed expressions.
pub(crate) fn headed(query: &Statement, schema: &SchemaRef) -> SchemaRef {
    let Statement::Query(query) = query else { return Arc::clone(schema) };
    let Some(items) = items(&query.body) else { return Arc::clone(schema) };
    let names = names(items, schema.fields().len());
    if names.iter().all(Option::is_none) {
        return Arc::clone(schema);
    }
    let fields = schema.fields().iter().zip(names).map(|(field, name)| match name {
        Some(name) if name != *field.name() => Arc::new(field.as_ref().clone().with_name(name)),
        _ => Arc::clone(field),
    });
    Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
}

/// The rows of a query under those names.
pub(crate) fn headed_rows(query: &Statement, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = headed(query, &rows.schema());
    if schema == rows.schema() {
        return rows;
    }
    let named = Arc::clone(&schema);
    let rows = rows.map(move |batch| {
        let batch = batch?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&named), batch.columns().to_vec(), &options)?)
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// Names of functions as the client wrote them, where a rewrite of the statement calls others: `current_user`.
pub(crate) fn keep_names(before: &Statement, after: &mut Statement) {
    let (Statement::Query(before), Statement::Query(after)) = (before, after) else { return };
    let (SetExpr::Select(before), SetExpr::Select(after)) = (before.body.as_ref(), after.body.as_mut()) else { return };
    if before.projection.len() != after.projection.len() {
        return;
    }
    for (before, after) in before.projection.iter().zip(&mut after.projection) {
        let (SelectItem::UnnamedExpr(was), SelectItem::UnnamedExpr(expr @ Expr::Function(_))) = (before, &*after)
        else {
            continue;
        };
        let (Some(was), Some(is)) = (name(was), name(expr)) else { continue };
        if was.text != is.text {
            *after = SelectItem::ExprWithAlias { expr: expr.clone(), alias: Ident::with_quote('"', was.text) };
        }
    }
}

/// The select list that names the columns: of a union its first.
fn items(body: &SetExpr) -> Option<&[SelectItem]> {
    match body {
        SetExpr::Select(select) => Some(&select.projection),
        SetExpr::Query(query) => items(&query.body),
        SetExpr::SetOperation { left, .. } => items(left),
        _ => None,
    }
}

/// A name for each of `count` columns whose expression has none of its own. Columns that stand between two wildcards keep
/// what they have: how many each stands for is not known here.
fn names(items: &[SelectItem], count: usize) -> Vec<Option<String>> {
    let wildcard = |item: &SelectItem| !matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
    let mut names = vec![None; count];
    let before = items.iter().position(wildcard);
    if before.is_none() && items.len() != count {
        return names;
    }
    let first = &items[..before.unwrap_or(items.len())];
    let last = before.and(items.iter().rposition(wildcard)).map_or(&[][..], |last| &items[last + 1..]);
    if first.len() + last.len() > count {
        return names;
    }
    let from_the_end = count - last.len();
    for (index, item) in first.iter().enumerate().chain((from_the_end..).zip(last)) {
        if let SelectItem::UnnamedExpr(expr) = item {
            names[index] = match expr {
                // Its own name is there already.
                Expr::Identifier(_) | Expr::CompoundIdentifier(_) => None,
                expr => Some(name(expr).map_or_else(|| NONE.to_owned(), |name| name.text)),
            };
        }
    }
    names
}

/// A name, and whether one that is found outside of it is better.
struct Name {
    text: String,
    weak: bool,
}

fn strong(text: impl Into<String>) -> Option<Name> {
    Some(Name { text: text.into(), weak: false })
}

fn weak(text: impl Into<String>) -> Option<Name> {
    Some(Name { text: text.into(), weak: true })
}

/// PostgreSQL's rules (`FigureColnameInternal` in its `parse_target.c`).
fn name(expr: &Expr) -> Option<Name> {
    match expr {
        Expr::Identifier(ident) => strong(identifier(ident)),
        Expr::CompoundIdentifier(idents) => strong(identifier(idents.last()?)),
        Expr::CompoundFieldAccess { root, access_chain } => match access_chain.last() {
            Some(AccessExpr::Dot(Expr::Identifier(ident))) => strong(identifier(ident)),
            _ => name(root),
        },
        Expr::Function(function) => strong(identifier(function.name.0.last()?.as_ident()?)),
        Expr::Cast { expr, data_type, .. } => match name(expr) {
            Some(found) if !found.weak => Some(found),
            _ => weak(type_name(data_type)),
        },
        Expr::TypedString(typed) => weak(type_name(&typed.data_type)),
        Expr::Interval(_) => weak("interval"),
        Expr::Value(value) if matches!(value.value, Value::Boolean(_)) => weak("bool"),
        Expr::Nested(expr) | Expr::Collate { expr, .. } => name(expr),
        Expr::Case { else_result, .. } => match else_result.as_deref().and_then(name) {
            Some(found) if !found.weak => Some(found),
            _ => weak("case"),
        },
        Expr::Exists { negated: false, .. } => strong("exists"),
        Expr::Subquery(query) => name_of_subquery(query),
        Expr::Array(_) => strong("array"),
        Expr::Tuple(_) => strong("row"),
        Expr::AtTimeZone { .. } => strong("timezone"),
        Expr::Extract { .. } => strong("extract"),
        Expr::Ceil { .. } => strong("ceil"),
        Expr::Floor { .. } => strong("floor"),
        Expr::Position { .. } => strong("position"),
        Expr::Substring { .. } => strong("substring"),
        Expr::Overlay { .. } => strong("overlay"),
        Expr::Trim { trim_where, .. } => strong(match trim_where {
            Some(TrimWhereField::Leading) => "ltrim",
            Some(TrimWhereField::Trailing) => "rtrim",
            Some(TrimWhereField::Both) | None => "btrim",
        }),
        _ => None,
    }
}

fn name_of_subquery(query: &Query) -> Option<Name> {
    match items(&query.body)?.first()? {
        SelectItem::ExprWithAlias { alias, .. } => strong(identifier(alias)),
        SelectItem::UnnamedExpr(expr) => name(expr),
        _ => None,
    }
}

/// PostgreSQL's own name of a type.
fn type_name(sql: &SqlType) -> String {
    let words = sql.to_string().to_lowercase();
    let word = words.split('(').next().unwrap_or(&words).trim();
    let name = match word {
        "smallint" => "int2",
        "int" | "integer" => "int4",
        "bigint" => "int8",
        "real" => "float4",
        "float" | "double" | "double precision" => "float8",
        "decimal" | "dec" => "numeric",
        "boolean" => "bool",
        "character varying" | "char varying" => "varchar",
        "char" | "character" => "bpchar",
        _ if word == "timestamptz" || words.ends_with("with time zone") => "timestamptz",
        _ if word.starts_with("timestamp") => "timestamp",
        word => word,
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::datatypes::{DataType, Field},
        sql::sqlparser::{dialect::PostgreSqlDialect, parser::Parser},
    };

    use super::*;

    /// Names of a query over columns that a plan would name `#0`, `#1` …
    fn headings(sql: &str, columns: usize) -> String {
        let query = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0);
        let fields = (0..columns).map(|index| Field::new(format!("#{index}"), DataType::Int64, true));
        let schema = headed(&query, &Arc::new(Schema::new(fields.collect::<Vec<_>>())));
        schema.fields().iter().map(|field| field.name().as_str()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn names_are_those_of_postgresql() {
        for (list, expected) in [
            ("count(*), min(market.bars.datetime), MAX(a) AS \"Most\"", "count|min|#2"),
            (
                "a, t.b, a + 1, -a, NOT a, a IS NULL, 'x', 1",
                "#0|#1|?column?|?column?|?column?|?column?|?column?|?column?",
            ),
            ("a::int, b::text::date, CAST(1 AS bigint), '2023-01-08'::date", "a|b|int8|date"),
            ("date '2023-01-08', interval '1 day', true, 1::double precision", "date|interval|bool|float8"),
            ("cast(a + 1 as timestamp(3)), now()::timestamptz, 1::numeric(18, 4)", "timestamp|now|numeric"),
            (
                "coalesce(a, b), nullif(a, b), pg_catalog.version(), current_date",
                "coalesce|nullif|version|current_date",
            ),
            ("CASE WHEN a THEN 1 END, CASE WHEN a THEN 1 ELSE b END, (a), (count(*))", "case|b|a|count"),
            ("(SELECT max(a) FROM t), EXISTS (SELECT 1), extract(year FROM a), trim(a)", "max|exists|extract|btrim"),
            ("count(*) OVER (), sum(a) FILTER (WHERE b), \"Quoted\"(a)", "count|sum|Quoted"),
        ] {
            let count = expected.split('|').count();
            assert_eq!(headings(&format!("SELECT {list} FROM t"), count), expected, "{list}");
        }
    }

    #[test]
    fn wildcards_stand_for_the_columns_that_are_left() {
        assert_eq!(headings("SELECT count(*), *, max(a) FROM t", 5), "count|#1|#2|#3|max");
        assert_eq!(headings("SELECT t.*, 1 FROM t", 3), "#0|#1|?column?");
        assert_eq!(headings("SELECT max(a), t.*, min(a), u.*, sum(a) FROM t, u", 6), "max|#1|#2|#3|#4|sum");
        assert_eq!(headings("SELECT * FROM t", 2), "#0|#1");
    }

    #[test]
    fn a_union_is_named_by_its_first_query() {
        assert_eq!(headings("(SELECT max(a) FROM t UNION SELECT min(a) AS m FROM t) ORDER BY 1", 1), "max");
        assert_eq!(headings("WITH x AS (SELECT 1) SELECT sum(a) FROM x", 1), "sum");
        assert_eq!(headings("VALUES (1, 2)", 2), "#0|#1");
    }
}
