//! Rows as JSON, CSV or Arrow. Values come as the text that PostgreSQL clients get.

use std::{
    io::{self, Write},
    sync::Arc,
};

use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow_cast::cast;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use tokio_postgres::{Column, types::Type};

use super::{Format, TailError};

/// Rows of an Arrow batch, at most.
const BATCH_ROWS: usize = 8192;

/// Where rows go.
pub(super) enum Output<W: Write> {
    Json { to: io::BufWriter<W>, columns: Vec<(String, Kind)> },
    Csv { to: io::BufWriter<W> },
    Arrow(Box<ArrowOutput<W>>),
}

/// How a value is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Number,
    Bool,
    Text,
}

/// Rows that wait to become a batch.
pub(super) struct ArrowOutput<W: Write> {
    to: StreamWriter<io::BufWriter<W>>,
    schema: SchemaRef,
    values: Vec<Vec<Option<String>>>,
    rows: usize,
}

impl<W: Write> Output<W> {
    pub(super) fn new(format: Format, columns: &[Column], to: W) -> Result<Self, TailError> {
        let named = columns.iter();
        let named = named.map(|column| (column.name().to_owned(), column.type_().clone(), column.type_modifier()));
        Self::of(format, named.collect(), to)
    }

    fn of(format: Format, columns: Vec<(String, Type, i32)>, to: W) -> Result<Self, TailError> {
        let mut to = io::BufWriter::with_capacity(64 << 10, to);
        Ok(match format {
            Format::Json => Self::Json {
                to,
                columns: columns
                    .into_iter()
                    // The name as JSON has it, with its colon.
                    .map(|(name, of, _)| (format!("{}:", serde_json::Value::from(name)), kind(&of)))
                    .collect(),
            },
            Format::Csv => {
                csv_line(&mut to, columns.iter().map(|(name, ..)| Some(name.as_str())))?;
                Self::Csv { to }
            }
            Format::Arrow => {
                let fields =
                    columns.iter().map(|(name, of, modifier)| Field::new(name, arrow_type(of, *modifier), true));
                let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
                let values = vec![Vec::new(); columns.len()];
                Self::Arrow(Box::new(ArrowOutput { to: StreamWriter::try_new(to, &schema)?, schema, values, rows: 0 }))
            }
        })
    }

    /// Takes one row.
    pub(super) fn row<'a>(&mut self, values: impl Iterator<Item = Option<&'a str>>) -> Result<(), TailError> {
        match self {
            Self::Json { to, columns } => json_line(to, columns, values)?,
            Self::Csv { to } => csv_line(to, values)?,
            Self::Arrow(arrow) => {
                for (column, value) in arrow.values.iter_mut().zip(values) {
                    column.push(value.map(ToOwned::to_owned));
                }
                arrow.rows += 1;
                if arrow.rows >= BATCH_ROWS {
                    arrow.write()?;
                }
            }
        }
        Ok(())
    }

    /// Sends everything on.
    pub(super) fn flush(&mut self) -> Result<(), TailError> {
        match self {
            Self::Json { to, .. } | Self::Csv { to } => to.flush()?,
            Self::Arrow(arrow) => {
                arrow.write()?;
                arrow.to.flush()?;
            }
        }
        Ok(())
    }

    /// Ends it.
    pub(super) fn finish(&mut self) -> Result<(), TailError> {
        self.flush()?;
        if let Self::Arrow(arrow) = self {
            arrow.to.finish()?;
            arrow.to.flush()?;
        }
        Ok(())
    }
}

impl<W: Write> ArrowOutput<W> {
    fn write(&mut self) -> Result<(), TailError> {
        if self.rows == 0 {
            return Ok(());
        }
        let columns = self.values.iter_mut().zip(self.schema.fields()).map(|(values, field)| {
            let text = StringArray::from(std::mem::take(values));
            column(text, field.data_type())
        });
        let batch = RecordBatch::try_new(self.schema.clone(), columns.collect::<Result<_, _>>()?)?;
        self.rows = 0;
        Ok(self.to.write(&batch)?)
    }
}

fn column(text: StringArray, wanted: &DataType) -> Result<ArrayRef, arrow_schema::ArrowError> {
    if *wanted == DataType::Binary {
        let bytes: Vec<Option<Vec<u8>>> = text.iter().map(|value| value.map(unhex)).collect();
        return Ok(Arc::new(BinaryArray::from_iter(bytes)));
    }
    let nulls = text.null_count();
    let values = cast(&text, wanted)?;
    // What cannot be read becomes NULL there; here it is an error.
    if values.logical_null_count() > nulls {
        let is_lost = |row: &usize| values.is_null(*row) && !text.is_null(*row);
        let lost = (0..text.len()).find(is_lost).map(|row| text.value(row)).unwrap_or_default();
        return Err(arrow_schema::ArrowError::CastError(format!("{lost:?} is no {wanted}")));
    }
    Ok(values)
}

