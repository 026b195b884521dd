//! Strict casts of rows to a table's columns: nothing is lost, cut or wrapped silently.

use std::sync::Arc;

use datafusion::arrow::{
    array::{Array, ArrayRef, AsArray, BinaryBuilder, RecordBatch, new_null_array},
    compute::{CastOptions, cast_with_options, kernels::arity::unary},
    datatypes::{DataType, Field, Float32Type, Float64Type, SchemaRef},
    error::ArrowError,
    util::display::FormatOptions,
};

use super::types::type_name;
use crate::{Result, SqlError};

const STRICT: CastOptions<'static> = CastOptions { safe: false, format_options: FormatOptions::new() };

/// Where rows go: a table's columns, and which of them a statement gives.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// `market.bars` as the statement wrote it, for messages.
    pub(crate) table: String,
    /// The table's schema.
    pub(crate) schema: SchemaRef,
    /// For each of the table's columns, which of the given columns it is; `None`: NULL.
    pub(crate) given: Vec<Option<usize>>,
}

impl Target {
    /// All columns by position, or those named, in the order named.
    pub(crate) fn new(table: String, schema: SchemaRef, columns: &[String]) -> Result<Self> {
        if columns.is_empty() {
            let given = (0..schema.fields().len()).map(Some).collect();
            return Ok(Self { table, schema, given });
        }
        let mut given = vec![None; schema.fields().len()];
        for (position, name) in columns.iter().enumerate() {
            let Some((index, _)) = schema.column_with_name(name) else {
                return Err(SqlError::new("42703", format!("column {name:?} of table {table:?} does not exist"))
                    .did_you_mean(name, schema.fields().iter().map(|field| field.name().as_str())));
            };
            if given[index].replace(position).is_some() {
                return Err(SqlError::new("42701", format!("column {name:?} is named more than once")));
            }
        }
        let target = Self { table, schema, given };
        target.check_missing()?;
        Ok(target)
    }

    /// How many columns are given.
    pub(crate) fn width(&self) -> usize {
        self.given.iter().flatten().count()
    }

    /// The table's column that the `position`th given one is.
    pub(crate) fn field(&self, position: usize) -> Option<&Field> {
        let index = self.given.iter().position(|given| *given == Some(position))?;
        Some(self.schema.field(index))
    }

    /// Makes a batch of the table's schema from given columns, which are cast already.
    pub(crate) fn assemble(&self, columns: &[ArrayRef], rows: usize) -> Result<RecordBatch> {
        let columns = self.schema.fields().iter().zip(&self.given).map(|(field, given)| match given {
            Some(given) => columns[*given].clone(),
            None => new_null_array(field.data_type(), rows),
        });
        let columns: Vec<_> = columns.collect();
        for (field, column) in self.schema.fields().iter().zip(&columns) {
            if !field.is_nullable() && column.null_count() > 0 {
                return Err(self.null_in(field.name()));
            }
        }
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }

    /// Casts a batch of given columns to the table's schema.
    pub(crate) fn cast(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        self.check_width(batch.num_columns())?;
        let columns = batch.columns().iter().enumerate().map(|(position, column)| {
            let field = self.field(position).ok_or_else(|| SqlError::internal("a column without a place"))?;
            cast_column(column, field)
        });
        let columns: Vec<_> = columns.collect::<Result<_>>()?;
        self.assemble(&columns, batch.num_rows())
    }

    /// Refuses a source whose columns are of types that never become the table's, before it runs.
    pub(crate) fn check_types(&self, source: &[DataType]) -> Result<()> {
        self.check_width(source.len())?;
        for (position, from) in source.iter().enumerate() {
            if let Some(field) = self.field(position)
                && !assignable(from, field.data_type())
            {
                return Err(not_assignable(field, from));
            }
        }
        Ok(())
    }

    fn check_width(&self, width: usize) -> Result<()> {
        let wanted = self.width();
        if width == wanted {
            return Ok(());
        }
        let which = if width > wanted { "more" } else { "fewer" };
        Err(SqlError::syntax(format!(
            "{which} values than columns: table {:?} takes {wanted} here, {width} are given",
            self.table
        )))
    }

    fn check_missing(&self) -> Result<()> {
        let missing =
            self.schema.fields().iter().zip(&self.given).find(|(field, given)| given.is_none() && !field.is_nullable());
        match missing {
            Some((field, _)) => Err(self
                .null_in(field.name())
                .detail("the column is not among those given, so it would be NULL in every row")),
            None => Ok(()),
        }
    }

