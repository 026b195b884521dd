//! What ends a statement early: the client's cancel and `statement_timeout`.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::DataFusionError,
    execution::{RecordBatchStream, SendableRecordBatchStream},
};
use futures::{Stream, StreamExt};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{Result, SqlError};

/// Watches over one statement, from its start to its last row.
pub(crate) struct Guard {
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    timeout: Option<(Pin<Box<Sleep>>, Duration)>,
    on_error: Arc<dyn Fn() + Send + Sync>,
}

impl Guard {
    /// `on_error` is called when the statement's rows end with an error.
    pub(crate) fn new(
        cancel: CancellationToken,
        timeout: Option<Duration>,
        on_error: Arc<dyn Fn() + Send + Sync>,
    ) -> Self {
        let timeout = timeout.map(|limit| (Box::pin(tokio::time::sleep(limit)), limit));
        Self { cancelled: Box::pin(cancel.cancelled_owned()), timeout, on_error }
    }

    /// Runs `work`; drops it when the guard fires.
    pub(crate) async fn run<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = std::pin::pin!(work);
        poll_fn(|context| match self.poll_fired(context) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => work.as_mut().poll(context),
        })
        .await
    }

    /// Runs `work` to its end. When the guard fires, `stop` is told, and work that heeds it ends soon; what was done all the
    /// same is no error.
    pub(crate) async fn stop<T>(
        &mut self,
        stop: &CancellationToken,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut work = std::pin::pin!(work);
        let mut fired = None;
        let done = poll_fn(|context| {
            if fired.is_none()
                && let Poll::Ready(error) = self.poll_fired(context)
            {
                stop.cancel();
                fired = Some(error);
            }
            work.as_mut().poll(context)
        })
        .await;
        match (done, fired) {
            (Err(error), Some(fired)) if error.sqlstate == fired.sqlstate => Err(fired.detail(error.message)),
            (done, _) => done,
        }
    }

    /// Puts the guard around a statement's rows.
    pub(crate) fn rows(self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        Box::pin(Guarded { guard: Some(self), rows })
    }

    fn poll_fired(&mut self, context: &mut Context<'_>) -> Poll<SqlError> {
        if self.cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(SqlError::new("57014", "the statement was cancelled by the client"));
        }
        if let Some((sleep, limit)) = &mut self.timeout
            && sleep.as_mut().poll(context).is_ready()
        {
            let error = SqlError::new("57014", format!("the statement was cancelled: it ran for {limit:?}"))
                .hint("statement_timeout sets the limit; 0 is none");
            return Poll::Ready(error);
        }
        Poll::Pending
    }
}

struct Guarded {
    /// `None` after the end.
    guard: Option<Guard>,
    rows: SendableRecordBatchStream,
}

impl Stream for Guarded {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(guard) = &mut self.guard else { return Poll::Ready(None) };
        let next = match guard.poll_fired(context) {
            Poll::Ready(error) => Some(Err(DataFusionError::External(Box::new(error)))),
            Poll::Pending => std::task::ready!(self.rows.poll_next_unpin(context)),
        };
        if !matches!(next, Some(Ok(_)))
            && let Some(guard) = self.guard.take()
            && next.is_some()
        {
            (guard.on_error)();
        }
        Poll::Ready(next)
    }
}

impl RecordBatchStream for Guarded {
    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }
}
