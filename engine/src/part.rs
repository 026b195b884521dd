//! Parts: Arrow record batches as the log carries them.

use std::{collections::HashMap, ops::RangeInclusive, sync::Arc};

use arrow_array::{Array, RecordBatch, cast::AsArray, types::Decimal128Type};
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_ipc::{
    CompressionType, Message, MessageHeader, MetadataVersion, reader::RecordBatchDecoder, root_as_message,
    writer::StreamEncoder,
};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use bytes::{Bytes, BytesMut};

use crate::{EngineError, Result, types::check_type};

/// What starts every encapsulated message, before the length of its metadata.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Continuation and length.
const PREFIX_BYTES: usize = 8;
/// Pieces up to this size are joined with their neighbours: copying them costs less than a slice of its own in a
/// vectored write.
const JOINED_BYTES_MAX: usize = 4096;

/// Encodes a batch as one encapsulated Arrow IPC record-batch message (no schema message: table id and schema version
/// in the directory name it), uncompressed, buffers aligned to 64 bytes. The pieces share the batch's buffers where
/// its layout allows; nothing is copied that need not be. Views and dictionaries do not occur in table schemas. A sliced
/// batch encodes its own rows only.
pub fn encode_part(batch: &RecordBatch) -> Result<Vec<Bytes>> {
    for column in batch.columns() {
        check_type(column.data_type())?;
        check_decimals(column).map_err(EngineError::Invalid)?;
    }
    let failed = |error: ArrowError| EngineError::Invalid(format!("a batch cannot be encoded: {error}"));
    // The encoder writes its own schema, which is skipped below, and then whatever batch it is given.
    let mut encoder = StreamEncoder::try_new(&Schema::empty()).map_err(failed)?;
    let buffers = encoder.encode(batch).map_err(failed)?;
    let mut skip = schema_message_len(&buffers)
        .ok_or_else(|| failed(ArrowError::IpcError("the encoder wrote no schema".to_owned())))?;
    let mut pieces = Vec::new();
    let mut small = BytesMut::new();
    for buffer in buffers {
        let front = skip.min(buffer.len());
        skip -= front;
        let rest = buffer.slice(front);
        if rest.len() <= JOINED_BYTES_MAX {
            small.extend_from_slice(&rest);
            continue;
        }
        if !small.is_empty() {
            pieces.push(small.split().freeze());
        }
        pieces.push(Bytes::from_owner(Owned(rest)));
    }
    if !small.is_empty() {
        pieces.push(small.freeze());
    }
    Ok(pieces)
}

/// Decodes and validates a part as a batch of `schema` with `rows` rows, sharing `bytes`. `bytes` may come from a peer
/// or a damaged file: every offset, length, UTF-8 string and NULL in a column that forbids it is checked.
pub fn decode_part(bytes: Bytes, schema: &SchemaRef, rows: u32) -> Result<RecordBatch> {
    decode_columns(bytes, schema, rows, None)
}

/// [`decode_part`] of some columns, by their index in `schema`; `None`: of all. The layout of all is checked.
pub(crate) fn decode_columns(
    bytes: Bytes,
    schema: &SchemaRef,
    rows: u32,
    columns: Option<&[usize]>,
) -> Result<RecordBatch> {
    decode(&bytes, schema, rows, columns).map_err(|reason| {
        EngineError::Invalid(format!(
            "a part of {} bytes is no batch of {rows} rows of its table: {reason}",
            bytes.len()
        ))
    })
}

/// A buffer as the owner of bytes.
struct Owned(Buffer);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Length of the schema message in front of the batch; schema messages have no body.
fn schema_message_len(buffers: &[Buffer]) -> Option<usize> {
    let prefix: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).take(PREFIX_BYTES).collect();
    let length = prefix.strip_prefix(&CONTINUATION)?;
    let length = i32::from_le_bytes(length.try_into().ok()?);
    usize::try_from(length).ok()?.checked_add(PREFIX_BYTES)
}

