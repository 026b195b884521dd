//! Expressions as SQL for a remote cluster: those alone that mean the same there and here.
//!
//! Both sides are the same engine, so what has to be kept is what planning has added: types. Every literal is written with
//! its type, and a comparison is sent only when both of its sides have the same one, so that nothing is converted there
//! in another way than here. Everything else (functions, arithmetic, casts, NaN, NULL, binary, subqueries) stays here.

use datafusion::{
    arrow::{
        array::types::{Decimal128Type, DecimalType},
        datatypes::{DataType, Schema, TimeUnit},
    },
    common::ScalarValue,
    logical_expr::{Expr, Operator, expr::InList},
};

/// A name as it is, in quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A predicate over columns of `schema` in SQL; `None`: it stays here.
pub(super) fn rendered(predicate: &Expr, schema: &Schema) -> Option<String> {
    match typed(predicate, schema)? {
        (sql, DataType::Boolean) => Some(sql),
        _ => None,
    }
}

/// An expression with its type.
fn typed(expr: &Expr, schema: &Schema) -> Option<(String, DataType)> {
    let boolean = |sql: String| Some((sql, DataType::Boolean));
    let suffixed = |inner: &Expr, suffix: &str| {
        let (sql, _) = typed(inner, schema)?;
        boolean(format!("({sql} {suffix})"))
    };
    let truth = |inner: &Expr, suffix: &str| {
        let sql = rendered(inner, schema)?;
        boolean(format!("({sql} {suffix})"))
    };
    match expr {
        Expr::Column(column) => {
            let field = schema.field_with_name(&column.name).ok()?;
            Some((quoted(&column.name), field.data_type().clone()))
        }
        Expr::Literal(value, _) => Some((literal(value)?, value.data_type())),
        Expr::Alias(alias) => typed(&alias.expr, schema),
        Expr::BinaryExpr(binary) => {
            let ((left, left_type), (right, right_type)) =
                (typed(&binary.left, schema)?, typed(&binary.right, schema)?);
            let operator = match binary.op {
                Operator::And | Operator::Or if left_type != DataType::Boolean => return None,
                Operator::And => "AND",
                Operator::Or => "OR",
                Operator::Eq => "=",
                Operator::NotEq => "<>",
                Operator::Lt => "<",
                Operator::LtEq => "<=",
                Operator::Gt => ">",
                Operator::GtEq => ">=",
                Operator::IsDistinctFrom => "IS DISTINCT FROM",
                Operator::IsNotDistinctFrom => "IS NOT DISTINCT FROM",
                _ => return None,
            };
            if left_type != right_type {
                return None;
            }
            boolean(format!("({left} {operator} {right})"))
        }
        Expr::Not(inner) => {
            let sql = rendered(inner, schema)?;
            boolean(format!("(NOT {sql})"))
        }
        Expr::IsNull(inner) => suffixed(inner, "IS NULL"),
        Expr::IsNotNull(inner) => suffixed(inner, "IS NOT NULL"),
        Expr::IsTrue(inner) => truth(inner, "IS TRUE"),
        Expr::IsFalse(inner) => truth(inner, "IS FALSE"),
        Expr::IsNotTrue(inner) => truth(inner, "IS NOT TRUE"),
        Expr::IsNotFalse(inner) => truth(inner, "IS NOT FALSE"),
        Expr::Between(between) => {
            let (sql, of) = typed(&between.expr, schema)?;
            let ((low, low_type), (high, high_type)) = (typed(&between.low, schema)?, typed(&between.high, schema)?);
            let not = if between.negated { "NOT " } else { "" };
            (of == low_type && of == high_type)
                .then(|| (format!("({sql} {not}BETWEEN {low} AND {high})"), DataType::Boolean))
        }
        Expr::InList(InList { expr, list, negated }) => {
            let (sql, of) = typed(expr, schema)?;
            let values = list.iter().map(|value| match value {
                Expr::Literal(value, _) if value.data_type() == of => literal(value),
                _ => None,
            });
            let values = values.collect::<Option<Vec<_>>>()?;
            let not = if *negated { "NOT " } else { "" };
            (!values.is_empty()).then(|| (format!("({sql} {not}IN ({}))", values.join(", ")), DataType::Boolean))
        }
        // With an escape character of its own it stays here.
        Expr::Like(like) if like.escape_char.is_none() => {
            let ((sql, of), (pattern, pattern_type)) = (typed(&like.expr, schema)?, typed(&like.pattern, schema)?);
            let not = if like.negated { "NOT " } else { "" };
            let operator = if like.case_insensitive { "ILIKE" } else { "LIKE" };
            (of == DataType::Utf8 && pattern_type == of)
                .then(|| (format!("({sql} {not}{operator} {pattern})"), DataType::Boolean))
        }
        _ => None,
    }
}

