//! The query threads, and rows on their way from there.

use std::{
    any::Any,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::DataFusionError,
    execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext},
    physical_plan::{ExecutionPlan, execute_stream, stream::RecordBatchStreamAdapter},
};
use futures::{FutureExt, Stream, StreamExt};
use tokio::{
    runtime::{Builder, Runtime},
    sync::mpsc,
    task::AbortHandle,
};

use super::small::{Waits, is_small};
use crate::{Result, SqlError};

/// Stack of a thread: plans are as deep as statements are.
const STACK_BYTES: usize = 8 << 20;

/// Batches that a query may be ahead of whoever reads its rows.
const AHEAD: usize = 2;

type Batch = Result<RecordBatch, DataFusionError>;

/// The threads of all queries of a node. Clones share them; they end with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct QueryThreads(Arc<Threads>);

#[derive(Debug)]
struct Threads {
    /// `None`: it is being dropped.
    runtime: Option<Runtime>,
}

impl QueryThreads {
    /// Starts `count` threads, `query-1`, `query-2` and so on.
    ///
    /// # Errors
    /// `53000` when the system gives none.
    pub(crate) fn start(count: usize) -> Result<Self> {
        let started = AtomicUsize::new(0);
        let runtime = Builder::new_multi_thread()
            .worker_threads(count.max(1))
            .thread_stack_size(STACK_BYTES)
            .thread_name_fn(move || format!("query-{}", started.fetch_add(1, Ordering::Relaxed) + 1))
            // Scans wait for files and for other clusters.
            .enable_all()
            .build()
            .map_err(|error| {
                SqlError::new("53000", format!("{count} threads for queries cannot be started: {error}"))
                    .hint("set fewer query.threads")
            })?;
        Ok(Self(Arc::new(Threads { runtime: Some(runtime) })))
    }

    /// Starts a plan. Dropping the rows ends it: at once where it waits, else when it lets others run.
    pub(crate) fn run(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.start_plan(plan, context, Waits::No)
    }

    /// The same for a plan that mostly waits for what comes, and whose rows are wanted when they come.
    pub(crate) fn run_waiting(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        self.start_plan(plan, context, Waits::Yes)
    }

    fn start_plan(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        context: Arc<TaskContext>,
        waits: Waits,
    ) -> Result<SendableRecordBatchStream> {
        let schema = plan.schema();
        if is_small(plan.as_ref(), waits) {
            return Ok(here(execute_stream(plan, context)?));
        }
        // Operators start tasks of their own as soon as they are asked for a stream: that is done there, too.
        self.there(schema, move || execute_stream(plan, context))
    }

    /// Rows that are made on the query threads.
    fn there(
        &self,
        schema: SchemaRef,
        make: impl FnOnce() -> Result<SendableRecordBatchStream, DataFusionError> + Send + 'static,
    ) -> Result<SendableRecordBatchStream> {
        let runtime = self.0.runtime.as_ref().ok_or_else(stopped)?;
        let (sender, rows) = mpsc::channel(AHEAD);
        let task = runtime.spawn(async move {
            let end = match AssertUnwindSafe(send(make, &sender)).catch_unwind().await {
                Ok(end) => end,
                Err(panic) => Sent::End(Err(panicked(&*panic))),
            };
            if let Sent::End(end) = end {
                sender.send(Sent::End(end)).await.ok();
            }
        });
        Ok(Box::pin(Rows { schema, rows, ended: false, task: task.abort_handle() }))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever drops it may be asked not to wait; nothing that a query holds must be kept.
            runtime.shutdown_background();
        }
    }
}

/// What comes from a query.
enum Sent {
    Batch(RecordBatch),
    /// There is nothing more. What ends without it was stopped.
    End(Result<(), DataFusionError>),
}

