//! BEGIN, COMMIT, ROLLBACK: one transaction of one database.
//!
//! Rows are buffered in the engine's transaction and are seen by nobody before COMMIT, the session itself included:
//! each statement reads the newest committed version.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use parking_lot::Mutex;
use tailrace_engine::{CommitOptions, Engine, PartitionKey, Transaction};

use super::{guard::Guard, settings::Settings};
use crate::{Notice, Outcome, Result, Session, SqlError};

/// Where a session stands. Shared with streams of rows, which fail a transaction when they end with an error.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status(Arc<Mutex<State>>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Idle,
    Open,
    Failed,
}

impl Status {
    /// `I`, `T` or `E`.
    pub(crate) fn letter(&self) -> char {
        match *self.0.lock() {
            State::Idle => 'I',
            State::Open => 'T',
            State::Failed => 'E',
        }
    }

    /// A statement failed.
    pub(crate) fn fail(&self) {
        let mut state = self.0.lock();
        if *state == State::Open {
            *state = State::Failed;
        }
    }

    fn set(&self, state: State) {
        *self.0.lock() = state;
    }
}

/// What BEGIN opened.
#[derive(Debug)]
pub(crate) struct Open {
    /// Settings to go back to at ROLLBACK.
    before: Settings,
    /// Present from the first write on.
    write: Option<Write>,
}

/// A transaction with rows.
#[derive(Debug)]
pub(crate) struct Write {
    database: String,
    transaction: Transaction,
}

impl Write {
    /// Begins a transaction of a database.
    pub(crate) fn begin(engine: &Arc<Engine>, database: &str) -> Result<Self> {
        let transaction = engine.begin(database)?;
        Ok(Self { database: database.to_owned(), transaction })
    }

    /// Adds rows.
    pub(crate) async fn append(&mut self, table: &str, batch: RecordBatch) -> Result<()> {
        Ok(self.transaction.append(table, batch).await?)
    }

    /// Drops a partition.
    pub(crate) async fn drop_partition(&mut self, table: &str, key: PartitionKey) -> Result<()> {
        Ok(self.transaction.drop_partition(table, key).await?)
    }

    /// Commits as the session's `synchronous_commit` says; a warning tells what replicas did not do in time. The guard
    /// may end the wait for them, never the commit.
    pub(crate) async fn commit(self, session: &Session, guard: &mut Guard) -> Result<Option<Notice>> {
        let wanted = session.settings(|settings| settings.synchronous_commit());
        wanted.check(session, &self.database)?;
        let options = CommitOptions { durability: wanted.here, idempotency_key: None };
        let receipt = self.transaction.commit(options).await?;
        Ok(wanted.wait(session, &receipt, guard).await)
    }
}

impl Open {
    /// The transaction's writer for a database; a second database is refused.
    pub(crate) fn write(&mut self, engine: &Arc<Engine>, database: &str) -> Result<&mut Write> {
        let write = match self.write.take() {
            Some(write) if write.database != database => {
                let error = SqlError::new("0A000", format!("this transaction writes to database {:?}", write.database))
                    .detail(format!("a transaction writes to one database; {database:?} is another"))
                    .hint("COMMIT first, then write to the other database");
                self.write = Some(write);
                return Err(error);
            }
            Some(write) => write,
            None => Write::begin(engine, database)?,
        };
        Ok(self.write.insert(write))
    }
}

/// BEGIN.
pub(crate) async fn begin(session: &Session) -> Result<Outcome> {
    let mut open = session.open_transaction().lock().await;
    if open.is_some() {
        return Ok(Outcome::noted("BEGIN", "there is already a transaction in progress".to_owned()));
    }
    *open = Some(Open { before: session.settings(|settings| settings.clone()), write: None });
    session.status().set(State::Open);
    Ok(Outcome::done("BEGIN"))
}

/// COMMIT; of a failed transaction, ROLLBACK.
pub(crate) async fn commit(session: &Session, guard: &mut Guard) -> Result<Outcome> {
    if session.status().letter() == 'E' {
        return rollback(session).await;
    }
    let Some(open) = session.open_transaction().lock().await.take() else {
        return Ok(Outcome::noted("COMMIT", "there is no transaction in progress".to_owned()));
    };
    session.status().set(State::Idle);
    let result = match open.write {
        Some(write) => write.commit(session, guard).await,
        None => Ok(None),
    };
    session.settings(Settings::end_transaction);
    let notices = result?.into_iter().collect();
    Ok(Outcome::Done { tag: "COMMIT".to_owned(), notices })
}

/// ROLLBACK.
pub(crate) async fn rollback(session: &Session) -> Result<Outcome> {
    let open = session.open_transaction().lock().await.take();
    session.status().set(State::Idle);
    let Some(open) = open else {
        return Ok(Outcome::noted("ROLLBACK", "there is no transaction in progress".to_owned()));
    };
    session.settings(|settings| *settings = open.before);
    session.follow_search_path();
    if let Some(write) = open.write {
        write.transaction.abort().await?;
    }
    Ok(Outcome::done("ROLLBACK"))
}

/// A statement that failed leaves nothing of the transaction: its rows are given back at once.
pub(crate) async fn fail(session: &Session) {
    session.status().fail();
    if session.status().letter() == 'E'
        && let Some(open) = session.open_transaction().lock().await.as_mut()
        && let Some(write) = open.write.take()
        && let Err(error) = write.transaction.abort().await
    {
        tracing::warn!(%error, "a failed transaction could not be aborted cleanly");
    }
}