    /// `23502`.
    pub(crate) fn null_in(&self, column: &str) -> SqlError {
        SqlError::new("23502", format!("column {column:?} of table {:?} is NOT NULL, a NULL was given", self.table))
    }
}

/// Casts one column to its field's type.
pub(crate) fn cast_column(column: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    let (from, to) = (column.data_type(), field.data_type());
    if from == to {
        return Ok(column.clone());
    }
    if !assignable(from, to) {
        return Err(not_assignable(field, from));
    }
    let result = match (from, to) {
        (DataType::Utf8, DataType::Binary) => return bytes(column, field),
        (DataType::LargeUtf8 | DataType::Utf8View, DataType::Binary) => {
            cast_with_options(column, &DataType::Utf8, &STRICT)
                .map_err(SqlError::from)
                .and_then(|text| bytes(&text, field))
        }
        _ => cast_with_options(&rounded(column, to), to, &STRICT).map_err(|error| cast_error(error, column, field)),
    };
    let cast = result?;
    // Some kernels turn what they cannot hold into NULL even when asked not to.
    if cast.null_count() > column.logical_null_count() {
        let lost = (0..cast.len()).find(|row| cast.is_null(*row) && !column.is_null(*row));
        return Err(out_of_range(column, lost, field));
    }
    Ok(cast)
}

/// Whether values of a type may go into a column of another; each value is still checked.
pub(crate) fn assignable(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    let number = |t: &T| t.is_numeric();
    let text = |t: &T| matches!(t, T::Utf8 | T::LargeUtf8 | T::Utf8View);
    let time = |t: &T| matches!(t, T::Timestamp(..) | T::Date32 | T::Date64);
    match (from, to) {
        (from, to) if from == to => true,
        (T::Null, _) => true,
        (T::Dictionary(_, value), to) => assignable(value, to),
        (from, to) if text(from) => !matches!(to, T::Null),
        (from, to) if number(from) => number(to) || text(to),
        (T::Boolean, to) => text(to),
        (from, to) if time(from) => time(to) || text(to),
        (T::Binary | T::LargeBinary | T::BinaryView | T::FixedSizeBinary(_), to) => matches!(to, T::Binary),
        _ => false,
    }
}

/// Fractions are rounded, half to even as in PostgreSQL, before they become whole numbers.
fn rounded(column: &ArrayRef, to: &DataType) -> ArrayRef {
    match column.data_type() {
        DataType::Float64 if to.is_integer() => {
            Arc::new(unary::<_, _, Float64Type>(column.as_primitive::<Float64Type>(), f64::round_ties_even))
        }
        DataType::Float32 if to.is_integer() => {
            Arc::new(unary::<_, _, Float32Type>(column.as_primitive::<Float32Type>(), f32::round_ties_even))
        }
        _ => column.clone(),
    }
}

/// Text to bytes as PostgreSQL reads them: `\x` and hexadecimal digits, else the text's own bytes.
fn bytes(column: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    let texts = column.as_string::<i32>();
    let mut builder = BinaryBuilder::with_capacity(texts.len(), texts.value_data().len());
    for text in texts {
        match text {
            None => builder.append_null(),
            Some(text) => match text.strip_prefix("\\x") {
                None => builder.append_value(text),
                Some(digits) => builder.append_value(hex(digits).ok_or_else(|| not_a_value(text, field))?),
            },
        }
    }
    Ok(Arc::new(builder.finish()))
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn not_assignable(field: &Field, from: &DataType) -> SqlError {
    let (to, from) = (type_name(field.data_type()), type_name(from));
    SqlError::new("42804", format!("column {:?} is {to}, a value of type {from} was given", field.name()))
        .hint(format!("cast it, if that is what is meant: CAST(… AS {to})"))
}

/// Finds the value that failed, for the message.
fn cast_error(error: ArrowError, column: &ArrayRef, field: &Field) -> SqlError {
    let one =
        |row: usize| cast_with_options(&rounded(&column.slice(row, 1), field.data_type()), field.data_type(), &STRICT);
    match (0..column.len()).find(|row| one(*row).is_err()) {
        Some(row) => match column.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                let text = datafusion::arrow::util::display::array_value_to_string(column, row).unwrap_or_default();
                text_error(&text, field)
            }
            _ => out_of_range(column, Some(row), field),
        },
        None => {
            let error = SqlError::from(error);
            let message = format!("column {:?}: {}", field.name(), error.message);
            SqlError { message, ..error }
        }
    }
}

