//! The changes of one table, read from the log as Arrow batches: bounded, or without an end.
//!
//! A feed gives whole transactions in the order of the history, the rows of each in the order of their ordinals, as soon
//! as they are durable *and* applied here: what a subscriber sees can be read from the table. It holds no version and
//! at most one record beside the batch that is being put together; the fragments of a large transaction are read
//! again when its commit has come. What cannot be given is an error that names it, never a gap.

mod decode;
mod rows;
mod source;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use futures::Stream;
use tailrace_wal::{CommitTime, Frame, HistoryHeader, HistoryId, Lsn, Payload, RecordKind, Seq};

use self::{decode::Decoder, rows::Pending, source::Source};
use crate::{
    ColumnId, Engine, EngineError, PartitionKey, Result, Table,
    database::Database,
    effect::invalid,
    held::{TransactionKey, transaction_key},
};

pub use rows::{COMMIT_TIME_COLUMN, DROP_PARTITION, FEED_COLUMNS, INSERT, OPERATION_COLUMN, feed_schema};

/// Payloads beyond this are decoded on a blocking thread.
const INLINE_BYTES: usize = 128 << 10;

/// Whether rows of a partition are wanted.
pub type PartitionFilter = Arc<dyn Fn(&PartitionKey) -> Result<bool> + Send + Sync>;

/// What a feed gives.
#[derive(Clone)]
pub struct ChangesRequest {
    /// Of which history.
    pub history: HistoryId,
    /// Of which table, with the columns that it is to be given with.
    pub table: Arc<Table>,
    /// Its columns that are wanted, in this order.
    pub columns: Vec<ColumnId>,
    /// Transactions after this one.
    pub after: Seq,
    /// Where a reader at `after` has to start, if that is known.
    pub restart: Option<Seq>,
    /// Up to and with this one; `None`: without an end.
    pub upto: Option<Seq>,
    /// Rows of transactions committed before this are left out.
    pub from_time: Option<CommitTime>,
    /// The feed ends before the first transaction that was committed after this.
    pub upto_time: Option<CommitTime>,
    /// Partitions whose rows are left out; `None`: none.
    pub partitions: Option<PartitionFilter>,
}

/// A feed. [`Changes::next`] may be dropped and called again.
pub struct Changes {
    request: ChangesRequest,
    database: Arc<Database>,
    schema: SchemaRef,
    decoder: Arc<Decoder>,
    /// `None` before the first call.
    source: Option<Source>,
    opener: source::Opener,
    /// Fragments of transactions whose end has not come.
    open: HashMap<TransactionKey, Vec<Lsn>>,
    /// The transaction whose rows are being read.
    at: Option<Reading>,
    pending: Pending,
    /// Told when the rows before it are.
    failed: Option<EngineError>,
    done: bool,
}

/// A committed transaction.
struct Reading {
    header: HistoryHeader,
    skipped: bool,
    /// Known to be readable here.
    applied: bool,
    /// Still to be read.
    fragments: VecDeque<Lsn>,
    /// The commit's own payload.
    payload: Payload,
    /// It lies outside of the times that are wanted.
    unwanted: bool,
}

impl Engine {
    /// The changes of a table. Nothing is read before [`Changes::next`].
    pub fn changes(&self, request: ChangesRequest) -> Result<Changes> {
        self.check_open()?;
        let database = self.database(request.history).ok_or_else(|| EngineError::NotFound {
            kind: "database",
            name: format!("of history {}", request.history),
        })?;
        let decoder = Arc::new(Decoder::new(database.clone(), &request)?);
        let opener = source::Opener {
            log: self.log.clone(),
            archive: self.archive().cloned(),
            history: request.history,
            database: database.name.clone(),
        };
        let done = request.upto.is_some_and(|upto| upto <= request.after);
        Ok(Changes {
            schema: decoder.schema(),
            request,
            database,
            decoder,
            source: None,
            opener,
            open: HashMap::new(),
            at: None,
            pending: Pending::default(),
            failed: None,
            done,
        })
    }
}

