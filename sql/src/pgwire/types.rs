//! Arrow types as PostgreSQL types, and back.

use std::sync::Arc;

use arrow_pg::datatypes::field_into_pg_type;
use datafusion::arrow::datatypes::{DataType, Field, IntervalUnit, Schema, TimeUnit};
use pgwire::api::Type;

/// How a value stands in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// As text.
    Text,
    /// In the type's own bytes.
    Binary,
}

impl Format {
    /// The protocol's code.
    pub(crate) fn code(self) -> i16 {
        match self {
            Self::Text => 0,
            Self::Binary => 1,
        }
    }

    /// The format of item `index` by the protocol's rule: no code means text, one code is for all.
    pub(crate) fn of(codes: &[i16], index: usize) -> Self {
        let code = if codes.len() == 1 { codes[0] } else { codes.get(index).copied().unwrap_or(0) };
        if code == 1 { Self::Binary } else { Self::Text }
    }
}

/// A column of a result, as its description says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WireColumn {
    /// Name.
    pub(crate) name: String,
    /// PostgreSQL's number of its type.
    pub(crate) oid: u32,
    /// Bytes of a value; negative: it varies.
    pub(crate) size: i16,
    /// Precision and scale of `numeric`; -1: none.
    pub(crate) modifier: i32,
    /// Format of its values.
    pub(crate) format: Format,
}

/// The columns of a result; `formats` are the client's format codes.
pub(crate) fn wire_columns(schema: &Schema, formats: &[i16]) -> Vec<WireColumn> {
    let fields = schema.fields().iter().enumerate();
    fields
        .map(|(index, field)| WireColumn {
            name: field.name().clone(),
            oid: wire_type(field).oid(),
            size: type_size(&wire_type(field)),
            modifier: match field.data_type() {
                DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) if *scale >= 0 => {
                    ((i32::from(*precision) << 16) | i32::from(*scale)) + 4
                }
                _ => -1,
            },
            format: Format::of(formats, index),
        })
        .collect()
}

/// The type that a column is shown as. Types that PostgreSQL does not have are shown as text.
pub(crate) fn wire_type(field: &Arc<Field>) -> Type {
    match field.data_type() {
        DataType::Null => Type::TEXT,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal256(..) => Type::NUMERIC,
        _ => field_into_pg_type(field).unwrap_or(Type::TEXT),
    }
}

/// OID for a parameter of an Arrow type; that of `text` where there is no better.
pub(crate) fn parameter_oid(data_type: &DataType) -> u32 {
    wire_type(&Arc::new(Field::new("", data_type.clone(), true))).oid()
}

/// Arrow type of a parameter that the client declared; `None` for types that are not known here.
pub(crate) fn arrow_type(oid: u32) -> Option<DataType> {
    Some(match Type::from_oid(oid)? {
        Type::BOOL => DataType::Boolean,
        Type::INT2 => DataType::Int16,
        Type::INT4 => DataType::Int32,
        Type::INT8 => DataType::Int64,
        Type::OID => DataType::UInt32,
        Type::FLOAT4 => DataType::Float32,
        Type::FLOAT8 => DataType::Float64,
        Type::NUMERIC => DataType::Decimal128(38, 10),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN | Type::JSON | Type::UUID => {
            DataType::Utf8
        }
        Type::BYTEA => DataType::Binary,
        Type::DATE => DataType::Date32,
        Type::TIMESTAMP => DataType::Timestamp(TimeUnit::Microsecond, None),
        Type::TIMESTAMPTZ => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        Type::TIME => DataType::Time64(TimeUnit::Microsecond),
        Type::INTERVAL => DataType::Interval(IntervalUnit::MonthDayNano),
        _ => return None,
    })
}

fn type_size(data_type: &Type) -> i16 {
    match *data_type {
        Type::BOOL | Type::CHAR => 1,
        Type::INT2 => 2,
        Type::INT4 | Type::FLOAT4 | Type::DATE | Type::OID | Type::REGCLASS | Type::REGTYPE => 4,
        Type::INT8 | Type::FLOAT8 | Type::TIMESTAMP | Type::TIMESTAMPTZ | Type::TIME => 8,
        Type::INTERVAL => 16,
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_format_code_is_for_all_columns() {
        assert_eq!(Format::of(&[], 3), Format::Text);
        assert_eq!(Format::of(&[1], 3), Format::Binary);
        assert_eq!(Format::of(&[1, 0], 1), Format::Text);
    }

    #[test]
    fn columns_are_described_by_their_wire_types() {
        let schema = Schema::new(vec![
            Field::new("a", DataType::UInt64, true),
            Field::new("b", DataType::Decimal128(10, 2), true),
            Field::new("c", DataType::Timestamp(TimeUnit::Second, None), true),
            Field::new("d", DataType::Decimal256(40, 2), true),
        ]);
        let columns = wire_columns(&schema, &[]);
        assert_eq!(columns.iter().map(|column| column.oid).collect::<Vec<_>>(), [1700, 1700, 1114, 1700]);
        assert_eq!(columns[1].modifier, (10 << 16 | 2) + 4);
        assert_eq!(columns[2].size, 8);
    }
}