/// A text that is no value of the column's type, or one beyond its range.
pub(crate) fn text_error(text: &str, field: &Field) -> SqlError {
    if field.data_type().is_numeric() && text.trim().parse::<f64>().is_ok_and(f64::is_finite) {
        return SqlError::new(
            "22003",
            format!(
                "value {text} is out of range for column {:?} of type {}",
                field.name(),
                type_name(field.data_type())
            ),
        );
    }
    not_a_value(text, field)
}

fn not_a_value(text: &str, field: &Field) -> SqlError {
    let state = match field.data_type() {
        DataType::Date32 | DataType::Timestamp(..) => "22007",
        _ => "22P02",
    };
    let text: String = text.chars().take(80).collect();
    SqlError::new(
        state,
        format!("{text:?} is not a value of type {} (column {:?})", type_name(field.data_type()), field.name()),
    )
}

fn out_of_range(column: &ArrayRef, row: Option<usize>, field: &Field) -> SqlError {
    let value = row.and_then(|row| datafusion::arrow::util::display::array_value_to_string(column, row).ok());
    SqlError::new(
        "22003",
        format!(
            "value {} is out of range for column {:?} of type {}",
            value.as_deref().unwrap_or("of a row"),
            field.name(),
            type_name(field.data_type())
        ),
    )
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::{
        array::{BooleanArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray},
        datatypes::{Int32Type, TimeUnit, TimestampMillisecondType},
    };

    use super::*;

    fn cast(column: impl Array + 'static, to: DataType) -> Result<ArrayRef> {
        cast_column(&(Arc::new(column) as ArrayRef), &Field::new("c", to, true))
    }

    #[test]
    fn fractions_are_rounded_half_to_even() {
        let cast = cast(Float64Array::from(vec![0.5, 1.5, 2.4, -2.6]), DataType::Int32).unwrap();
        assert_eq!(cast.as_primitive::<Int32Type>().values().as_ref(), [0, 2, 2, -3]);
    }

    #[test]
    fn values_out_of_range_are_named() {
        let error = cast(Int64Array::from(vec![1, 5_000_000_000]), DataType::Int32).unwrap_err();
        assert_eq!(error.sqlstate, "22003");
        assert!(error.message.contains("5000000000") && error.message.contains("\"c\""), "{}", error.message);
        let error = cast(StringArray::from(vec!["70000"]), DataType::Int16).unwrap_err();
        assert_eq!(error.sqlstate, "22003");
        let error = cast(Float64Array::from(vec![1e300]), DataType::Int64).unwrap_err();
        assert_eq!(error.sqlstate, "22003");
    }

    #[test]
    fn text_that_is_no_value_is_named() {
        let error = cast(StringArray::from(vec!["1", "one"]), DataType::Int32).unwrap_err();
        assert_eq!((error.sqlstate.as_ref(), error.message.contains("\"one\"")), ("22P02", true));
        let error =
            cast(StringArray::from(vec!["yesterday"]), DataType::Timestamp(TimeUnit::Second, None)).unwrap_err();
        assert_eq!(error.sqlstate, "22007");
    }

    #[test]
    fn types_that_never_fit_are_refused() {
        let error = cast(BooleanArray::from(vec![true]), DataType::Int32).unwrap_err();
        assert_eq!(error.sqlstate, "42804");
        let error = cast(Int64Array::from(vec![1]), DataType::Timestamp(TimeUnit::Second, None)).unwrap_err();
        assert_eq!(error.sqlstate, "42804");
    }

    #[test]
    fn bytes_are_read_as_hexadecimal_or_as_they_are() {
        let cast_ = cast(StringArray::from(vec![Some("\\x00ff"), Some("ab"), None]), DataType::Binary).unwrap();
        let cast_ = cast_.as_binary::<i32>();
        assert_eq!((cast_.value(0), cast_.value(1), cast_.is_null(2)), (&[0, 255][..], &b"ab"[..], true));
        assert_eq!(cast(StringArray::from(vec!["\\x0g"]), DataType::Binary).unwrap_err().sqlstate, "22P02");
    }

    #[test]
    fn coarser_timestamps_keep_their_order() {
        let to = DataType::Timestamp(TimeUnit::Millisecond, None);
        let cast = cast(TimestampMicrosecondArray::from(vec![1_000, -1_000]), to).unwrap();
        assert_eq!(cast.as_primitive::<TimestampMillisecondType>().values().as_ref(), [1, -1]);
    }
}