fn decode(bytes: &Bytes, schema: &SchemaRef, rows: u32, columns: Option<&[usize]>) -> Result<RecordBatch, String> {
    let rest = bytes.strip_prefix(&CONTINUATION).ok_or("it does not begin as an Arrow message")?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("it is cut short")?;
    let length = usize::try_from(i32::from_le_bytes(*length)).map_err(|_| "the length of its metadata is negative")?;
    let metadata = rest.get(..length).ok_or("its metadata reach beyond its end")?;
    // Flatbuffers are verified at their address, and nothing says that `bytes` is aligned; metadata are small.
    let mut aligned = MutableBuffer::new(length);
    aligned.extend_from_slice(metadata);
    let message = root_as_message(&aligned).map_err(|error| format!("its metadata are damaged: {error}"))?;
    let body = bytes.slice(PREFIX_BYTES + length..);
    check_layout(&message, schema, rows, body.len())?;
    let header = message.header_as_record_batch().ok_or("it is no record batch")?;
    let body = Buffer::from(body);
    let no_dictionaries = HashMap::new();
    let version = MetadataVersion::V5;
    let batch = RecordBatchDecoder::try_new(&body, header, Arc::clone(schema), &no_dictionaries, &version)
        .and_then(|decoder| decoder.with_projection(columns).read_record_batch())
        .map_err(|error| error.to_string())?;
    for column in batch.columns() {
        check_decimals(column)?;
    }
    Ok(batch)
}

/// Checks everything that arrow's reader takes on trust: it panics on buffers that reach beyond the body and on
/// bitmaps that are too short, and believes a compression that the log never uses.
fn check_layout(message: &Message<'_>, schema: &SchemaRef, rows: u32, body_len: usize) -> Result<(), String> {
    if message.version() != MetadataVersion::V5 || message.header_type() != MessageHeader::RecordBatch {
        return Err("it is no record batch of this format".to_owned());
    }
    if usize::try_from(message.bodyLength()) != Ok(body_len) {
        return Err(format!("its body has {body_len} bytes, and its metadata say {}", message.bodyLength()));
    }
    let header = message.header_as_record_batch().ok_or("it is no record batch")?;
    if let Some(compression) = header.compression() {
        let codec: CompressionType = compression.codec();
        return Err(format!("it is compressed ({codec:?})"));
    }
    if header.length() != i64::from(rows) {
        return Err(format!("it has {} rows", header.length()));
    }
    if header.variadicBufferCounts().is_some_and(|counts| !counts.is_empty()) {
        return Err("it has buffers of views".to_owned());
    }
    let nodes = header.nodes().ok_or("it has no columns")?;
    let buffers = header.buffers().ok_or("it has no buffers")?;
    if nodes.len() != schema.fields().len() {
        return Err(format!("it has {} columns instead of {}", nodes.len(), schema.fields().len()));
    }
    let mut buffers = buffers.iter();
    let mut next = |wanted: RangeInclusive<usize>, column: &str| -> Result<(), String> {
        let buffer = buffers.next().ok_or_else(|| format!("column {column:?} lacks a buffer"))?;
        let start = usize::try_from(buffer.offset()).ok();
        let length = usize::try_from(buffer.length()).ok();
        let (Some(start), Some(length)) = (start, length) else {
            return Err(format!("column {column:?} has a buffer with a negative offset or length"));
        };
        if start.checked_add(length).is_none_or(|end| end > body_len) {
            return Err(format!("column {column:?} has a buffer beyond the body"));
        }
        if !wanted.contains(&length) {
            return Err(format!("column {column:?} has a buffer of {length} bytes that needs {}", wanted.start()));
        }
        Ok(())
    };
    let rows = rows as usize;
    // Arrow also panics on offsets that are no whole number of values, so those lengths are exact.
    let exactly = |bytes: usize| bytes..=bytes;
    let bits = rows.div_ceil(8)..=usize::MAX;
    for (field, node) in schema.fields().iter().zip(nodes.iter()) {
        let name = field.name();
        if usize::try_from(node.length()) != Ok(rows) {
            return Err(format!("column {name:?} has {} rows", node.length()));
        }
        let nulls = usize::try_from(node.null_count()).ok().filter(|nulls| *nulls <= rows);
        let nulls = nulls.ok_or_else(|| format!("column {name:?} has {} NULLs", node.null_count()))?;
        next(if nulls == 0 { 0..=usize::MAX } else { bits.clone() }, name)?;
        match field.data_type() {
            DataType::Utf8 | DataType::Binary => {
                next(exactly((rows + 1) * 4), name)?;
                next(0..=usize::MAX, name)?;
            }
            DataType::Boolean => next(bits.clone(), name)?,
            other => {
                let width = other.primitive_width().ok_or_else(|| format!("column {name:?} is {other}"))?;
                next(exactly(rows * width), name)?;
            }
        }
    }
    match buffers.next() {
        Some(_) => Err("it has more buffers than its columns need".to_owned()),
        None => Ok(()),
    }
}

