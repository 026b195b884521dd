//! A session: one connection's settings, open transaction and prepared statements' planning.

use std::{num::NonZeroUsize, pin::Pin, sync::Arc, time::Duration};

use chrono::DateTime;
use datafusion::{
    arrow::datatypes::{DataType, Schema, SchemaRef},
    common::ScalarValue,
    execution::{
        SendableRecordBatchStream, SessionState, SessionStateBuilder,
        memory_pool::{FairSpillPool, TrackConsumersPool},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    physical_plan::ExecutionPlan,
    prelude::{SessionConfig, SessionContext},
};
use parking_lot::Mutex;
use tailrace_engine::TableVersion;
use tokio_util::sync::CancellationToken;

use crate::{
    Instance, Result, SqlError,
    execution::{QueryThreads, Yielding},
    feed, function, job, procedure,
    provider::{CATALOG, Catalog, PinnedVersion, partition_rows, register_store},
    remote::{Catalogs, PushDownAggregate},
    statement::{
        Kind, Parser, Statement, call, copy, ddl, drop_partition,
        guard::Guard,
        heading, insert,
        name::{self, RESERVED, TableName},
        query,
        settings::{self, Settings},
        transaction::{self, Open, Status},
    },
    system::{self, ClientFacts},
};

/// State shared by all sessions of a node, made once: the planning template with all functions and catalogs, the memory of
/// queries, and their threads.
#[derive(Debug, Clone)]
pub struct SessionFactory {
    instance: Arc<Instance>,
    threads: QueryThreads,
    template: Arc<SessionState>,
    parser: Arc<Parser>,
}

/// One connection. Statements of a session run one at a time.
#[derive(Debug)]
pub struct Session {
    instance: Arc<Instance>,
    threads: QueryThreads,
    parser: Arc<Parser>,
    user: String,
    /// The database of the connection, to which RESET returns.
    home: Option<String>,
    /// Planning state; its default schema is the current database.
    state: Mutex<SessionState>,
    settings: Mutex<Settings>,
    status: Status,
    transaction: tokio::sync::Mutex<Option<Open>>,
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
        notices: Vec<Notice>,
    },
}

/// What a client is told beside a statement's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// A warning, which clients show by default and scripts look for; otherwise a notice.
    pub is_warning: bool,
    /// Text.
    pub text: String,
}

impl Notice {
    /// A warning.
    pub(crate) fn warning(text: impl Into<String>) -> Self {
        Self { is_warning: true, text: text.into() }
    }
}

impl From<String> for Notice {
    fn from(text: String) -> Self {
        Self { is_warning: false, text }
    }
}

impl Outcome {
    /// A command without notices.
    pub(crate) fn done(tag: impl Into<String>) -> Self {
        Self::Done { tag: tag.into(), notices: Vec::new() }
    }

    /// A command with a notice.
    pub(crate) fn noted(tag: impl Into<String>, notice: String) -> Self {
        Self::Done { tag: tag.into(), notices: vec![notice.into()] }
    }
}

impl SessionFactory {
    /// Builds the template and starts the threads.
    pub async fn new(instance: Arc<Instance>) -> Result<Self> {
        let threads = QueryThreads::start(instance.threads())?;
        let runtime = runtime(&instance)?;
        let state = SessionStateBuilder::new()
            .with_config(planning(instance.threads()))
            .with_runtime_env(runtime)
            .with_default_features()
            .with_optimizer_rule(Arc::new(PushDownAggregate))
            .with_physical_optimizer_rule(Arc::new(Yielding))
            .build();
        let mut context = SessionContext::new_with_state(state);
        function::register(&mut context)?;
        context.register_catalog(CATALOG, Arc::new(Catalog::new(instance.engine.clone())));
        feed::register(&context, &instance.engine)?;
        partition_rows::register(&context, &instance.engine)?;
        system::register(&context, &instance)?;
        let mut template = context.state();
        let own = Arc::clone(template.catalog_list());
        template.register_catalog_list(Arc::new(Catalogs::new(own, Arc::clone(&instance.remotes))));
        Ok(Self { template: Arc::new(template), parser: Arc::new(Parser::new()), instance, threads })
    }

