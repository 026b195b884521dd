//! Sends results: in pieces, as fast as the client reads, and at once when the source has nothing more right now.

use std::pin::Pin;

use datafusion::{arrow::datatypes::SchemaRef, execution::SendableRecordBatchStream};
use futures::{Stream, StreamExt};
use tokio::io::AsyncWrite;
use tokio_util::sync::CancellationToken;

use super::{
    connection::{Connection, Failure},
    encode::BatchEncoder,
    types::{WireColumn, wire_columns},
};
use crate::SqlError;

/// Bytes gathered before they are sent: enough that system calls cost little, little enough that rows come soon.
const SEND_BYTES: usize = 64 << 10;

/// A result on its way.
pub(super) struct RowSource {
    stream: SendableRecordBatchStream,
    columns: Vec<WireColumn>,
    batch: Option<BatchEncoder>,
}

/// How far sending came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Everything; so many rows this time.
    All(u64),
    /// As many rows as were asked for; there may be more.
    Suspended,
}

impl RowSource {
    pub(super) fn new(stream: SendableRecordBatchStream, formats: &[i16]) -> Self {
        let columns = wire_columns(&stream.schema(), formats);
        Self { stream, columns, batch: None }
    }

    /// Takes names and types from a description that the client has. An error when the result is another by now: the
    /// client would read it wrongly.
    pub(super) fn described(mut self, described: &SchemaRef, formats: &[i16]) -> crate::Result<Self> {
        let schema = self.stream.schema();
        let same = described.fields().len() == schema.fields().len()
            && described
                .fields()
                .iter()
                .zip(schema.fields())
                .all(|(left, right)| left.data_type() == right.data_type());
        if !same {
            return Err(SqlError::new("0A000", "cached plan must not change result type")
                .detail("A table has changed since the statement was prepared.")
                .hint("prepare the statement again"));
        }
        self.columns = wire_columns(described, formats);
        Ok(self)
    }

    pub(super) fn columns(&self) -> &[WireColumn] {
        &self.columns
    }
}

impl<W: AsyncWrite + Unpin> Connection<W> {
    /// Sends rows until there are no more, or `rows_max` are sent.
    pub(super) async fn send_rows(
        &mut self,
        source: &mut RowSource,
        token: &CancellationToken,
        rows_max: Option<usize>,
    ) -> Result<Sent, Failure> {
        let mut sent = 0;
        loop {
            if token.is_cancelled() {
                return Err(self.cancellation());
            }
            let left = rows_max.map_or(usize::MAX, |rows_max| rows_max - sent);
            if left == 0 {
                return Ok(Sent::Suspended);
            }
            if let Some(batch) = source.batch.as_mut().filter(|batch| batch.remaining() > 0) {
                sent += batch.write(&mut self.out, left, SEND_BYTES)?;
                if self.out.len() >= SEND_BYTES {
                    self.flush().await?;
                }
                continue;
            }
            source.batch = None;
            match self.next_batch(source.stream.as_mut(), token).await? {
                Some(batch) => source.batch = Some(BatchEncoder::new(&batch, &source.columns)?),
                // A cancelled stream may just end.
                None if token.is_cancelled() => return Err(self.cancellation()),
                None => return Ok(Sent::All(u64::try_from(sent).unwrap_or(u64::MAX))),
            }
        }
    }

    async fn next_batch<S, T, E>(
        &mut self,
        mut stream: Pin<&mut S>,
        token: &CancellationToken,
    ) -> Result<Option<T>, Failure>
    where
        S: Stream<Item = Result<T, E>> + ?Sized,
        SqlError: From<E>,
    {
        let next = match futures::poll!(stream.next()) {
            std::task::Poll::Ready(next) => next,
            std::task::Poll::Pending => {
                self.flush().await?;
                tokio::select! {
                    biased;
                    () = token.cancelled() => return Err(self.cancellation()),
                    () = self.gone.cancelled() => {
                        token.cancel();
                        return Err(Failure::Gone);
                    }
                    next = stream.next() => next,
                }
            }
        };
        next.transpose().map_err(|error| self.cancelled(token, error.into()))
    }
}