/// Decimals with more digits than their column: arrow does not mind them, Parquet and casts do.
fn check_decimals(column: &dyn Array) -> Result<(), String> {
    let DataType::Decimal128(precision, _) = column.data_type() else { return Ok(()) };
    let values = column.as_primitive::<Decimal128Type>();
    values.validate_decimal_precision(*precision).map_err(|error| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use arrow_array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, new_null_array};
    use arrow_schema::Field;
    use arrow_select::concat::concat;
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{scalar::Scalar, types::all_types};

    /// A batch with a nullable column of every supported type, every fifth row NULL.
    pub(crate) fn every_type(rows: usize) -> RecordBatch {
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for (index, data_type) in all_types().into_iter().enumerate() {
            let null = new_null_array(&data_type, 1);
            let value = |row: usize| {
                let text = format!("värde {}", row % 90);
                let number = (row % 90) as i64 - 45;
                let scalar = match &data_type {
                    DataType::Boolean => Scalar::Bool(row.is_multiple_of(3)),
                    DataType::Float32 | DataType::Float64 => Scalar::Float(number as f64 / 4.0),
                    DataType::Decimal128(..) => Scalar::Decimal(i128::from(number) * 7),
                    DataType::Utf8 | DataType::Binary => Scalar::Bytes(text.as_bytes()),
                    other if other.is_unsigned_integer() => Scalar::UInt((row % 90) as u64),
                    _ => Scalar::Int(number),
                };
                scalar.to_array(&data_type).unwrap()
            };
            let values: Vec<ArrayRef> =
                (0..rows).map(|row| if row % 5 == 4 { null.clone() } else { value(row) }).collect();
            let values: Vec<&dyn Array> = values.iter().map(|value| value.as_ref()).collect();
            let column = if rows == 0 { null.slice(0, 0) } else { concat(&values).unwrap() };
            columns.push((format!("c{index}"), column));
        }
        let fields: Vec<Field> =
            columns.iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, column)| column).collect())
            .unwrap()
    }

    fn joined(pieces: &[Bytes]) -> Bytes {
        pieces.concat().into()
    }

    #[test]
    fn every_type_comes_back_whole_and_sliced() {
        let batch = every_type(500);
        for (offset, length) in [(0, 500), (0, 1), (3, 490), (13, 9), (499, 1), (7, 0)] {
            let slice = batch.slice(offset, length);
            let bytes = joined(&encode_part(&slice).unwrap());
            let back = decode_part(bytes, &batch.schema(), length as u32).unwrap();
            assert_eq!(back, slice);
        }
    }

    #[test]
    fn a_slice_encodes_its_own_rows_only() {
        let rows = 100_000;
        let batch = RecordBatch::try_from_iter([
            ("text", Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("text {row}")))) as ArrayRef),
            ("flag", Arc::new(BooleanArray::from_iter((0..rows).map(|row| Some(row % 2 == 0))))),
            ("number", Arc::new(Int64Array::from_iter((0..rows).map(|row| (row % 3 != 0).then_some(row))))),
        ])
        .unwrap();
        let bytes = joined(&encode_part(&batch.slice(50_000, 10)).unwrap());
        assert!(bytes.len() < 2048, "{} bytes for ten rows", bytes.len());
    }

    #[test]
    fn large_buffers_are_shared_both_ways() {
        let values = Float64Array::from_iter_values((0..100_000).map(f64::from));
        let address = values.values().as_ptr() as usize;
        let batch = RecordBatch::try_from_iter([("x", Arc::new(values) as ArrayRef)]).unwrap();
        let pieces = encode_part(&batch).unwrap();
        assert!(pieces.iter().any(|piece| piece.as_ptr() as usize == address));

        let mut aligned = MutableBuffer::new(0);
        pieces.iter().for_each(|piece| aligned.extend_from_slice(piece));
        let bytes = Bytes::from_owner(Owned(aligned.into()));
        let whole = bytes.as_ptr() as usize..bytes.as_ptr() as usize + bytes.len();
        let back = decode_part(bytes, &batch.schema(), 100_000).unwrap();
        let values = back.column(0).as_primitive::<arrow_array::types::Float64Type>().values();
        assert!(whole.contains(&(values.as_ptr() as usize)));
        assert_eq!(back, batch);
    }

    #[test]
    fn bytes_at_odd_addresses_are_read() {
        let batch = every_type(40);
        let mut shifted = vec![0u8];
        shifted.extend(joined(&encode_part(&batch).unwrap()));
        let bytes = Bytes::from(shifted).slice(1..);
        assert_eq!(decode_part(bytes, &batch.schema(), 40).unwrap(), batch);
    }

    #[test]
    fn damage_never_panics_and_never_gives_an_invalid_batch() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for rows in [1usize, 9, 64] {
            let batch = every_type(rows);
            let good = joined(&encode_part(&batch).unwrap()).to_vec();
            let check = |bytes: Vec<u8>| {
                if let Ok(back) = decode_part(bytes.into(), &batch.schema(), rows as u32) {
                    assert_eq!(back.num_rows(), rows);
                    for column in back.columns() {
                        column.to_data().validate_full().unwrap();
                    }
                }
            };
            for end in 0..good.len() {
                decode_part(good[..end].to_vec().into(), &batch.schema(), rows as u32).unwrap_err();
            }
            for byte in 0..good.len() {
                for flip in [1u8, 0x80, 0xff, random.random_range(1..=255)] {
                    let mut bytes = good.clone();
                    bytes[byte] ^= flip;
                    check(bytes);
                }
            }
            for _ in 0..2_000 {
                let mut bytes = good.clone();
                for _ in 0..random.random_range(1..20) {
                    let byte = random.random_range(0..bytes.len().min(4096));
                    bytes[byte] = random.random();
                }
                check(bytes);
            }
        }
    }

    #[test]
    fn what_does_not_fit_the_table_is_refused() {
        let batch = every_type(10);
        let bytes = joined(&encode_part(&batch).unwrap());
        decode_part(bytes.clone(), &batch.schema(), 11).unwrap_err();
        let fewer = Arc::new(Schema::new(batch.schema().fields()[1..].to_vec()));
        decode_part(bytes.clone(), &fewer, 10).unwrap_err();
        let strict: Vec<Field> =
            batch.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(false)).collect();
        let error = decode_part(bytes, &Arc::new(Schema::new(strict)), 10).unwrap_err().to_string();
        assert!(error.contains("c0"), "{error}");

        let text: ArrayRef = Arc::new(arrow_array::BinaryArray::from(vec![[0xffu8].as_slice()]));
        let binary = RecordBatch::try_from_iter([("x", text)]).unwrap();
        let bytes = joined(&encode_part(&binary).unwrap());
        let as_text = Arc::new(Schema::new(vec![Field::new("x", DataType::Utf8, true)]));
        decode_part(bytes, &as_text, 1).unwrap_err();

        let decimals = arrow_array::Decimal128Array::from(vec![1000]).with_precision_and_scale(4, 0).unwrap();
        let decimals = RecordBatch::try_from_iter([("x", Arc::new(decimals) as ArrayRef)]).unwrap();
        let bytes = joined(&encode_part(&decimals).unwrap());
        let narrow = Arc::new(Schema::new(vec![Field::new("x", DataType::Decimal128(3, 0), true)]));
        decode_part(bytes, &narrow, 1).unwrap_err();
    }

    #[test]
    fn unsupported_columns_are_not_encoded() {
        let view: ArrayRef = Arc::new(arrow_array::StringViewArray::from(vec!["x"]));
        encode_part(&RecordBatch::try_from_iter([("x", view)]).unwrap()).unwrap_err();
    }
}