/// A value with its type; `None` where its text would not be read back as the very same.
fn literal(value: &ScalarValue) -> Option<String> {
    let cast = |text: String, of: &str| Some(format!("CAST('{text}' AS {of})"));
    match value {
        ScalarValue::Boolean(Some(value)) => Some(if *value { "TRUE" } else { "FALSE" }.to_owned()),
        ScalarValue::Int8(Some(value)) => cast(value.to_string(), "TINYINT"),
        ScalarValue::Int16(Some(value)) => cast(value.to_string(), "SMALLINT"),
        ScalarValue::Int32(Some(value)) => cast(value.to_string(), "INT"),
        ScalarValue::Int64(Some(value)) => cast(value.to_string(), "BIGINT"),
        ScalarValue::UInt8(Some(value)) => cast(value.to_string(), "TINYINT UNSIGNED"),
        ScalarValue::UInt16(Some(value)) => cast(value.to_string(), "SMALLINT UNSIGNED"),
        ScalarValue::UInt32(Some(value)) => cast(value.to_string(), "INT UNSIGNED"),
        ScalarValue::UInt64(Some(value)) => cast(value.to_string(), "BIGINT UNSIGNED"),
        // The shortest text that is read back as the same number.
        ScalarValue::Float32(Some(value)) if value.is_finite() => cast(format!("{value:?}"), "REAL"),
        ScalarValue::Float64(Some(value)) if value.is_finite() => cast(format!("{value:?}"), "DOUBLE PRECISION"),
        ScalarValue::Decimal128(Some(value), precision, scale) if *scale >= 0 && *scale as u8 <= *precision => cast(
            <Decimal128Type as DecimalType>::format_decimal(*value, *precision, *scale),
            &format!("DECIMAL({precision}, {scale})"),
        ),
        ScalarValue::Utf8(Some(text)) => Some(format!("'{}'", text.replace('\'', "''"))),
        ScalarValue::Date32(Some(days)) => {
            let seconds = i64::from(*days).checked_mul(86_400)?;
            cast(moment(seconds, 0)?.format("%Y-%m-%d").to_string(), "DATE")
        }
        ScalarValue::TimestampSecond(Some(value), zone) => timestamp(*value, TimeUnit::Second, zone.as_deref()),
        ScalarValue::TimestampMillisecond(Some(value), zone) => {
            timestamp(*value, TimeUnit::Millisecond, zone.as_deref())
        }
        ScalarValue::TimestampMicrosecond(Some(value), zone) => {
            timestamp(*value, TimeUnit::Microsecond, zone.as_deref())
        }
        ScalarValue::TimestampNanosecond(Some(value), zone) => timestamp(*value, TimeUnit::Nanosecond, zone.as_deref()),
        _ => None,
    }
}

fn timestamp(value: i64, unit: TimeUnit, zone: Option<&str>) -> Option<String> {
    let (per_second, digits, name) = match unit {
        TimeUnit::Second => (1, 0, "Second"),
        TimeUnit::Millisecond => (1_000, 3, "Millisecond"),
        TimeUnit::Microsecond => (1_000_000, 6, "Microsecond"),
        TimeUnit::Nanosecond => (1_000_000_000, 9, "Nanosecond"),
    };
    let nanoseconds = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
    let moment = moment(value.div_euclid(per_second), u32::try_from(nanoseconds).ok()?)?;
    let text = match digits {
        0 => moment.format("%Y-%m-%dT%H:%M:%S"),
        3 => moment.format("%Y-%m-%dT%H:%M:%S%.3f"),
        6 => moment.format("%Y-%m-%dT%H:%M:%S%.6f"),
        _ => moment.format("%Y-%m-%dT%H:%M:%S%.9f"),
    };
    match zone {
        None => Some(format!("CAST('{text}' AS TIMESTAMP({digits}))")),
        // A name of a zone in SQL would take a setting of the session.
        Some("UTC") => Some(format!("arrow_cast('{text}Z', 'Timestamp({name}, Some(\"UTC\"))')")),
        Some(_) => None,
    }
}

/// A moment whose year has four digits: others have texts that are read in several ways.
fn moment(seconds: i64, nanoseconds: u32) -> Option<chrono::DateTime<chrono::Utc>> {
    use chrono::Datelike;
    chrono::DateTime::from_timestamp(seconds, nanoseconds).filter(|moment| (1..=9999).contains(&moment.year()))
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::datatypes::Field,
        prelude::{col, lit},
    };

    use super::*;

    fn schema() -> Schema {
        Schema::new(vec![
            Field::new("a", DataType::Int64, true),
            Field::new("sa\"id", DataType::Utf8, true),
            Field::new("x", DataType::Float64, true),
            Field::new("ok", DataType::Boolean, true),
        ])
    }

    fn sql(expr: Expr) -> Option<String> {
        rendered(&expr, &schema())
    }

    #[test]
    fn names_and_texts_are_quoted_and_literals_have_types() {
        let column = Expr::Column(datafusion::common::Column::new_unqualified("sa\"id"));
        assert_eq!(sql(column.eq(lit("it's"))).unwrap(), "(\"sa\"\"id\" = 'it''s')");
        assert_eq!(sql(col("a").gt(lit(i64::MIN))).unwrap(), "(\"a\" > CAST('-9223372036854775808' AS BIGINT))");
        assert_eq!(
            sql(col("ok").and(col("x").lt_eq(lit(0.1)))).unwrap(),
            "(\"ok\" AND (\"x\" <= CAST('0.1' AS DOUBLE PRECISION)))"
        );
        let moment = ScalarValue::TimestampMillisecond(Some(-1), None);
        assert_eq!(literal(&moment).unwrap(), "CAST('1969-12-31T23:59:59.999' AS TIMESTAMP(3))");
        assert_eq!(literal(&ScalarValue::Decimal128(Some(-105), 18, 2)).unwrap(), "CAST('-1.05' AS DECIMAL(18, 2))");
    }

    #[test]
    fn what_may_mean_something_else_there_stays_here() {
        for expr in [
            col("a").gt(lit(1_i32)),
            col("x").eq(lit(f64::NAN)),
            col("a").eq(Expr::Literal(ScalarValue::Int64(None), None)),
            (col("a") + lit(1_i64)).gt(lit(1_i64)),
            col("missing").eq(lit(1_i64)),
            col("a").in_list(vec![lit(1_i64), lit("x")], false),
            col("a").in_list(Vec::new(), false),
            col("a"),
            col("ok").eq(lit(ScalarValue::Date32(Some(i32::MAX)))),
            col("ok").or(col("a")),
        ] {
            assert_eq!(sql(expr.clone()), None, "{expr}");
        }
    }
}
