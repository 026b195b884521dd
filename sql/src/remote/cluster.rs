//! One cluster, and what is asked of it.

use std::sync::Arc;

use arrow_flight::{
    FlightInfo, error::FlightError, flight_service_client::FlightServiceClient, sql::client::FlightSqlServiceClient,
};
use datafusion::{
    arrow::{
        array::RecordBatch,
        datatypes::{Schema, SchemaRef},
    },
    error::DataFusionError,
    execution::SendableRecordBatchStream,
    physical_plan::stream::RecordBatchStreamAdapter,
};
use futures::{StreamExt, TryStreamExt, stream};
use tailrace_engine::RemoteCluster;
use tokio::runtime::Handle;
use tonic::{Status, transport::Channel};

use super::{
    Certificates,
    connect::{connect, innermost},
};
use crate::{
    Result, SqlError,
    flight::{SENT_BYTES_MAX, status::from_status},
};

/// A declared cluster. Its connection is made when it is first needed and shared.
#[derive(Debug)]
pub struct Remote {
    name: String,
    cluster: RemoteCluster,
    certificates: Certificates,
    /// Where its connection lives. `None`: where it is made.
    home: Option<Handle>,
    /// The connection, if there is one, and the address to begin with when there is none.
    connection: tokio::sync::Mutex<(usize, Option<Channel>)>,
}

type Client = FlightSqlServiceClient<Channel>;

/// Where a call went.
#[derive(Debug, Clone)]
struct Place {
    index: usize,
    /// Cluster and address, for errors.
    words: Arc<str>,
}

impl Remote {
    pub(super) fn new(name: &str, cluster: RemoteCluster, certificates: Certificates, home: Option<Handle>) -> Self {
        Self { name: name.to_owned(), cluster, certificates, home, connection: tokio::sync::Mutex::default() }
    }

    /// Its name here.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn declared(&self) -> &RemoteCluster {
        &self.cluster
    }

    /// The columns of a query's result; the query is planned there, not run.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn schema(&self, sql: &str) -> Result<SchemaRef> {
        let (place, _, info) = self.plan(sql).await?;
        schema(&place, &info)
    }

    /// Runs a query there. Rows come as they are read: when nobody reads, nothing is sent; when the stream is dropped, the
    /// query there ends.
    ///
    /// # Errors
    /// `08001` when no address answers, `08006` when the connection breaks, with the cluster and its address; else what
    /// the cluster says, under the SQLSTATE that it gave. The stream's errors are [`DataFusionError::External`] with a
    /// [`SqlError`] in it.
    pub async fn query(&self, sql: &str) -> Result<SendableRecordBatchStream> {
        let (place, client, info) = self.plan(sql).await?;
        let schema = schema(&place, &info)?;
        let tickets: Vec<_> = info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket).collect();
        let expected = schema.clone();
        let batches = stream::iter(tickets).then(move |ticket| {
            let (mut client, place, expected) = (client.clone(), place.clone(), expected.clone());
            async move {
                let batches = client.do_get(ticket).await.map_err(|error| place.error(error))?;
                let checked = batches.map(move |batch| {
                    let batch = batch.map_err(|error| place.error(error))?;
                    place.check(batch, &expected)
                });
                Ok::<_, SqlError>(checked)
            }
        });
        let batches = batches.try_flatten().map_err(|error| DataFusionError::External(Box::new(error)));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }

    /// Has a query planned. A connection that turns out to be broken is made anew once, at the next address.
    async fn plan(&self, sql: &str) -> Result<(Place, Client, FlightInfo)> {
        let mut again = true;
        loop {
            let (place, mut client) = self.client().await?;
            match client.execute(sql.to_owned(), None).await {
                Ok(info) => return Ok((place, client, info)),
                Err(error) if again && is_broken(&error) => {
                    again = false;
                    self.leave(&place).await;
                }
                Err(error) => return Err(place.error(error)),
            }
        }
    }

    /// The connection; made if there is none, with the first address that answers.
    async fn client(&self) -> Result<(Place, Client)> {
        let mut connection = self.connection.lock().await;
        let (first, channel) = &mut *connection;
        if let Some(channel) = channel {
            return Ok((self.place(*first), client(channel.clone())));
        }
        let count = self.cluster.addresses.len();
        let mut reasons = Vec::new();
        for index in (0..count).map(|step| (*first + step) % count) {
            let address = &self.cluster.addresses[index];
            match self.connect(address).await {
                Ok(made) => {
                    tracing::debug!(cluster = self.name, address, "connected");
                    (*first, *channel) = (index, Some(made.clone()));
                    return Ok((self.place(index), client(made)));
                }
                Err(reason) => reasons.push(format!("{address}: {reason}")),
            }
        }
        Err(SqlError::new("08001", format!("remote cluster {:?} cannot be reached: {}", self.name, reasons.join("; ")))
            .hint(
                "is it running, does it listen with listen.flight, and did the same authority sign both certificates?",
            ))
    }

    /// Connects to one address. What keeps the connection alive must not wait for the threads of queries.
    async fn connect(&self, address: &str) -> Result<Channel, String> {
        let (address, cluster, certificates) = (address.to_owned(), self.cluster.clone(), self.certificates.clone());
        let connecting = async move { connect(&address, &cluster, &certificates).await };
        match &self.home {
            Some(home) => home.spawn(connecting).await.map_err(|error| error.to_string())?,
            None => connecting.await,
        }
    }

    /// Gives a broken connection up, unless another is there already.
    async fn leave(&self, place: &Place) {
        let mut connection = self.connection.lock().await;
        if connection.0 == place.index {
            *connection = ((place.index + 1) % self.cluster.addresses.len(), None);
        }
    }

    fn place(&self, index: usize) -> Place {
        let words = format!("remote cluster {:?} at {}", self.name, self.cluster.addresses[index]);
        Place { index, words: words.into() }
    }
}