/// Sends all batches. How it ended; [`Sent::Batch`]: nobody wants more.
async fn send(
    make: impl FnOnce() -> Result<SendableRecordBatchStream, DataFusionError>,
    sender: &mpsc::Sender<Sent>,
) -> Sent {
    let mut rows = match make() {
        Ok(rows) => rows,
        Err(error) => return Sent::End(Err(error)),
    };
    while let Some(batch) = rows.next().await {
        let batch = match batch {
            Ok(batch) => Sent::Batch(batch),
            Err(error) => return Sent::End(Err(error)),
        };
        if let Err(mpsc::error::SendError(unwanted)) = sender.send(batch).await {
            return unwanted;
        }
    }
    Sent::End(Ok(()))
}

/// Rows from the query threads.
struct Rows {
    schema: SchemaRef,
    rows: mpsc::Receiver<Sent>,
    ended: bool,
    task: AbortHandle,
}

impl Stream for Rows {
    type Item = Batch;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Batch>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = match std::task::ready!(self.rows.poll_recv(context)) {
            Some(Sent::Batch(batch)) => return Poll::Ready(Some(Ok(batch))),
            Some(Sent::End(Ok(()))) => None,
            Some(Sent::End(Err(error))) => Some(Err(error)),
            None => Some(Err(DataFusionError::External(Box::new(stopped())))),
        };
        self.ended = true;
        Poll::Ready(next)
    }
}

impl RecordBatchStream for Rows {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Rows that are made by whoever reads them.
fn here(rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
    let schema = rows.schema();
    let rows = AssertUnwindSafe(rows).catch_unwind();
    let rows = rows.map(|caught| caught.unwrap_or_else(|panic| Err(panicked(&*panic))));
    Box::pin(RecordBatchStreamAdapter::new(schema, rows))
}

/// A mistake of ours ends its query, not the connection or the node.
fn panicked(panic: &(dyn Any + Send)) -> DataFusionError {
    let words = panic.downcast_ref::<String>().map(String::as_str);
    let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    DataFusionError::External(Box::new(SqlError::internal(format!("the query panicked: {words}"))))
}

fn stopped() -> SqlError {
    SqlError::new("57P01", "the server is shutting down").hint("connect again when it is back")
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::mpsc as blocking, time::Duration};

