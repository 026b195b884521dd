//! The calls of Flight SQL.

use std::sync::Arc;

use arrow_flight::{
    Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage, SchemaAsIpc,
    Ticket as FlightTicket,
    decode::FlightRecordBatchStream,
    error::FlightError,
    flight_service_server::FlightService,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
        CommandGetCatalogs, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes,
        CommandGetTables, CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementQuery,
        CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
        server::{FlightSqlService, PeekableFlightDataStream},
    },
};
use bytes::Bytes;
use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{DataType, Field, Schema},
        ipc::writer::IpcWriteOptions,
    },
    common::ScalarValue,
};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    listener::Peer,
    metadata,
    prepared::PreparedStatements,
    statement::{self, Flights, Ticket, flights, flights_of, told},
    status::to_status,
};
use crate::{Result, Session, SessionFactory, SqlError};

/// Most rows of parameters that can be bound at once, and most bytes of them.
const BOUND_ROWS_MAX: usize = 64 << 10;
const BOUND_BYTES_MAX: usize = 8 << 20;

/// Serves all connections.
pub(super) struct Service {
    pub(super) factory: SessionFactory,
    pub(super) prepared: Arc<PreparedStatements>,
    /// One for each statement that runs.
    pub(super) running: Arc<Semaphore>,
    /// Fires when the server stops.
    pub(super) stop: CancellationToken,
}

/// A call, and who makes it.
struct Caller {
    name: Arc<str>,
    session: Arc<Session>,
}

impl Service {
    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let Some(peer) = request.extensions().get::<Peer>() else {
            return Err(Status::unauthenticated("the connection has no certificate"));
        };
        tracing::trace!(user = %peer.name, address = %peer.address, "a Flight call");
        let session = self.factory.session(&peer.name, None);
        // There is no number by which another could cancel its statements.
        session.introduce(0);
        Ok(Caller { name: Arc::clone(&peer.name), session: Arc::new(session) })
    }

    fn ticket(&self) -> Result<Ticket> {
        let slot = Arc::clone(&self.running).try_acquire_owned().map_err(|_| {
            SqlError::new("53300", "too many statements run over Flight SQL").hint("try again when some have ended")
        })?;
        let token = self.stop.child_token();
        Ok(Ticket { _cancel: token.clone().drop_guard(), token, _slot: slot })
    }

    fn now(&self, caller: &Caller) -> std::time::Duration {
        caller.session.instance().engine.clock().monotonic()
    }

    async fn rows(
        &self,
        caller: Caller,
        statement: crate::Statement,
        parameters: Vec<ScalarValue>,
    ) -> Result<Response<Flights>> {
        let ticket = self.ticket()?;
        let session = Arc::clone(&caller.session);
        let outcome = statement::execute(session, statement, parameters, &ticket.token).await;
        let outcome = outcome.inspect_err(|error| {
            tracing::debug!(user = %caller.name, sqlstate = %error.sqlstate, %error, "statement failed");
        })?;
        Ok(Response::new(flights(outcome, ticket)))
    }
}

/// A plan of one endpoint, here, whose ticket is `ticket`.
fn info(descriptor: FlightDescriptor, schema: &Schema, ticket: &impl ProstMessageExt) -> Result<Response<FlightInfo>> {
    let endpoint = FlightEndpoint::new().with_ticket(FlightTicket::new(ticket.as_any().encode_to_vec()));
    let info = FlightInfo::new().try_with_schema(schema)?.with_endpoint(endpoint).with_descriptor(descriptor);
    Ok(Response::new(info))
}

fn told_status(result: Result<Response<FlightInfo>>) -> Result<Response<FlightInfo>, Status> {
    result.map_err(|error| to_status(&error))
}

fn ipc(schema: &Schema) -> Result<Bytes> {
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into()?;
    Ok(bytes)
}

fn batch(built: Result<RecordBatch>) -> Result<Response<Flights>, Status> {
    built.map(|batch| Response::new(flights_of(batch))).map_err(|error| to_status(&error))
}