    /// The node.
    pub fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }

    /// A session in `database` (the startup packet's database; `None` or an unknown one: no current database, names
    /// must be qualified).
    pub fn session(&self, user: &str, database: Option<&str>) -> Session {
        let home = database.filter(|name| self.instance.engine.version().database(name).is_some()).map(str::to_owned);
        let mut state = (*self.template).clone();
        set_database(&mut state, home.as_deref());
        Session {
            instance: self.instance.clone(),
            threads: self.threads.clone(),
            parser: self.parser.clone(),
            user: user.to_owned(),
            home,
            state: Mutex::new(state),
            settings: Mutex::default(),
            status: Status::default(),
            transaction: tokio::sync::Mutex::new(None),
        }
    }
}

impl Session {
    /// Splits and parses a simple-query string; each statement is planned only when its turn comes.
    pub fn parse(&self, sql: &str) -> Result<Vec<Statement>> {
        self.parser.parse(sql)
    }

    /// Whether statements can be those of a job; says why not.
    pub(crate) fn check_job(&self, sql: &str) -> Result<()> {
        job::check_statement(&self.parser, sql)
    }

    /// Parameter types (`None` where nothing tells) and result schema, for Describe. A schema without fields: the
    /// statement returns no rows.
    pub async fn describe(&self, statement: &Statement) -> Result<(Vec<Option<DataType>>, SchemaRef)> {
        let parsed = statement.parsed();
        let (sql, count) = (&*parsed.sql, parsed.parameters);
        let nothing = || Arc::new(Schema::empty());
        Ok(match &parsed.kind {
            Kind::Query(query) => {
                let plan = query::plan(&self.planning_state(), query, sql).await?;
                (query::parameter_types(&plan, count)?, heading::headed(query, plan.schema().inner()))
            }
            Kind::Explain { query, .. } => {
                let plan = query::plan(&self.planning_state(), query, sql).await?;
                (query::parameter_types(&plan, count)?, query::explain_schema())
            }
            Kind::Insert(insert) => (insert.parameter_types(self, sql, count).await?, nothing()),
            Kind::Call { name, .. } => (vec![None; count], procedure::result_schema(name).unwrap_or_else(nothing)),
            Kind::Show(name) => (Vec::new(), settings::show_schema(name)?),
            Kind::ShowAll => (Vec::new(), settings::show_all_schema()),
            _ => (vec![None; count], nothing()),
        })
    }

    /// Runs it. `parameters` are typed values, `$1` first. The stream ends early when `cancel` fires.
    pub async fn execute(
        &self,
        statement: &Statement,
        parameters: Vec<ScalarValue>,
        cancel: CancellationToken,
    ) -> Result<Outcome> {
        let kind = &statement.parsed().kind;
        if self.status.letter() == 'E' && !matches!(kind, Kind::Commit | Kind::Rollback) {
            return Err(SqlError::new("25P02", "the transaction has failed: statements are ignored until it ends")
                .hint("ROLLBACK, then start again"));
        }
        let result = self.run(statement, &parameters, cancel).await;
        if result.is_err() {
            transaction::fail(self).await;
        }
        result
    }

