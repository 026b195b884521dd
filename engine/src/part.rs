//! Parts: Arrow record batches as the log carries them.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;

use crate::Result;

/// Encodes a batch as one encapsulated Arrow IPC record-batch message (no schema message: table id and schema version
/// in the directory name it), uncompressed, buffers aligned to 64 bytes. The pieces share the batch's buffers where
/// its layout allows; nothing is copied that need not be. Views and dictionaries do not occur in table schemas.
pub fn encode_part(_batch: &RecordBatch) -> Result<Vec<Bytes>> {
    todo!()
}

/// Decodes and validates a part as a batch of `schema` with `rows` rows, sharing `bytes`. `bytes` may come from a peer
/// or a damaged file: every offset, length, UTF-8 string and NULL in a column that forbids it is checked.
pub fn decode_part(_bytes: Bytes, _schema: &SchemaRef, _rows: u32) -> Result<RecordBatch> {
    todo!()
}
