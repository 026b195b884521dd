//! A table's partitioning at work.

use std::{borrow::Cow, collections::HashMap, hash::Hash};

use arrow_array::{
    Array, ArrayRef, RecordBatch, UInt32Array,
    cast::AsArray,
    types::{
        ArrowPrimitiveType, Date32Type, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type,
        UInt16Type, UInt32Type, UInt64Type,
    },
};
use arrow_schema::{DataType, TimeUnit};
use arrow_select::take::take_record_batch;

use super::{
    KEY_BYTES_MAX, Transform,
    describe::describe,
    key::{self, Decoded, Kind},
    transform::units_per_day,
};
use crate::{ColumnId, EngineError, PartitionKey, Result, Table, scalar::Scalar};

/// Smallest and largest value that a column can have within one partition: arrays of one value of the column's type.
#[derive(Debug, Clone)]
pub struct ColumnBounds {
    /// Source column of a partition field.
    pub column: ColumnId,
    /// Inclusive; `None` when the partition's value is NULL.
    pub min: Option<ArrayRef>,
    /// Inclusive; `None` when the partition's value is NULL.
    pub max: Option<ArrayRef>,
}

/// Evaluates a table's partition fields.
#[derive(Debug, Clone)]
pub struct PartitionScheme {
    fields: Vec<Field>,
}

#[derive(Debug, Clone)]
struct Field {
    /// Position of the source column in the table's schema.
    index: usize,
    column: ColumnId,
    /// As in paths: `datetime_day`, or the column's own name.
    name: String,
    data_type: DataType,
    transform: Transform,
    per_day: i64,
    kind: Kind,
}

impl PartitionScheme {
    /// The scheme of a table; column types were checked by [`Table::create`].
    pub fn new(table: &Table) -> Result<Self> {
        let field = |(transform, id): &(Transform, ColumnId)| {
            let found = table.columns.iter().enumerate().find(|(_, column)| column.id == *id);
            let (index, column) =
                found.ok_or_else(|| EngineError::NotFound { kind: "column", name: format!("#{id}") })?;
            transform.check(&column.name, &column.data_type)?;
            let name = match transform {
                Transform::Identity => column.name.clone(),
                _ => format!("{}_{}", column.name, transform.name()),
            };
            let data_type = column.data_type.clone();
            let (per_day, kind) = (units_per_day(&data_type), kind(&data_type)?);
            Ok(Field { index, column: *id, name, data_type, transform: *transform, per_day, kind })
        };
        Ok(Self { fields: table.partition_by.iter().map(field).collect::<Result<_>>()? })
    }

    /// Splits a batch of the table's schema by partition, keeping row order within each; the common case of one
    /// partition is found without copying. Partitions come in the order of their first rows; a batch without rows has
    /// none.
    pub fn split(&self, batch: &RecordBatch) -> Result<Vec<(PartitionKey, RecordBatch)>> {
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let mut groups = Groups { keys: vec![Vec::new()], rows: None };
        for field in &self.fields {
            let array = batch.columns().get(field.index).filter(|array| *array.data_type() == field.data_type);
            let array = array.ok_or_else(|| {
                EngineError::Invalid(format!("the batch has no {} column for {}", field.data_type, field.name))
            })?;
            groups = groups.combine(field.codes(array)?);
            if let Some(key) = groups.keys.iter().find(|key| key.len() > KEY_BYTES_MAX) {
                return Err(EngineError::Invalid(format!(
                    "a partition key with {} takes {} bytes; it can take {KEY_BYTES_MAX}",
                    field.name,
                    key.len()
                )));
            }
        }
        groups.split(batch)
    }

    /// Names and readable values of a key, one per partition field: `("datetime_day", Some("2023-01-08"))`; `None` is
    /// NULL. An error for bytes that are no key of this scheme.
    pub fn describe(&self, key: &PartitionKey) -> Result<Vec<(String, Option<String>)>> {
        let values = self.decode(key)?;
        let fields = self.fields.iter().zip(&values);
        Ok(fields
            .map(|(field, value)| (field.name.clone(), describe(field.transform, &field.data_type, value)))
            .collect())
    }