    /// `I` idle, `T` in a transaction, `E` in a failed one.
    pub fn transaction_status(&self) -> char {
        self.status.letter()
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

    /// A setting's value as SHOW gives it; `None` for one that does not exist.
    pub fn setting(&self, name: &str) -> Option<String> {
        if name.eq_ignore_ascii_case("search_path") {
            return Some(self.current_database().unwrap_or_else(|| "\"$user\", public".to_owned()));
        }
        if name.eq_ignore_ascii_case("session_authorization") {
            return Some(self.user.clone());
        }
        let settings = self.settings.lock();
        match settings.statement_timeout() {
            None if name.eq_ignore_ascii_case("statement_timeout") => {
                Some(self.instance.config.statement_timeout.map_or(0, |limit| limit.as_millis()).to_string())
            }
            _ => settings.get(name).map(str::to_owned),
        }
    }

    /// Sets a setting, as SET or the startup packet does. Returns a notice for the client.
    pub fn set(&self, name: &str, value: &str) -> Result<Option<String>> {
        if name.eq_ignore_ascii_case("search_path") {
            self.use_database(&settings::databases(value))?;
        }
        self.settings.lock().set(name, Some(value), false)
    }

    /// Tells functions such as `pg_backend_pid()` who is connected; `pid` is the number that cancel requests name.
    pub(crate) fn introduce(&self, pid: i32) {
        let facts = ClientFacts { user: self.user.clone(), pid };
        self.state.lock().config_mut().options_mut().extensions.insert(facts);
    }

    /// State to plan and run one statement with: it pins the newest version.
    pub(crate) fn planning_state(&self) -> SessionState {
        let mut state = self.state.lock().clone();
        state.config_mut().set_extension(Arc::new(PinnedVersion(self.instance.engine.version())));
        state.mark_start_execution();
        // `now()` is what commits are stamped with.
        let now = DateTime::from_timestamp_micros(self.instance.engine.clock().now().0);
        state.execution_props_mut().query_execution_start_time = now;
        state
    }

    /// Where plans run.
    pub(crate) fn threads(&self) -> &QueryThreads {
        &self.threads
    }

    /// Starts a plan that was made with `state`.
    pub(crate) fn run_plan(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        state: &SessionState,
    ) -> Result<SendableRecordBatchStream> {
        self.threads.run(plan, state.task_ctx())
    }

    /// Reads or changes the settings.
    pub(crate) fn settings<T>(&self, with: impl FnOnce(&mut Settings) -> T) -> T {
        with(&mut self.settings.lock())
    }

    pub(crate) fn status(&self) -> &Status {
        &self.status
    }

    pub(crate) fn open_transaction(&self) -> &tokio::sync::Mutex<Option<Open>> {
        &self.transaction
    }

    /// Makes the first of `names` that exists the current database; without names, the connection's.
    pub(crate) fn use_database(&self, names: &[String]) -> Result<()> {
        if names.is_empty() {
            set_database(&mut self.state.lock(), self.home.as_deref());
            return Ok(());
        }
        let version = self.instance.engine.version();
        let exists = |name: &&String| version.database(name).is_some() || RESERVED.contains(&name.as_str());
        let found = names.iter().find(exists);
        let harmless = |name: &String| name == "$user" || name == NO_DATABASE || RESERVED.contains(&name.as_str());
        if found.is_none()
            && let Some(unknown) = names.iter().find(|name| !harmless(name))
        {
            return Err(name::no_database(&version, unknown));
        }
        set_database(&mut self.state.lock(), found.map(String::as_str));
        Ok(())
    }

    /// The current database follows a `search_path` that was set back.
    pub(crate) fn follow_search_path(&self) {
        let path = self.settings(|settings| settings.get("search_path").unwrap_or_default().to_owned());
        // It was valid when it was set; if its database is gone by now, the connection's own serves.
        if self.use_database(&settings::databases(&path)).is_err() {
            set_database(&mut self.state.lock(), self.home.as_deref());
        }
    }

    /// A table by name, with its database's name.
    pub(crate) fn resolve_table(&self, name: &TableName) -> Result<(String, Arc<TableVersion>)> {
        let current = self.current_database();
        let database = name.database(current.as_deref())?;
        let version = self.instance.engine.version();
        let Some(found) = version.database(&database) else {
            if RESERVED.contains(&database.as_str()) {
                return Err(SqlError::new("42501", format!("{database} is read-only: it shows what the server knows")));
            }
            return Err(name::no_database(&version, &database));
        };
        let table = found.table(&name.table).ok_or_else(|| name::no_table(found, &name.to_string(), &name.table))?;
        Ok((database, table.clone()))
    }

    async fn run(
        &self,
        statement: &Statement,
        parameters: &[ScalarValue],
        cancel: CancellationToken,
    ) -> Result<Outcome> {
        let parsed = statement.parsed();
        let (sql, count) = (&*parsed.sql, parsed.parameters);
        if parameters.len() < count {
            return Err(SqlError::new(
                "08P01",
                format!("the statement has {count} parameters, {} values were given", parameters.len()),
            ));
        }
        let status = self.status.clone();
        let mut guard = Guard::new(cancel, self.statement_timeout(), Arc::new(move || status.fail()));
        match &parsed.kind {
            Kind::Query(query) => {
                let rows = guard.run(boxed(|| query::start(self, query, sql, parameters, count))).await?;
                Ok(Outcome::Rows(guard.rows(heading::headed_rows(query, rows))))
            }
            Kind::Explain { query, analyze, verbose } => {
                let explain = boxed(|| query::explain(self, query, sql, (*analyze, *verbose), parameters, count));
                guard.run(explain).await
            }
            Kind::Insert(insert) => boxed(|| insert::insert(self, insert, sql, parameters, count, &mut guard)).await,
            Kind::Copy(copy) => boxed(|| copy::copy(self, copy, &mut guard)).await,
            Kind::DropPartition(drop) => boxed(|| drop_partition::drop_partition(self, drop, &mut guard)).await,
            Kind::Call { name, arguments } => {
                self.outside_transaction("CALL")?;
                let stop = CancellationToken::new();
                let called = boxed(|| call::call(self, name, arguments, parameters, &stop));
                // What changes something is not left in its middle: it is told, and ends where it can.
                let outcome = match procedure::may_end(name) {
                    true => guard.run(called).await?,
                    false => guard.stop(&stop, called).await?,
                };
                match outcome {
                    Outcome::Rows(rows) => Ok(Outcome::Rows(guard.rows(rows))),
                    done => Ok(done),
                }
            }
            Kind::CreateDatabase { name, if_not_exists } => {
                self.outside_transaction("CREATE DATABASE")?;
                ddl::create_database(self, name, *if_not_exists).await
            }
            Kind::DropDatabase { names, if_exists, restrict } => {
                self.outside_transaction("DROP DATABASE")?;
                ddl::drop_database(self, names, *if_exists, *restrict).await
            }
            Kind::CreateTable { name, definition, if_not_exists } => {
                self.outside_transaction("CREATE TABLE")?;
                ddl::create_table(self, name, definition, *if_not_exists, &mut guard).await
            }
            Kind::DropTable { names, if_exists } => {
                self.outside_transaction("DROP TABLE")?;
                ddl::drop_table(self, names, *if_exists, &mut guard).await
            }
            Kind::Set(set) => settings::set(self, set),
            Kind::Show(name) => settings::show(self, name),
            Kind::ShowAll => settings::show_all(self),
            Kind::Begin => transaction::begin(self).await,
            Kind::Commit => transaction::commit(self, &mut guard).await,
            Kind::Rollback => transaction::rollback(self).await,
            Kind::Discard(tag) => {
                if *tag == "DISCARD ALL" {
                    self.outside_transaction(tag)?;
                    self.settings(Settings::reset_all);
                    self.use_database(&[])?;
                }
                Ok(Outcome::done(*tag))
            }
        }
    }

    fn statement_timeout(&self) -> Option<Duration> {
        let own = self.settings.lock().statement_timeout();
        own.or(self.instance.config.statement_timeout).filter(|limit| !limit.is_zero())
    }

    /// What cannot be undone is refused within a transaction.
    fn outside_transaction(&self, what: &str) -> Result<()> {
        match self.status.letter() {
            'I' => Ok(()),
            _ => Err(SqlError::new("25001", format!("{what} cannot run inside a transaction")).hint("COMMIT first")),
        }
    }
}

impl Instance {
    /// Threads of queries.
    pub(crate) fn threads(&self) -> usize {
        match self.config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// Default schema of a session without a current database.
pub(crate) const NO_DATABASE: &str = "public";

fn set_database(state: &mut SessionState, name: Option<&str>) {
    state.config_mut().options_mut().catalog.default_schema = name.unwrap_or(NO_DATABASE).to_owned();
}

/// A future on the heap. It is made in a frame of its own: without optimization every arm of a `match` has its place on the
/// stack, all at once, and below are the planner's.
#[inline(never)]
fn boxed<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::pin(make())
}

/// How queries are planned.
fn planning(threads: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_default_catalog_and_schema(CATALOG, NO_DATABASE)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    let options = config.options_mut();
    options.sql_parser.dialect = datafusion::config::Dialect::PostgreSQL;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    options.execution.parquet.schema_force_view_types = false;
    // A datafile of a few MiB is worth two threads.
    options.optimizer.repartition_file_min_size = 1 << 20;
    config
}

fn runtime(instance: &Instance) -> Result<Arc<RuntimeEnv>> {
    let memory = usize::try_from(instance.config.memory_bytes).unwrap_or(usize::MAX);
    let named = NonZeroUsize::MIN.saturating_add(4);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory), named)))
        .build_arc()?;
    register_store(&runtime, &instance.engine)?;
    Ok(runtime)
}
