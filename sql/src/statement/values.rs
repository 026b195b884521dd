//! Rows of literals and parameters: from the parsed statement to Arrow without planning a query.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{
            ArrayRef, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray, new_null_array,
        },
        compute::concat,
        datatypes::{DataType, Field},
    },
    common::ScalarValue,
    sql::sqlparser::ast::{Expr, UnaryOperator, Value, ValueWithSpan, Values},
};

use super::{
    cast::{Target, assignable, cast_column, text_error},
    parse::placeholder,
    types::{column_type, type_name},
};
use crate::{Result, SqlError};

/// Rows of literals, row by row.
#[derive(Debug)]
pub(crate) struct Literals {
    width: usize,
    rows: usize,
    cells: Vec<Cell>,
}

/// One value as it was written.
#[derive(Debug)]
enum Cell {
    Null,
    /// `-1.5`, as text.
    Number(String),
    /// `'text'`.
    Text(String),
    /// `TIMESTAMP 'text'`, `'text'::date`.
    Typed(DataType, String),
    Boolean(bool),
    /// `$n`.
    Parameter(usize),
}

impl Literals {
    /// Reads VALUES; `None` when an expression in it has to be planned.
    pub(super) fn read(values: &Values) -> Result<Option<Self>> {
        let width = values.rows.first().map_or(0, |row| row.content.len());
        let mut cells = Vec::with_capacity(width * values.rows.len());
        for row in &values.rows {
            let row = &row.content;
            if row.len() != width {
                return Err(SqlError::syntax("VALUES lists must all be the same length"));
            }
            for expr in row {
                match cell(expr)? {
                    Some(cell) => cells.push(cell),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(Self { width, rows: values.rows.len(), cells }))
    }

    /// Types of `$1` to `$count`: those of the columns they go into.
    pub(super) fn parameter_types(&self, target: &Target, count: usize) -> Result<Vec<Option<DataType>>> {
        self.check_width(target)?;
        let mut types = vec![None; count];
        for (index, cell) in self.cells.iter().enumerate() {
            if let Cell::Parameter(number) = cell
                && let Some(wanted) = types.get_mut(number - 1)
                && wanted.is_none()
            {
                *wanted = target.field(index % self.width).map(|field| field.data_type().clone());
            }
        }
        Ok(types)
    }

    /// The rows as a batch of the table's schema.
    pub(super) fn batch(&self, target: &Target, parameters: &[ScalarValue]) -> Result<RecordBatch> {
        self.check_width(target)?;
        let columns = (0..self.width).map(|column| {
            let field = target.field(column).ok_or_else(|| SqlError::internal("a value without a column"))?;
            self.column(column, field, parameters)
        });
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        target.assemble(&columns, self.rows)
    }

    fn check_width(&self, target: &Target) -> Result<()> {
        target.check_types(&vec![DataType::Null; self.width])
    }

    fn column(&self, column: usize, field: &Field, parameters: &[ScalarValue]) -> Result<ArrayRef> {
        let cells = || self.cells.iter().skip(column).step_by(self.width);
        if cells().any(|cell| matches!(cell, Cell::Parameter(_))) {
            let pieces = cells().map(|cell| match cell {
                Cell::Parameter(number) => {
                    let value = parameters.get(number - 1).ok_or_else(|| {
                        SqlError::new(
                            "08P01",
                            format!("parameter ${number} has no value: {} are there", parameters.len()),
                        )
                    })?;
                    if value.is_null() {
                        return Ok(new_null_array(field.data_type(), 1));
                    }
                    cast_column(&value.to_array()?, field)
                }
                other => literal_column([other].into_iter(), field),
            });
            let pieces: Vec<_> = pieces.collect::<Result<_>>()?;
            return match &pieces[..] {
                [piece] => Ok(piece.clone()),
                pieces => Ok(concat(&pieces.iter().map(AsRef::as_ref).collect::<Vec<_>>())?),
            };
        }
        literal_column(cells(), field)
    }
}

/// A column of literals. Most are read by the cast from text that serves every other source, too; common numbers take
/// a short cut.
fn literal_column<'a>(cells: impl Iterator<Item = &'a Cell> + Clone, field: &Field) -> Result<ArrayRef> {
    for cell in cells.clone() {
        check_cell(cell, field)?;
    }
    if let Some(column) = numbers(cells.clone(), field.data_type()) {
        return Ok(column);
    }
    let texts = cells.map(|cell| match cell {
        Cell::Null | Cell::Parameter(_) => Ok(None),
        Cell::Number(text) if field.data_type().is_integer() && text.contains(['.', 'e', 'E']) => {
            let number: f64 = text.parse().map_err(|_| text_error(text, field))?;
            Ok(Some(format!("{:.0}", number.round_ties_even())))
        }
        Cell::Number(text) | Cell::Text(text) | Cell::Typed(_, text) => Ok(Some(text.clone())),
        Cell::Boolean(value) => Ok(Some(value.to_string())),
    });
    let texts: StringArray = texts.collect::<Result<_>>()?;
    let texts: ArrayRef = Arc::new(texts);
    cast_column(&texts, field)
}

/// Numbers into the commonest types; `None` when a cell does not fit and the cast has to say why.
fn numbers<'a>(cells: impl Iterator<Item = &'a Cell>, data_type: &DataType) -> Option<ArrayRef> {
    fn parse<'a, T: std::str::FromStr>(cells: impl Iterator<Item = &'a Cell>) -> Option<Vec<Option<T>>> {
        cells
            .map(|cell| match cell {
                Cell::Null => Some(None),
                Cell::Number(text) => text.parse().ok().map(Some),
                _ => None,
            })
            .collect()
    }
    Some(match data_type {
        DataType::Int32 => Arc::new(Int32Array::from(parse::<i32>(cells)?)),
        DataType::Int64 => Arc::new(Int64Array::from(parse::<i64>(cells)?)),
        DataType::Float32 => {
            let values = parse::<f32>(cells)?;
            if values.iter().flatten().any(|value| value.is_infinite()) {
                return None;
            }
            Arc::new(Float32Array::from(values))
        }
        DataType::Float64 => {
            let values = parse::<f64>(cells)?;
            if values.iter().flatten().any(|value| value.is_infinite()) {
                return None;
            }
            Arc::new(Float64Array::from(values))
        }
        _ => return None,
    })
}

