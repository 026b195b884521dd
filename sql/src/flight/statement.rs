//! Statements of Flight clients: what they may say, how it is run, and how rows go out.

use std::{pin::Pin, sync::Arc};

use arrow_flight::{FlightData, encode::FlightDataEncoderBuilder, error::FlightError};
use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{Field, Schema, SchemaRef},
    },
    common::ScalarValue,
    execution::SendableRecordBatchStream,
};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use tailrace_engine::Right;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::status::to_status;
use crate::{
    Outcome, Result, Session, SqlError, Statement, procedure,
    statement::{Kind, name::TableName},
};

/// Data on its way to a client.
pub(super) type Flights = Pin<Box<dyn Stream<Item = Result<FlightData, Status>> + Send>>;

/// What keeps a statement alive while its client is there, and ends it when the client goes.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) token: CancellationToken,
    pub(super) _cancel: DropGuard,
    pub(super) _slot: OwnedSemaphorePermit,
}

/// The one statement of a string, if its kind and the user's rights allow it here.
pub(super) fn parse(session: &Session, sql: &str) -> Result<Statement> {
    let mut statements = session.parse(sql)?;
    let statement = match statements.len() {
        0 => return Err(SqlError::syntax("the statement is empty")),
        1 => statements.remove(0),
        _ => {
            return Err(
                SqlError::syntax("there are several statements, and one result only").hint("send them one by one")
            );
        }
    };
    permitted(session, &statement)?;
    Ok(statement)
}

/// Whoever has a certificate may read. What changes something needs a right in its database; what belongs to a longer
/// session, or to whoever runs the node, has no place here.
fn permitted(session: &Session, statement: &Statement) -> Result<()> {
    let alone = |what: &str| {
        SqlError::unsupported(format!("{what} over Flight SQL"))
            .detail("Each statement has a session of its own and commits by itself.")
    };
    let check =
        |database: &str, right| Ok(session.instance().engine.check_rights(session.user(), database, &[right])?);
    let of_table = |table: &TableName, right| check(&table.database(session.current_database().as_deref())?, right);
    match &statement.parsed().kind {
        Kind::Query(_) | Kind::Explain { .. } | Kind::Show(_) | Kind::ShowAll => Ok(()),
        Kind::Insert(insert) => of_table(&insert.table, Right::Write),
        Kind::Copy(copy) => of_table(&copy.table, Right::Write),
        Kind::DropPartition(drop) => of_table(&drop.table, Right::Write),
        Kind::CreateDatabase { name, .. } => check(name, Right::Ddl),
        Kind::DropDatabase { names, .. } => names.iter().try_for_each(|name| check(name, Right::Ddl)),
        Kind::CreateTable { name, .. } => of_table(name, Right::Ddl),
        Kind::DropTable { names, .. } => names.iter().try_for_each(|name| of_table(name, Right::Ddl)),
        Kind::Call { name, .. } if procedure::only_waits(name) => Ok(()),
        Kind::Call { name, .. } => Err(SqlError::new("42501", format!("{name} cannot be called over Flight SQL"))
            .hint("call it at the node itself, through pgwire")),
        Kind::Begin | Kind::Commit | Kind::Rollback => Err(alone("a transaction block")),
        Kind::Set(_) | Kind::Discard(_) => Err(alone(statement.tag())),
    }
}

/// Runs a statement to its end, whatever becomes of the caller: it is cancelled then, never dropped, so that a commit is
/// whole.
pub(super) async fn execute(
    session: Arc<Session>,
    statement: Statement,
    parameters: Vec<ScalarValue>,
    token: &CancellationToken,
) -> Result<Outcome> {
    let token = token.clone();
    let running = tokio::spawn(async move { session.execute(&statement, parameters, token).await });
    running.await.map_err(|error| SqlError::internal(format!("the statement's task ended: {error}")))?
}

/// Runs one that changes something, once for each row of parameters, all rows in one transaction. Returns how many rows
/// were written.
pub(super) async fn update(
    session: Arc<Session>,
    statement: Statement,
    rows: Arc<Vec<Vec<ScalarValue>>>,
    token: &CancellationToken,
) -> Result<i64> {
    if let [] | [_] = rows.as_slice() {
        return count(execute(session, statement, rows.first().cloned().unwrap_or_default(), token).await?);
    }
    let token = token.clone();
    let running = tokio::spawn(async move {
        // On an error the transaction goes with the session.
        block(&session, "BEGIN", &token).await?;
        let mut written = 0;
        for row in rows.iter() {
            written += count(session.execute(&statement, row.clone(), token.clone()).await?)?;
        }
        block(&session, "COMMIT", &token).await?;
        Ok(written)
    });
    running.await.map_err(|error| SqlError::internal(format!("the statement's task ended: {error}")))?
}

/// Begins or ends a transaction block.
async fn block(session: &Session, sql: &str, token: &CancellationToken) -> Result<()> {
    for statement in session.parse(sql)? {
        session.execute(&statement, Vec::new(), token.clone()).await?;
    }
    Ok(())
}

/// Rows of a command's tag.
fn count(outcome: Outcome) -> Result<i64> {
    match outcome {
        Outcome::Done { tag, .. } => Ok(tag.rsplit(' ').next().and_then(|rows| rows.parse().ok()).unwrap_or(0)),
        Outcome::Rows(_) => {
            Err(SqlError::syntax("the statement returns rows").hint("execute it as a query, not as an update"))
        }
    }
}

/// A result schema as clients are told it beforehand and get it then: without metadata, and with NULL everywhere, as
/// planning and running need not agree in what they know about either.
pub(super) fn told(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A statement's rows as they come, as fast as the client reads.
pub(super) fn flights(outcome: Outcome, ticket: Ticket) -> Flights {
    let rows: SendableRecordBatchStream = match outcome {
        Outcome::Rows(rows) => rows,
        Outcome::Done { .. } => return encode(Arc::new(Schema::empty()), stream::empty().boxed(), None),
    };
    let schema = told(&rows.schema());
    let relabelled = schema.clone();
    let token = ticket.token.clone();
    let batches = rows.map(move |batch| {
        let batch = batch.map_err(SqlError::from).and_then(|batch| {
            Ok(RecordBatch::try_new_with_options(
                relabelled.clone(),
                batch.columns().to_vec(),
                &datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows())),
            )?)
        });
        batch.map_err(|error| cancelled(error, &token))
    });
    encode(schema, batches.boxed(), Some(ticket))
}

/// Batches that are there already.
pub(super) fn flights_of(batch: RecordBatch) -> Flights {
    encode(batch.schema(), stream::iter([Ok(batch)]).boxed(), None)
}

/// The server's stop looks like a client's cancel from within.
fn cancelled(error: SqlError, token: &CancellationToken) -> SqlError {
    match token.is_cancelled() && error.sqlstate == "57014" {
        true => SqlError::new("57P01", "the server is shutting down").hint("connect again when it is back"),
        false => error,
    }
}

fn encode(
    schema: SchemaRef,
    batches: stream::BoxStream<'static, Result<RecordBatch>>,
    ticket: Option<Ticket>,
) -> Flights {
    let batches = batches.map_err(|error| FlightError::from(to_status(&error)));
    let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
    Box::pin(encoded.map(move |data| {
        // Goes with the stream.
        let _ = &ticket;
        data.map_err(Status::from)
    }))
}