impl Changes {
    /// Columns: those of [`FEED_COLUMNS`], then the wanted ones of the table, each nullable.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows: as soon as there are some, and as many as are there, up to a few thousand. `None` at the upper
    /// bound. After an error there is nothing more.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(error) = self.failed.take() {
                self.done = true;
                return Err(error);
            }
            if self.pending.is_full() || (self.done && !self.pending.is_empty()) {
                return self.pending.take(&self.schema).map(Some);
            }
            if self.done {
                return Ok(None);
            }
            match self.step().await {
                Ok(Step::Moved) => {}
                Ok(Step::NothingNow) => return self.pending.take(&self.schema).map(Some),
                Err(error) => {
                    self.at = None;
                    self.failed = Some(error);
                    if !self.pending.is_empty() {
                        return self.pending.take(&self.schema).map(Some);
                    }
                }
            }
        }
    }

    /// The feed as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<RecordBatch>> + Send {
        futures::stream::try_unfold(self, |mut changes| async move {
            Ok(changes.next().await?.map(|batch| (batch, changes)))
        })
    }

    async fn step(&mut self) -> Result<Step> {
        if self.at.is_some() {
            return self.read().await.map(|()| Step::Moved);
        }
        let source = match &mut self.source {
            Some(source) => source,
            None => {
                let ChangesRequest { after, restart, .. } = self.request;
                // A feed may wait for what is far ahead.
                let here = self.database.version().position.seq;
                let restart = restart.filter(|_| after <= here);
                self.source.insert(self.opener.open(after.min(here), restart).await?)
            }
        };
        let wanted = |error| self.opener.gone(error, self.request.after.next());
        if !self.pending.is_empty() && !source.is_behind().map_err(wanted)? {
            return Ok(Step::NothingNow);
        }
        let frame = source.next().await.map_err(wanted)?;
        self.take(frame)?;
        Ok(Step::Moved)
    }

    fn take(&mut self, frame: Frame) -> Result<()> {
        let Frame { lsn, skipped, header, payload } = frame;
        let key = transaction_key(&header);
        match header.kind {
            RecordKind::Fragment => {
                let fragments = self.open.entry(key).or_default();
                let number = header.fragment.0 as usize;
                if number == 0 {
                    fragments.clear();
                }
                // Others are of a transaction that began before the reader's start: it ends at or before `after`.
                if fragments.len() == number {
                    fragments.push(lsn);
                }
            }
            RecordKind::Abort => {
                self.open.remove(&key);
            }
            RecordKind::Commit => {
                let fragments = self.open.remove(&key).unwrap_or_default();
                if header.seq <= self.request.after {
                    return Ok(());
                }
                if fragments.len() != payload.directory.fragments.len() {
                    return Err(EngineError::ChangesGone {
                        database: self.database.name.clone(),
                        wanted: header.seq,
                        first: header.seq.next(),
                    });
                }
                if self.request.upto_time.is_some_and(|upto| header.commit_time > upto) {
                    self.done = true;
                    return Ok(());
                }
                let unwanted = self.request.from_time.is_some_and(|from| header.commit_time < from);
                let fragments = fragments.into();
                self.at = Some(Reading { header, skipped, applied: false, fragments, payload, unwanted });
            }
        }
        Ok(())
    }

    /// Reads one record more of the transaction.
    async fn read(&mut self) -> Result<()> {
        let Some(at) = &mut self.at else { return Ok(()) };
        let seq = at.header.seq;
        if !at.applied {
            self.database.applied(seq).await?;
            at.applied = true;
        }
        let (payload, is_last) = match at.fragments.front() {
            Some(lsn) => {
                let named = &at.payload.directory.fragments;
                let expected = named.get(named.len() - at.fragments.len()).copied();
                let frame = self.opener.record(*lsn).await.map_err(|error| self.opener.gone(error, seq))?;
                if frame.header.kind != RecordKind::Fragment || Some(frame.payload.hash) != expected {
                    return Err(invalid(&format!("LSN {lsn} does not hold the fragment of transaction {seq}")));
                }
                (frame.payload, false)
            }
            None => (at.payload.clone(), true),
        };
        let (header, skipped, unwanted) = (at.header, at.skipped, at.unwanted);
        let pieces = if payload.encoded_len() > INLINE_BYTES {
            let decoder = self.decoder.clone();
            blocking(move || decoder.pieces(&header, skipped, unwanted, &payload)).await?
        } else {
            self.decoder.pieces(&header, skipped, unwanted, &payload)?
        };
        // No await from here on: what was read counts once.
        self.pending.extend(pieces);
        at.fragments.pop_front();
        if is_last {
            self.at = None;
            // What was given is not to be asked for again.
            self.request.after = seq;
            self.done = self.request.upto.is_some_and(|upto| seq >= upto);
        }
        Ok(())
    }
}

enum Step {
    Moved,
    /// There are rows, and nothing more to read now.
    NothingNow,
}

pub(crate) async fn blocking<T: Send + 'static, E: From<tailrace_wal::LogError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(tailrace_wal::LogError::Closed.into()),
    }
}

impl std::fmt::Debug for ChangesRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangesRequest")
            .field("history", &self.history)
            .field("table", &self.table.name)
            .field("after", &self.after)
            .field("upto", &self.upto)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("request", &self.request).finish_non_exhaustive()
    }
}
