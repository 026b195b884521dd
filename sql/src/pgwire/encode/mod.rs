//! Arrow rows as DataRow messages.
//!
//! Own encoders rather than arrow-pg's: those spell floats as `1.0` and `inf`, refuse decimals beyond 28 digits, and
//! find the array's type anew for every value. What has no encoder here (lists, structs, intervals) still goes through
//! arrow-pg.

mod cell;
mod text;

use bytes::BufMut;
use datafusion::arrow::{array::RecordBatch, buffer::NullBuffer};

use self::cell::Cell;
use super::types::WireColumn;
use crate::{Result, SqlError};

/// A batch on its way to the client, row by row.
pub(crate) struct BatchEncoder {
    columns: Vec<(Option<NullBuffer>, Cell)>,
    rows: usize,
    next: usize,
}

impl BatchEncoder {
    /// Prepares a batch; `columns` describe it to the client.
    pub(crate) fn new(batch: &RecordBatch, columns: &[WireColumn]) -> Result<Self> {
        if batch.num_columns() != columns.len() {
            return Err(SqlError::new("XX000", "a result does not have the columns that were announced")
                .detail(format!("{} were announced, {} came.", columns.len(), batch.num_columns())));
        }
        let schema = batch.schema();
        let cells = batch.columns().iter().zip(schema.fields()).zip(columns);
        let columns = cells
            .map(|((array, field), column)| Ok((array.logical_nulls(), cell::cell(array, field, column)?)))
            .collect::<Result<_>>()?;
        Ok(Self { columns, rows: batch.num_rows(), next: 0 })
    }

    /// Rows not written yet.
    pub(crate) fn remaining(&self) -> usize {
        self.rows - self.next
    }

    /// Appends rows to `out` until there are no more, `rows_max` are written, or `out` reaches `bytes_max`. Returns
    /// how many.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, rows_max: usize, bytes_max: usize) -> Result<usize> {
        let count = u16::try_from(self.columns.len())
            .map_err(|_| SqlError::new("54011", "a result has more than 65,535 columns"))?;
        let start = self.next;
        let end = self.rows.min(start.saturating_add(rows_max));
        while self.next < end && out.len() < bytes_max {
            let row = self.next;
            out.put_u8(b'D');
            let message = out.len();
            out.put_u32(0);
            out.put_u16(count);
            for (nulls, cell) in &self.columns {
                if nulls.as_ref().is_some_and(|nulls| nulls.is_null(row)) {
                    out.put_i32(-1);
                    continue;
                }
                let value = out.len();
                out.put_u32(0);
                cell(row, out)?;
                patch(out, value, value + 4)?;
            }
            patch(out, message, message)?;
            self.next += 1;
        }
        Ok(self.next - start)
    }
}

/// Writes at `at` the length of everything from `from` on.
fn patch(out: &mut [u8], at: usize, from: usize) -> Result<()> {
    let length = i32::try_from(out.len() - from)
        .map_err(|_| SqlError::new("54000", "a row is longer than 2 GiB").hint("select fewer columns"))?;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