    use datafusion::arrow::{
        array::{ArrayRef, Int64Array},
        datatypes::{DataType, Field, Schema},
    };
    use futures::{TryStreamExt, stream};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
    }

    fn batch(number: i64) -> RecordBatch {
        RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(vec![number])) as ArrayRef]).unwrap()
    }

    fn stream_of(rows: impl Stream<Item = Batch> + Send + 'static) -> SendableRecordBatchStream {
        Box::pin(RecordBatchStreamAdapter::new(schema(), rows))
    }

    fn message(error: DataFusionError) -> (String, String) {
        let error = SqlError::from(error);
        (error.sqlstate.to_string(), error.message)
    }

    #[tokio::test]
    async fn rows_come_in_order_from_named_threads_and_end() {
        let threads = QueryThreads::start(2).unwrap();
        let (told, names) = blocking::channel();
        let rows = threads.there(schema(), move || {
            Ok(stream_of(stream::iter(0..10).map(move |number| {
                told.send(std::thread::current().name().unwrap().to_owned()).unwrap();
                Ok(batch(number))
            })))
        });
        let rows: Vec<RecordBatch> = rows.unwrap().try_collect().await.unwrap();
        assert_eq!(rows, (0..10).map(batch).collect::<Vec<_>>());
        assert!(names.iter().all(|name| name.starts_with("query-")));
    }

    #[tokio::test]
    async fn errors_and_panics_end_the_query_alone() {
        let threads = QueryThreads::start(1).unwrap();
        let failing = |when: i64| {
            stream::iter(0..5).map(move |number| match number == when {
                true => Err(DataFusionError::External(Box::new(SqlError::new("22012", "division by zero")))),
                false if when < 0 && number == 3 => panic!("a mistake of {number}"),
                false => Ok(batch(number)),
            })
        };
        for (when, state, words) in [(2, "22012", "division by zero"), (-1, "XX000", "a mistake of 3")] {
            for (mut rows, is_there) in [
                (threads.there(schema(), move || Ok(stream_of(failing(when)))).unwrap(), true),
                (here(stream_of(failing(when))), false),
            ] {
                let mut seen = 0;
                let error = loop {
                    match rows.next().await.unwrap() {
                        Ok(_) => seen += 1,
                        Err(error) => break message(error),
                    }
                };
                assert_eq!(seen, if when < 0 { 3 } else { when });
                assert!(error.0 == state && error.1.contains(words), "{error:?}");
                // Nobody asks for more after an error; what was handed over has ended.
                assert!(!is_there || rows.next().await.is_none());
            }
        }
        let mut rows = threads.there(schema(), || panic!("before the first row")).unwrap();
        let error = message(rows.next().await.unwrap().unwrap_err());
        assert!(error.1.contains("before the first row"), "{error:?}");
        let rows = threads.there(schema(), || Ok(stream_of(stream::iter([Ok(batch(1))])))).unwrap();
        assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().len(), 1, "the threads go on");
    }

    /// Says so when it goes.
    struct Gone(Option<blocking::Sender<()>>);

    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.take().unwrap().send(()).unwrap();
        }
    }

    #[tokio::test]
    async fn dropping_the_rows_ends_a_query_that_waits_and_one_that_computes() {
        let threads = QueryThreads::start(1).unwrap();
        for waits in [true, false] {
            let (told, gone) = blocking::channel();
            let gone_with_it = Gone(Some(told));
            let mut rows = threads
                .there(schema(), move || {
                    let rows = stream::unfold((0, gone_with_it), move |(number, gone)| async move {
                        if number > 0 && waits {
                            pending::<()>().await;
                        }
                        tokio::task::yield_now().await;
                        Some((Ok(batch(number)), (number + 1, gone)))
                    });
                    // The one that computes gives nothing more, and yields in between.
                    let rows = rows.try_filter(|batch| {
                        futures::future::ready(
                            batch.column(0).as_ref()
                                == &Int64Array::from(vec![0]) as &dyn datafusion::arrow::array::Array,
                        )
                    });
                    Ok(stream_of(rows))
                })
                .unwrap();
            assert_eq!(rows.next().await.unwrap().unwrap(), batch(0));
            drop(rows);
            gone.recv_timeout(PATIENCE).unwrap();
        }
    }

    #[tokio::test]
    async fn whoever_does_not_read_holds_a_query_up() {
        let threads = QueryThreads::start(1).unwrap();
        let (told, made) = blocking::channel();
        let mut rows = threads
            .there(schema(), move || {
                Ok(stream_of(stream::iter(0..100).map(move |number| {
                    told.send(number).ok();
                    Ok(batch(number))
                })))
            })
            .unwrap();
        assert_eq!(rows.next().await.unwrap().unwrap(), batch(0));
        // What it holds, what waits, and what was read.
        let most = AHEAD + 2;
        // The thread has nothing else to do: what comes behind runs when it has gone as far as it may.
        let behind = threads.there(schema(), || Ok(stream_of(stream::empty()))).unwrap();
        assert!(behind.try_collect::<Vec<_>>().await.unwrap().is_empty());
        let made: Vec<i64> = made.try_iter().collect();
        assert!(made.len() <= most, "{made:?}");
        assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap().len(), 99);
    }

    #[tokio::test]
    async fn a_query_that_outlives_its_threads_says_so() {
        let threads = QueryThreads::start(1).unwrap();
        let mut rows = threads.there(schema(), || Ok(stream_of(stream::pending()))).unwrap();
        drop(threads);
        assert_eq!(message(rows.next().await.unwrap().unwrap_err()).0, "57P01");
        assert!(rows.next().await.is_none());
    }
}