/// Reads rows of parameters. The work of decoding is a task of its own: whatever a peer sends, it ends this call alone.
async fn bound(data: PeekableFlightDataStream) -> Result<Vec<Vec<ScalarValue>>> {
    let reading = tokio::spawn(async move {
        let wrong = |error: FlightError| SqlError::new("22P03", format!("the parameters cannot be read: {error}"));
        // The first message may name the statement only.
        let data = data.try_filter(|data| std::future::ready(!data.data_header.is_empty()));
        let mut batches = FlightRecordBatchStream::new_from_flight_data(data.map_err(FlightError::from));
        let (mut rows, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(wrong)?;
            bytes += batch.get_array_memory_size();
            if rows.len() + batch.num_rows() > BOUND_ROWS_MAX || bytes > BOUND_BYTES_MAX {
                return Err(SqlError::new("54000", "too many parameters are bound at once")
                    .detail(format!("The limits are {BOUND_ROWS_MAX} rows and {} MiB.", BOUND_BYTES_MAX >> 20))
                    .hint("bind fewer rows at a time"));
            }
            for row in 0..batch.num_rows() {
                let values = batch.columns().iter().map(|column| ScalarValue::try_from_array(column, row));
                rows.push(values.collect::<Result<Vec<_>, _>>()?);
            }
        }
        Ok(rows)
    });
    reading.await.map_err(|_| SqlError::new("22P03", "the parameters cannot be read: they are damaged"))?
}

#[tonic::async_trait]
impl FlightSqlService for Service {
    type FlightService = Self;

    /// The certificate said who it is; whatever name and password come, nothing more is needed.
    async fn do_handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<<Self as FlightService>::HandshakeStream>, Status> {
        let answer = HandshakeResponse { protocol_version: 0, payload: Bytes::new() };
        Ok(Response::new(stream::iter([Ok(answer)]).boxed()))
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let caller = self.caller(&request)?;
        told_status(
            async {
                let _slot = self.ticket()?;
                refuse_transaction(query.transaction_id.as_ref())?;
                let statement = statement::parse(&caller.session, &query.query)?;
                let (_, schema) = caller.session.describe(&statement).await?;
                // The statement itself is the ticket: nothing is kept here for whoever never comes for it.
                let ticket = TicketStatementQuery { statement_handle: query.query.into() };
                info(request.into_inner(), &told(&schema), &ticket)
            }
            .await,
        )
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        let caller = self.caller(&request)?;
        let rows = async {
            let sql = std::str::from_utf8(&ticket.statement_handle)
                .map_err(|_| SqlError::new("22021", "the ticket is not one of this server"))?;
            let statement = statement::parse(&caller.session, sql)?;
            self.rows(caller, statement, Vec::new()).await
        };
        rows.await.map_err(|error| to_status(&error))
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let caller = self.caller(&request)?;
        let written = async {
            refuse_transaction(command.transaction_id.as_ref())?;
            let ticket = self.ticket()?;
            let statement = statement::parse(&caller.session, &command.query)?;
            statement::update(caller.session, statement, Arc::default(), &ticket.token).await
        };
        written.await.map_err(|error| to_status(&error))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let caller = self.caller(&request)?;
        let prepared = async {
            let _slot = self.ticket()?;
            refuse_transaction(query.transaction_id.as_ref())?;
            let statement = statement::parse(&caller.session, &query.query)?;
            let (types, schema) = caller.session.describe(&statement).await?;
            // A type that nothing tells is NULL's: clients may bind any other.
            let parameters = types
                .into_iter()
                .enumerate()
                .map(|(index, of)| Field::new(format!("${}", index + 1), of.unwrap_or(DataType::Null), true));
            let parameters = Schema::new(parameters.collect::<Vec<_>>());
            let schema = told(&schema);
            let handle = self.prepared.insert(self.now(&caller), &caller.name, statement, schema.clone())?;
            Ok(ActionCreatePreparedStatementResult {
                prepared_statement_handle: handle,
                dataset_schema: ipc(&schema)?,
                parameter_schema: ipc(&parameters)?,
            })
        };
        prepared.await.map_err(|error: SqlError| to_status(&error))
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        let caller = self.caller(&request)?;
        self.prepared.remove(&caller.name, &query.prepared_statement_handle);
        Ok(())
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let caller = self.caller(&request)?;
        let prepared = self.prepared.get(self.now(&caller), &caller.name, &query.prepared_statement_handle);
        told_status(prepared.and_then(|prepared| info(request.into_inner(), &prepared.columns, &query)))
    }