impl Place {
    /// An error, with where it comes from.
    fn error(&self, error: FlightError) -> SqlError {
        let (sqlstate, reason) = match &error {
            FlightError::Tonic(status) => match from_status(status) {
                Some(mut error) => {
                    error.message = format!("{}: {}", self.words, error.message);
                    return error;
                }
                None => ("08006", describe(status)),
            },
            other => ("08P01", other.to_string()),
        };
        SqlError::new(sqlstate, format!("{}: {reason}", self.words))
    }

    /// A batch must have the columns that were announced.
    fn check(&self, batch: RecordBatch, expected: &SchemaRef) -> Result<RecordBatch> {
        let found = batch.schema();
        let same = found.fields().len() == expected.fields().len()
            && found.fields().iter().zip(expected.fields()).all(|(one, other)| one.data_type() == other.data_type());
        match same {
            true => Ok(batch.with_schema(expected.clone())?),
            false => Err(SqlError::new("0A000", format!("{}: the columns changed meanwhile", self.words))
                .hint("run the statement again")),
        }
    }
}

fn client(channel: Channel) -> Client {
    // A message has a header beside what the sender counts.
    let inner = FlightServiceClient::new(channel).max_decoding_message_size(SENT_BYTES_MAX + (1 << 20));
    FlightSqlServiceClient::new_from_inner(inner)
}

fn schema(place: &Place, info: &FlightInfo) -> Result<SchemaRef> {
    let schema: Schema = info.clone().try_decode_schema().map_err(|error| place.error(error.into()))?;
    Ok(Arc::new(schema))
}

/// Whether the connection failed, rather than what was asked.
fn is_broken(error: &FlightError) -> bool {
    match error {
        FlightError::Tonic(status) => {
            from_status(status).is_none() && (status.code() == tonic::Code::Unavailable || has_cause(status))
        }
        _ => false,
    }
}

fn has_cause(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// Words of a status that does not come from a statement.
fn describe(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => format!("the connection broke: {}", innermost(source)),
        None if status.message().is_empty() => format!("{:?}", status.code()),
        None => status.message().to_owned(),
    }
}