/// `\x00ff`.
fn unhex(text: &str) -> Vec<u8> {
    let digits = text.strip_prefix("\\x").unwrap_or(text).as_bytes();
    let digit = |digit: u8| char::from(digit).to_digit(16).unwrap_or_default() as u8;
    digits.chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// How a value of a type is written.
pub(crate) fn kind(of: &Type) -> Kind {
    match *of {
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID | Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC => Kind::Number,
        Type::BOOL => Kind::Bool,
        _ => Kind::Text,
    }
}

fn arrow_type(of: &Type, modifier: i32) -> DataType {
    match *of {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 => DataType::Int64,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        // Precision and scale as PostgreSQL packs them.
        Type::NUMERIC if modifier >= 4 => {
            let packed = modifier - 4;
            DataType::Decimal128((packed >> 16) as u8, (packed & 0x7ff) as i8)
        }
        Type::BYTEA => DataType::Binary,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        _ => DataType::Utf8,
    }
}

/// A row as an object; names come as JSON has them, with their colons.
pub(crate) fn json_line<'a>(
    to: &mut impl Write,
    columns: &[(String, Kind)],
    values: impl Iterator<Item = Option<&'a str>>,
) -> io::Result<()> {
    for (index, ((name, kind), value)) in columns.iter().zip(values).enumerate() {
        to.write_all(if index == 0 { b"{" } else { b"," })?;
        to.write_all(name.as_bytes())?;
        match (value, kind) {
            (None, _) => to.write_all(b"null")?,
            (Some("t"), Kind::Bool) => to.write_all(b"true")?,
            (Some("f"), Kind::Bool) => to.write_all(b"false")?,
            // NaN and infinities are no numbers there.
            (Some(number), Kind::Number) if is_number(number) => to.write_all(number.as_bytes())?,
            (Some(text), _) => serde_json::to_writer(&mut *to, text).map_err(io::Error::from)?,
        }
    }
    to.write_all(b"}\n")
}

fn is_number(text: &str) -> bool {
    serde_json::from_str::<serde_json::Number>(text).is_ok()
}

fn csv_line<'a>(to: &mut impl Write, values: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
    for (index, value) in values.enumerate() {
        if index > 0 {
            to.write_all(b",")?;
        }
        match value {
            None => {}
            Some(text) if text.is_empty() || text.contains([',', '"', '\n', '\r']) => {
                write!(to, "\"{}\"", text.replace('"', "\"\""))?;
            }
            Some(text) => to.write_all(text.as_bytes())?,
        }
    }
    to.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use arrow_array::cast::AsArray;
    use arrow_ipc::reader::StreamReader;

    use super::*;

    fn columns() -> Vec<(String, Type, i32)> {
        let column = |name: &str, of: Type| (name.to_owned(), of, -1);
        vec![
            column("_seq", Type::INT8),
            column("na\"me", Type::TEXT),
            column("price", Type::FLOAT8),
            ("amount".to_owned(), Type::NUMERIC, (18 << 16 | 2) + 4),
            column("open", Type::BOOL),
            column("raw", Type::BYTEA),
            column("at", Type::TIMESTAMPTZ),
            column("day", Type::DATE),
        ]
    }

    const ROWS: [[Option<&str>; 8]; 2] = [
        [
            Some("5"),
            Some("a,\"b\"\n"),
            Some("10.37"),
            Some("1037.00"),
            Some("t"),
            Some("\\x00ff"),
            Some("2023-01-08 09:30:00.000001+00"),
            Some("2023-01-08"),
        ],
        [Some("6"), Some(""), Some("NaN"), None, Some("f"), None, None, None],
    ];

    fn printed(format: Format) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut output = Output::of(format, columns(), &mut bytes).unwrap();
        for row in ROWS {
            output.row(row.into_iter()).unwrap();
        }
        output.finish().unwrap();
        drop(output);
        bytes
    }

    #[test]
    fn json_has_numbers_truths_and_text() {
        let text = String::from_utf8(printed(Format::Json)).unwrap();
        let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows[0]["_seq"], 5);
        assert_eq!((&rows[0]["na\"me"], &rows[0]["open"]), (&"a,\"b\"\n".into(), &true.into()));
        assert!(text.contains("\"amount\":1037.00"), "{text}");
        assert_eq!((&rows[1]["price"], &rows[1]["raw"]), (&"NaN".into(), &serde_json::Value::Null));
    }

    #[test]
    fn csv_tells_null_from_nothing() {
        let text = String::from_utf8(printed(Format::Csv)).unwrap();
        assert_eq!(
            text,
            "_seq,\"na\"\"me\",price,amount,open,raw,at,day\n\
             5,\"a,\"\"b\"\"\n\",10.37,1037.00,t,\\x00ff,2023-01-08 09:30:00.000001+00,2023-01-08\n\
             6,\"\",NaN,,f,,,\n"
        );
    }

    #[test]
    fn arrow_has_the_types() {
        use arrow_array::types::{Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
        let bytes = printed(Format::Arrow);
        let batches: Vec<_> = StreamReader::try_new(&bytes[..], None).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(batches.len(), 1);
        let column = |index: usize| batches[0].column(index);
        assert_eq!(column(0).as_primitive::<Int64Type>().values(), &[5, 6]);
        assert_eq!(column(1).as_string::<i32>().value(1), "");
        assert!(column(2).as_primitive::<Float64Type>().value(1).is_nan());
        assert_eq!(column(3).as_primitive::<Decimal128Type>().value(0), 103_700);
        assert!(column(4).as_boolean().value(0) && !column(4).as_boolean().value(1));
        assert_eq!(column(5).as_binary::<i32>().value(0), [0, 255]);
        assert_eq!(column(6).as_primitive::<TimestampMicrosecondType>().value(0), 1_673_170_200_000_001);
        assert_eq!(column(7).as_primitive::<Date32Type>().value(0), 19_365);
        assert!((3..8).filter(|index| *index != 4).all(|index| column(index).is_null(1)));
    }

    #[test]
    fn what_is_no_value_of_its_type_is_an_error() {
        let error = super::column(StringArray::from(vec![Some("x"), None]), &DataType::Int64).unwrap_err();
        assert!(error.to_string().contains("\"x\""), "{error}");
    }
}