/// Whether a literal of this kind may go into the column at all.
fn check_cell(cell: &Cell, field: &Field) -> Result<()> {
    let given = match cell {
        Cell::Null | Cell::Text(_) | Cell::Parameter(_) => return Ok(()),
        Cell::Number(_) => &DataType::Float64,
        Cell::Boolean(_) => &DataType::Boolean,
        Cell::Typed(data_type, _) => data_type,
    };
    if assignable(given, field.data_type()) {
        return Ok(());
    }
    let given = if matches!(cell, Cell::Number(_)) { "a number".to_owned() } else { type_name(given) };
    Err(SqlError::new(
        "42804",
        format!("column {:?} is {}, {given} was given", field.name(), type_name(field.data_type())),
    ))
}

/// A literal or parameter; `None` for anything that needs planning.
fn cell(expr: &Expr) -> Result<Option<Cell>> {
    Ok(Some(match expr {
        Expr::Value(ValueWithSpan { value, .. }) => match value {
            Value::Null => Cell::Null,
            Value::Number(text, _) => Cell::Number(text.clone()),
            Value::SingleQuotedString(text) | Value::EscapedStringLiteral(text) => Cell::Text(text.clone()),
            Value::DollarQuotedString(text) => Cell::Text(text.value.clone()),
            Value::Boolean(value) => Cell::Boolean(*value),
            Value::Placeholder(name) => Cell::Parameter(placeholder(name)?),
            _ => return Ok(None),
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match cell(expr)? {
            Some(Cell::Number(text)) if !text.starts_with('-') => Cell::Number(format!("-{text}")),
            _ => return Ok(None),
        },
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => match cell(expr)? {
            Some(Cell::Number(text)) => Cell::Number(text),
            _ => return Ok(None),
        },
        Expr::Nested(expr) => return cell(expr),
        // There are no defaults: DEFAULT is NULL, as in PostgreSQL.
        Expr::Identifier(word) if word.quote_style.is_none() && word.value.eq_ignore_ascii_case("default") => {
            Cell::Null
        }
        Expr::TypedString(typed) => match &typed.value.value {
            Value::SingleQuotedString(text) if is_time(&typed.data_type) => {
                Cell::Typed(column_type(&typed.data_type)?, text.clone())
            }
            _ => return Ok(None),
        },
        Expr::Cast { expr, data_type, array: false, format: None, .. } if is_time(data_type) => match cell(expr)? {
            Some(Cell::Text(text)) => Cell::Typed(column_type(data_type)?, text),
            _ => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

/// Types whose typed literals can be read as plain text by a column of time.
fn is_time(data_type: &datafusion::sql::sqlparser::ast::DataType) -> bool {
    matches!(column_type(data_type), Ok(DataType::Timestamp(datafusion::arrow::datatypes::TimeUnit::Microsecond, None)))
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::{
            array::AsArray,
            datatypes::{Decimal128Type, Schema, TimeUnit, TimestampSecondType},
        },
        sql::sqlparser::{
            ast::{SetExpr, Statement},
            dialect::PostgreSqlDialect,
            parser::Parser,
        },
    };

    use super::*;

    fn literals(sql: &str) -> Option<Literals> {
        let Statement::Query(query) = Parser::parse_sql(&PostgreSqlDialect {}, sql).unwrap().remove(0) else {
            panic!("{sql} is no query");
        };
        let SetExpr::Values(values) = query.body.as_ref() else { panic!("{sql} is no VALUES") };
        Literals::read(values).unwrap()
    }

    fn batch(sql: &str, types: Vec<DataType>, parameters: &[ScalarValue]) -> Result<RecordBatch> {
        let fields = types.into_iter().enumerate().map(|(i, t)| Field::new(format!("c{i}"), t, i != 0));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        literals(sql).unwrap().batch(&Target::new("t".to_owned(), schema, &[]).unwrap(), parameters)
    }

    #[test]
    fn literals_become_columns() {
        let types = vec![
            DataType::Int32,
            DataType::Utf8,
            DataType::Timestamp(TimeUnit::Second, None),
            DataType::Decimal128(10, 2),
            DataType::Boolean,
        ];
        let sql =
            "VALUES (1, 'a', '2023-01-08 09:30:00', 1.25, true), (-2, NULL, TIMESTAMP '2023-01-08 09:31:00', -3, 'f')";
        let batch = batch(sql, types, &[]).unwrap();
        assert_eq!(batch.num_rows(), 2);
        let times = batch.column(2).as_primitive::<TimestampSecondType>().values();
        assert_eq!(times.as_ref(), [1_673_170_200, 1_673_170_260]);
        assert_eq!(batch.column(3).as_primitive::<Decimal128Type>().values().as_ref(), [125, -300]);
        assert!(!batch.column(4).as_boolean().value(1));
        assert!(batch.column(1).is_null(1));
    }

    #[test]
    fn whole_numbers_are_rounded_and_checked() {
        let batch = |sql| batch(sql, vec![DataType::Int16], &[]);
        assert_eq!(
            batch("VALUES (2.5)").unwrap().column(0).as_primitive::<datafusion::arrow::datatypes::Int16Type>().value(0),
            2
        );
        assert_eq!(batch("VALUES (40000)").unwrap_err().sqlstate, "22003");
        assert_eq!(batch("VALUES ('x')").unwrap_err().sqlstate, "22P02");
        assert_eq!(batch("VALUES (true)").unwrap_err().sqlstate, "42804");
        assert_eq!(batch("VALUES (NULL)").unwrap_err().sqlstate, "23502");
        assert_eq!(batch("VALUES (1, 2)").unwrap_err().sqlstate, "42601");
    }

    #[test]
    fn parameters_are_cast() {
        let values = [ScalarValue::Int64(Some(7)), ScalarValue::Utf8(Some("2023-01-08".to_owned()))];
        let types = vec![DataType::Int32, DataType::Timestamp(TimeUnit::Second, None)];
        let rows = batch("VALUES ($1, $2), (8, $2)", types.clone(), &values).unwrap();
        assert_eq!(rows.num_rows(), 2);
        assert_eq!(batch("VALUES ($1, $3)", types, &values).unwrap_err().sqlstate, "08P01");
    }

    #[test]
    fn expressions_are_left_to_the_planner() {
        assert!(literals("VALUES (1 + 1)").is_none());
        assert!(literals("VALUES (now())").is_none());
        assert!(literals("VALUES ('2023-01-08'::date)").is_none());
    }
}