    async fn do_get_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        let caller = self.caller(&request)?;
        let rows = async {
            let prepared = self.prepared.get(self.now(&caller), &caller.name, &query.prepared_statement_handle)?;
            if prepared.parameters.len() > 1 {
                return Err(SqlError::unsupported("a query for several rows of parameters").hint("bind one row"));
            }
            let parameters = prepared.parameters.first().cloned().unwrap_or_default();
            self.rows(caller, prepared.statement, parameters).await
        };
        rows.await.map_err(|error| to_status(&error))
    }

    async fn do_put_prepared_statement_query(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let caller = self.caller(&request)?;
        let handle = query.prepared_statement_handle;
        let binding = async {
            self.prepared.get(self.now(&caller), &caller.name, &handle)?;
            let rows = bound(request.into_inner()).await?;
            self.prepared.bind(self.now(&caller), &caller.name, &handle, rows)
        };
        binding.await.map_err(|error| to_status(&error))?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        query: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let caller = self.caller(&request)?;
        let written = async {
            let handle = query.prepared_statement_handle;
            let prepared = self.prepared.get(self.now(&caller), &caller.name, &handle)?;
            let ticket = self.ticket()?;
            // Parameters come with the call, or were bound before.
            let rows = bound(request.into_inner()).await?;
            let rows = if rows.is_empty() { prepared.parameters } else { Arc::new(rows) };
            statement::update(caller.session, prepared.statement, rows, &ticket.token).await
        };
        written.await.map_err(|error| to_status(&error))
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        told_status(info(request.into_inner(), &query.into_builder().schema(), &query))
    }

    async fn do_get_catalogs(
        &self,
        query: CommandGetCatalogs,
        _: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        batch(metadata::catalogs(query))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        told_status(info(request.into_inner(), &query.clone().into_builder().schema(), &query))
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        let caller = self.caller(&request)?;
        batch(metadata::schemas(&caller.session, query))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        told_status(info(request.into_inner(), &query.clone().into_builder().schema(), &query))
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        let caller = self.caller(&request)?;
        batch(metadata::tables(&caller.session, query).await)
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        told_status(info(request.into_inner(), &query.into_builder().schema(), &query))
    }

    async fn do_get_table_types(
        &self,
        query: CommandGetTableTypes,
        _: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        batch(metadata::table_types(query))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = metadata::sql_info_schema(query.clone());
        told_status(schema.and_then(|schema| info(request.into_inner(), &schema, &query)))
    }

    async fn do_get_sql_info(
        &self,
        query: CommandGetSqlInfo,
        _: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        batch(metadata::sql_info(query))
    }

    async fn get_flight_info_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        told_status(info(request.into_inner(), &metadata::primary_key_schema(), &query))
    }

    async fn do_get_primary_keys(
        &self,
        query: CommandGetPrimaryKeys,
        _: Request<FlightTicket>,
    ) -> Result<Response<Flights>, Status> {
        batch(Ok(metadata::primary_keys(&query)))
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

fn refuse_transaction(id: Option<&Bytes>) -> Result<()> {
    match id {
        Some(id) if !id.is_empty() => Err(SqlError::unsupported("a transaction block over Flight SQL")),
        _ => Ok(()),
    }
}