    /// A key for people: `('2023-01-08', NULL)`, as statements write it.
    pub fn show(&self, key: &PartitionKey) -> Result<String> {
        let values = self.describe(key)?.into_iter().map(|(_, value)| match value {
            Some(value) => format!("'{}'", value.replace('\'', "''")),
            None => "NULL".to_owned(),
        });
        Ok(format!("({})", values.collect::<Vec<_>>().join(", ")))
    }

    /// What a key says of the source columns, for pruning.
    pub fn bounds(&self, key: &PartitionKey) -> Result<Vec<ColumnBounds>> {
        let values = self.decode(key)?;
        let fields = self.fields.iter().zip(&values);
        Ok(fields
            .map(|(field, value)| {
                let (min, max) = field.bounds(value);
                ColumnBounds { column: field.column, min, max }
            })
            .collect())
    }

    fn decode(&self, key: &PartitionKey) -> Result<Vec<Decoded>> {
        let mut rest: &[u8] = &key.0;
        let mut values = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let value = key::decode(field.kind, &mut rest).filter(|value| field.holds(value));
            values.push(value.ok_or_else(|| not_a_key(key))?);
        }
        if !rest.is_empty() || key.0.len() > KEY_BYTES_MAX {
            return Err(not_a_key(key));
        }
        Ok(values)
    }
}

fn not_a_key(key: &PartitionKey) -> EngineError {
    let shown = super::hexadecimal(&key.0[..key.0.len().min(64)]);
    EngineError::Invalid(format!("{shown} is no partition key of this table"))
}

fn kind(data_type: &DataType) -> Result<Kind> {
    Ok(match data_type {
        DataType::Boolean => Kind::Bool,
        DataType::Decimal128(..) => Kind::Decimal,
        DataType::Utf8 | DataType::Binary => Kind::Bytes,
        other if other.is_unsigned_integer() => Kind::UInt,
        other if other.is_signed_integer() || matches!(other, DataType::Date32 | DataType::Timestamp(..)) => Kind::Int,
        other => return Err(EngineError::Unsupported(format!("PARTITION BY a column of type {other}"))),
    })
}

impl Field {
    /// Whether a decoded value is one that this field gives.
    fn holds(&self, value: &Decoded) -> bool {
        match (self.transform, value) {
            (_, Decoded::Null) => true,
            (Transform::Identity, _) => {
                value.as_scalar().is_some_and(|scalar| scalar.to_array(&self.data_type).is_some())
            }
            (_, Decoded::Int(value)) => {
                let most = self.transform.apply(self.per_day, i64::MAX);
                (self.transform.apply(self.per_day, i64::MIN)..=most).contains(value)
            }
            _ => false,
        }
    }

    fn bounds(&self, value: &Decoded) -> (Option<ArrayRef>, Option<ArrayRef>) {
        let array = |scalar: Scalar<'_>| scalar.to_array(&self.data_type);
        match value {
            Decoded::Int(value) => {
                let (mut min, mut max) = self.transform.invert(self.per_day, *value);
                if self.data_type == DataType::Date32 {
                    let clamp = |days: i64| days.clamp(i32::MIN.into(), i32::MAX.into());
                    (min, max) = (clamp(min), clamp(max));
                }
                (array(Scalar::Int(min)), array(Scalar::Int(max)))
            }
            other => {
                let value = other.as_scalar().and_then(array);
                (value.clone(), value)
            }
        }
    }

