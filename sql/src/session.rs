//! A session: one connection's settings, open transaction and prepared statements' planning.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, SchemaRef},
    common::ScalarValue,
    execution::{
        SendableRecordBatchStream, SessionState, SessionStateBuilder,
        memory_pool::{FairSpillPool, TrackConsumersPool},
        runtime_env::RuntimeEnvBuilder,
    },
    prelude::{SessionConfig, SessionContext},
};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    Instance, Result, SqlError,
    provider::{CATALOG, Catalog},
    system,
};

/// State shared by all sessions of a node, made once: the planning template with all functions and catalogs.
#[derive(Debug, Clone)]
pub struct SessionFactory {
    instance: Arc<Instance>,
    template: Arc<SessionState>,
}

/// One connection. Statements of a session run one at a time.
#[derive(Debug)]
pub struct Session {
    instance: Arc<Instance>,
    user: String,
    /// Planning state; its default schema is the current database.
    state: Mutex<SessionState>,
}

/// A parsed, checked and (where it is a query) planned statement.
#[derive(Debug, Clone)]
pub struct Statement {
    _private: (),
}

/// What a statement gives.
pub enum Outcome {
    /// Rows, as they come.
    Rows(SendableRecordBatchStream),
    /// A command: its tag (`INSERT 0 3`, `CREATE TABLE`) and notices.
    Done {
        /// Command tag.
        tag: String,
        /// Warnings and notices for the client.
        notices: Vec<String>,
    },
}

impl SessionFactory {
    /// Builds the template.
    pub async fn new(instance: Arc<Instance>) -> Result<Self> {
        let threads = match instance.config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        };
        let mut config = SessionConfig::new()
            .with_target_partitions(threads)
            .with_default_catalog_and_schema(CATALOG, NO_DATABASE)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            .with_parquet_pruning(true);
        let options = config.options_mut();
        options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
        options.sql_parser.map_string_types_to_utf8view = false;
        options.execution.parquet.pushdown_filters = true;
        options.execution.parquet.reorder_filters = true;
        options.execution.parquet.schema_force_view_types = false;

        let memory = usize::try_from(instance.config.memory_bytes).unwrap_or(usize::MAX);
        let consumers = std::num::NonZeroUsize::MIN.saturating_add(4);
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory), consumers)))
            .build_arc()
            .map_err(|error| SqlError::new("58000", format!("the query runtime did not start: {error}")))?;
        let state =
            SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
        let context = SessionContext::new_with_state(state);
        context.register_catalog(CATALOG, Arc::new(Catalog::new(instance.engine.clone())));
        system::register(&context, &instance)?;
        Ok(Self { template: Arc::new(context.state()), instance })
    }

    /// A session in `database` (the startup packet's database; `None` or an unknown one: no current database, names
    /// must be qualified).
    pub fn session(&self, user: &str, database: Option<&str>) -> Session {
        let mut state = (*self.template).clone();
        let database = database.filter(|name| self.instance.engine.version().database(name).is_some());
        state.config_mut().options_mut().catalog.default_schema = database.unwrap_or(NO_DATABASE).to_owned();
        Session { instance: self.instance.clone(), user: user.to_owned(), state: Mutex::new(state) }
    }
}

impl Session {
    /// Splits and parses a simple-query string; each statement is planned only when its turn comes.
    pub fn parse(&self, _sql: &str) -> Result<Vec<Statement>> {
        todo!()
    }

    /// Parameter types (`None` where nothing tells) and result schema, for Describe. A schema without fields: the
    /// statement returns no rows.
    pub async fn describe(&self, _statement: &Statement) -> Result<(Vec<Option<DataType>>, SchemaRef)> {
        todo!()
    }

    /// Runs it. `parameters` are typed values, `$1` first. The stream ends early when `cancel` fires.
    pub async fn execute(
        &self,
        _statement: &Statement,
        _parameters: Vec<ScalarValue>,
        _cancel: CancellationToken,
    ) -> Result<Outcome> {
        todo!()
    }

    /// `I` idle, `T` in a transaction, `E` in a failed one.
    pub fn transaction_status(&self) -> char {
        todo!()
    }

    /// The node.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// Who is connected.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database in which unqualified names are looked up.
    pub fn current_database(&self) -> Option<String> {
        let state = self.state.lock();
        let schema = &state.config_options().catalog.default_schema;
        (schema != NO_DATABASE).then(|| schema.clone())
    }
}

/// Default schema of a session without a current database.
const NO_DATABASE: &str = "public";