    /// The field's value of every row, as numbers of distinct values.
    fn codes(&self, array: &ArrayRef) -> Result<Codes> {
        use DataType::*;
        Ok(match self.kind {
            Kind::Bool => codes(array.as_boolean().iter(), |value| Scalar::Bool(*value)),
            Kind::Decimal => {
                let values = array.as_primitive::<Decimal128Type>();
                codes(values.iter(), |value| Scalar::Decimal(*value))
            }
            Kind::Bytes if self.data_type == Utf8 => {
                codes(array.as_string::<i32>().iter(), |text| Scalar::Bytes(text.as_bytes()))
            }
            Kind::Bytes => codes(array.as_binary::<i32>().iter(), |value| Scalar::Bytes(value)),
            Kind::UInt => match self.data_type {
                UInt8 => unsigned::<UInt8Type>(array),
                UInt16 => unsigned::<UInt16Type>(array),
                UInt32 => unsigned::<UInt32Type>(array),
                _ => unsigned::<UInt64Type>(array),
            },
            Kind::Int => {
                let values: Cow<'_, [i64]> = match &self.data_type {
                    Int8 => widened::<Int8Type>(array),
                    Int16 => widened::<Int16Type>(array),
                    Int32 => widened::<Int32Type>(array),
                    Date32 => widened::<Date32Type>(array),
                    Int64 => Cow::Borrowed(array.as_primitive::<Int64Type>().values()),
                    Timestamp(TimeUnit::Second, _) => {
                        Cow::Borrowed(array.as_primitive::<TimestampSecondType>().values())
                    }
                    Timestamp(TimeUnit::Millisecond, _) => {
                        Cow::Borrowed(array.as_primitive::<TimestampMillisecondType>().values())
                    }
                    Timestamp(TimeUnit::Microsecond, _) => {
                        Cow::Borrowed(array.as_primitive::<TimestampMicrosecondType>().values())
                    }
                    _ => Cow::Borrowed(array.as_primitive::<TimestampNanosecondType>().values()),
                };
                self.integer_codes(array, &values)
            }
        })
    }

    fn integer_codes(&self, array: &ArrayRef, values: &[i64]) -> Codes {
        let apply = |value: i64| self.transform.apply(self.per_day, value);
        if array.null_count() == 0 {
            // Transforms keep order, so equal ends mean one partition; this loop is vectorised.
            let ends =
                values.iter().fold((i64::MAX, i64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
            let (low, high) = (apply(ends.0), apply(ends.1));
            if low == high {
                return Codes { keys: vec![field_key(Some(Scalar::Int(low)))], rows: None };
            }
        }
        let rows = values.iter().enumerate().map(|(row, value)| array.is_valid(row).then(|| apply(*value)));
        codes(rows, |value| Scalar::Int(*value))
    }
}

fn widened<T: ArrowPrimitiveType>(array: &ArrayRef) -> Cow<'_, [i64]>
where
    T::Native: Into<i64>,
{
    Cow::Owned(array.as_primitive::<T>().values().iter().map(|value| (*value).into()).collect())
}

fn unsigned<T: ArrowPrimitiveType>(array: &ArrayRef) -> Codes
where
    T::Native: Into<u64> + Hash + Eq,
{
    codes(array.as_primitive::<T>().iter(), |value| Scalar::UInt((*value).into()))
}

/// Distinct values of one field as encoded keys, in order of first appearance, and which of them each row has; `None`
/// when there is one.
struct Codes {
    keys: Vec<Vec<u8>>,
    rows: Option<Vec<u32>>,
}

fn codes<T: Hash + Eq + Copy>(rows: impl Iterator<Item = Option<T>>, scalar: impl Fn(&T) -> Scalar<'_>) -> Codes {
    let mut numbers: HashMap<Option<T>, u32> = HashMap::new();
    let mut keys = Vec::new();
    let mut previous = None;
    let mut codes = Vec::with_capacity(rows.size_hint().0);
    for value in rows {
        // Neighbours mostly share their partition.
        let code = match previous {
            Some((last, code)) if last == value => code,
            _ => *numbers.entry(value).or_insert_with(|| {
                keys.push(field_key(value.as_ref().map(&scalar)));
                (keys.len() - 1) as u32
            }),
        };
        previous = Some((value, code));
        codes.push(code);
    }
    let rows = (keys.len() > 1).then_some(codes);
    Codes { keys, rows }
}

fn field_key(value: Option<Scalar<'_>>) -> Vec<u8> {
    let mut key = Vec::new();
    key::encode(value, &mut key);
    key
}

/// The partitions of the fields seen so far, in order of first appearance, and which of them each row belongs to.
struct Groups {
    keys: Vec<Vec<u8>>,
    rows: Option<Vec<u32>>,
}

impl Groups {
    fn combine(self, codes: Codes) -> Self {
        match (self.rows, codes.rows) {
            (rows, None) => {
                let suffix = &codes.keys[0];
                Self { keys: self.keys.into_iter().map(|key| [key.as_slice(), suffix].concat()).collect(), rows }
            }
            (None, rows) => {
                let prefix = &self.keys[0];
                Self { keys: codes.keys.iter().map(|key| [prefix, key.as_slice()].concat()).collect(), rows }
            }
            (Some(mut rows), Some(codes_of_rows)) => {
                let mut numbers: HashMap<(u32, u32), u32> = HashMap::new();
                let mut keys: Vec<Vec<u8>> = Vec::new();
                for (group, code) in rows.iter_mut().zip(codes_of_rows) {
                    *group = *numbers.entry((*group, code)).or_insert_with(|| {
                        keys.push([&self.keys[*group as usize][..], &codes.keys[code as usize]].concat());
                        (keys.len() - 1) as u32
                    });
                }
                Self { keys, rows: Some(rows) }
            }
        }
    }

    fn split(self, batch: &RecordBatch) -> Result<Vec<(PartitionKey, RecordBatch)>> {
        let mut keys = self.keys.into_iter().map(|key| PartitionKey(key.into()));
        let Some(rows) = self.rows else {
            return Ok(keys.next().map(|key| (key, batch.clone())).into_iter().collect());
        };
        let mut starts = vec![0usize; keys.len() + 1];
        for group in &rows {
            starts[*group as usize + 1] += 1;
        }
        for group in 1..starts.len() {
            starts[group] += starts[group - 1];
        }
        let sorted = rows.is_sorted();
        let ordered = if sorted {
            batch.clone()
        } else {
            let mut next = starts.clone();
            let mut order = vec![0u32; rows.len()];
            for (row, group) in rows.iter().enumerate() {
                let slot = &mut next[*group as usize];
                order[*slot] = row as u32;
                *slot += 1;
            }
            take_record_batch(batch, &UInt32Array::from(order))
                .map_err(|error| EngineError::Invalid(format!("a batch cannot be split by partition: {error}")))?
        };
        Ok(keys.zip(starts.windows(2)).map(|(key, ends)| (key, ordered.slice(ends[0], ends[1] - ends[0]))).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use arrow_array::{BooleanArray, Decimal128Array, Int64Array, StringArray, TimestampSecondArray};

    use super::*;
    use crate::{ColumnDefinition, TableDefinition, TableId};

    fn table(columns: &[(&str, DataType)], partition_by: &[(Transform, &str)]) -> Table {
        let column = |(name, data_type): &(&str, DataType)| ColumnDefinition {
            name: (*name).into(),
            data_type: data_type.clone(),
            nullable: true,
        };
        let definition = TableDefinition {
            name: "t".into(),
            columns: columns.iter().map(column).collect(),
            partition_by: partition_by.iter().map(|(transform, name)| (*transform, (*name).into())).collect(),
            order_by: vec![],
        };
        Table::create(TableId(1), definition).unwrap()
    }

    fn described(table: &Table, batch: &RecordBatch) -> BTreeMap<String, usize> {
        let scheme = PartitionScheme::new(table).unwrap();
        let parts = scheme.split(batch).unwrap();
        let named = parts.iter().map(|(key, part)| {
            let values = scheme.describe(key).unwrap();
            let text = values.iter().map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("NULL")));
            (text.collect::<Vec<_>>().join("/"), part.num_rows())
        });
        named.collect()
    }

    const SECONDS: DataType = DataType::Timestamp(TimeUnit::Second, None);

    fn times(table: &Table, values: Vec<Option<i64>>) -> RecordBatch {
        RecordBatch::try_new(table.schema(), vec![Arc::new(TimestampSecondArray::from(values))]).unwrap()
    }

    #[test]
    fn one_partition_shares_the_batch() {
        let table = table(&[("datetime", SECONDS)], &[(Transform::Day, "datetime")]);
        let batch = times(&table, (0..1000).map(|second| Some(1_673_136_000 + second)).collect());
        let parts = PartitionScheme::new(&table).unwrap().split(&batch).unwrap();
        assert_eq!(parts.len(), 1);
        assert!(Arc::ptr_eq(parts[0].1.column(0), batch.column(0)));
        assert_eq!(described(&table, &batch), [("datetime_day=2023-01-08".into(), 1000)].into());
    }

    #[test]
    fn times_before_1970_and_null_have_their_own_partitions() {
        let values = vec![Some(-1), Some(0), None, Some(-86_400), Some(-86_401), None];
        let cases = [
            (
                Transform::Day,
                vec![("day=1969-12-30", 1), ("day=1969-12-31", 2), ("day=1970-01-01", 1), ("day=NULL", 2)],
            ),
            (Transform::Year, vec![("year=1969", 3), ("year=1970", 1), ("year=NULL", 2)]),
            (Transform::Month, vec![("month=1969-12", 3), ("month=1970-01", 1), ("month=NULL", 2)]),
            (
                Transform::Hour,
                vec![
                    ("hour=1969-12-30-23", 1),
                    ("hour=1969-12-31-00", 1),
                    ("hour=1969-12-31-23", 1),
                    ("hour=1970-01-01-00", 1),
                    ("hour=NULL", 2),
                ],
            ),
        ];
        for (transform, expected) in cases {
            let table = table(&[("t", SECONDS)], &[(transform, "t")]);
            let expected = expected.into_iter().map(|(name, rows)| (format!("t_{name}"), rows)).collect();
            assert_eq!(described(&table, &times(&table, values.clone())), expected);
        }
    }

    #[test]
    fn zoned_timestamps_are_split_by_their_instant() {
        let zoned = DataType::Timestamp(TimeUnit::Second, Some("+02:00".into()));
        let table = table(&[("t", zoned)], &[(Transform::Day, "t")]);
        let array = TimestampSecondArray::from(vec![-3600, 3600]).with_timezone("+02:00");
        let batch = RecordBatch::try_new(table.schema(), vec![Arc::new(array)]).unwrap();
        assert_eq!(described(&table, &batch), [("t_day=1969-12-31".into(), 1), ("t_day=1970-01-01".into(), 1)].into());
    }

    #[test]
    fn combined_fields_keep_row_order_and_all_rows() {
        let columns = [("d", SECONDS), ("s", DataType::Utf8), ("b", DataType::Boolean), ("row", DataType::Int64)];
        let fields = [(Transform::Day, "d"), (Transform::Identity, "s"), (Transform::Identity, "b")];
        let table = table(&columns, &fields);
        let rows = 10_000i64;
        let day = |row: i64| (row * 7919) % 5 * 86_400;
        let batch = RecordBatch::try_new(
            table.schema(),
            vec![
                Arc::new(TimestampSecondArray::from_iter((0..rows).map(|row| (row % 11 != 0).then(|| day(row))))),
                Arc::new(StringArray::from_iter((0..rows).map(|row| (row % 13 != 0).then(|| format!("s{}", row % 3))))),
                Arc::new(BooleanArray::from_iter((0..rows).map(|row| Some(row % 2 == 0)))),
                Arc::new(Int64Array::from_iter_values(0..rows)),
            ],
        )
        .unwrap();
        let scheme = PartitionScheme::new(&table).unwrap();
        let parts = scheme.split(&batch).unwrap();
        let mut seen = 0;
        for (key, part) in &parts {
            let numbers = part.column(3).as_primitive::<Int64Type>().values();
            assert!(numbers.is_sorted_by(|a, b| a < b));
            seen += numbers.len();
            // Splitting a part again gives that part.
            let again = scheme.split(part).unwrap();
            assert_eq!(again.len(), 1);
            assert_eq!(&again[0].0, key);
        }
        assert_eq!(seen, rows as usize);
        let distinct: std::collections::BTreeSet<_> = parts.iter().map(|(key, _)| key).collect();
        assert_eq!(distinct.len(), parts.len());
        assert_eq!(parts.len(), 6 * 4 * 2);
    }

    #[test]
    fn bounds_hold_the_rows() {
        let table = table(&[("t", SECONDS)], &[(Transform::Month, "t")]);
        let scheme = PartitionScheme::new(&table).unwrap();
        let values = vec![Some(-1), Some(1_673_136_000), None];
        for (key, part) in scheme.split(&times(&table, values)).unwrap() {
            let bounds = scheme.bounds(&key).unwrap();
            assert_eq!(bounds[0].column, ColumnId(1));
            let value = Scalar::at(part.column(0), 0);
            let (min, max) = (bounds[0].min.clone(), bounds[0].max.clone());
            match value {
                None => assert!(min.is_none() && max.is_none()),
                Some(Scalar::Int(value)) => {
                    let (min, max) = (min.unwrap(), max.unwrap());
                    let (Some(Scalar::Int(min)), Some(Scalar::Int(max))) = (Scalar::at(&min, 0), Scalar::at(&max, 0))
                    else {
                        panic!("bounds of the column's type");
                    };
                    assert!(min <= value && value <= max && max - min < 31 * 86_400);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn every_supported_type_can_be_an_identity() {
        for data_type in crate::types::all_types() {
            if data_type.is_floating() {
                continue;
            }
            let table = table(&[("x", data_type.clone())], &[(Transform::Identity, "x")]);
            let scalar = match kind(&data_type).unwrap() {
                Kind::Bool => Scalar::Bool(true),
                Kind::Int => Scalar::Int(-5),
                Kind::UInt => Scalar::UInt(5),
                Kind::Decimal => Scalar::Decimal(-5),
                Kind::Bytes => Scalar::Bytes(b"five"),
            };
            let column = scalar.to_array(&data_type).unwrap();
            let batch = RecordBatch::try_new(table.schema(), vec![column]).unwrap();
            let scheme = PartitionScheme::new(&table).unwrap();
            let (key, _) = scheme.split(&batch).unwrap().remove(0);
            let bounds = scheme.bounds(&key).unwrap();
            assert_eq!(Scalar::at(bounds[0].min.as_ref().unwrap(), 0), Some(scalar), "{data_type}");
            for end in 0..key.0.len() {
                scheme.describe(&PartitionKey(key.0.slice(..end))).unwrap_err();
            }
        }
    }

    #[test]
    fn keys_of_other_tables_and_overlong_ones_are_refused() {
        let int = table(&[("x", DataType::Int8)], &[(Transform::Identity, "x")]);
        let scheme = PartitionScheme::new(&int).unwrap();
        let wide = field_key(Some(Scalar::Int(1000)));
        scheme.describe(&PartitionKey(wide.into())).unwrap_err();
        let text = table(&[("x", DataType::Utf8)], &[(Transform::Identity, "x")]);
        let long = StringArray::from(vec!["x".repeat(KEY_BYTES_MAX)]);
        let batch = RecordBatch::try_new(text.schema(), vec![Arc::new(long)]).unwrap();
        let error = PartitionScheme::new(&text).unwrap().split(&batch).unwrap_err().to_string();
        assert!(error.contains("4096"), "{error}");
        let decimals = Decimal128Array::from(vec![1]).with_precision_and_scale(5, 2).unwrap();
        let batch = RecordBatch::try_from_iter([("x", Arc::new(decimals) as ArrayRef)]).unwrap();
        scheme.split(&batch).unwrap_err();
    }

    #[test]
    fn a_table_without_partitions_has_one() {
        let table = table(&[("x", DataType::Int8)], &[]);
        let scheme = PartitionScheme::new(&table).unwrap();
        let column = Scalar::Int(1).to_array(&DataType::Int8).unwrap();
        let batch = RecordBatch::try_new(table.schema(), vec![column]).unwrap();
        let parts = scheme.split(&batch).unwrap();
        assert_eq!(parts.len(), 1);
        assert_eq!(parts[0].0, PartitionKey::default());
        assert!(scheme.split(&batch.slice(0, 0)).unwrap().is_empty());
    }
}
